"""Executes a plan: reads the rows of each step in parallel and puts them into arrays, host by host.

Two loaders run the same `_read_unit`: "tfdata" (tf.data, the fast one) and "threads" (NumPy and threads: the
oracle of the first, and the loader on machines without TensorFlow). Both give the same bits in the same order.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import itertools
import os
import weakref
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from w2v_jax.config import UserError
from w2v_jax.data.index import WAVE, ReadError, Source
from w2v_jax.data.labels import Labels
from w2v_jax.data.plan import FILLER, Plan

LOADERS = ("tfdata", "threads")
AHEAD = 2
"""Steps that are read ahead of the one in use."""
GIVE_UP = 200
"""Rows in sequence that may fail before the run is stopped: by then the disk is gone, not a file bad."""
STATISTICS_CHUNK = 1 << 20
EPSILON = 1e-5


class Failed(NamedTuple):
    """A row that could not be read: zeros with weight 0 stood in its place."""

    id: str
    path: str
    reason: str


class Info(NamedTuple):
    """What the batch of a step was made of: `length` of its rows, `ids` and `starts` of this host's rows, in order.

    Lengths and starts are 16 kHz samples, whatever the rows are made of.
    """

    step: int
    epoch: float
    length: int
    ids: list[str]
    starts: list[int]
    failed: list[Failed]


def batches(
    source: Source,
    plan: Plan,
    *,
    start: int = 0,
    stop: int | None = None,
    units: Sequence[int] | None = None,
    normalize: bool = False,
    labels: Labels | None = None,
    loader: str = "tfdata",
    workers: int = 0,
) -> Generator[tuple[dict[str, np.ndarray], Info], None, None]:
    """(batch, info) of the steps start .. stop (None: the plan's end, or endless).

    `units`: the units of the global batch that this host reads, in this order (None: all). batch: wave [n T]
    float32 padded with zeros (or what else `source.form` says, [n *form.shape(T)]), num_samples [n] int32 at 16 kHz,
    weight [n] float32, row [n] int32 (the row's number in the global batch); with `labels`, tokens [n U] and num_tokens
    [n] int32, too. A row that cannot be read is zeros with num_samples 0 and weight 0, and is named in info.failed.
    normalize: zero mean and unit variance over the whole recording, before the crop. workers 0: one per core.
    Close the iterator (or exhaust it) to stop reading ahead. Raises UserError.
    """
    if loader not in LOADERS:
        raise UserError(f"data.loader={loader!r}: there are {' and '.join(LOADERS)}")
    if normalize and source.form != WAVE:
        raise UserError(f"data.normalize is for audio; the data are {source.form.name}: --config.data.normalize=false")
    if loader == "tfdata":
        _tensorflow()
    units = tuple(range(plan.units)) if units is None else tuple(units)
    stop = plan.steps if stop is None else stop
    reader = _Reader(normalized(source) if normalize else source, plan)
    run = _tfdata if loader == "tfdata" else _threads
    parts = run(reader, start, stop, units, workers or os.cpu_count() or 1)
    running = _assemble(reader, parts, start, units, labels)
    _running.add(running)
    atexit.unregister(_close_all)
    atexit.register(_close_all)  # again, so that it runs before what TensorFlow registered
    return running


_running: weakref.WeakSet = weakref.WeakSet()


def _close_all() -> None:
    """Ends the reading while Python still runs: later, TensorFlow's threads would wait for its lock for ever."""
    for running in list(_running):
        with contextlib.suppress(ValueError):  # in the middle of a step, in another thread
            running.close()


def normalized(source: Source) -> Source:
    """The source whose rows have zero mean and unit variance over their whole length, however little is read."""
    return _Normalized(source)


class _Normalized:
    """Measures a row when it is first read, and remembers mean and 1 / sqrt(variance + epsilon)."""

    def __init__(self, source: Source):
        self.source, self.index, self.form = source, source.index, source.form
        self.statistics = np.full((len(source.index), 2), np.nan)

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        if np.isnan(self.statistics[row, 0]):
            self.statistics[row] = self._measure(row)
        mean, scale = self.statistics[row]
        return ((self.source.read(row, start, length) - mean) * scale).astype(np.float32)

    def _measure(self, row: int) -> tuple[float, float]:
        """Streamed over the row, the variance divided by its length."""
        count, total, squares = 0, 0.0, 0.0
        for start in range(0, int(self.index.num_samples[row]), STATISTICS_CHUNK):
            wave = self.source.read(row, start, STATISTICS_CHUNK).astype(np.float64)
            count, total, squares = count + len(wave), total + wave.sum(), squares + np.square(wave).sum()
        mean = total / max(count, 1)
        return mean, 1 / np.sqrt(max(squares / max(count, 1) - mean**2, 0.0) + EPSILON)


class _Reader:
    """Reads units of a plan: the one function that both loaders run."""

    def __init__(self, source: Source, plan: Plan):
        self.source, self.plan = source, plan

    def unit(self, step: int, unit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """elements [R T / hop], num_samples [R], reasons [R] of one unit; a reason is empty where a row was read."""
        form = self.source.form
        batch = self.plan.step(step)
        count = len(batch.rows) // self.plan.units
        chosen = slice(unit * count, (unit + 1) * count)
        elements = np.zeros((count, *form.shape(batch.length)), form.dtype)
        num_samples = np.zeros(count, np.int32)
        reasons = np.zeros(count, object)
        for i, (row, start) in enumerate(zip(batch.rows[chosen], batch.starts[chosen], strict=True)):
            reasons[i] = b""
            if row == FILLER:
                continue
            try:
                read = self._row(int(row), int(start), batch.length)
                elements[i, : len(read)] = read
                num_samples[i] = len(read) * form.hop
            except Exception as error:  # whatever a codec does, one row must not end the run
                reasons[i] = _reason(error).encode()
        return elements, num_samples, reasons

    def _row(self, row: int, start: int, length: int) -> np.ndarray:
        wave = self.source.read(row, start, length)
        if not len(wave):
            raise ReadError("no samples")
        if not np.isfinite(wave).all():
            raise ReadError("NaN or infinite samples")
        return wave


def _threads(
    reader: _Reader, start: int, stop: int | None, units: tuple[int, ...], workers: int
) -> Generator[tuple, None, None]:
    steps = itertools.count(start) if stop is None else iter(range(start, stop))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    waiting: collections.deque = collections.deque()
    try:
        while True:
            for step in itertools.islice(steps, AHEAD + 1 - len(waiting)):
                waiting.append([pool.submit(reader.unit, step, unit) for unit in units])
            if not waiting:
                return
            parts = [part.result() for part in waiting.popleft()]
            yield tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _tfdata(
    reader: _Reader, start: int, stop: int | None, units: tuple[int, ...], workers: int
) -> Generator[tuple, None, None]:
    tf = _tensorflow()
    count = len(units)
    form = reader.source.form
    kinds, rank = (tf.as_dtype(form.dtype), tf.int32, tf.string), 1 + len(form.shape(0))

    def read(place):
        step, number = divmod(int(place), count)
        return reader.unit(step, units[number])

    def load(place):
        elements, num_samples, reasons = tf.numpy_function(read, [place], kinds, stateful=False)
        elements.set_shape([None] * rank)
        num_samples.set_shape([None])
        reasons.set_shape([None])
        return elements, num_samples, reasons

    data = tf.data.Dataset.range(start * count, 2**62 if stop is None else stop * count)
    data = data.map(load, num_parallel_calls=workers, deterministic=True).batch(count, drop_remainder=True)
    for elements, num_samples, reasons in data.prefetch(AHEAD).as_numpy_iterator():
        yield elements.reshape(-1, *elements.shape[2:]), num_samples.reshape(-1), reasons.reshape(-1)


def _assemble(
    reader: _Reader, parts: Generator[tuple, None, None], start: int, units: tuple[int, ...], labels: Labels | None
) -> Generator[tuple[dict[str, np.ndarray], Info], None, None]:
    index, plan, sequence = reader.source.index, reader.plan, 0
    with contextlib.closing(parts):
        for step, (elements, num_samples, reasons) in enumerate(parts, start):
            planned = plan.step(step)
            count = len(planned.rows) // plan.units
            row = np.concatenate([np.arange(unit * count, (unit + 1) * count, dtype=np.int32) for unit in units])
            rows = planned.rows[row]
            faults = [(r, reason.decode()) for r, reason in zip(rows, reasons, strict=True) if reason]
            failed = [Failed(str(index.ids[r]), str(index.paths[r]), reason) for r, reason in faults]
            sequence = sequence + len(failed) if len(failed) == (rows != FILLER).sum() else 0
            if sequence >= GIVE_UP:
                raise UserError(
                    f"data: the last {sequence} recordings could not be read, the newest {failed[-1].path} "
                    f"({failed[-1].reason}); is the disk still there?"
                )
            weight = (num_samples > 0).astype(np.float32)
            batch = {reader.source.form.name: elements, "num_samples": num_samples, "weight": weight, "row": row}
            if labels is not None:
                batch |= labels.padded(rows, planned.length)
            ids = [str(index.ids[r]) if r != FILLER else "" for r in rows]
            yield batch, Info(step, planned.epoch, planned.length, ids, planned.starts[row].tolist(), failed)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ReadError) else f"{type(error).__name__}: {error}"


def _tensorflow():
    """TensorFlow, kept off the accelerators, which belong to JAX. Raises UserError if it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # or its notice stands at the head of every run
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(
            "data.loader=tfdata needs TensorFlow, which is not installed: "
            "pip install tensorflow-cpu, or read without it by --config.data.loader=threads"
        ) from None
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError:  # TensorFlow runs already, so this was done before
            pass
    return tf
