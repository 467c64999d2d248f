"""From audio on disk to batches of NumPy arrays.

The index lists what exists, the plan says which rows come when, and the pipeline reads them. A source has the name of
its file in `sources/`: `open_source("folder", "/data/speech")`.
"""

from __future__ import annotations

import importlib
import pathlib
import types

from w2v_jax.core.cli import UserError, did_you_mean

OPTIONS = {"min_seconds": 0.0, "workers": 0, "split": "", "hours": 0.0, "language": "en", "vocab_size": 0, "labels": ""}
OPTIONS |= {"kept": True}
"""Options of `open_source` with their defaults: the keys of a config's data section that sources read, and `kept`."""


def open_source(name: str, root, **options):
    """Lists the source `name` at `root` (one path or several) as a training run would.

    `source.index` has ids, durations, transcripts and `skipped` with path and reason. `source.read(row, start,
    length)` returns 16 kHz samples. The default of `min_seconds` is 0 here, so that no recording is too short. With
    kept=False an index that an earlier listing has left (`kept/listings.py`) is made anew.
    Raises UserError for an unknown source or option.
    """
    for key in options:
        if key not in OPTIONS:
            raise UserError(f"open_source: {key!r} is not an option; the options are {', '.join(OPTIONS)}")
    return source_module(name).make(types.SimpleNamespace(name=name, root=root, **{**OPTIONS, **options}), root)


def source_module(name: str):
    """Imports the module of a source. Raises UserError where `sources/` has no file of that name."""
    known = source_names()
    if name not in known:
        raise UserError(f"data.name={name!r} is not a source.{did_you_mean(name, known)} There are: {', '.join(known)}")
    return importlib.import_module(f"{__name__}.sources.{name}")


def source_names() -> list[str]:
    """The names of all sources, sorted."""
    files = (pathlib.Path(__file__).parent / "sources").glob("*.py")
    return sorted(file.stem for file in files if file.stem != "__init__")
