"""The model of --from: what it is, and the config with which its encoder is fine-tuned."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from w2v_jax import methods
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config, flatten, load
from w2v_jax.profiling.recipes.rules import FINE_TUNED, REGULARISED, Init, amount_of
from w2v_jax.training.warm_start import encoder_changes
from w2v_jax.training.workdir import has_checkpoint, read_config, run_folder


def described(path: str, labelled_hours: float) -> Init:
    """What --from is. Downloaded files are converted in a scratch folder, to see what they hold. Raises UserError."""
    place = run_folder(path)
    if not place.exists():
        raise UserError(f"--from {path} does not exist; give the folder of a run or downloaded files of a model")
    try:
        is_run, config = True, read_config(place)
    except UserError:
        is_run, config = False, _converted(str(place))
    if is_run and not has_checkpoint(place):
        raise UserError(f"--from {path}: this run has saved no checkpoint yet; train it for longer, or give another")
    return fine_tuning(path, config, labelled_hours, is_run=is_run)


def fine_tuning(path: str, config: Config, labelled_hours: float, *, is_run: bool) -> Init:
    """The config of a recogniser for the encoder of a run with this config. Raises UserError where there is none."""
    method = methods.load(config)
    if method.reusable and method.encoder.kind == "wav2vec2":
        name, changes = f"finetune.py:{amount_of(labelled_hours)}", {}
    elif config.method in ("cpc", "wav2vec"):
        name, changes = f"acoustic_frozen.py:{config.method}_demo", {**REGULARISED, **FINE_TUNED}
    else:
        raise UserError(
            f"--from {path}: a recogniser cannot be fine-tuned from {config.method}; docs/recognition.md, Which "
            "encoders, says how its features are used"
        )
    changes |= encoder_changes(load(name), config)
    further = continued(config)
    return Init(path, is_run=is_run, method=config.method, config=name, changes=changes, pretraining=further)


HEADS = ("quantizer.groups", "quantizer.codes", "quantizer.dim", "loss.proj")
"""The keys that shape what wav2vec 2.0 has beside its encoder."""


def continued(config: Config) -> tuple[str, dict[str, Any]] | None:
    """The config and changed keys with which the pretraining of a run with this config goes on; None where it cannot.

    wav2vec 2.0 can, where its quantizer came along. Others need new units first, or heads that files lack. The learning
    rate is a tenth of the paper's, and the temperature begins where Base's ends (docs/how/continue.md).
    """
    if config.method != "wav2vec2" or not config.quantizer.groups:
        return None
    size = lambda name: len(encoder_changes(load(name), config))
    name = min(("w2v2_base.py", "w2v2_large.py"), key=size)
    usual, known = load(name), flatten(config)
    changes = encoder_changes(usual, config)
    changes |= {key: known[key] for key in HEADS if flatten(usual)[key] != known[key]}
    last, decay = usual.quantizer.temperature[1:]
    return name, changes | {"optim.peak": usual.optim.peak / 10, "quantizer.temperature": (0.5, last, decay)}


def _converted(path: str) -> Config:
    with tempfile.TemporaryDirectory(prefix="w2v-jax-recipe-") as scratch:
        run = pathlib.Path(scratch) / "run"
        command = [sys.executable, "-m", "w2v_jax.convert", "--from", path, "--to", str(run)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"--from {path}: {(done.stderr.strip() or done.stdout.strip()).removeprefix('error: ')}")
        return read_config(run)
