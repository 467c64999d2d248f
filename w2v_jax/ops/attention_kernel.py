"""Attention on TPUs in one kernel per direction: scores, softmax and dropout never leave the core's own memory.

A grid step holds all keys and values of some heads of one utterance, as many as fill LANES, and a tile of queries. So
the softmax is computed at once, without the running maximum of FlashAttention (Dao et al. 2022). The gradient keeps
only queries, keys and values, and computes scores and dropout anew. The dropped probabilities are those of
`attention.py`'s other formulations: each is a hash of (word of the head, query, key), `ops/random.py`.

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
    """query (scaled), key, value [B F H K], num_frames [B], words [B H] uint32 or None (no dropout) -> [B F H K]."""
    return _forward(rate, query, key, value, num_frames, words)[0]


def _forward(rate, query, key, value, num_frames, words):
    arrays, about = [query, key, value], dict(rate=rate, num_frames=num_frames, words=words)
    (out,) = _call(_forward_kernel, arrays, tiled=1, outputs=(True,), **about)
    return out, (query, key, value, num_frames, words)


def _backward(rate, kept, gradient):
    query, key, value, num_frames, words = kept
    arrays, about = [query, gradient, key, value], dict(rate=rate, num_frames=num_frames, words=words)
    return *_call(_backward_kernel, arrays, tiled=2, outputs=(True, False, False), **about), None, None


attention_kernel.defvjp(_forward, _backward)


def _call(kernel, arrays, *, rate, num_frames, words, tiled, outputs):
    """Runs a kernel over (utterances, groups of heads, tiles of queries), and returns arrays [B F H K].

    Of `arrays` [B F H K] the first `tiled` are cut into tiles of queries. outputs: for each array that is written,
    whether a grid step writes its tile of it, or all tiles add to the whole of it.
    """
    batch, frames, heads, width = arrays[0].shape
    group = LANES // width if LANES % width == 0 and heads % (LANES // width) == 0 else 1
    padded = -(-group * width // LANES) * LANES // group  # of a head whose width does not fill lanes
    padding = (0, 0), (0, -frames % LANES), (0, 0), (0, padded - width)
    arrays = [jnp.pad(x, padding).reshape(batch, frames + padding[1][1], -1) for x in arrays]
    length = arrays[0].shape[1]
    tile = max(n for n in range(LANES, length + 1, LANES) if length % n == 0 and (n == LANES or n * length <= SCORES))
    if words is None:
        rate, words = 0.0, jnp.zeros((batch, heads), jnp.uint32)
    of_tile = pl.BlockSpec((1, tile, group * padded), lambda row, heads, i, *_: (row, i, heads))
    of_row = pl.BlockSpec((1, length, group * padded), lambda row, heads, i, *_: (row, 0, heads))
    products = 2 if len(outputs) == 1 else 5
    written = pl.pallas_call(
        functools.partial(kernel, rate=rate, frames=frames, group=group),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, heads // group, length // tile),
            in_specs=[of_tile] * tiled + [of_row] * (len(arrays) - tiled),
            out_specs=[of_tile if is_tile else of_row for is_tile in outputs],
            scratch_shapes=[pltpu.VMEM((length, group * padded), jnp.float32) for is_tile in outputs if not is_tile],
        ),
        out_shape=[jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)] * len(outputs),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * batch * heads * length * length * width,
            transcendentals=batch * heads * length * length,
            bytes_accessed=(len(arrays) + len(outputs)) * arrays[0].size * arrays[0].dtype.itemsize,
        ),
        interpret=platform() == "cpu",
        name=kernel.__name__.strip("_"),
    )(num_frames.astype(jnp.int32), words, *arrays)
    return [x[:, :frames].reshape(batch, frames, heads, padded)[..., :width] for x in written]


def _forward_kernel(num_frames, words, query, key, value, out, *, rate, frames, group):
    for i, head in enumerate(_of_heads(query, group)):
        probs, _ = _probabilities(num_frames, query[head], key[head], frames=frames)
        kept = _dropout(probs, words=words, head=i, group=group, rate=rate).astype(value.dtype)
        out[head] = _product(kept, value[head], (1, 0)).astype(out.dtype)


def _backward_kernel(
    num_frames,
    words,
    query,
    gradient,
    key,
    value,
    of_query,
    of_key,
    of_value,
    key_sum,
    value_sum,
    *,
    rate,
    frames,
    group,
):
    def start():
        key_sum[...], value_sum[...] = jnp.zeros_like(key_sum), jnp.zeros_like(value_sum)

    def finish():
        of_key[0], of_value[0] = key_sum[...].astype(of_key.dtype), value_sum[...].astype(of_value.dtype)

    tile = pl.program_id(2)
    pl.when(tile == 0)(start)
    for i, head in enumerate(_of_heads(query, group)):
        dropped = functools.partial(_dropout, words=words, head=i, group=group, rate=rate)
        probs, valid = _probabilities(num_frames, query[head], key[head], frames=frames)
        of_probs = dropped(_product(gradient[head], value[head], (1, 1)))
        mean = jnp.sum(probs * of_probs, axis=-1, keepdims=True)
        of_scores = jnp.where(valid, probs * (of_probs - mean), 0.0).astype(key.dtype)
        of_query[head] = _product(of_scores, key[head], (1, 0)).astype(of_query.dtype)
        key_sum[head[1:]] += _product(of_scores, query[head], (0, 0))
        value_sum[head[1:]] += _product(dropped(probs).astype(value.dtype), gradient[head], (0, 0))
    pl.when(tile == pl.num_programs(2) - 1)(finish)


def _of_heads(ref, group):
    """Where the heads of a group lie in a block [1 F group*K]."""
    width = ref.shape[-1] // group
    return [(0, slice(None), slice(i * width, (i + 1) * width)) for i in range(group)]


def _probabilities(num_frames, query, key, *, frames):
    """Probabilities [tile F] float32 of a head, and whether each key is one of the utterance."""
    scores = _product(query, key, (1, 1))
    keys = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    valid = keys < num_frames[pl.program_id(0)]
    scores = jnp.where(valid, scores, jnp.where(keys < frames, MASKED, PADDED))
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return weights / jnp.sum(weights, axis=-1, keepdims=True), valid


def _dropout(x, *, words, head, group, rate):
    """`random.dropout` of x [tile F] of a head: its word is mixed with the query's number, then with the key's."""
    if not rate:
        return x
    tile, length = x.shape
    queries = (pl.program_id(2) * tile + jax.lax.broadcasted_iota(jnp.int32, (tile, 1), 0)).astype(jnp.uint32)
    keys = jax.lax.broadcasted_iota(jnp.int32, (1, length), 1).astype(jnp.uint32)
    word = words[pl.program_id(0), pl.program_id(1) * group + head]
    bits = mix(mix(word + queries * jnp.uint32(GOLDEN)) + keys * jnp.uint32(GOLDEN))
    return jnp.where(bits >= jnp.uint32(rate * 2**32), x * (1.0 / (1.0 - rate)), 0.0)


def _product(a, b, axes):
    """The sum over axis axes[0] of a and axes[1] of b, in float32."""
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)
