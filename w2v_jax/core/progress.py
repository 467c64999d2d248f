"""How far a command is: one line on a terminal that is drawn anew, or a line now and then in a log."""

from __future__ import annotations

import os
import sys
import types
from typing import Any, TextIO

from tqdm import tqdm

from w2v_jax.core.cli import duration

TERMINAL_SECONDS, LOG_SECONDS = 1.0, 20.0
"""How often the line is shown. The first one comes after this time, so that short work shows none."""


class ProgressBar:
    """The progress of work on recordings, on stderr.

    Of a known amount of audio (`hours`) it shows how much is done, how fast, and how long the rest will take. Of an
    unknown amount it counts files, hours and skipped files. `name` says what is being made.
    """

    def __init__(self, name: str | os.PathLike, hours: float | None = None, *, is_shown: bool = True):
        is_terminal = sys.stderr.isatty()
        every = TERMINAL_SECONDS if is_terminal else LOG_SECONDS
        self.bar = _Bar(
            desc=os.fspath(name),
            total=hours,
            disable=not is_shown,
            file=sys.stderr if is_terminal else _Log(sys.stderr),
            bar_format="{desc}: |{bar:20}| {text}" if is_terminal and hours else "{desc}: {text}",
            dynamic_ncols=is_terminal,
            mininterval=every,
            delay=every,
            miniters=0,
            position=0,
        )

    def add(self, seconds: float, *, is_new: bool = True, is_skipped: bool = False) -> None:
        """Counts a finished recording. What was there before (`is_new` False) does not enter the rate."""
        if self.bar.total is not None:  # it may be an estimate
            self.bar.total = max(self.bar.total, self.bar.n + seconds / 3600)
        self.bar.files += 1
        self.bar.skipped += is_skipped
        if not is_new:
            self.bar.initial += seconds / 3600
        self.bar.update(seconds / 3600)

    def print(self, text: str) -> None:
        """Prints a line on standard output, above the line of a terminal."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Shows the line a last time, if it was shown at all."""
        self.bar.close()

    def end(self, rows: int) -> None:
        """The last line, which names the recordings and how long they took, takes the place of the others."""
        if not self.bar.disable:
            hours, took = self.bar.n, duration(self.bar.format_dict["elapsed"])
            self.bar.leave = False
            self.bar.close()
            print(f"{self.bar.desc}: {rows} recordings, {hours:.2f} h, made in {took}", file=sys.stderr)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()


class _Bar(tqdm):
    """tqdm over hours of audio, with the text of a line in the words of this package."""

    monitor_interval = 0  # no thread that watches the bar
    files = skipped = 0
    initial = 0.0  # tqdm sets none where nothing is shown

    @property
    def format_dict(self) -> dict[str, Any]:
        known = dict(super().format_dict)
        return known | {"text": _text(self.files, self.skipped, **{key: known[key] for key in _NEEDED})}


_NEEDED = ("n", "total", "elapsed", "initial")


def _text(files: int, skipped: int, *, n: float, total: float | None, elapsed: float, initial: float) -> str:
    """What stands after the name; n, total and initial in hours, elapsed in seconds."""
    if total is None:
        return f"{files:,} files, {n:,.1f} h, {skipped:,} skipped ({files / max(elapsed, 1e-9):,.0f} files/s)"
    rate = (n - initial) / max(elapsed, 1e-9)  # hours per second
    rest = f" ({3600 * rate:.0f}x real time, {duration(max(0.0, total - n) / rate)} left)" if rate > 0 else ""
    done = f"{n:.2f} of {total:.2f} h" if total > 0.1 else f"{3600 * n:.0f} of {3600 * total:.0f} s"
    return f"{done}{rest}"


class _Log:
    """A stream in which each line of tqdm stays, instead of being written over by the next one."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()
