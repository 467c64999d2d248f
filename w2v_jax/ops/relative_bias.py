"""A bias of attention that depends on head and distance, and its gate (WavLM, Chen et al. 2021, arXiv 2110.13900).

Distances fall into buckets: each small distance has its own, larger ones share buckets that grow with the logarithm
(Raffel et al. 2020, T5). A row of a table holds the bias of a bucket for each head. The bias depends on j - i alone, so
it is kept by distance [H 2F-1]; `by_position` spreads it over queries and keys where it is used.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np


def bucket_of(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance (key - query). Half of the buckets are for keys after the query.

    Within each half, the first half of the buckets hold one distance each. `max_distance` and beyond share the last.
    The logarithms are in float32, as in the reference (unilm), where a distance lies on the edge between two buckets.
    """
    half = buckets // 2
    exact = half // 2
    size = np.abs(distance)
    far = np.log(np.maximum(size, exact).astype(np.float32) / np.float32(exact))
    far = far / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + far.astype(np.int64), half - 1)
    return np.where(distance > 0, half, 0) + np.where(size < exact, size, far)


def by_distance(table: jax.Array, frames: int, max_distance: int) -> jax.Array:
    """table [buckets H] -> the bias [H 2F-1] float32 of the distances 1 - F to F - 1. F may be symbolic."""
    buckets = jnp.asarray(bucket_of(np.arange(-max_distance, max_distance + 1), len(table), max_distance))
    distance = jnp.clip(jnp.arange(2 * frames - 1) - (frames - 1), -max_distance, max_distance)
    return jnp.take(table, buckets[distance + max_distance], axis=0).astype(jnp.float32).T


def by_position(bias: jax.Array) -> jax.Array:
    """bias [... 2F-1] of the distances 1 - F to F - 1 -> [... F F]: that of distance j - i for query i and key j.

    Rows of width 2F, read again with width 2F - 1, move by one from row to row: no index is gathered, and the gradient
    is a sum and no scatter.
    """
    *batch, width = bias.shape
    frames = (width + 1) // 2
    rows = jnp.broadcast_to(jnp.pad(bias, [(0, 0)] * len(batch) + [(0, 1)])[..., None, :], (*batch, frames, 2 * frames))
    moved = rows.reshape(*batch, -1)[..., : frames * width].reshape(*batch, frames, width)
    return moved[..., frames - 1 :]


def gate(numbers: jax.Array, scale: jax.Array) -> jax.Array:
    """numbers [... H 8] and scale [H] -> the gate [... H] float32: a (b * scale - 1) + 2.

    a and b are the logistic functions of the sums of the first and of the last four numbers.
    """
    a, b = jnp.moveaxis(jax.nn.sigmoid(numbers.astype(jnp.float32).reshape(*numbers.shape[:-1], 2, 4).sum(-1)), -1, 0)
    return a * (b * scale - 1.0) + 2.0


@jax.custom_vjp
def add_gated(logits: jax.Array, gates: jax.Array, bias: jax.Array) -> jax.Array:
    """logits [... H F F] + gates [... H F] * `by_position` of bias [... H 2F-1], where `...` of bias may be missing.

    The gradient keeps gates and bias and spreads the bias once more: it keeps no [H F F]. It sums over positions before
    it sums over utterances, so that devices add up numbers by distance and not by position.
    """
    return logits + gates[..., None] * by_position(bias)


def _add_forward(logits, gates, bias):
    return add_gated(logits, gates, bias), (gates, bias)


def _add_backward(kept, gradient):
    gates, bias = kept
    of_gates = (gradient * by_position(bias)).sum(axis=-1)
    shape = jax.ShapeDtypeStruct((*gates.shape[:-1], bias.shape[-1]), bias.dtype)
    (of_bias,) = jax.linear_transpose(by_position, shape)(gradient * gates[..., None])
    return gradient, of_gates, of_bias.sum(axis=tuple(range(gates.ndim - bias.ndim)))


add_gated.defvjp(_add_forward, _add_backward)
