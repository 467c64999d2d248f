"""Attention on TPUs in one kernel per direction: scores, softmax and dropout never leave the core's own memory.

A grid step holds all keys and values of one head of one utterance and TILE queries, so that the softmax is
computed at once, without the running maximum of FlashAttention (Dao et al. 2022). The gradient keeps only queries, keys
and values, and computes scores and dropout anew. The dropped probabilities are those of `attention.py`'s other
formulations: each is a hash of (word of the head, query, key), `ops/random.py`.

Pallas compiles it for TPUs. Elsewhere it can be interpreted, slowly, for tests.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from w2v_jax.ops.devices import platform
from w2v_jax.ops.random import GOLDEN, mix

LANES = 128  # frames are padded to a multiple of them
MOST_FRAMES = 4096
"""More keys than these do not fit with their scores (85 s of 20 ms frames)."""
SCORES = 2**18
"""Scores that a grid step holds at once, 1 MB in float32; at least LANES queries."""
MASKED, PADDED = -1e9, -2e9
"""Scores of keys beyond the utterance, as in the other formulations, and of those beyond the batch, which get none."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention_kernel(rate: float, query: jax.Array, key: jax.Array, value: jax.Array, num_frames: jax.Array, words):
    """query (scaled), key, value [R F K], num_frames [R], words [R] uint32 or None (no dropout) -> [R F K]."""
    return _forward(rate, query, key, value, num_frames, words)[0]


def _forward(rate, query, key, value, num_frames, words):
    frames = query.shape[1]
    heads = [_padded(x) for x in (query, key, value)]
    (out,) = _call(_forward_kernel, rate, frames, heads, num_frames=num_frames, words=words, tiled=1, outputs=(True,))
    return out[:, :frames], (query, key, value, num_frames, words)


def _backward(rate, kept, gradient):
    *heads, num_frames, words = kept
    frames = gradient.shape[1]
    inputs = [_padded(x) for x in (heads[0], gradient.astype(heads[0].dtype), *heads[1:])]
    found = _call(
        _backward_kernel,
        rate,
        frames,
        inputs,
        num_frames=num_frames,
        words=words,
        tiled=2,
        outputs=(True, False, False),
    )
    return *(x[:, :frames] for x in found), None, None


attention_kernel.defvjp(_forward, _backward)


def _padded(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES), (0, 0)))


def _call(kernel, rate, frames, heads, *, num_frames, words, tiled, outputs):
    """Runs a kernel over (rows, tiles of queries). Of `heads` [R F K] the first `tiled` are cut into tiles of queries.

    outputs: for each array [R F K] that is written, whether a grid step writes its tile of it, or all tiles add to the
    whole of it.
    """
    rows, length, width = heads[0].shape
    tile = max(LANES, min(length, SCORES // length // LANES * LANES))
    tile = max(n for n in range(LANES, tile + 1, LANES) if length % n == 0)
    if words is None:
        rate, words = 0.0, jnp.zeros(rows, jnp.uint32)
    of_tile = pl.BlockSpec((1, tile, width), lambda row, i, *_: (row, i, 0))
    of_row = pl.BlockSpec((1, length, width), lambda row, i, *_: (row, 0, 0))
    sums = [pltpu.VMEM((length, width), jnp.float32) for is_tile in outputs if not is_tile]
    products = 2 if len(outputs) == 1 else 5
    return pl.pallas_call(
        functools.partial(kernel, rate=rate, frames=frames),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(rows, length // tile),
            in_specs=[of_tile] * tiled + [of_row] * (len(heads) - tiled),
            out_specs=[of_tile if is_tile else of_row for is_tile in outputs],
            scratch_shapes=sums,
        ),
        out_shape=[jax.ShapeDtypeStruct((rows, length, width), heads[0].dtype)] * len(outputs),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * rows * length * length * width,
            transcendentals=rows * length * length,
            bytes_accessed=(len(heads) + len(outputs)) * rows * length * width * heads[0].dtype.itemsize,
        ),
        interpret=platform() == "cpu",
        name=kernel.__name__.strip("_"),
    )(num_frames.astype(jnp.int32), words, *heads)


def _forward_kernel(num_frames, words, query, key, value, out, *, rate, frames):
    probs, _ = _probabilities(num_frames, query, key, frames=frames)
    kept = _dropout(probs, words, rate).astype(value.dtype)
    out[0] = _product(kept, value[0], (1, 0)).astype(out.dtype)


def _backward_kernel(
    num_frames, words, query, gradient, key, value, of_query, of_key, of_value, key_sum, value_sum, *, rate, frames
):
    def start():
        key_sum[...], value_sum[...] = jnp.zeros_like(key_sum), jnp.zeros_like(value_sum)

    def finish():
        of_key[0], of_value[0] = key_sum[...].astype(of_key.dtype), value_sum[...].astype(of_value.dtype)

    tile = pl.program_id(1)
    pl.when(tile == 0)(start)
    probs, valid = _probabilities(num_frames, query, key, frames=frames)
    of_probs = _dropout(_product(gradient[0], value[0], (1, 1)), words, rate)
    mean = jnp.sum(probs * of_probs, axis=-1, keepdims=True)
    of_scores = jnp.where(valid, probs * (of_probs - mean), 0.0).astype(key.dtype)
    of_query[0] = _product(of_scores, key[0], (1, 0)).astype(of_query.dtype)
    key_sum[...] += _product(of_scores, query[0], (0, 0))
    value_sum[...] += _product(_dropout(probs, words, rate).astype(value.dtype), gradient[0], (0, 0))

    pl.when(tile == pl.num_programs(1) - 1)(finish)


def _probabilities(num_frames, query, key, *, frames):
    """Probabilities [tile F] float32, and whether each key is one of the utterance."""
    scores = _product(query[0], key[0], (1, 1))
    keys = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    valid = keys < num_frames[pl.program_id(0)]
    scores = jnp.where(valid, scores, jnp.where(keys < frames, MASKED, PADDED))
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return weights / jnp.sum(weights, axis=-1, keepdims=True), valid


def _dropout(x, words, rate):
    """`random.dropout` of x [tile F] of a head: the word is mixed with the query's number, then with the key's."""
    if not rate:
        return x
    tile, length = x.shape
    queries = (pl.program_id(1) * tile + jax.lax.broadcasted_iota(jnp.int32, (tile, 1), 0)).astype(jnp.uint32)
    keys = jax.lax.broadcasted_iota(jnp.int32, (1, length), 1).astype(jnp.uint32)
    word = words[pl.program_id(0)]
    bits = mix(mix(word + queries * jnp.uint32(GOLDEN)) + keys * jnp.uint32(GOLDEN))
    return jnp.where(bits >= jnp.uint32(rate * 2**32), x * (1.0 / (1.0 - rate)), 0.0)


def _product(a, b, axes):
    """The sum over axis axes[0] of a and axes[1] of b, in float32."""
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)
