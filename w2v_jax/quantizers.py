"""Vector quantizers: continuous frames -> discrete codes and their vectors.

`GumbelQuantizer` is the product quantizer of vq-wav2vec (Baevski et al. 2020a, section 3.1) and wav2vec 2.0
(2020b, section 2): G groups of V codes; straight-through, so that the forward value is a code and the gradient
that of the soft sample. Logits, softmax and perplexities are float32.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.config import UserError

part: Any = nn.with_logical_partitioning


class Quantized(NamedTuple):
    """vectors [B M G*E] of the chosen codes [B M G]; codes [B M G], the arg-max without noise; logits [B M G V]."""

    vectors: jax.Array
    chosen: jax.Array
    codes: jax.Array
    logits: jax.Array


def temperature(step: jax.Array, start: float, end: float, decay: float) -> jax.Array:
    """max(start * decay ** step, end), where step counts optimizer updates.

    The logarithm is taken in double precision: 0.999995 rounded to float32 would be off by 0.4 % after 600k updates.
    """
    return jnp.maximum(start * jnp.exp(math.log(decay) * step.astype(jnp.float32)), end)


class GumbelQuantizer(nn.Module):
    """groups G, codes V per group, dim = G * E, the width of the concatenated code vectors."""

    groups: int
    codes: int
    dim: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.dim % self.groups:
            raise UserError(f"quantizer.dim {self.dim} is not divisible by {self.groups} groups")
        # N(0, 1) weights on layer-normed input make each frame's softmax nearly one-hot from the start, which
        # keeps codes alive; small weights average to a uniform softmax (fairseq gumbel_vector_quantizer).
        self.weight_proj = nn.Dense(
            self.groups * self.codes,
            dtype=jnp.float32,
            kernel_init=part(nn.initializers.normal(1.0), ("conv", "codes")),
            bias_init=part(nn.initializers.zeros, ("codes",)),
        )
        init = part(nn.initializers.uniform(1.0), ("groups", "codes", "proj"))
        self.codebook = self.param("codebook", init, (self.groups, self.codes, self.dim // self.groups))

    def __call__(self, x: jax.Array, temperature: jax.Array, gumbel: jax.Array | None) -> Quantized:
        """x [B M C]; gumbel [B M G V] standard Gumbel noise for a sample at the temperature, None for the arg-max."""
        logits = self.weight_proj(x.astype(jnp.float32)).reshape(*x.shape[:-1], self.groups, self.codes)
        codes = jnp.argmax(logits, axis=-1)
        if gumbel is None:
            return Quantized(self.lookup(codes), codes, codes, logits)
        soft = jax.nn.softmax((logits + gumbel) / temperature, axis=-1)
        chosen = jnp.argmax(soft, axis=-1)
        hard = jax.nn.one_hot(chosen, self.codes, dtype=jnp.float32)
        sample = hard + (soft - jax.lax.stop_gradient(soft))  # the bracket is exactly 0 forward
        vectors = jnp.einsum("bmgv,gve->bmge", sample, self.codebook)
        return Quantized(vectors.reshape(*x.shape[:-1], self.dim).astype(self.dtype), chosen, codes, logits)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """The concatenated vectors [... G*E] of codes [... G]."""
        vectors = [self.codebook[g][codes[..., g]] for g in range(self.groups)]
        return jnp.concatenate(vectors, axis=-1).astype(self.dtype)


def perplexity(probs: jax.Array) -> jax.Array:
    """Sum over groups of exp(entropy): probs [... G V] -> [...]; from G (collapse) to G * V (uniform)."""
    return jnp.sum(jnp.exp(-jnp.sum(probs * jnp.log(probs + 1e-7), axis=-1)), axis=-1)


def unit_perplexities(quantized: Quantized, used: jax.Array, units: int) -> tuple[jax.Array, jax.Array]:
    """(code, probability) perplexity of each unit [units] over its used frames; used [B M].

    The first counts arg-max codes, the second averages the softmax without noise or temperature.
    """
    weight = used.astype(jnp.float32).reshape(units, -1, 1, 1)  # [units R*M 1 1]
    count = jnp.maximum(weight.sum(axis=1), 1.0)
    logits = quantized.logits.reshape(units, -1, *quantized.logits.shape[2:])
    hard = jax.nn.one_hot(quantized.codes, logits.shape[-1]).reshape(logits.shape)
    soft = jax.nn.softmax(logits, axis=-1)
    return perplexity((hard * weight).sum(axis=1) / count), perplexity((soft * weight).sum(axis=1) / count)
