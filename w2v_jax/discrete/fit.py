"""Fits k-means to the frames of any amount of audio, in bounded memory, and goes on where it was stopped.

A share of the recordings, in random order, is cut into pools of frames that fit in memory. A pass takes each pool
once, in random batches. With one pool, its frames stay in memory; with more, they are computed anew in each pass. The
settings are those of HuBERT's recipe (fairseq, examples/hubert/simple_kmeans/learn_kmeans.py), which gives them to
scikit-learn's MiniBatchKMeans: k-means++ with 20 starts, batches of 10,000 frames, at most 100 passes, and an end after
100 batches without a better smoothed inertia. A cluster that loses its frames is not placed anew.

Differs: a pass takes each frame once, where scikit-learn draws frames with replacement from an array that holds all.
Starts come from the first pool. Of several codebooks each has its own smoothed inertia, and the last one to improve
ends the fit. The inertia that is reported is of a last pass over all frames, as scikit-learn's.

The devices share the rows of a batch. Several processes share the recordings of a pool, and then have all of its
frames: a batch has the same rows on any number of devices and processes, and centres differ in rounding alone.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.distributed import gather_from_all, share_rows
from w2v_jax.data.index import Index, Source, hash_ids
from w2v_jax.discrete.clustering import Clusters, start, tallied, updated
from w2v_jax.discrete.frame_features import FrameFeatures
from w2v_jax.training import sharding

NOT_FINITE = "its features are not finite"
Skipped = Callable[[int, str], None]


@enum.unique
class FitStream(enum.IntEnum):
    """What random numbers of one seed are drawn for. Fits go on as they began: a number never changes."""

    STARTS = 1
    POOLS = 2
    FRAMES = 3


class Settings(NamedTuple):
    """codebooks G of clusters V each. batch and pool are in frames; passes and patience end the fit."""

    clusters: int
    codebooks: int = 1
    seed: int = 0
    batch: int = 10_000
    starts: int = 20
    passes: int = 100
    patience: int = 100
    pool: int = 2_000_000

    @property
    def sample(self) -> int:
        """Frames from which a start is drawn, and those by which it is judged."""
        return 3 * max(self.batch, self.clusters)


@dataclasses.dataclass
class Progress:
    """How far a fit is: what is saved, and all that it needs to go on. `place` is the next pool of the pass."""

    clusters: Clusters
    pass_number: int = 0
    place: int = 0
    batches: int = 0
    smoothed: np.ndarray | None = None
    best: np.ndarray | None = None
    stale: np.ndarray | None = None

    __repr__ = short_repr

    def is_over(self, settings: Settings) -> bool:
        stopped = self.stale is not None and int(self.stale.min()) >= settings.patience
        return stopped or self.pass_number >= settings.passes

    def note(self, inertia: np.ndarray, frames: int, total: int) -> None:
        """Counts a batch and its inertia per frame [G], as scikit-learn's `_mini_batch_convergence` does.

        The first batch is left out: its inertia is that of the start.
        """
        self.batches += 1
        if self.batches == 1:
            return
        weight = min(1.0, 2.0 * frames / (total + 1))
        self.smoothed = inertia if self.smoothed is None else (1 - weight) * self.smoothed + weight * inertia
        if self.best is None or self.stale is None:
            self.best, self.stale = self.smoothed.copy(), np.zeros(len(inertia), np.int64)
            return
        better = self.smoothed < self.best
        self.best = np.where(better, self.smoothed, self.best)
        self.stale = np.where(better, 0, self.stale + 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays, for a file."""
        none = np.zeros(0)
        arrays = {"centers": np.asarray(self.clusters.centers), "counts": np.asarray(self.clusters.counts)}
        arrays |= {name: none if (x := getattr(self, name)) is None else x for name in ("smoothed", "best", "stale")}
        return arrays | {"numbers": np.array([self.pass_number, self.place, self.batches])}

    @classmethod
    def of(cls, arrays: Any) -> Progress:
        """The inverse of `arrays`."""
        clusters = Clusters(jnp.asarray(arrays["centers"]), jnp.asarray(arrays["counts"]))
        smoothed, best, stale = (arrays[n] if arrays[n].size else None for n in ("smoothed", "best", "stale"))
        pass_number, place, batches = arrays["numbers"].tolist()
        return cls(clusters, pass_number, place, batches, smoothed, best, stale)


def some_share(index: Index, share: float, seed: int) -> np.ndarray:
    """About `share` of the rows, in random order, chosen and ordered by a hash of each id and the seed.

    The rows of a smaller share are among those of a larger one. There is at least one row.
    """
    hashes = hash_ids(f"{id} units {seed}" for id in index.ids)
    order = np.argsort(hashes, kind="stable")
    return order[: max(1, math.ceil(share * len(order)))] if len(order) else order


class Pools:
    """The frames of rows of a source, in pools of at most `size` frames (but at least one recording).

    A recording whose features cannot be computed, or are not finite, goes to `on_skip`. `on_row` is called with the
    seconds of each recording that this process has done. mesh: the devices, of all processes, that share a batch.
    """

    def __init__(
        self,
        features: FrameFeatures,
        source: Source,
        rows: np.ndarray,
        *,
        size: int,
        on_skip: Skipped,
        on_row: Callable[[float], None] = lambda seconds: None,
        mesh: Mesh | None = None,
        **reading: Any,
    ):
        self.features, self.source, self.reading = features, source, reading
        self.mesh = mesh or sharding.row_mesh(jax.devices())
        self.on_skip, self.on_row = on_skip, on_row
        self.frames = features.num_frames(source.index.num_samples[rows])
        cuts = np.flatnonzero(np.diff((np.cumsum(self.frames) - self.frames) // size)) + 1
        self.rows, self.counts = np.split(rows, cuts), np.split(self.frames, cuts)
        self.total = int(self.frames.sum())
        self._kept: np.ndarray | None = None

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, number: int) -> np.ndarray:
        """The frames [N D] float32 of a pool, in the order of its rows."""
        if self._kept is not None:
            return self._kept
        rows, counts = self.rows[number], self.counts[number]
        total, processes, own = int(counts.sum()), jax.process_count(), jax.process_index()
        first = np.cumsum(counts) - counts
        owners = first * processes // max(total, 1)  # of each row; they come in order
        bounds = [int(counts[owners < process].sum()) for process in range(processes + 1)]
        place = dict(zip(rows.tolist(), first.tolist(), strict=True))
        frames, is_there = np.empty((total, self.features.width), np.float32), np.zeros(total, bool)
        skipped: list[tuple[int, str]] = []
        skip = lambda row, reason: skipped.append((int(row), reason))
        for row, arrays in self.features.encode(self.source, rows[owners == own], on_skip=skip, **self.reading):
            x = arrays["features"]
            if np.isfinite(x).all():
                frames[place[row] : place[row] + len(x)] = x
                is_there[place[row] : place[row] + len(x)] = True
                self.on_row(float(self.source.index.durations[row]))
            else:
                skip(row, NOT_FINITE)
        for row, _ in skipped:
            self.on_row(float(self.source.index.durations[row]))
        for of_process in gather_from_all(skipped):
            for row, reason in of_process:
                self.on_skip(row, reason)
        share_rows(frames, bounds)
        share_rows(is_there, bounds)
        frames = frames if is_there.all() else frames[is_there]
        if len(self) == 1:
            self._kept = frames
        return frames


def begin(pools: Pools, settings: Settings, *, report: Callable[[int], None] = lambda start: None) -> Progress:
    """The best of several k-means++ starts, for each codebook. Raises UserError where there are too few frames."""
    frames = pools.load(0)
    if len(frames) < settings.clusters:
        raise UserError(too_few(settings.clusters, len(frames)))
    key, rng = jax.random.key(settings.seed), np.random.default_rng([settings.seed, FitStream.STARTS])
    judge = jnp.asarray(_some(rng, frames, settings.sample))
    best = None
    for number in range(settings.starts):
        report(number)
        x = jnp.asarray(_some(rng, frames, settings.sample))
        of_start = jax.random.fold_in(key, number)
        found = jax.device_get(start(of_start, x, judge, count=settings.clusters, groups=settings.codebooks))
        is_better = found[1] < best[1] if best else np.ones(settings.codebooks, bool)
        best = [np.where(is_better.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(found, best or found)]
    assert best
    centers = np.array(best[0])
    share_rows(centers, [0] + [len(centers)] * jax.process_count())  # those of the first process, in all
    return Progress(Clusters(jnp.asarray(centers), jnp.zeros(centers.shape[:2])))


def too_few(clusters: int, frames: int) -> str:
    """What to say where there are more clusters than frames."""
    return (
        f"{clusters:,} clusters need as many frames, but there are {frames:,}: lower --clusters, raise --share, or "
        "give more recordings"
    )


def passes(pools: Pools, settings: Settings, progress: Progress) -> Iterator[Progress]:
    """Goes on with a fit until it is over. Yields after each pool, when the progress can be saved."""
    update, _ = _programs(pools.mesh)
    progress.clusters = sharding.put_whole(progress.clusters, pools.mesh)
    while not progress.is_over(settings):
        order = np.random.default_rng([settings.seed, FitStream.POOLS, progress.pass_number]).permutation(len(pools))
        number = int(order[progress.place])
        frames = pools.load(number)
        rng = np.random.default_rng([settings.seed, FitStream.FRAMES, progress.pass_number, number])
        shuffled = rng.permutation(len(frames))
        for rows in np.split(shuffled, range(settings.batch, len(frames), settings.batch)):
            batch = _batch(frames[rows], settings, pools.mesh)
            progress.clusters, inertia = update(progress.clusters, *batch)
            progress.note(np.asarray(inertia, np.float64) / max(len(rows), 1), len(rows), pools.total)
            if progress.is_over(settings):
                break
        progress.place += 1
        if progress.place == len(pools):
            progress.pass_number, progress.place = progress.pass_number + 1, 0
        yield progress


def measured(pools: Pools, settings: Settings, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(inertia per frame [G], counts [G V] of the units) over all frames."""
    total, frames, counts = np.zeros(len(centers)), 0, np.zeros(centers.shape[:2], np.int64)
    _, tally = _programs(pools.mesh)
    placed = sharding.put_whole(centers, pools.mesh)
    for number in range(len(pools)):
        x = pools.load(number)
        frames += len(x)
        for first in range(0, len(x), settings.batch):
            batch = _batch(x[first : first + settings.batch], settings, pools.mesh)
            inertia, of_batch = tally(placed, *batch)
            total += np.asarray(inertia, np.float64)
            counts += np.asarray(of_batch).astype(np.int64)
    return total / max(frames, 1), counts


def _batch(frames: np.ndarray, settings: Settings, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Up to a batch of frames [n D], and their weight 1, filled up with zeros to [N D] and [N], over the devices."""
    size = -(-settings.batch // mesh.size) * mesh.size
    x, weight = np.zeros((size, frames.shape[1]), np.float32), np.zeros(size, np.float32)
    x[: len(frames)], weight[: len(frames)] = frames, 1.0
    return sharding.put_rows((x, weight), mesh)


@functools.lru_cache
def _programs(mesh: Mesh) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`updated` and `tallied` of a batch whose rows lie over the devices; each device has what they return."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(updated, donate_argnums=0, out_shardings=whole), jax.jit(tallied, out_shardings=whole)


def _some(rng: np.random.Generator, frames: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the frames, drawn without replacement."""
    if len(frames) <= count:
        return frames
    return frames[np.sort(rng.choice(len(frames), count, replace=False))]
