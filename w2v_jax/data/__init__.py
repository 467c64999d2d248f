"""Audio on disk to batches of NumPy arrays: index (what exists), plan (which rows when), pipeline (reading them).

The name of a source is the name of its file in this folder: `open_source("folder", "/data/speech")`.
"""

from __future__ import annotations

import difflib
import importlib
import pathlib
import types

from w2v_jax.config import UserError

OPTIONS = {"min_seconds": 0.0, "workers": 0, "split": "", "hours": 0.0, "language": "en", "vocab_size": 0}
"""What `open_source` takes besides name and root: the keys of a config's data section that sources read."""


def open_source(name: str, root, **options):
    """The source `name` over `root` (a path or several), as a training run would list it.

    `source.index` has ids, durations, transcripts and `skipped` with path and reason; `source.read(row, start,
    length)` gives 16 kHz samples. Unlike a config, nothing is too short unless `min_seconds` says so.
    """
    for key in options:
        if key not in OPTIONS:
            raise UserError(f"open_source: {key!r} is not an option; there are {', '.join(OPTIONS)}")
    return source_module(name).make(types.SimpleNamespace(name=name, root=root, **{**OPTIONS, **options}), root)


def source_module(name: str):
    """The module of a source; raises UserError for a name without a file."""
    known = source_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"data.name={name!r} is not a source.{hint} There are: {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{name}")


def source_names() -> list[str]:
    """The files of this folder that define `make`."""
    files = pathlib.Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if "\ndef make(" in file.read_text(encoding="utf-8"))
