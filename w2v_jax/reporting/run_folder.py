"""What the folder of a run holds, read without a change to it: config, metrics, code usage, starts and summary.

A run may be going on, or have been killed: a line that cannot be read is counted and left out.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from w2v_jax import methods
from w2v_jax.core.cli import UserError, cannot_read
from w2v_jax.core.config import Config
from w2v_jax.core.display import short_repr
from w2v_jax.core.text import json_object
from w2v_jax.core.types import Levels, MetricsRow
from w2v_jax.training.workdir import ENVIRONMENT, read_config


class RunFolder(NamedTuple):
    """A run as its folder tells it.

    name: short, and unlike those of the other runs of a page. rows: of metrics.jsonl. usage: of usage.jsonl, shares
    [G V] per evaluation. starts: of environment.jsonl. data: data.json. done: done.json, None while the run is not
    complete. damaged: {file: lines that cannot be read}. written: when the last row came, in UTC; "" without rows.
    """

    name: str
    path: pathlib.Path
    config: Config
    levels: Levels
    rows: Sequence[MetricsRow]
    usage: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    data: dict[str, Any]
    done: dict[str, Any] | None
    damaged: dict[str, int]
    written: str

    __repr__ = short_repr

    @property
    def step(self) -> int:
        """The newest update that metrics.jsonl tells of; 0 for none."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def steps(self) -> int:
        """The updates that the config asks for."""
        return self.config.train.steps

    def of_split(self, split: str) -> list[MetricsRow]:
        """The rows of "train", "eval" or "probe"."""
        return [row for row in self.rows if row.get("split") == split]


def open_run_folders(paths: Sequence[pathlib.Path]) -> list[RunFolder]:
    """The runs in these folders, with names of their own. Raises UserError where one is none of a run."""
    if len(set(path.resolve() for path in paths)) < len(paths):
        raise UserError("a run is named twice; give each folder once")
    return [open_folder(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def short_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """As few last parts of the paths as tell them apart: ["a/demo", "b/demo"]."""
    whole = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            break
    return names


def open_folder(path: pathlib.Path, name: str) -> RunFolder:
    """The run in a folder. Raises UserError where it is none, or where a file cannot be opened."""
    config, damaged, written = read_config(path), {}, ""
    try:
        rows, damaged["metrics.jsonl"] = _lines(path / "metrics.jsonl", needs="step")
        usage, damaged["usage.jsonl"] = _lines(path / "usage.jsonl", needs="step")
        starts, damaged[ENVIRONMENT] = _lines(path / ENVIRONMENT, needs="versions")
        if rows:
            seconds = (path / "metrics.jsonl").stat().st_mtime
            written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
        return RunFolder(
            name,
            path,
            config,
            levels=_levels(config) if rows else {},  # what was converted may have no loss, and so none
            rows=rows,
            usage=usage,
            starts=starts,
            data=_object(path / "data.json") or {},
            done=_object(path / "done.json"),
            damaged={file: count for file, count in damaged.items() if count},
            written=written,
        )
    except OSError as error:
        raise cannot_read(error.filename or path, error) from None


def _levels(config: Config) -> Levels:
    """Those of the method; none where it is a module that is not here, or its config is not what it needs now."""
    try:
        return methods.load(config).levels()
    except UserError:
        return {}


def _lines(file: pathlib.Path, *, needs: str) -> tuple[list[dict[str, Any]], int]:
    """(the objects with the key `needs`, one a line; how many lines hold none). Nothing if there is no file.

    The file is read once: a training may be writing to it.
    """
    if not file.exists():
        return [], 0
    with open(file, "rb") as lines:
        found = [json_object(line) for line in lines if line.strip()]
    kept = [line for line in found if line is not None and needs in line]
    return kept, len(found) - len(kept)


def _object(file: pathlib.Path) -> dict[str, Any] | None:
    return json_object(file.read_bytes()) if file.exists() else None
