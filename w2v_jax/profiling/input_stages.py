"""Measures how fast a training's audio is read, decoded, resampled and put into batches, without a model.

Four loops take turns on the rows of the same steps, with as many threads as the training has. Each does what the one
before it does, and more: it decodes the crops; brings them to 16 kHz; reads them as the source does, which finds the
recording and checks it; and makes batches by the training's own loader. What a loop takes longer than the one before is
the cost of its stage. Bytes alone are read once, before all else, of files that the system is asked to forget. Beside
them runs the least that a program can do: soundfile's own reading of the same crops, by as many threads.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import table
from w2v_jax.core.config import Config
from w2v_jax.core.display import short_repr
from w2v_jax.core.stores import is_remote, threads
from w2v_jax.core.units import SAMPLE_RATE, batch_units
from w2v_jax.data.batch_plan import FILLER, Plan
from w2v_jax.data.index import WAVE, Index
from w2v_jax.data.io.address import file_of, opened
from w2v_jax.data.io.audio import read_frames
from w2v_jax.training.dataset import Data, open_data, training_batches

LOOP_SECONDS = 3.0
"""How long the loader works in a turn, at least. Less would measure how it starts."""
WARM_UP_SECONDS = 120.0
"""The audio that the loader reads first. It is given more until it takes long enough."""
GROWTH = 8
"""How many times as much it is given at most."""
BUSY = 0.8
"""From this share of the cores on, arithmetic holds a loop up, and not waiting."""
NEED = 12_000
"""Hours of audio that one H200 trains on in an hour, with the smallest encoders (FastConformer-L of NEST)."""
STAGES = {"decode": "decoded", "resample": "at_16_khz", "crop": "crops", "batch": "batches"}
"""The loop that each stage ends."""
ADVICE = {
    "decode": "FLAC takes twice as long as WAV, MP3 and Opus many times as long",
    "resample": "store the recordings at 16 kHz (prepare --shards --rate 16000)",
    "crop": "shards spare the search for files (prepare --shards)",
    "batch": "data.normalize and augmentation are computed there",
}


class Crop(NamedTuple):
    """What a step reads of a row: `length` samples at 16 kHz from `start`."""

    row: int
    start: int
    length: int


class Work(NamedTuple):
    """What the steps of a training before `stop` read."""

    stop: int
    crops: list[Crop]

    __repr__ = short_repr

    @property
    def seconds(self) -> float:
        """Of audio."""
        return sum(crop.length for crop in self.crops) / SAMPLE_RATE


class Cost(NamedTuple):
    """What a loop takes: seconds on the clock, and of all cores together."""

    seconds: float
    core_seconds: float


def input_rates(config: Config, turns: int) -> dict[str, Any]:
    """What `bench --input-only` prints; costs are medians of so many turns. Raises UserError.

    Where the recordings are not in files, the loops that read files are left out.
    """
    with tempfile.TemporaryDirectory() as scratch:
        data = open_data(config, batch_units(config.data), 1, path=pathlib.Path(scratch))
    index, workers = data.train.index, threads(config.data.workers, str(data.train.index.paths[0]))
    work = work_of(data.train_plan, index, WARM_UP_SECONDS)
    _make_batches(config, data, work)  # starts TensorFlow
    while (seconds := _cost(_make_batches, config, data, work).seconds) < LOOP_SECONDS:
        work = work_of(data.train_plan, index, work.seconds * min(GROWTH, 1.2 * LOOP_SECONDS / seconds))

    def each(read: Callable[[Index, Crop], object]) -> Callable[[], int]:
        return lambda: _in_threads(lambda crop: read(index, crop), work.crops, workers)

    loops = {"batches": lambda: _make_batches(config, data, work)}
    loops["crops"] = each(lambda _, crop: data.train.read(*crop))
    bytes_read = _bytes_read(index, work.crops, workers) if data.train.form == WAVE else None
    if bytes_read is not None:
        loops |= {"at_16_khz": each(_resampled), "decoded": each(_decoded), "bare": each(_by_soundfile)}
    unreadable = {name: loop() for name, loop in loops.items()}  # and what they read is in memory now
    if unreadable.get("bare"):
        del loops["bare"]
    turned: dict[str, list[Cost]] = {name: [] for name in loops}
    for _ in range(turns):
        for name, loop in loops.items():
            turned[name].append(_cost(loop))
    costs = {name: Cost(*map(statistics.median, zip(*costs, strict=True))) for name, costs in turned.items()}
    hours = work.seconds / 3600
    result = {
        "source": config.data.name,
        "rows": len(work.crops),
        "unreadable": unreadable["crops"],
        "steps": work.stop,
        "audio_hours": hours,
        "rates_hz": sorted({int(index.rates[crop.row]) for crop in work.crops}),
        "threads": workers,
        "cores": os.cpu_count(),
        "loops": {name: cost._asdict() for name, cost in costs.items()},
        "stages": stages_of(costs, hours),
        "bytes": bytes_read,
        "hours_per_hour": 3600 * hours / costs["batches"].seconds,
        "hours_per_hour_and_core": 3600 * hours / costs["batches"].core_seconds,
        "busy_cores": costs["batches"].core_seconds / costs["batches"].seconds,
    }
    if "bare" in costs:
        result["share_of_bare"] = costs["bare"].seconds / costs["batches"].seconds
    return result | {"limit": limit_of(result)}


def stages_of(costs: Mapping[str, Cost], hours: float) -> dict[str, dict[str, float]]:
    """{stage: its hours of audio per hour and core, and its share of the arithmetic of all} from the costs of loops."""
    stages, before = {}, 0.0
    total = costs["batches"].core_seconds
    for stage, loop in STAGES.items():
        if loop in costs:
            seconds = max(0.0, costs[loop].core_seconds - before)
            before = costs[loop].core_seconds
            stages[stage] = {"hours_per_hour_and_core": 3600 * hours / max(seconds, 1e-9), "share": seconds / total}
    return stages


def limit_of(result: Mapping[str, Any]) -> str:
    """What holds the input up, in words."""
    read = result["bytes"]
    if read is not None and read["hours_per_hour"] < result["hours_per_hour"]:
        return (
            f"where the files lie: {read['bytes_per_second'] / 1e6:.3g} MB per second are "
            f"{read['hours_per_hour']:,.0f} hours of audio per hour; a nearer disk or fewer bytes (FLAC) help"
        )
    cores = min(result["threads"], result["cores"])
    if result["busy_cores"] < BUSY * cores:
        return (
            f"waiting: {result['busy_cores']:.1f} of {cores} cores are busy, because other programs have them, "
            "Python's threads wait for each other, or a disk is slow"
        )
    stage, about = max(result["stages"].items(), key=lambda item: item[1]["share"])
    advice = f": {ADVICE[stage]}" if stage in ADVICE else ""
    return f"arithmetic: {about['share']:.0%} of it is {stage}{advice}"


def input_text(result: Mapping[str, Any]) -> str:
    """The result as text for people."""
    read, per_core = result["bytes"], result["hours_per_hour_and_core"]
    rates = " and ".join(f"{rate:,}" for rate in result["rates_hz"])
    about = {
        "audio": f"{result['audio_hours']:.3g} h at {rates} Hz in {result['rows']:,} rows of {result['steps']:,} steps "
        f"from {result['source']}, {result['threads']} threads on {result['cores']} cores",
    }
    if result["unreadable"]:
        about["unreadable"] = f"{result['unreadable']:,} rows, which the batches are without"
    if read is not None:
        megabytes = f"{read['bytes_per_second'] / 1e6:.3g} MB per second"
        fresh = "not in memory before" if read["is_fresh"] else "perhaps in memory before"
        of_core = f"{read['hours_per_hour_and_core']:>9,.0f} hours per hour and core"
        about["read"] = f"{of_core}, {read['hours_per_hour']:,.0f} per hour ({megabytes}, {fresh})"
    for stage, cost in result["stages"].items():
        about[stage] = f"{cost['hours_per_hour_and_core']:>9,.0f} hours per hour and core  {cost['share']:>4.0%}"
    about["together"] = f"{result['hours_per_hour']:,.0f} hours of audio per hour, {per_core:,.0f} for each busy core"
    if "share_of_bare" in result:
        about["beside"] = f"{result['share_of_bare']:.3f} of the rate of soundfile alone, by as many threads"
    about["limit"] = result["limit"]
    about["needs"] = f"{math.ceil(NEED / per_core):,} such cores for {NEED:,} hours per hour"
    return table(about)


def work_of(plan: Plan, index: Index, seconds: float) -> Work:
    """The first steps of a plan that read at least so many seconds of audio."""
    crops: list[Crop] = []
    left = seconds * SAMPLE_RATE
    for number in itertools.count(1):
        planned = plan.step(number - 1)
        for row, start in zip(planned.rows.tolist(), planned.starts.tolist(), strict=True):
            if row != FILLER:
                crops.append(Crop(row, start, min(planned.length, int(index.num_samples[row]) - start)))
                left -= crops[-1].length
        if left <= 0:
            return Work(number, crops)
    raise AssertionError("a plan of training has no end")


def _make_batches(config: Config, data: Data, work: Work) -> int:
    """Makes the batches as a training does. Returns how many rows could not be read."""
    stream = training_batches(config, data, stop=work.stop)
    with contextlib.closing(stream):
        return sum(len(info.failed) for _, info in stream)


def _in_threads(read: Callable[[Crop], object], crops: Sequence[Crop], workers: int) -> int:
    """Calls `read` with every crop. Returns how many could not be read."""

    def failed(crop: Crop) -> bool:
        try:
            read(crop)
        except Exception:  # whatever a codec raises: a batch is without the row, too
            return True
        return False

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(failed, crops))


def _cost(loop: Callable[..., object], *given: Any) -> Cost:
    seconds, core_seconds = time.perf_counter(), time.process_time()
    loop(*given)
    return Cost(time.perf_counter() - seconds, time.process_time() - core_seconds)


def _bytes_read(index: Index, crops: Sequence[Crop], workers: int) -> dict[str, Any] | None:
    """How fast the bytes of the rows are read, of each row once; None where they are in no file."""
    once = list({crop.row: crop for crop in crops}.values())
    counts: list[int] = []
    read = lambda crop: counts.append(_read_bytes(index, crop))
    if _in_threads(read, once[:1], 1):
        return None
    is_fresh = all([_forget(file_of(index.paths[crop.row])) for crop in once])
    counts.clear()
    cost = _cost(lambda: _in_threads(read, once, workers))
    hours = sum(crop.length for crop in once) / SAMPLE_RATE / 3600
    return {
        "bytes_per_second": sum(counts) / cost.seconds,
        "hours_per_hour": 3600 * hours / cost.seconds,
        "hours_per_hour_and_core": 3600 * hours / cost.core_seconds,
        "is_fresh": is_fresh,
    }


def _forget(path: str) -> bool:
    """Asks the system to keep no pages of a file in memory. False where it cannot be asked."""
    if is_remote(path) or not hasattr(os, "posix_fadvise"):
        return False
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _read_bytes(index: Index, crop: Crop) -> int:
    """Reads as many bytes of a recording as the crop has in 16 bits, or all. Returns how many."""
    rate = int(index.rates[crop.row])
    with opened(index.paths[crop.row], is_decoded=True) as (file, _):
        with open(file, "rb") if isinstance(file, str) else contextlib.nullcontext(file) as content:
            return len(content.read(2 * crop.length * rate // SAMPLE_RATE))


def _place(index: Index, crop: Crop) -> tuple[int, int, int]:
    """(first sample, samples, rate) of a crop in its file, at the file's own rate."""
    rate, frames = int(index.rates[crop.row]), int(index.frames[crop.row])
    start = crop.start * rate // SAMPLE_RATE
    count = min(crop.length * rate // SAMPLE_RATE, frames - start)
    return int(index.offsets[crop.row]) + start, count, rate


def _decoded(index: Index, crop: Crop) -> np.ndarray:
    start, count, rate = _place(index, crop)
    with opened(index.paths[crop.row], is_decoded=True) as (file, channel):
        total = None if index.offsets[crop.row] else int(index.frames[crop.row])
        return read_frames(file, start, count, rate=rate, channel=channel, total=total)


def _resampled(index: Index, crop: Crop) -> np.ndarray:
    import soxr

    wave, rate = _decoded(index, crop), int(index.rates[crop.row])
    return wave if rate == SAMPLE_RATE else soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ")


def _by_soundfile(index: Index, crop: Crop) -> np.ndarray:
    import soundfile

    start, count, _ = _place(index, crop)
    with opened(index.paths[crop.row], is_decoded=True) as (file, _), soundfile.SoundFile(file) as recording:
        recording.seek(start)
        return recording.read(count, dtype="float32")
