"""A line on stderr about how much of a known amount of audio is done, how fast, and how long the rest will take."""

from __future__ import annotations

import os
import sys
import time


class Progress:
    """About once a second on a terminal, every 20 s elsewhere. `name` is what is being made."""

    def __init__(self, name: str | os.PathLike, hours: float, is_shown: bool = True):
        self.name, self.total, self.is_shown = name, hours * 3600, is_shown
        self.seconds = self.new = 0.0
        self.start = self.last = time.monotonic()
        self.every = 1.0 if sys.stderr.isatty() else 20.0

    def add(self, seconds: float, *, is_new: bool = True) -> None:
        """Counts finished audio; what was there before (`is_new` False) does not enter the rate."""
        self.seconds += seconds
        self.new += seconds * is_new
        now = time.monotonic()
        if self.is_shown and now - self.last >= self.every:
            self.last = now
            rate = self.new / (now - self.start)
            left = max(0.0, self.total - self.seconds) / max(rate, 1e-9)
            line = (
                f"{self.name}: {self.seconds / 3600:.2f} of {self.total / 3600:.2f} h "
                f"({rate:.0f}x real time, {left:.0f} s left)"
            )
            print(line, file=sys.stderr, end="\r" if self.every == 1.0 else "\n", flush=True)

    def end(self, rows: int) -> None:
        """The last line."""
        if self.is_shown:
            took = time.monotonic() - self.start
            print(f"{self.name}: {rows} recordings, {self.seconds / 3600:.2f} h, made in {took:.0f} s", file=sys.stderr)
