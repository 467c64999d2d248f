"""Decides which recordings, and which crop of each, make up the batch of every step.

Pure NumPy, no audio, no state. A plan is a function of (lengths, seed, step). A run therefore resumes at any step, on
any number of hosts, with exactly the rows that the uninterrupted run would have read. A plan knows units
(`units.unit_rows`), not devices.

Each length bucket is an endless stream of its own permutations: every recording occurs once per bucket epoch. A seeded
cycle assigns the steps to the buckets in proportion to the batches that they hold. Where recordings form groups with a
share each (`mixture.py`), each group of a bucket is such a stream, and the groups take turns row by row. `draws.py` has
the random numbers.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.units import SAMPLE_RATE, unit_rows
from w2v_jax.data.draws import OFF, Augmentation, DrawnFor, Draws, Effects, Mix, random_words
from w2v_jax.data.index import TooFew
from w2v_jax.data.mixture import turns

FILLER = -1
"""The row number that fills up an incomplete batch."""
SORTED_AT_ONCE = 1 << 16
"""Permutations of fewer rows are sorted when they are made."""
_MAX_CYCLE = 1 << 20


class Groups(NamedTuple):
    """Recordings that are heard in given shares: `of` [N] is the group of each, `shares` [G] those of the audio."""

    of: np.ndarray
    shares: np.ndarray

    __repr__ = short_repr


class Step(NamedTuple):
    """One global batch: rows [n] int64 (FILLER where there is none), starts [n] int64 in 16 kHz samples.

    Every row is `length` samples long. speeds [n]: how many times faster than it was recorded each row is played. mix,
    effects: None in a plan that has none.
    """

    rows: np.ndarray
    starts: np.ndarray
    length: int
    epoch: float
    speeds: np.ndarray
    mix: Mix | None = None
    effects: Effects | None = None

    __repr__ = short_repr


class Bucket(NamedTuple):
    """The rows that are padded or cropped to `length` samples; `batch` rows make one step."""

    rows: np.ndarray
    length: int
    batch: int

    __repr__ = short_repr


class Plan:
    """What all plans have in common: `units`, `shapes`, `padding_share`, `steps_per_epoch`, `steps` and `augment`.

    `shapes` are the (rows, T) of each bucket in use. `steps` is None where the plan is endless.
    """

    steps: int | None = None
    augment = OFF

    __repr__ = short_repr

    def __init__(self, num_samples: np.ndarray, buckets: Sequence[Bucket], units: int):
        self.num_samples = num_samples
        self.buckets = tuple(buckets)
        self.units = units
        self.shapes = tuple((b.batch, b.length) for b in buckets)
        filled = sum(np.minimum(num_samples[b.rows], b.length).sum() for b in buckets)
        padded = sum(len(b.rows) * b.length for b in buckets)
        self.padding_share = float(1 - filled / padded) if padded else 0.0
        self.steps_per_epoch = sum(len(b.rows) / b.batch for b in buckets)

    def epoch(self, step: int) -> float:
        """How often the recordings have been heard before `step`, on the average."""
        return step / self.steps_per_epoch

    def step(self, step: int) -> Step:
        raise NotImplementedError


class TrainPlan(Plan):
    """An endless plan; `train_plan` makes it.

    `shares` [G] are those of the audio that each group has in the long run: those asked for, as far as whole rows and
    steps can keep them.
    """

    def __init__(
        self,
        num_samples: np.ndarray,
        buckets: Sequence[Bucket],
        units: int,
        *,
        seed: int,
        augment: Augmentation,
        groups: Groups | None,
    ):
        super().__init__(num_samples, buckets, units)
        self.seed, self.augment = seed, augment
        self._streams, self._seconds = _streams(num_samples, buckets, groups)
        counts = np.array([[len(rows) for rows in streams] for streams in self._streams])  # [buckets G]
        once = self._seconds.sum(axis=0)
        rates = np.ones(1) if groups is None else np.where(once > 0, groups.shares / np.maximum(once, 1e-9), 0)
        self._counts, self._turns = counts, [turns(rates * of_bucket) for of_bucket in counts]
        batches = [(rates * of_bucket).sum() / b.batch for of_bucket, b in zip(counts, buckets, strict=True)]
        self._schedule, self._visits, self._steps_in_cycle = _schedule(batches, seed)
        of_cycles = [turn.counts / len(turn.cycle) for turn in self._turns]
        rows = (self._steps_in_cycle * [b.batch for b in buckets])[:, None] * np.array(of_cycles)
        seconds = (rows * self._seconds / np.maximum(counts, 1)).sum(axis=0)
        self.shares = seconds / seconds.sum()
        self._lock = threading.Lock()
        self._permutations = {  # each stream keeps its last two, whatever the others need
            (number, group): functools.lru_cache(maxsize=2)(functools.partial(self._permutation, number, group))
            for number, group in np.ndindex(counts.shape)
        }
        self._cached_step = functools.lru_cache(maxsize=8)(self._make_step)

    def step(self, step: int) -> Step:
        """The batch of `step` (from 0). Every step costs about the same. Safe to call from several threads."""
        with self._lock:
            return self._cached_step(int(step))

    def _make_step(self, step: int) -> Step:
        cycle, position = divmod(step, len(self._schedule))
        number = int(self._schedule[position])
        bucket = self.buckets[number]
        first = (cycle * int(self._steps_in_cycle[number]) + int(self._visits[position])) * bucket.batch
        groups, earlier = self._turns[number].rows(first, bucket.batch)
        epochs, positions = np.divmod(earlier, self._counts[number][groups])
        rows = np.empty(bucket.batch, np.int64)
        for group, epoch in set(zip(groups.tolist(), epochs.tolist(), strict=True)):
            chosen = (groups == group) & (epochs == epoch)
            rows[chosen] = self._permutations[number, group](epoch).rows_at(positions[chosen])
        num_samples, draws = self.num_samples[rows], Draws(rows, epochs, seed=self.seed)
        return Step(
            rows,
            draws.starts(num_samples - bucket.length),
            bucket.length,
            epoch=self.epoch(step),
            speeds=draws.speeds(num_samples / bucket.length, self.augment.speeds),
            mix=draws.mix(self.augment, bucket.length),
            effects=draws.effects(self.augment),
        )

    def heard(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(seconds of audio, epochs) of each group [G] that the steps before `step` hold. One group without `groups`.

        The seconds of an epoch that is not complete are those of its rows on the average.
        """
        cycles, position = divmod(step, len(self._schedule))
        steps = cycles * self._steps_in_cycle + np.bincount(self._schedule[:position], minlength=len(self.buckets))
        of_buckets = zip(self._turns, steps.tolist(), self.buckets, strict=True)
        rows = np.array([turn.rows_before(count * bucket.batch) for turn, count, bucket in of_buckets])
        seconds = (rows * self._seconds / np.maximum(self._counts, 1)).sum(axis=0)
        return seconds, rows.sum(axis=0) / np.maximum(self._counts.sum(axis=0), 1)

    def _permutation(self, number: int, group: int, epoch: int) -> Permutation:
        rows = self._streams[number][group]
        own = (group,) if len(self._streams[number]) > 1 else ()
        keys = random_words(len(rows), self.seed, DrawnFor.ORDER, self.buckets[number].length, epoch, *own)
        return Permutation(rows, keys)


class Permutation:
    """The rows [n] in the order of their random keys, equal ones as they come: what a stable sort by the keys gives.

    Of many rows nothing is sorted but what a step asks for. The first 16 bits of all keys say which rows these are.
    """

    def __init__(self, rows: np.ndarray, keys: np.ndarray):
        self.is_sorted = len(rows) < SORTED_AT_ONCE
        if self.is_sorted:
            self.rows = rows[np.argsort(keys, kind="stable")]
            return
        self.rows, self.keys = rows, keys
        self.first_bits = np.ascontiguousarray(keys.astype("<u8", copy=False).view("<u2")[3::4])
        self.ends = np.cumsum(np.bincount(self.first_bits, minlength=1 << 16))

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """The rows at some positions."""
        if self.is_sorted:
            return self.rows[positions]
        first, last = np.searchsorted(self.ends, (positions.min(), positions.max()), side="right").tolist()
        start = int(self.ends[first - 1]) if first else 0
        members = np.flatnonzero((self.first_bits >= first) & (self.first_bits <= last))
        members = members[np.argsort(self.keys[members], kind="stable")]
        return self.rows[members[positions - start]]


class EvalPlan(Plan):
    """A finite plan: its `steps` batches hold every chosen row once. `eval_plan` makes it."""

    def __init__(self, num_samples: np.ndarray, buckets: Sequence[Bucket], units: int):
        super().__init__(num_samples, buckets, units)
        self._batches = [(b, i) for b in buckets for i in range(0, len(b.rows), b.batch)]
        self.steps = len(self._batches)
        self.steps_per_epoch = float(self.steps)

    def step(self, step: int) -> Step:
        """The batch of `step`, from 0 to steps - 1. FILLER fills up the last batch of a bucket."""
        bucket, first = self._batches[step]
        rows = np.full(bucket.batch, FILLER, np.int64)
        chosen = bucket.rows[first : first + bucket.batch]
        rows[: len(chosen)] = chosen
        starts = np.zeros(bucket.batch, np.int64)
        starts[: len(chosen)] = np.maximum(self.num_samples[chosen] - bucket.length, 0) // 2
        return Step(rows, starts, bucket.length, epoch=self.epoch(step), speeds=np.ones(bucket.batch))


def train_plan(
    num_samples: np.ndarray,
    *,
    seed: int,
    bucket_samples: Sequence[int],
    units: int,
    unit_seconds: float,
    crop: bool = True,
    augment: Augmentation = OFF,
    groups: Groups | None = None,
) -> TrainPlan:
    """The endless plan over recordings of `num_samples` [N] samples (16 kHz), with `units` units in every batch.

    A recording goes to the smallest bucket that holds it. One longer than every bucket is cropped to the longest
    bucket, at an offset that is drawn anew each epoch. A bucket with fewer rows than a batch joins the next longer one.
    If the longest is still too small, its rows are cropped into the next shorter one. Without `crop`, which would part
    a recording from its transcript, it takes the longest rows of the next shorter one instead, or all of them, and
    recordings longer than every bucket are left out. augment: what is done to the rows; a recording that is cropped
    keeps its speed, and none becomes longer than its row. groups: the shares in which groups of recordings are heard,
    each with recordings; None: all recordings are heard equally often. Raises TooFew where the recordings do not fill
    one batch.
    """
    num_samples = np.asarray(num_samples, np.int64)
    fitting = num_samples <= max(bucket_samples, default=0)
    whole = np.ones(len(num_samples), bool) if crop else fitting
    buckets = _assign(num_samples, whole, bucket_samples=bucket_samples, units=units, unit_seconds=unit_seconds)
    while len(buckets) > 1 and len(buckets[-1].rows) < buckets[-1].batch:
        buckets = _merge_down(buckets) if crop else _fill_longest(buckets, num_samples)
    if not buckets or len(buckets[0].rows) < buckets[0].batch:
        chosen = num_samples if crop else num_samples[fitting]
        raise TooFew(_too_few_message(chosen, buckets, units=units, unit_seconds=unit_seconds), [])
    return TrainPlan(num_samples, buckets, units, seed=seed, augment=augment, groups=groups)


def eval_plan(
    num_samples: np.ndarray, *, bucket_samples: Sequence[int], units: int, unit_seconds: float, max_hours: float
) -> EvalPlan:
    """The finite plan that reads each row once. It is the same in every run.

    It holds at most `max_hours` of audio (0: all). It takes the middle of rows longer than the longest bucket. Small
    buckets join the next longer one.
    """
    num_samples = np.asarray(num_samples, np.int64)
    chosen = np.ones(len(num_samples), bool)
    if max_hours > 0:
        order = np.argsort(random_words(len(num_samples), 0, DrawnFor.CHOICE), kind="stable")
        total = np.cumsum(np.minimum(num_samples[order], max(bucket_samples)))
        count = np.searchsorted(total, max_hours * 3600 * SAMPLE_RATE, side="right")
        chosen[order[max(count, 1) :]] = False
    buckets = _assign(num_samples, chosen, bucket_samples=bucket_samples, units=units, unit_seconds=unit_seconds)
    return EvalPlan(num_samples, buckets, units)


def _assign(
    num_samples: np.ndarray, chosen: np.ndarray, *, bucket_samples: Sequence[int], units: int, unit_seconds: float
) -> list[Bucket]:
    """The buckets that the chosen rows, a mask [N], fall into, shortest first, without empty ones.

    One with fewer rows than a batch joins the next longer one.
    """
    lengths = np.array(sorted({int(n) for n in bucket_samples}), np.int64)
    if not len(lengths) or lengths[0] <= 0:
        raise UserError(f"data.bucket_seconds needs one or more positive lengths, got {lengths.tolist()} samples")
    if units < 1:
        raise UserError(f"data.batch_hours must hold at least one unit of data.unit_seconds, got {units} units")
    buckets: list[Bucket] = []
    waiting = chosen
    for length in lengths.tolist():
        fits = waiting if length == lengths[-1] else waiting & (num_samples <= length)
        waiting = waiting & ~fits
        rows = np.flatnonzero(fits)
        if len(rows) and buckets and len(buckets[-1].rows) < buckets[-1].batch:
            rows = np.sort(np.concatenate([buckets.pop().rows, rows]))
        if len(rows):
            buckets.append(Bucket(rows, length, units * unit_rows(unit_seconds, length)))
    return buckets


def _merge_down(buckets: list[Bucket]) -> list[Bucket]:
    """The rows of the longest bucket join those of the next shorter one, which crops them."""
    *rest, shorter, longest = buckets
    return [*rest, shorter._replace(rows=np.sort(np.concatenate([shorter.rows, longest.rows])))]


def _fill_longest(buckets: list[Bucket], num_samples: np.ndarray) -> list[Bucket]:
    """The longest bucket gets the longest rows of the next shorter one, or all where too few for a batch would stay."""
    *rest, shorter, longest = buckets
    rows = shorter.rows[np.argsort(num_samples[shorter.rows], kind="stable")]
    stay = len(rows) - (longest.batch - len(longest.rows))
    stay = stay if stay >= shorter.batch else 0
    longest = longest._replace(rows=np.sort(np.concatenate([rows[stay:], longest.rows])))
    return [*rest, *([shorter._replace(rows=np.sort(rows[:stay]))] if stay else []), longest]


def _streams(
    num_samples: np.ndarray, buckets: Sequence[Bucket], groups: Groups | None
) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """The rows of each group of each bucket, and the seconds of audio [buckets G] that they fill once."""
    filled = [np.minimum(num_samples[bucket.rows], bucket.length) / SAMPLE_RATE for bucket in buckets]
    if groups is None:
        return [[bucket.rows] for bucket in buckets], np.array([[seconds.sum()] for seconds in filled])
    streams, of_groups, count = [], [], len(groups.shares)
    for bucket, seconds in zip(buckets, filled, strict=True):
        of_rows = groups.of[bucket.rows]
        ends = np.cumsum(np.bincount(of_rows, minlength=count))
        streams.append(np.split(bucket.rows[np.argsort(of_rows, kind="stable")], ends[:-1]))
        of_groups.append(np.bincount(of_rows, seconds, minlength=count))
    return streams, np.array(of_groups)


def _too_few_message(num_samples: np.ndarray, buckets: list[Bucket], *, units: int, unit_seconds: float) -> str:
    recordings = f"{len(num_samples):,} recordings ({num_samples.sum() / SAMPLE_RATE / 3600:.3f} h)"
    if not buckets:
        return f"data: there are {recordings} to train on; add audio to data.root"
    batch, length = buckets[0].batch, buckets[0].length
    rows_per_unit = batch // units
    text = f"data: {recordings} are fewer than one batch, which needs {batch:,} of up to {length / SAMPLE_RATE:g} s"
    if len(num_samples) >= rows_per_unit:
        hours = len(num_samples) // rows_per_unit * unit_seconds / 3600
        return f"{text}; add audio or make the batch smaller: --config.data.batch_hours={hours:.6f}"
    seconds = len(num_samples) * length / SAMPLE_RATE
    return (
        f"{text}; add audio or make the batch smaller: --config.data.unit_seconds={seconds:g} "
        f"--config.data.device_seconds={seconds:g} --config.data.batch_hours={seconds / 3600:.6f}"
    )


def _schedule(batches_per_bucket: Sequence[float], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One cycle of steps: (bucket of each step, earlier steps of that bucket in the cycle, steps per bucket).

    A cycle has at least 16 steps of the rarest bucket. Jitter aside, each bucket's steps are spread evenly.
    """
    shares = np.asarray(batches_per_bucket, np.float64) / np.sum(batches_per_bucket)
    cycle = min(max(1024, int(np.ceil(16 / shares.min()))), _MAX_CYCLE)
    counts = np.maximum(np.rint(shares * cycle).astype(np.int64), 1)
    visits = np.concatenate([np.arange(count) for count in counts])
    numbers = np.repeat(np.arange(len(counts)), counts)
    jitter = random_words(len(numbers), seed, DrawnFor.SCHEDULE) / 2.0**64
    order = np.lexsort((numbers, (visits + jitter) / counts[numbers]))
    return numbers[order].astype(np.int16), visits[order].astype(np.int32), counts
