"""Where rows of metrics go besides the files of a run: one file for one tracker, named by its file (`--track wandb`).

A tracker gets each row that the console shows. It never ends a training, and never makes one wait.
"""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
from typing import Protocol

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.types import MetricsRow

NAMES = ("wandb",)
"""Those that one asks for. TensorBoard's file is always written, where tensorboardX is installed."""


class Tracker(Protocol):
    """What gets rows."""

    def add(self, row: MetricsRow) -> None:
        """Takes a row, at once."""
        ...

    def close(self) -> None:
        """Sends what is left. A second call does nothing."""
        ...


def check_tracker(name: str) -> None:
    """Raises UserError where the package of a tracker is not installed, which has the tracker's name."""
    if name and importlib.util.find_spec(name) is None:
        raise UserError(f"--track {name} needs the package {name}: pip install 'w2v-jax[{name}]'")


def open_tracker(name: str, workdir: pathlib.Path, config: Config) -> Tracker | None:
    """The tracker of a run; None for an empty name. The same workdir goes on with the same run of the tracker."""
    return importlib.import_module(f"{__name__}.{name}").make(workdir, config) if name else None


def scalars(row: MetricsRow) -> dict[str, float]:
    """The numbers of a row but its step, as NAME/SPLIT."""
    plain = {name: value for name, value in row.items() if name != "step" and isinstance(value, (int, float))}
    return {f"{name}/{row['split']}": value for name, value in plain.items()}
