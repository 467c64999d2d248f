"""How fast this machine updates models of several sizes, really timed, in a process of its own.

`measured_speeds` starts this file with the candidates on its standard input, and reads what it prints. A process of its
own gives the devices back when it ends: trainings follow, which need all of their memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from w2v_jax.core.cli import UserError

SECONDS, FEWEST = 5.0, 4
"""For how long a candidate is timed after its first update, and how many updates at the least."""


class TimedConfig(NamedTuple):
    """A config (as `--config` names it) with changed keys, and its batch on one device: rows of so many seconds.

    parts: such batches in an update, which all devices share. on_accelerator: it is not timed on a processor, where it
    would take minutes and never be chosen.
    """

    config: str
    changes: dict[str, Any]
    rows: int
    seconds: float
    parts: float = 1.0
    on_accelerator: bool = False


class Timing(NamedTuple):
    """Seconds of an update and of the compilation of one; parameters of the model."""

    update: float
    compile: float
    parameters: int


class Speeds(NamedTuple):
    """What JAX finds, the seconds that a process takes to start, and the timings.

    devices: platform, kind, devices, memory, and slow_bfloat16, whether the processor has no units for that type.
    """

    devices: dict[str, Any]
    start: float
    timings: dict[str, Timing]


def measured_speeds(candidates: Mapping[str, TimedConfig]) -> Speeds:
    """Times the candidates, some ten seconds each. Raises UserError where an update cannot be made here."""
    given = {"spawned": time.time(), "candidates": {name: each._asdict() for name, each in candidates.items()}}
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise UserError(f"this machine cannot be measured: {last}\npython -m w2v_jax.doctor says what is wrong with it")
    found = json.loads(done.stdout.splitlines()[-1])
    timings = {name: Timing(**timing) for name, timing in found["timings"].items()}
    return Speeds(found["devices"], found["start"], timings)


def _devices() -> dict[str, Any]:
    import jax

    from w2v_jax.training.throughput import dtype_advice

    first = jax.devices()[0]
    memory = (first.memory_stats() or {}).get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = {"platform": first.platform, "kind": first.device_kind, "devices": jax.device_count(), "memory": memory}
    return found | {"slow_bfloat16": bool(dtype_advice("bfloat16"))}


def _timing(candidate: TimedConfig, devices: int) -> Timing:
    """Updates on noise with random labels, as many as fit into SECONDS."""
    from w2v_jax.core.config import changed, load
    from w2v_jax.core.units import SAMPLE_RATE
    from w2v_jax.profiling.one_device import ready_update
    from w2v_jax.profiling.random_batch import random_batch, unfrozen, with_alphabet
    from w2v_jax.training.throughput import dtype_advice

    config = load(candidate.config, [(key, str(value)) for key, value in candidate.changes.items()])
    config = unfrozen(with_alphabet(config))
    if dtype_advice(config.train.dtype):
        config = changed(config, {"train.dtype": "float32"})
    ready = ready_update(config, random_batch(config, candidate.rows, round(candidate.seconds * SAMPLE_RATE)))
    ready.run()
    times: list[float] = []
    while len(times) < FEWEST or sum(times) < SECONDS:
        start = time.perf_counter()
        ready.run()
        times.append(time.perf_counter() - start)
    update = sum(times) / len(times) * max(1.0, candidate.parts / devices)
    return Timing(update, ready.compile_seconds, ready.parameters)


def times(text: Sequence[str]) -> str:
    """The answer to what `measured_speeds` asks, both as JSON."""
    given = json.loads("".join(text))
    devices = _devices()
    start = time.time() - given["spawned"]
    candidates = {name: TimedConfig(**each) for name, each in given["candidates"].items()}
    wanted = {name: c for name, c in candidates.items() if devices["platform"] != "cpu" or not c.on_accelerator}
    timings = {name: _timing(candidate, devices["devices"])._asdict() for name, candidate in wanted.items()}
    return json.dumps({"devices": devices, "start": start, "timings": timings})


if __name__ == "__main__":
    print(times(sys.stdin.readlines()))
