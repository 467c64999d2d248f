"""Executes a plan: each host reads its rows of every step in parallel and puts them into arrays.

Two loaders run the same `_Reader.read_unit`. "tfdata" uses tf.data. "threads" uses threads of Python: it is the oracle
of the first in tests, and the loader on machines without TensorFlow. Both return the same bits in the same order.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import itertools
import threading
import weakref
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError, needing
from w2v_jax.core.display import short_repr
from w2v_jax.core.stores import threads
from w2v_jax.core.units import NO_TARGET
from w2v_jax.data.augment import at_speed, babble, by_telephone, in_room, louder_by, mixed
from w2v_jax.data.batch_plan import FILLER, Plan, Step
from w2v_jax.data.draws import NO_OTHER
from w2v_jax.data.index import WAVE, Index, ReadError, Source
from w2v_jax.data.io.audio import check_finite, is_silent
from w2v_jax.data.io.tf_import import import_tensorflow
from w2v_jax.data.targets import Targets
from w2v_jax.data.transcripts import Labels

LOADERS = ("tfdata", "threads")
PREFETCH_STEPS = 2
"""Steps that are read ahead of the one in use."""
MAX_FAILURES = 200
"""Consecutive rows that may fail before the run stops. So many failures mean a lost disk rather than bad files."""
STATISTICS_CHUNK = 1 << 20
EPSILON = 1e-5


class Failed(NamedTuple):
    """A row that could not be read. The batch has zeros with weight 0 in its place."""

    id: str
    path: str
    reason: str


class Info(NamedTuple):
    """Where the batch of a step comes from: the `length` of its rows, and `ids` and `starts` of this host's rows.

    `length` and `starts` are in 16 kHz samples, whatever the elements of the rows are. `silent` has the paths of the
    rows in which nothing can be heard. `no_noise` are recordings of noise, and impulse responses of rooms, that could
    not be read: their rows are without. `changes` says for each row what the plan does to it; empty where it never does
    anything.
    """

    step: int
    epoch: float
    length: int
    ids: list[str]
    starts: list[int]
    failed: list[Failed]
    silent: list[str]
    no_noise: list[Failed]
    changes: list[dict[str, Any]]

    __repr__ = short_repr


class _Rows(NamedTuple):
    """A host's rows of a step, which its units fill in; each is an array of one entry for each row.

    elements [n *form.shape(T)], num_samples [n], targets [n S U] (S and U are 0 without targets), and why a row, its
    noise or its room could not be read (b"": it was, or there is none). A silent row is audio in which nothing can be
    heard, as far as it was read.
    """

    elements: np.ndarray
    num_samples: np.ndarray
    targets: np.ndarray
    reasons: np.ndarray
    silent: np.ndarray
    no_noise: np.ndarray
    no_room: np.ndarray

    __repr__ = short_repr


def batches(
    source: Source,
    plan: Plan,
    *,
    start: int = 0,
    stop: int | None = None,
    units: Sequence[int] | None = None,
    normalize: bool = False,
    labels: Labels | None = None,
    targets: Targets | None = None,
    noise: Source | None = None,
    rooms: Source | None = None,
    loader: str = "tfdata",
    workers: int = 0,
) -> Generator[tuple[dict[str, np.ndarray], Info], None, None]:
    """(batch, info) of the steps from `start` up to `stop` (None: the end of the plan, if it has one).

    `units` are the units of the global batch that this host reads, in this order (None: all). A batch holds:
    - wave [n T] float32, padded with zeros (for other forms of source: [n *form.shape(T)] under the form's name);
    - num_samples [n] int32 at 16 kHz, weight [n] float32, and row [n] int32, the row's number in the global batch;
    - with `labels`: tokens [n U] int32 and num_tokens [n] int32;
    - with `targets`: targets [n S U] int32, the speech units of each row's crop, NO_TARGET where there is none.
    A row that cannot be read is zeros with num_samples 0 and weight 0, and `info.failed` names it. `normalize` gives
    each recording zero mean and unit variance before it is cropped. `noise` holds what the plan mixes into rows, and
    `rooms` the impulse responses that it lays on them. `workers` are threads (0: one per core). Close the iterator (or
    exhaust it) to stop reading ahead. Raises UserError.
    """
    if loader not in LOADERS:
        raise UserError(f"data.loader={loader!r} is not a loader; the loaders are {' and '.join(LOADERS)}")
    if normalize and source.form != WAVE:
        raise UserError(f"data.normalize is for audio; the data are {source.form.name}: --config.data.normalize=false")
    if loader == "tfdata":
        _tensorflow()
    units = tuple(range(plan.units)) if units is None else tuple(units)
    stop = plan.steps if stop is None else stop
    reader = _Reader(normalized(source) if normalize else source, plan, targets, units=units, noise=noise, rooms=rooms)
    run = _tfdata if loader == "tfdata" else _threads
    read = run(reader, start, stop, workers=threads(workers, str(source.index.paths[0])))
    iterator = _assemble(reader, read, start=start, labels=labels)
    _open_iterators.add(iterator)
    atexit.unregister(_close_all)
    atexit.register(_close_all)  # registers anew, so that it runs before what TensorFlow registered
    return iterator


_open_iterators: weakref.WeakSet = weakref.WeakSet()


def _close_all() -> None:
    """Stops reading while Python still runs. Later, TensorFlow's threads would wait for Python's lock for ever."""
    for iterator in list(_open_iterators):
        with contextlib.suppress(ValueError):  # another thread is in the middle of a step
            iterator.close()


def normalized(source: Source) -> Source:
    """The source with each recording scaled to zero mean and unit variance, whichever part of it is read."""
    return _Normalized(source)


class _Normalized:
    """Measures a row when it is first read, and remembers its mean and 1 / sqrt(variance + epsilon)."""

    __repr__ = short_repr

    def __init__(self, source: Source):
        self.source, self.index, self.form = source, source.index, source.form
        self.statistics = np.full((len(source.index), 2), np.nan)

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        if np.isnan(self.statistics[row, 0]):
            self.statistics[row] = self._measure(row)
        mean, scale = self.statistics[row]
        return ((self.source.read(row, start, length) - mean) * scale).astype(np.float32)

    def _measure(self, row: int) -> tuple[float, float]:
        """Streams over the row. The variance is the biased one."""
        count, total, squares = 0, 0.0, 0.0
        for start in range(0, int(self.index.num_samples[row]), STATISTICS_CHUNK):
            wave = self.source.read(row, start, STATISTICS_CHUNK).astype(np.float64)
            count, total, squares = count + len(wave), total + wave.sum(), squares + np.square(wave).sum()
        mean = total / max(count, 1)
        return mean, 1 / np.sqrt(max(squares / max(count, 1) - mean**2, 0.0) + EPSILON)


class _Reader:
    """Reads the units of a plan that are a host's. Both loaders call `read_unit`, and then `take`."""

    def __init__(
        self,
        source: Source,
        plan: Plan,
        targets: Targets | None,
        *,
        units: tuple[int, ...],
        noise: Source | None,
        rooms: Source | None,
    ):
        self.source, self.plan, self.targets, self.noise, self.rooms = source, plan, targets, noise, rooms
        self.units = units
        self._response = functools.lru_cache(maxsize=256)(self._read_response)
        self.lost: UserError | None = None  # why nothing more can be read, of a store that does not answer for example
        self._begun: dict[int, _Rows] = {}
        self._lock = threading.Lock()

    def take(self, step: int) -> _Rows:
        """The rows of a step, all of whose units have been read."""
        return self._begun.pop(step)

    def _rows(self, step: int) -> _Rows:
        """The rows of a step to fill in: units of one step share its arrays, so that nothing is copied to join them."""
        with self._lock:
            if step not in self._begun:
                planned, form = self.plan.step(step), self.source.form
                n = len(planned.rows) // self.plan.units * len(self.units)
                shape = (0, 0) if self.targets is None else self.targets.shape(planned.length)
                reasons, no_noise, no_room = (np.full(n, b"", object) for _ in range(3))
                self._begun[step] = _Rows(
                    np.zeros((n, *form.shape(planned.length)), form.dtype),
                    np.zeros(n, np.int32),
                    np.full((n, *shape), NO_TARGET, np.int32),
                    reasons=reasons,
                    silent=np.zeros(n, bool),
                    no_noise=no_noise,
                    no_room=no_room,
                )
            return self._begun[step]

    def read_unit(self, step: int, place: int) -> None:
        """Reads the unit that is at a place of `units`."""
        planned, rows = self.plan.step(step), self._rows(step)
        count = len(planned.rows) // self.plan.units
        for i in range(place * count, (place + 1) * count):
            number = i + (self.units[place] - place) * count
            if planned.rows[number] != FILLER:
                self._read_row(planned, number, rows=rows, i=i)

    def _read_row(self, planned: Step, number: int, *, rows: _Rows, i: int) -> None:
        """Reads row `number` of the batch, which is the host's row i."""
        row, start = int(planned.rows[number]), int(planned.starts[number])
        try:
            content, rows.silent[i] = self._played(planned, number)
            if self.targets is not None:
                rows.targets[i] = self.targets.read(row, start, planned.length)
            content, rows.no_room[i] = self._in_room(content, planned, number)
            content, rows.no_noise[i] = self._mixed(content, planned, number)
            content = _transmitted(content, planned, number)
            rows.elements[i, : len(content)] = content
            rows.num_samples[i] = len(content) * self.source.form.hop
        except Exception as error:  # whatever a codec raises, one row must not end the run
            rows.reasons[i] = self._reason(error)

    def _played(self, planned: Step, number: int) -> tuple[np.ndarray, bool]:
        """Row `number` of the batch at its speed, and whether it is audio in which nothing can be heard."""
        row, start = int(planned.rows[number]), int(planned.starts[number])
        content, low, high = _read(self.source, row, start=start, length=planned.length)
        gain = EPSILON**-0.5 if isinstance(self.source, _Normalized) else 1.0  # the most that silence is amplified by
        silent, speed = self.source.form == WAVE and is_silent(low / gain, high / gain), planned.speeds[number]
        return content if speed == 1 else at_speed(content, speed)[: planned.length], silent

    def _mixed(self, content: np.ndarray, planned: Step, number: int) -> tuple[np.ndarray, bytes]:
        """The content of a row with what the plan mixes into it, and why there is none of the noise that it names.

        The content is as it was where the other row, or the noise, cannot be read.
        """
        if (mix := planned.mix) is None:
            return content, b""
        voices, noise = mix.voices_of(number), int(mix.noises[number])
        if noise != NO_OTHER and self.noise is not None:
            try:
                part, *_ = _read(self.noise, noise, start=int(mix.noise_starts[number]), length=planned.length)
            except Exception as error:
                return content, self._reason(error)
        else:
            parts = []
            for other in voices:
                try:
                    parts.append(self._played(planned, other)[0])
                except Exception as error:  # it is named where its own row is read
                    self._reason(error)
            if not parts:
                return content, b""
            part = babble(parts)
        length, start, place = (float(share[number]) for share in (mix.lengths, mix.froms, mix.tos))
        decibels = float(mix.decibels[number])
        about = dict(length=length, start=start, place=place, decibels=decibels)
        return mixed(content, part, **about, part=self.plan.augment.mix_part), b""

    def _in_room(self, content: np.ndarray, planned: Step, number: int) -> tuple[np.ndarray, bytes]:
        """The content of a row as it is heard in its room, and why it is not."""
        room = NO_OTHER if planned.effects is None else int(planned.effects.rooms[number])
        if room == NO_OTHER or self.rooms is None:
            return content, b""
        try:
            return in_room(content, self._response(room)), b""
        except Exception as error:
            return content, self._reason(error)

    def _reason(self, error: Exception) -> bytes:
        """Why a row could not be read. What a person must put right ends the run."""
        if isinstance(error, UserError):
            self.lost = error
        return (str(error) if isinstance(error, ReadError) else f"{type(error).__name__}: {error}").encode()

    def _read_response(self, room: int) -> np.ndarray:
        assert self.rooms is not None
        return _read(self.rooms, room, start=0, length=int(self.rooms.index.num_samples[room]))[0]


def _transmitted(content: np.ndarray, planned: Step, number: int) -> np.ndarray:
    """The content of a row through its telephone, and at its level."""
    if (effects := planned.effects) is None:
        return content
    content = by_telephone(content) if effects.telephone[number] else content
    return louder_by(content, float(effects.gains[number])) if effects.gains[number] else content


def _read(source: Source, row: int, *, start: int, length: int) -> tuple[np.ndarray, float, float]:
    """(samples of a recording, the lowest, the highest). Raises ReadError where there is none, or one is no number."""
    content = source.read(row, start, length)
    if not len(content):
        raise ReadError("no samples")
    return content, *check_finite(content)


def _threads(reader: _Reader, start: int, stop: int | None, *, workers: int) -> Generator[_Rows, None, None]:
    steps = itertools.count(start) if stop is None else iter(range(start, stop))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    pending: collections.deque = collections.deque()
    try:
        while True:
            for step in itertools.islice(steps, PREFETCH_STEPS + 1 - len(pending)):
                pending.append((step, [pool.submit(reader.read_unit, step, i) for i in range(len(reader.units))]))
            if not pending:
                return
            step, futures = pending.popleft()
            for future in futures:
                future.result()
            yield reader.take(step)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _tfdata(reader: _Reader, start: int, stop: int | None, *, workers: int) -> Generator[_Rows, None, None]:
    """TensorFlow says which step is read when, and how far ahead; `workers` threads read its units into its rows."""
    tf = _tensorflow()
    pool, is_over = ThreadPoolExecutor(workers, thread_name_prefix="read"), threading.Event()

    def read(step):
        try:
            list(pool.map(functools.partial(reader.read_unit, int(step)), range(len(reader.units))))
        except (CancelledError, RuntimeError):  # of a pool that is shut down
            if not is_over.is_set():
                raise
        return step

    options = tf.data.Options()
    options.autotune.enabled = False  # it tunes nothing here, and its thread ends seconds late
    options.threading.private_threadpool_size = PREFETCH_STEPS + 1
    data = tf.data.Dataset.range(start, 2**62 if stop is None else stop)
    data = data.map(
        lambda step: tf.ensure_shape(tf.numpy_function(read, [step], tf.int64, stateful=False), []),
        num_parallel_calls=PREFETCH_STEPS + 1,
        deterministic=True,
    )
    try:
        for step in data.with_options(options).as_numpy_iterator():
            yield reader.take(int(step))
    finally:
        is_over.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _assemble(
    reader: _Reader, read: Generator[_Rows, None, None], *, start: int, labels: Labels | None
) -> Generator[tuple[dict[str, np.ndarray], Info], None, None]:
    """Adds weights, labels and ids to the arrays of each step.

    Raises UserError where every row fails for long, or nothing more can be read.
    """
    index, plan, consecutive_failures = reader.source.index, reader.plan, 0
    with contextlib.closing(read):
        for step, of in enumerate(read, start):
            if reader.lost is not None:
                raise reader.lost
            planned = plan.step(step)
            count = len(planned.rows) // plan.units
            row = np.concatenate([np.arange(unit * count, (unit + 1) * count, dtype=np.int32) for unit in reader.units])
            rows = planned.rows[row]
            failed = _failed(index, rows, of.reasons)
            all_failed = len(failed) == (rows != FILLER).sum()
            consecutive_failures = consecutive_failures + len(failed) if all_failed else 0
            if consecutive_failures >= MAX_FAILURES:
                raise UserError(
                    f"data: the last {consecutive_failures} recordings could not be read, the latest "
                    f"{failed[-1].path} ({failed[-1].reason}); check that the disk is still mounted"
                )
            weight = (of.num_samples > 0).astype(np.float32)
            batch = {reader.source.form.name: of.elements, "num_samples": of.num_samples, "weight": weight, "row": row}
            if labels is not None:
                batch |= labels.padded(rows, planned.length)
            if reader.targets is not None:
                batch["targets"] = of.targets
            ids = [str(index.ids[r]) if r != FILLER else "" for r in rows]
            starts = planned.starts[row].tolist()
            paths = [str(index.paths[r]) for r in rows[of.silent]]
            unread = []
            if reader.noise is not None and planned.mix is not None:
                unread = _failed(reader.noise.index, planned.mix.noises[row], of.no_noise)
            if reader.rooms is not None and planned.effects is not None:
                unread += _failed(reader.rooms.index, planned.effects.rooms[row], of.no_room)
            info = Info(
                step,
                planned.epoch,
                planned.length,
                ids=ids,
                starts=starts,
                failed=failed,
                silent=paths,
                no_noise=unread,
                changes=_changes(reader, planned, row),
            )
            yield batch, info


def _changes(reader: _Reader, planned: Step, numbers: np.ndarray) -> list[dict[str, Any]]:
    """What the plan does to each of some rows, with the ids of what it adds; empty where it does nothing to any."""
    mix, effects, index = planned.mix, planned.effects, reader.source.index
    if mix is None and effects is None and (planned.speeds == 1).all():
        return []
    found = []
    for number in numbers.tolist():
        about: dict[str, Any] = {}
        if planned.speeds[number] != 1:
            about["speed"] = round(float(planned.speeds[number]), 6)
        if effects is not None:
            if reader.rooms is not None and effects.rooms[number] != NO_OTHER:
                about["room"] = str(reader.rooms.index.ids[effects.rooms[number]])
            about |= {"telephone": True} if effects.telephone[number] else {}
            about |= {"gain": round(float(effects.gains[number]), 3)} if effects.gains[number] else {}
        if mix is not None:
            added = {"voices": [str(index.ids[planned.rows[other]]) for other in mix.voices_of(number)]}
            if reader.noise is not None and mix.noises[number] != NO_OTHER:
                added = {"noise": str(reader.noise.index.ids[mix.noises[number]])}
            if any(added.values()):
                about |= added | {"decibels": round(float(mix.decibels[number]), 3)}
        found.append(about)
    return found


def _failed(index: Index, rows: np.ndarray, reasons: np.ndarray) -> list[Failed]:
    """Those of the rows of a source that have a reason."""
    found = [(row, reason.decode()) for row, reason in zip(rows, reasons, strict=True) if reason]
    return [Failed(str(index.ids[row]), str(index.paths[row]), reason) for row, reason in found]


def _tensorflow():
    """Imports TensorFlow. Raises UserError if it is not installed."""
    with needing(
        "data.loader=tfdata needs TensorFlow, which is not installed: "
        "pip install tensorflow-cpu, or read without it with --config.data.loader=threads"
    ):
        return import_tensorflow()
