"""The event file of a run, for TensorBoard, by tensorboardX."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from w2v_jax.core.cli import warn
from w2v_jax.core.types import MetricsRow
from w2v_jax.training.trackers import scalars


class Board:
    """The event file of a run, written row by row as they come.

    Not by tensorboardX's SummaryWriter: a full disk ends its thread, and whoever hands it more rows waits for ever.
    """

    def __init__(self, directory: pathlib.Path, start_step: int):
        with _without("torch"):  # which tensorboardX imports where it can, for seconds, and only to know its tensors
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        directory.mkdir(parents=True, exist_ok=True)
        self._event, self._writer, self._flushed = Event, EventsWriter(str(directory / "events")), 0.0
        if start_step:  # TensorBoard hides what an earlier attempt wrote from here on
            self._write(step=start_step + 1, session_log={"status": "START"})

    def add(self, row: MetricsRow) -> None:
        """The numbers of a row, as NAME/SPLIT. Where the disk refuses, a warning says so, and this file ends."""
        values = [{"tag": name, "simple_value": value} for name, value in scalars(row).items()]
        self._write(step=row["step"], summary={"value": values})

    def close(self) -> None:
        self._try(lambda writer: writer.close())
        self._writer = None

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._try(lambda writer: writer.write_event(event))
        if time.time() - self._flushed > 10:  # flushing waits for the disk
            self._try(lambda writer: writer.flush())
            self._flushed = time.time()

    def _try(self, do: Callable[[Any], Any]) -> None:
        if self._writer is None:
            return
        try:
            do(self._writer)
        except OSError as error:
            self._writer = None
            warn(f"TensorBoard's file cannot be written ({error}) and ends here; metrics.jsonl has all rows")


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """A package that nobody has imported yet cannot be imported here."""
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]  # as the import system wants it
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]


def open_board(directory: pathlib.Path, start_step: int) -> Board | None:
    try:
        return Board(directory, start_step)
    except ImportError:
        print("note: no TensorBoard files (pip install tensorboardX); metrics.jsonl and curves.png hold the same")
    except OSError as error:
        warn(f"no TensorBoard files: {error}")
    return None
