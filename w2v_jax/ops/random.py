"""Random numbers as a function of (key, row, position): the same on any mesh, padding or accumulation.

Each row of a batch has one 32-bit word. The bits at a position are that word mixed with one coordinate after
the other by a bijective integer hash (the "lowbias32" constants of Wellons' hash-prospector). Only the last
coordinate costs work per element, so that dropout is cheaper than with threefry. Not for cryptography.

Differs: fairseq draws masks from the operating system's entropy and dropout from one generator per process, so
that neither can be reproduced on another number of devices.
"""

from __future__ import annotations

import enum
from typing import overload

import jax
import jax.numpy as jnp

GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads neighbouring coordinates over the word


@enum.unique
class Stream(enum.Enum):
    """What random numbers are drawn for: (whose words or key, the number that is folded into them).

    Members of one owner have different numbers, so that no two uses share their numbers. A layer of a network folds
    its own index in, which is below 2**16.
    """

    EVALUATION = "the run's key", 2**31 - 1  # updates fold their step in
    LAYER_DROP = "a step's key", 7

    SPAN_ROUNDING = "a mask of spans", 0
    SPAN_STARTS = "a mask of spans", 1

    FUTURE_DISTRACTORS = "a row of CPC, wav2vec or vq-wav2vec", 1
    FUTURE_CROSS_DISTRACTORS = "a row of CPC, wav2vec or vq-wav2vec", 2
    FUTURE_GUMBEL = "a row of CPC, wav2vec or vq-wav2vec", 3
    REVIVED_CODES = "a row of CPC, wav2vec or vq-wav2vec", 4

    HIDDEN_SPANS = "a row of wav2vec 2.0", 1
    GUMBEL = "a row of wav2vec 2.0", 2
    DISTRACTORS = "a row of wav2vec 2.0", 3
    CROSS_DISTRACTORS = "a row of wav2vec 2.0", 4
    CODEBOOK_DISTRACTORS = "a row of wav2vec 2.0", 5
    CONTEXT_NETWORK = "a row of wav2vec 2.0", 6

    HIDDEN_CODES = "a row of BERT", 1
    CODE_TREATMENT = "a row of BERT", 2
    RANDOM_CODES = "a row of BERT", 3
    CODE_NETWORK = "a row of BERT", 6

    HIDDEN_UNITS = "a row of HuBERT or WavLM", 1
    UNIT_NETWORK = "a row of HuBERT or WavLM", 6

    SPEC_AUGMENT = "a row of CTC", 0
    FINE_TUNED_ENCODER = "a row of CTC", 6
    ACOUSTIC_MODEL = "a row of CTC", 7
    OTHER_PASS = "a row of CTC", 8
    TIME_SPANS = "SpecAugment", 0
    CHANNEL_SPANS = "SpecAugment", 1

    FIRST_CENTER = "a start of k-means", 0  # the others fold their number in

    TRANSFORMER_INPUT = "a network", 1 << 16
    NETWORK_INPUT = "a network", 1 << 17
    NETWORK_OUTPUT = "a network", 1 << 18

    @property
    def number(self) -> int:
        """The number that is folded in."""
        return self.value[1]


def mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every input bit flips each output bit about half of the time."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def row_noise(key: jax.Array, row: jax.Array) -> jax.Array:
    """One word per row, [B] uint32, from a typed key and the rows' numbers in the global batch [B]."""
    words = jax.random.bits(key, (2,), jnp.uint32)
    return mix(mix(row.astype(jnp.uint32) + words[0]) + words[1])


@overload
def fold(noise: jax.Array, use: Stream | int | jax.Array) -> jax.Array: ...
@overload
def fold(noise: None, use: Stream | int | jax.Array) -> None: ...
def fold(noise: jax.Array | None, use: Stream | int | jax.Array) -> jax.Array | None:
    """Independent words for a use, or for a layer of a network by its index. None, for no noise, stays None."""
    if noise is None:
        return None
    tag = use.number if isinstance(use, Stream) else use
    return mix(noise ^ (jnp.uint32(GOLDEN) * (jnp.asarray(tag).astype(jnp.uint32) + jnp.uint32(1))))


def bits(noise: jax.Array, *sizes: int) -> jax.Array:
    """Random words [B *sizes] uint32. The word at a position does not depend on the sizes."""
    for size in sizes:
        noise = mix(noise[..., None] + jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(GOLDEN))
    return noise


def uniform(noise: jax.Array, *sizes: int) -> jax.Array:
    """Uniform numbers [B *sizes] float32, strictly inside (0, 1)."""
    return ((bits(noise, *sizes) >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)


def gumbel(noise: jax.Array, *sizes: int) -> jax.Array:
    """Standard Gumbel noise [B *sizes] float32."""
    return -jnp.log(-jnp.log(uniform(noise, *sizes)))


def dropout(x: jax.Array, rate: float, noise: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of x [B ...] and scales the rest by 1 / (1 - rate); the identity without noise."""
    if noise is None or rate == 0.0:
        return x
    keep = bits(noise, *x.shape[1:]) >= jnp.uint32(rate * 2**32)
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))
