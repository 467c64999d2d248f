"""Starting from another run (`config.init`): a recogniser from its encoder, a pretraining from all of its parameters.

Parameters that do not fit are an error, and none starts anew in silence: a pretraining names those that shall start
fresh (`init.fresh`, regular expressions on the paths of parameters).
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from w2v_jax import methods
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config, setting
from w2v_jax.core.tree import by_path, differences, nest
from w2v_jax.core.types import PyTree, State
from w2v_jax.data.index import WAVE, Form
from w2v_jax.training.dataset import form_of
from w2v_jax.training.workdir import read_config, read_weights, run_folder

ANY_VALUE = ("kind", "frozen", "frozen_steps", "conv_grad_scale", "layer_drop", "padding_aware", "max_frames")
ANY_VALUE += ("attention", "convolution", "positional", "stack", "remat_frontend", "remat_layers")


def first_state(config: Config, make: Callable[[], State], form: Form) -> State:
    """The state before the first update, with the parameters of another run where init.run names one."""
    state = make()
    if not config.init.run:
        return state
    imported, params = by_path(warm_params(config, state.params, form)), by_path(state.params)
    placed = lambda new, old: jax.device_put(np.asarray(new, old.dtype), old.sharding)
    merged = {name: placed(imported[name], old) if name in imported else old for name, old in params.items()}
    if jax.process_index() == 0:
        print(f"initialised {len(imported)} of {len(params)} parameters from {config.init.run}", flush=True)
    return state.replace(params=nest(merged))


def warm_params(config: Config, params: PyTree, form: Form) -> PyTree:
    """Nested dicts of the parameters of the run config.init.run that replace those of `params` (arrays or shapes).

    CTC takes the encoder. A pretraining takes all parameters that `init.fresh` does not name. Raises UserError, which
    lists every difference, when that run has another encoder than the config describes, when it read other data (waves
    normalised otherwise, codes of another vocabulary), or when shapes differ.
    """
    path = run_folder(config.init.run)
    try:
        other = read_config(path)
    except UserError as error:
        raise UserError(f"init.run: {error}") from None
    patterns = setting(config, "init.fresh")
    whole = patterns is not None
    if whole and other.method != config.method:
        raise UserError(f"init.run: {path} is a run of {other.method}, and this is one of {config.method}")
    if not whole:
        _check_kind(config, other, path)
    _check_encoder(config, other, path)
    if form != WAVE and form != form_of(path):
        raise UserError(
            f"init.run: {path} was trained on other {form.name} ({form_of(path).made_by}, here {form.made_by})"
        )
    step = config.init.step
    weights = read_weights(path, other, int(step) if step.isdigit() else step or None)
    given, wanted = by_path(weights.params), by_path(params)
    if "moved" in weights.extra:  # where k-means put codes that nobody used
        given["quantizer/codebook"] = given["quantizer/codebook"] + weights.extra["moved"]
    if whole:
        fresh = [_pattern(text) for text in patterns]
        if idle := [p.pattern for p in fresh if not any(p.search(name) for name in wanted)]:
            parts = sorted({name.partition("/")[0] for name in wanted})
            raise UserError(f"init.fresh: {idle[0]!r} names no parameter; they are in {', '.join(parts)}")
        named = lambda name: any(pattern.search(name) for pattern in fresh)
        given, wanted = ({k: v for k, v in tree.items() if not named(k)} for tree in (given, wanted))
    else:
        given, wanted = ({k: v for k, v in tree.items() if k.startswith("encoder/")} for tree in (given, wanted))
    shapes, have = ({name: tuple(x.shape) for name, x in tree.items()} for tree in (wanted, given))
    if lines := differences(have, shapes, "{name}: {first} there, {second} here"):
        hint = "\nname what is to start anew, e.g. --config.init.fresh=^quantizer/,_proj/" if whole else ""
        raise UserError(f"init.run: the parameters of {path} do not fit:{lines}{hint}")
    return nest(given)


def _check_kind(config: Config, other: Config, path: pathlib.Path) -> None:
    method = methods.load(other)
    if not method.reusable:
        raise UserError(
            f"init.run: the context of {other.method} ({path}) does not read what encoder.kind={config.encoder.kind} "
            "would give it; extract its features and learn from those (configs/acoustic_frozen.py:features)"
        )
    kind = method.encoder.kind
    if kind != config.encoder.kind:
        raise UserError(
            f"init.run: {path} ({other.method}) has an encoder of kind {kind!r}, and encoder.kind is "
            f"{config.encoder.kind!r}: take a config with the encoder section of that run, or extract its features and "
            "learn from those (configs/acoustic_frozen.py:features)"
        )


def _check_encoder(config: Config, other: Config, path: pathlib.Path) -> None:
    ours, theirs = _encoder_values(config), _encoder_values(other)
    if lines := configs.changed_keys(theirs, ours):
        lines = [line.replace(" -> ", f" in {path.name}, here ") for line in lines]
        wanted = " ".join(f"--config.{key}={value!r}" for key, value in encoder_changes(config, other).items())
        raise UserError(
            f"init.run: the encoder of {path} is another one:\n  " + "\n  ".join(lines) + f"\ntake: {wanted}"
        )


def encoder_changes(config: Config, other: Config) -> dict[str, Any]:
    """The keys, with new values, by which the encoder of a config becomes that of another."""
    ours, theirs = _encoder_values(config), _encoder_values(other)
    return {key: theirs[key] for key in ours if ours[key] != theirs.get(key, ours[key])}


def _encoder_values(config: Config) -> dict[str, Any]:
    flat = configs.flatten(config.encoder).items()
    values = {f"encoder.{key}": value for key, value in flat if key not in ANY_VALUE and "dropout" not in key}
    return values | {"data.normalize": config.data.normalize}


def _pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"init.fresh: {text!r} is not a regular expression ({error})") from None
