"""Where the time goes: compiling, waiting and computing are told apart; advice on pages of memory."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from w2v_jax.training import throughput
from w2v_jax.training.throughput import Meter


class Clock:
    """A clock that a test sets forward."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def one_step(meter: Meter, clock: Clock, seconds: float, waiting: float = 0.0, lengths=(32_000, 16_000), step: int = 0):
    """A step on rows of 2 s, whose batch is waited for; what `count` gives."""

    def stream():
        clock.now += waiting
        yield dict(row=np.arange(2), num_samples=np.asarray(lengths)), SimpleNamespace(length=32_000, step=step)

    for batch, info in meter.waiting_for(stream()):
        meter.is_new_shape(batch, info)
        clock.now += seconds
        return meter.count(batch, info)


def test_the_first_step_of_a_shape_is_timed_apart(clock):
    """It compiles: its seconds are given back, and the row knows nothing of them."""
    meter = Meter()
    assert one_step(meter, clock, 30.0) == 30.0
    assert meter.row() == {"skipped_updates": 0.0, "unread_rows": 0.0, "silent_rows": 0.0}
    assert one_step(meter, clock, 2.0) is None
    assert meter.row()["step_seconds"] == 2.0


def test_a_run_that_goes_on_with_another_program_compiles_each_shape_again(clock):
    meter = Meter(programs_end=[2])
    assert [one_step(meter, clock, 30.0, step=n) for n in range(4)] == [30.0, None, 30.0, None]


def test_a_row_tells_of_the_steps_since_the_last_one(clock):
    meter = Meter()
    one_step(meter, clock, 30.0)
    for seconds, waiting in ((2.0, 1.0), (4.0, 1.0)):
        one_step(meter, clock, seconds, waiting)
    expected = dict(step_seconds=4.0, data_wait_share=0.25, audio_hours_per_hour=2 * 3.0 / 8.0, padding_share=0.25)
    assert meter.row() == expected | {"skipped_updates": 0.0, "unread_rows": 0.0, "silent_rows": 0.0}
    one_step(meter, clock, 1.5, lengths=(32_000, 32_000))
    again = meter.row()
    assert (again["step_seconds"], again["data_wait_share"], again["padding_share"]) == (1.5, 0.0, 0.0)


def test_evaluation_and_saving_are_no_part_of_a_step(clock):
    meter = Meter()
    one_step(meter, clock, 30.0)
    one_step(meter, clock, 2.0)
    with meter.apart():
        clock.now += 500.0
    assert meter.row()["step_seconds"] == 2.0


def test_the_audio_of_all_processes_is_counted(clock):
    alone, three = Meter(), Meter(processes=3)
    rows = []
    for meter in (alone, three):
        for _ in range(2):
            one_step(meter, clock, 2.0)
        rows.append(meter.row())
    assert rows[1]["audio_hours_per_hour"] == 3 * rows[0]["audio_hours_per_hour"]
    assert rows[1]["padding_share"] == rows[0]["padding_share"]


@pytest.mark.parametrize(
    ("offered", "library", "tunables", "advised"),
    [
        ("always [madvise] never", "2.36", None, True),
        ("always [madvise] never", "2.36", "glibc.malloc.arena_max=1", True),
        ("always [madvise] never", "2.36", "glibc.malloc.hugetlb=1", False),
        ("[always] madvise never", "2.36", None, False),
        ("always madvise [never]", "2.36", None, False),
        ("always [madvise] never", "2.31", None, False),
        (None, "2.36", None, False),
    ],
)
def test_larger_pages_are_advised_where_they_can_be_had(offered, library, tunables, advised, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "OFFERED", tmp_path / "enabled")
    monkeypatch.setattr(throughput.platform, "libc_ver", lambda: ("glibc", library))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if offered:
        (tmp_path / "enabled").write_text(offered + "\n")
    if tunables:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    assert (throughput.LARGE_PAGES in throughput.page_advice()) == advised


ZEN_3 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu fma avx2 bmi2\nbugs\t\t: bf16\n"
ZEN_4 = ZEN_3.replace("avx2", "avx2 avx512f avx512_bf16")
XEON = ZEN_3.replace("avx2", "avx2 avx512f amx_tile amx_bf16")
SKYLAKE = ZEN_3.replace("avx2", "avx2 avx512f")
ARM = "processor\t: 0\nFeatures\t: fp asimd sve\n"


@pytest.mark.parametrize(
    ("cpu", "dtype", "backend", "advised"),
    [
        (ZEN_3, "bfloat16", "cpu", True),
        (SKYLAKE, "bfloat16", "cpu", True),
        (ZEN_4, "bfloat16", "cpu", False),
        (XEON, "bfloat16", "cpu", False),
        (ARM, "bfloat16", "cpu", True),
        (ARM.replace("sve", "sve bf16"), "bfloat16", "cpu", False),
        (ZEN_3, "float32", "cpu", False),
        (ZEN_3, "bfloat16", "gpu", False),
        ("", "bfloat16", "cpu", False),
        (None, "bfloat16", "cpu", False),
    ],
)
def test_float32_is_advised_on_a_cpu_without_units_for_bfloat16(cpu, dtype, backend, advised, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr(throughput.jax, "default_backend", lambda: backend)
    if cpu is not None:
        (tmp_path / "cpuinfo").write_text(cpu)
    assert ("--config.train.dtype=float32" in throughput.dtype_advice(dtype)) == advised
