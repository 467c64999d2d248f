"""One file is one paper. `config.method = "wav2vec2"` is `methods/wav2vec2.py`, which exports `make`."""

from __future__ import annotations

import importlib
import pathlib

from w2v_jax.core.cli import UserError, did_you_mean, imported
from w2v_jax.core.config import Config
from w2v_jax.core.types import Method


def load(config: Config) -> Method:
    """The method that `config.method` names: a file of this folder, or the path of an importable module.

    Raises UserError for a name without a file, for a module that cannot be imported or has no `make`, and for a config
    that the method cannot have.
    """
    name = config.method
    if "." in name:
        return imported(name, "config.method", "make")(config)
    known = sorted(f.stem for f in pathlib.Path(__file__).parent.glob("*.py") if f.stem != "__init__")
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(
            f"config.method={name!r} is not a method.{hint} There are: {', '.join(known)}; or give the path of a "
            "module of your own, such as my_lab.my_method"
        )
    return importlib.import_module(f"{__name__}.{name}").make(config)
