"""Scaled dot-product attention over the frames of an utterance, by the formulation that suits the platform.

All compute softmax(q k^T / sqrt(K)) v over the valid keys, with dropout of the probabilities (Vaswani et al. 2017,
section 3.2.1) and the softmax in float32. All but "cudnn" drop the same ones; "xla" and "blocks" can add a gated bias
of the distance to the logits (`relative_bias.py`).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.ops import random as noises
from w2v_jax.ops.attention_kernel import MOST_FRAMES, attention_kernel
from w2v_jax.ops.devices import on_each_device, platform
from w2v_jax.ops.frames import valid_frames
from w2v_jax.ops.relative_bias import add_gated

ATTENTION = ("auto", "xla", "blocks", "cudnn", "kernel")
CPU_BLOCK, GPU_BLOCK = 2**20, 2**26
"""Scores that "blocks" holds at once, of all of [B H F F]: on a CPU 4 MB, so that they stay in the cache, and two heads
at least. A GPU needs many at once; 256 MB took 0.9 of the time of 64 MB (docs/performance.md)."""


class GatedBias(NamedTuple):
    """What is added to the logits: gates [B F H] of the queries times the bias [H 2F-1] of the distance to the key."""

    gates: jax.Array
    by_distance: jax.Array

    __repr__ = short_repr


@jax.named_scope("attention")
def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    num_frames: jax.Array,
    dropout: float = 0.0,
    noise: jax.Array | None = None,
    bias: GatedBias | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Scaled dot-product attention over the first num_frames [B] keys: [B F H K] each -> [B F H K].

    implementation: "cudnn" is flash attention on NVIDIA GPUs, in bfloat16 or float16, without attention dropout and
    without a bias. "kernel" is attention on TPUs without scores in main memory, without a bias. "blocks" computes some
    heads at a time, and "xla" all at once; of these only "xla" keeps scores for the gradient. All work on any mesh.
    "auto" is cudnn on GPUs and the kernel on TPUs where they can work (xla on GPUs in float32), and else blocks. Rows
    without keys give finite values.
    """
    if implementation not in ATTENTION:
        raise UserError(f"encoder.attention is {implementation!r}; it is one of {ATTENTION}")
    drops = noise is not None and dropout > 0.0
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if implementation == "auto":
        implementation = _best(half, drops=drops, biased=bias is not None, frames=key.shape[1])
    if implementation in ("cudnn", "kernel") and bias is not None:
        raise UserError(
            f"encoder.attention={implementation!r} cannot add the gated bias of encoder.relative_buckets; 'auto', "
            "'blocks' and 'xla' can"
        )
    if implementation == "kernel" and (platform() == "gpu" or key.shape[1] > MOST_FRAMES):
        raise UserError(
            f"encoder.attention='kernel' needs a TPU and at most {MOST_FRAMES} frames; 'auto' needs neither"
        )
    if implementation == "cudnn":
        if drops or not half:
            raise UserError("encoder.attention='cudnn' needs train.dtype='bfloat16' and encoder.attention_dropout=0")
        if platform() != "gpu":
            raise UserError("encoder.attention='cudnn' needs an NVIDIA GPU; 'auto' or 'xla' run without one")
        return _cudnn(query, key, value, num_frames=num_frames)
    words = noises.bits(noise, query.shape[2]) if noise is not None and drops else None  # [B H]
    if implementation == "kernel":
        axes, scaled = ("batch", "frames", "heads", "kv"), query / math.sqrt(query.shape[-1])
        names = (axes, axes, axes, axes[:1], words if words is None else axes[::2])
        function = functools.partial(attention_kernel, dropout)
        return on_each_device(function, names, scaled, key, value, num_frames, words)
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))  # [B H F K]: the products are faster so on CPU
    if implementation == "blocks":
        pair = None if bias is None else (bias.gates.swapaxes(1, 2), bias.by_distance)
        axes = ("batch", "heads", "frames", "kv")
        names = (axes, axes, axes, axes[:1], words if words is None else axes[:2], pair and (axes[:3], axes[1:3]))
        function = functools.partial(_blocks_of_heads, dropout)
        return on_each_device(function, names, query, key, value, num_frames, words, pair).swapaxes(1, 2)
    valid = valid_frames(num_frames, key.shape[2])[:, None, None]
    logits = jnp.einsum("bhqd,bhkd->bhqk", query / math.sqrt(query.shape[-1]), key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = add_gated(logits, bias.gates.swapaxes(1, 2), bias.by_distance)
    probs = jax.nn.softmax(jnp.where(valid, logits, -1e9), axis=-1).astype(query.dtype)
    probs = noises.dropout(probs, dropout, noise)
    return jnp.einsum("bhqk,bhkd->bhqd", probs, value).swapaxes(1, 2)


def _best(half: bool, *, drops: bool, biased: bool, frames: int) -> str:
    if platform() == "gpu" and not drops and not biased:
        return "cudnn" if half else "xla"
    return "kernel" if platform() == "tpu" and not biased and frames <= MOST_FRAMES else "blocks"


def _cudnn(query, key, value, *, num_frames) -> jax.Array:
    """cuDNN's attention. JAX refuses gradients of an odd number of frames, so an odd batch is padded by one."""
    frames = query.shape[1]
    query, key, value = (jnp.pad(x, ((0, 0), (0, frames % 2), (0, 0), (0, 0))) for x in (query, key, value))
    lengths = jnp.maximum(num_frames, 1).astype(jnp.int32)
    out = jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=lengths, query_seq_lengths=lengths, implementation="cudnn"
    )
    return out[:, :frames]


# Blocks of heads. The gradient keeps the output and two numbers per query, the largest score and the sum of
# exponentials, and computes scores and dropout anew (as FlashAttention does, Dao et al. 2022, section 3.1 and
# appendix B.2); on CPU, where memory is the limit, that is also faster. Rows are the heads of all utterances: query,
# key, value [R F K], num_frames [R].


def _blocks_of_heads(rate: float, query, key, value, num_frames, words, bias) -> jax.Array:
    """query, key, value [B H F K], num_frames [B], words [B H] or None, bias (gates [B H F], by distance [H 2F-1])."""
    batch, heads = query.shape[:2]
    rows = [x.reshape(batch * heads, *x.shape[2:]) for x in (query, key, value)]
    num_frames, words = jnp.repeat(num_frames, heads), words if words is None else words.reshape(-1)
    if bias is not None:
        bias = bias[0].reshape(-1, bias[0].shape[2]), jnp.tile(bias[1], (batch, 1))
    out: jax.Array = _blocks(rate, *rows, num_frames, words, bias)
    return out.reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(rate, query, key, value, num_frames, words, bias) -> jax.Array:
    """[R F K]; words [R] uint32 or None: the noise of dropout; bias (gates [R F], by distance [R 2F-1]) or None."""
    return _forward(rate, query, key, value, num_frames, words, bias)[0]


def _forward(rate, query, key, value, num_frames, words, bias):
    def block(inputs):
        query, key, value, num_frames, words, bias = inputs
        scores = _scores(query, key, num_frames=num_frames, bias=bias)
        most = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - most)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        kept = noises.dropout(weights, rate, words).astype(value.dtype)
        out = jnp.einsum("rqk,rkd->rqd", kept, value, preferred_element_type=jnp.float32) / total
        return out.astype(value.dtype), most, total

    inputs = (query, key, value, num_frames, words, bias)
    out, most, total = _by_block(block, inputs)
    return out, (*inputs, out, most, total)


def _backward(rate, kept, gradient):
    def block(inputs):
        query, key, value, num_frames, words, bias, out, most, total, gradient = inputs
        probs = jnp.exp(_scores(query, key, num_frames=num_frames, bias=bias) - most) / total
        of_probs = jnp.einsum("rqd,rkd->rqk", gradient, value, preferred_element_type=jnp.float32)
        mean = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
        valid = valid_frames(num_frames, key.shape[1])[:, None]
        of_logits = jnp.where(valid, probs * (noises.dropout(of_probs, rate, words) - mean), 0)
        of_bias = None if bias is None else _bias_gradient(bias, of_logits)
        of_scores = of_logits.astype(query.dtype)
        scale = 1.0 / math.sqrt(query.shape[-1])
        of_query = jnp.einsum("rqk,rkd->rqd", of_scores, key) * scale
        of_key = jnp.einsum("rqk,rqd->rkd", of_scores, query) * scale
        of_value = jnp.einsum("rqk,rqd->rkd", noises.dropout(probs, rate, words).astype(value.dtype), gradient)
        return of_query, of_key, of_value, of_bias

    *of_products, of_bias = _by_block(block, (*kept, gradient))
    return *of_products, None, None, of_bias


_blocks.defvjp(_forward, _backward)


def _scores(query, key, *, num_frames, bias):
    """[R F F] float32, very small for keys beyond the utterance."""
    scores = jnp.einsum("rqd,rkd->rqk", query / math.sqrt(query.shape[-1]), key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = add_gated(scores, *bias)
    return jnp.where(valid_frames(num_frames, key.shape[1])[:, None], scores, -1e9)


def _bias_gradient(bias, of_logits):
    """The gradient of (gates, bias by distance) from that of the logits [R F F]."""
    return jax.vjp(lambda bias: add_gated(jnp.zeros_like(of_logits), *bias), bias)[1](of_logits)[0]


def _by_block(function, arrays):
    """Maps a function of a tuple of [rows ...] arrays over blocks of rows: as many as fit, but two rather than one."""
    (count, frames, _), most = arrays[0].shape, CPU_BLOCK if platform() == "cpu" else GPU_BLOCK
    rows = max(n for n in range(1, count + 1) if count % n == 0 and (n <= 2 or n * frames * frames <= most))
    cut = jax.tree.map(lambda x: x.reshape(count // rows, rows, *x.shape[1:]), arrays)
    blocks = jax.lax.map(function, cut)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), blocks)
