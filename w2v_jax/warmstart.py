"""Starting from another run (`config.init`): a recogniser from its encoder, a pretraining from all of its parameters.

Nothing is taken over that does not fit, and nothing starts anew in silence: a pretraining names what is to be fresh
(`init.fresh`, regular expressions on the paths of parameters).
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

from w2v_jax import checkpoint
from w2v_jax import config as configs
from w2v_jax.api import PyTree
from w2v_jax.config import UserError
from w2v_jax.data.index import WAVE, Form
from w2v_jax.foreign import by_path, nest
from w2v_jax.runs import form_of, read_config

ENCODER_OF = {"wav2vec2": "wav2vec2", "cpc": "causal", "wav2vec": "causal", "bert_codes": "codes", "ctc": ""}
"""Methods whose encoder another model can start from, and its `encoder.kind`; "" where the run says it itself."""
ANY_VALUE = ("kind", "frozen", "frozen_steps", "conv_grad_scale", "layer_drop", "padding_aware", "max_frames")
ANY_VALUE += ("attention", "convolution", "positional", "stack", "remat_frontend", "remat_layers")
SHOWN = 10


def warm_params(config: Any, params: PyTree, form: Form) -> PyTree:
    """The parameters [nested dicts] that the run config.init.run gives: to be put over `params`, or their shapes.

    For CTC the encoder; for a pretraining all that `init.fresh` does not name. Raises UserError, with every
    difference, when that run's encoder is another one than the config describes, when it read other data (waves that
    were normalised otherwise, codes of another vocabulary), or when parameters do not fit.
    """
    path = pathlib.Path(config.init.run).expanduser()
    try:
        other = read_config(path)
    except UserError as error:
        raise UserError(f"init.run: {error}") from None
    whole = "fresh" in config.init
    if whole and other.method != config.method:
        raise UserError(f"init.run: {path} is a run of {other.method}, and this is one of {config.method}")
    if not whole:
        _check_kind(config, other, path)
    _check_encoder(config, other, path)
    if form != WAVE and form != form_of(path):
        raise UserError(
            f"init.run: {path} was trained on other {form.name} ({form_of(path).made_by}, here {form.made_by})"
        )
    step = {"": None, "best": "best"}.get(config.init.step, config.init.step)
    weights = checkpoint.restore_params(path, step=int(step) if str(step).isdigit() else step)
    found, wanted = by_path(weights.params), by_path(params)
    if "moved" in weights.extra:  # where k-means put codes that nobody used
        found["quantizer/codebook"] = found["quantizer/codebook"] + weights.extra["moved"]
    if whole:
        fresh = [_pattern(text) for text in config.init.fresh]
        if idle := [p.pattern for p in fresh if not any(p.search(name) for name in wanted)]:
            parts = sorted({name.partition("/")[0] for name in wanted})
            raise UserError(f"init.fresh: {idle[0]!r} names no parameter; they are in {', '.join(parts)}")
        named = lambda name: any(pattern.search(name) for pattern in fresh)
        found, wanted = ({k: v for k, v in tree.items() if not named(k)} for tree in (found, wanted))
    else:
        found, wanted = ({k: v for k, v in tree.items() if k.startswith("encoder/")} for tree in (found, wanted))
    shapes, have = ({name: tuple(x.shape) for name, x in tree.items()} for tree in (wanted, found))
    wrong = [
        f"{name}: {have.get(name, 'nothing')} there, {shapes.get(name, 'nothing')} here"
        for name in sorted(shapes.keys() | have.keys())
        if have.get(name) != shapes.get(name)
    ]
    if wrong:
        more = f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        hint = "\nname what is to start anew, e.g. --config.init.fresh=^quantizer/,_proj/" if whole else ""
        raise UserError(
            f"init.run: the parameters of {path} do not fit:\n  " + "\n  ".join(wrong[:SHOWN]) + more + hint
        )
    return nest(found)


def _check_kind(config: Any, other: Any, path: pathlib.Path) -> None:
    if other.method not in ENCODER_OF:
        raise UserError(
            f"init.run: the context of {other.method} ({path}) does not read what encoder.kind={config.encoder.kind} "
            "would give it; extract its features and learn from those (configs/acoustic_frozen.py:features)"
        )
    kind = ENCODER_OF[other.method] or other.encoder.kind
    if kind != config.encoder.kind:
        raise UserError(
            f"init.run: {path} ({other.method}) has an encoder of kind {kind!r}, and encoder.kind is "
            f"{config.encoder.kind!r}: take a config with the encoder section of that run, or extract its features and "
            "learn from those (configs/acoustic_frozen.py:features)"
        )


def _check_encoder(config: Any, other: Any, path: pathlib.Path) -> None:
    ours, theirs = (
        {f"encoder.{k}": v for k, v in configs.flatten(c.encoder).items() if k not in ANY_VALUE and "dropout" not in k}
        | {"data.normalize": c.data.normalize}
        for c in (config, other)
    )
    if lines := configs.difference(theirs, ours):
        lines = [line.replace(" -> ", f" in {path.name}, here ") for line in lines]
        wanted = " ".join(f"--config.{key}={theirs[key]!r}" for key in ours if ours[key] != theirs.get(key, ours[key]))
        raise UserError(
            f"init.run: the encoder of {path} is another one:\n  " + "\n  ".join(lines) + f"\ntake: {wanted}"
        )


def _pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"init.fresh: {text!r} is not a regular expression ({error})") from None
