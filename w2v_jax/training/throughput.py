"""Where the time of a run goes: waiting for data, compiling, computing; and how much audio went through."""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from w2v_jax.core.units import SAMPLE_RATE

LARGE_PAGES = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"
"""Asks glibc for larger pages of memory: fewer of them are made anew for each step."""
OFFERED = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
CPU = pathlib.Path("/proc/cpuinfo")
BFLOAT16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}
"""What Linux calls the units of a CPU that multiply bfloat16, on x86 and on Arm."""


Read = TypeVar("Read")


class Meter:
    """Adds up over the steps since the last `row`; first steps of a new shape (which compile) are left out.

    programs_end: the updates after which a run goes on with another program, which compiles for each shape again.
    """

    def __init__(self, processes: int = 1, *, programs_end: Sequence[int] = ()):
        self.processes, self.programs_end = processes, tuple(programs_end)
        self.started: dict[tuple[int, int, int], float] = {}
        self.compiled: set[tuple[int, int, int]] = set()
        self.skipped_updates = 0
        self.unread_rows = 0
        self.silent_rows = 0
        self._clear()

    def _clear(self) -> None:
        self._start = time.perf_counter()
        self._waited = self._left_out = 0.0
        self._steps, self._audio, self._room = 0, 0.0, 0.0

    def waiting_for(self, stream: Iterator[Read]) -> Iterator[Read]:
        """The batches of a stream; the time until each is there counts as waiting."""
        while True:
            began = time.perf_counter()
            try:
                read = next(stream)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            yield read

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Around what is no part of training speed: evaluation, saving."""
        began = time.perf_counter()
        yield
        self._left_out += time.perf_counter() - began

    def is_new_shape(self, batch: dict[str, np.ndarray], info: Any) -> bool:
        """Whether this batch, whose step is about to be started, is the first of its shape: then the step compiles."""
        shape = self._shape(batch, info)
        if shape in self.started:
            return False
        self.started[shape] = time.perf_counter()
        return True

    def count(self, batch: dict[str, np.ndarray], info: Any) -> float | None:
        """Adds a finished step. The first of its shape is timed apart: its seconds are returned instead."""
        shape = self._shape(batch, info)
        if shape not in self.compiled:
            self.compiled.add(shape)
            self._clear()
            return time.perf_counter() - self.started[shape]
        self._steps += 1
        self._audio += float(batch["num_samples"].sum()) / SAMPLE_RATE * self.processes
        self._room += shape[0] * shape[1] / SAMPLE_RATE * self.processes
        return None

    def _shape(self, batch: dict[str, np.ndarray], info: Any) -> tuple[int, int, int]:
        """(rows, 16 kHz samples of each, number of the program) of a batch and its `pipeline.Info`."""
        return len(batch["row"]), info.length, sum(info.step >= end for end in self.programs_end)

    def row(self) -> dict[str, float]:
        """step_seconds, data_wait_share, audio_hours_per_hour, padding_share since the last row, and the counters."""
        elapsed = max(time.perf_counter() - self._start - self._left_out, 1e-9)
        counters = {name: float(getattr(self, name)) for name in ("skipped_updates", "unread_rows", "silent_rows")}
        if self._steps == 0:  # a first step of its shape: it compiled
            return counters
        timed = {
            "step_seconds": elapsed / self._steps,
            "data_wait_share": min(self._waited / elapsed, 1.0),
            "audio_hours_per_hour": self._audio / elapsed,
            "padding_share": 1.0 - self._audio / self._room,
        }
        self._clear()
        return timed | counters


def page_advice() -> str:
    """What would give this process larger pages of memory; "" where it has them, cannot, or does not train on a CPU."""
    if jax.default_backend() != "cpu" or "hugetlb" in os.environ.get("GLIBC_TUNABLES", ""):
        return ""
    library, version = platform.libc_ver()
    known = library == "glibc" and tuple(int(n) for n in version.split(".")[:2]) >= (2, 35)
    try:
        offered = "[madvise]" in OFFERED.read_text()
    except OSError:
        return ""
    return f"small; {LARGE_PAGES} before the command may make steps faster" if known and offered else ""


def dtype_advice(dtype: str) -> str:
    """What makes the steps of this process faster than `dtype`; "" where nothing does, or where it is not known."""
    if jax.default_backend() != "cpu" or dtype != "bfloat16":
        return ""
    try:
        flags = re.findall(r"^(?:flags|Features)\s*:(.*)", CPU.read_text(), re.MULTILINE)
    except OSError:
        return ""
    if not flags or BFLOAT16_UNITS & set(flags[0].split()):
        return ""
    return "bfloat16 is slower than float32 here, as this CPU has no units for it: --config.train.dtype=float32"
