"""Tells the loop that the machine is about to be taken away."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Asks every step whether the machine is about to be taken away (SIGTERM); use as a context manager.

    One process: a signal handler sets a flag, `reached` reads it. Several (jax.distributed was initialised):
    `reached` is true on all of them at the same step once one has got the signal. The loop then saves and ends.
    """

    def __init__(self) -> None:
        self.signalled = False
        self._shared = jax.process_count() > 1
        self._before: Any = None

    def __enter__(self) -> Preemption:
        if not self._shared and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    def reached(self, step: int) -> bool:
        """Called by every process at every step."""
        if self._shared:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.signalled
