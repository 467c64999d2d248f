"""Mini-batch k-means as functions of arrays: nearest centres, one update, and k-means++ (Sculley 2010; Arthur 2007).

A vector of D numbers is cut into G groups of E, and each group has a codebook of V centres of its own (product
codebooks, Hsu et al. 2021, section IV-D). One group is plain k-means. All distances come from one matrix product per
group in float32, |x|^2 - 2 x.c + |c|^2, after the mean of the centres is taken off both sides: large numbers that all
vectors share would cost digits.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from w2v_jax.core.display import short_repr
from w2v_jax.ops.random import Stream


class Nearest(NamedTuple):
    """codes [.. G] int32, squared distance [.. G] to that centre, gap [.. G]: how much farther the second nearest is.

    Of centres at equal distance the first is the nearest. With a single centre the gap is infinite.
    """

    codes: jax.Array
    distance: jax.Array
    gap: jax.Array

    __repr__ = short_repr


class Clusters(NamedTuple):
    """centers [G V E] and counts [G V]: the frames that each centre is the mean of, as float32."""

    centers: jax.Array
    counts: jax.Array

    __repr__ = short_repr


@jax.jit
def nearest(x: jax.Array, centers: jax.Array) -> Nearest:
    """The nearest centre of each group of x [.. D], from centers [G V E] with G * E = D."""
    groups, count, width = centers.shape
    shape = (*x.shape[:-1], groups)
    offset = centers.mean(axis=1)  # [G E]
    x, centers = jnp.asarray(x, jnp.float32).reshape(-1, groups, width) - offset, centers - offset[:, None]
    scores = jnp.square(centers).sum(axis=-1) - 2.0 * products(x, centers)  # [N G V]: the distances without |x|^2
    codes = scores.argmin(axis=-1)
    least = scores.min(axis=-1)
    others = jnp.where(jnp.arange(count) == codes[..., None], jnp.inf, scores)
    distance = jnp.maximum(least + jnp.square(x).sum(axis=-1), 0.0)
    found = codes.astype(jnp.int32), distance, others.min(axis=-1) - least
    return Nearest(*(array.reshape(shape) for array in found))


def products(x: jax.Array, centers: jax.Array) -> jax.Array:
    """x [N G E], centers [G V E] -> [N G V] in float32, on accelerators too."""
    return jnp.einsum("nge,gve->ngv", x, centers, precision="highest", preferred_element_type=jnp.float32)


@functools.partial(jax.jit, donate_argnums=0)
def updated(clusters: Clusters, x: jax.Array, weight: jax.Array) -> tuple[Clusters, jax.Array]:
    """The clusters after a batch x [N D] with weight [N] 0 or 1, and the batch's inertia [G] before that.

    Each centre stays the mean of all frames that were ever given to it. The inertia is the sum of squared distances.
    """
    centers, counts = clusters
    codes, distance, _ = nearest(x, centers)
    chosen = (codes[..., None] == jnp.arange(centers.shape[1])) * weight[:, None, None]  # [N G V]
    own = chosen.sum(axis=0)
    frames = jnp.asarray(x, jnp.float32).reshape(len(x), centers.shape[0], -1)
    sums = jnp.einsum("ngv,nge->gve", chosen, frames, precision="highest")
    counts = counts + own
    centers = centers + (sums - own[..., None] * centers) / jnp.maximum(counts, 1.0)[..., None]
    return Clusters(centers, counts), (distance * weight[:, None]).sum(axis=0)


@jax.jit
def tallied(centers: jax.Array, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum of squared distances [G], frames [G V] of each centre) of a batch x [N D] with weight [N] 0 or 1."""
    codes, distance, _ = nearest(x, centers)
    chosen = (codes[..., None] == jnp.arange(centers.shape[1])) * weight[:, None, None]  # [N G V]
    return (distance * weight[:, None]).sum(axis=0), chosen.sum(axis=0)


@functools.partial(jax.jit, static_argnames="count")
def plus_plus(key: jax.Array, x: jax.Array, count: int) -> jax.Array:
    """k-means++: the numbers of `count` rows of x [N E] that are far from each other, int32 [count].

    Each is drawn with a probability that grows with the squared distance to those before it. Of 2 + ln(count) draws the
    one is kept that lowers the sum of distances most, as scikit-learn does.
    """
    trials = 2 + int(math.log(count))
    x = x - x.mean(axis=0)
    norms = jnp.square(x).sum(axis=-1)

    def distances(rows: jax.Array) -> jax.Array:
        cross = jnp.einsum("te,ne->tn", x[rows], x, precision="highest")
        return jnp.maximum(norms[rows][:, None] - 2.0 * cross + norms, 0.0)

    def add(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows, closest = state
        total = jnp.cumsum(closest)
        draws = jax.random.uniform(jax.random.fold_in(key, i), (trials,)) * total[-1]
        drawn = jnp.clip(jnp.searchsorted(total, draws, side="right"), 0, len(x) - 1)
        closer = jnp.minimum(closest, distances(drawn))
        best = closer.sum(axis=-1).argmin()
        return rows.at[i].set(drawn[best].astype(jnp.int32)), closer[best]

    first = jax.random.randint(jax.random.fold_in(key, Stream.FIRST_CENTER.number), (), 0, len(x), jnp.int32)
    rows = jnp.zeros(count, jnp.int32).at[0].set(first)
    rows, _ = jax.lax.fori_loop(1, count, add, (rows, distances(first[None])[0]))
    return rows


@functools.partial(jax.jit, static_argnames=("count", "groups"))
def start(key: jax.Array, x: jax.Array, judge: jax.Array, *, count: int, groups: int) -> tuple[jax.Array, jax.Array]:
    """One k-means++ start of each codebook from x [N D]: (centers [G V E], their inertia [G] on judge [M D])."""
    frames = jnp.asarray(x, jnp.float32).reshape(len(x), groups, -1).transpose(1, 0, 2)  # [G N E]
    keys = jax.random.split(key, groups)
    rows = jax.vmap(lambda key, x: plus_plus(key, x, count))(keys, frames)
    centers = jnp.take_along_axis(frames, rows[..., None], axis=1)
    return centers, nearest(judge, centers).distance.sum(axis=0)
