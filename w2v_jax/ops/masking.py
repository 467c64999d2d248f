"""Span masking of wav2vec 2.0 inside jit, with static shapes (Baevski et al. 2020, section 3.1 and appendix A).

`span_mask` draws which frames are hidden; `masked_slots` lists them in M static slots per row, with a flag for
the slots in use; `span_mask_oracle` is the same rule in NumPy, step by step, for tests.

Differs: fairseq drops random frames from each row until all rows of a batch have as many masked frames as
the poorest, which makes holes in the spans; here each row keeps its own spans and unused slots weigh nothing.
fairseq fails when a row would be masked whole; here the last valid frame always stays visible, which for
rows longer than a span it does in fairseq too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax.ops import random as noises


def num_spans(num_frames: int, prob: float, length: int, *, min_spans: int) -> int:
    """The most spans that a row of `num_frames` frames can get."""
    return max(min_spans, int(prob * num_frames / length + 1.0))


def num_slots(num_frames: int, prob: float, length: int, *, min_spans: int) -> int:
    """M: the most frames that can be masked among `num_frames`; no draw exceeds it. At least one slot."""
    return max(1, min(num_frames - 1, num_spans(num_frames, prob, length, min_spans=min_spans) * length))


def span_mask(
    noise: jax.Array, num_frames: jax.Array, total_frames: int, *, prob: float, length: int, min_spans: int
) -> jax.Array:
    """Masked frames [B F] bool. noise [B] words, num_frames [B] valid frames of each row, F = total_frames.

    A row of n frames gets floor(prob * n / length + u) spans, u uniform, at least `min_spans`; their starts are
    distinct and uniform over {0 .. n - length - 1}; spans may overlap. `prob` is thus the share of frames
    covered if spans did not overlap. Does not depend on F.
    """
    most = min(num_spans(total_frames, prob, length, min_spans=min_spans), total_frames)
    n = num_frames[:, None].astype(jnp.int32)  # [B 1]
    rounding = noises.uniform(noises.fold(noise, noises.Stream.SPAN_ROUNDING))[:, None]
    spans = jnp.maximum(min_spans, jnp.floor(prob * n / length + rounding).astype(jnp.int32))
    choices = jnp.maximum(n - length, jnp.minimum(spans + 1, n))  # short rows: starts as far as the spans need
    frame = jnp.arange(total_frames)[None]
    score = jnp.where(
        frame < choices, noises.uniform(noises.fold(noise, noises.Stream.SPAN_STARTS), total_frames), -1.0
    )
    # without replacement; not by top_k, for which XLA gathers the rows of all devices
    starts = jnp.argsort(-score, axis=1, stable=True)[:, :most]  # [B K]
    live = (jnp.arange(most)[None] < jnp.minimum(spans, choices))[:, None]
    after = frame[:, :, None] - starts[:, None]  # frames since each start  [B F K]
    covered = jnp.any((after >= 0) & (after < length) & live, axis=-1)
    return covered & (frame < n - 1)


def masked_slots(masked: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """(index [B M] int32 of the masked frames in order, used [B M] bool). Unused slots point to visible frames."""
    index = jnp.argsort(~masked, axis=1, stable=True)[:, :slots]
    used = jnp.arange(slots)[None] < masked.sum(axis=1, keepdims=True)
    return index.astype(jnp.int32), used


def span_mask_oracle(
    rng: np.random.Generator, num_frames: np.ndarray, total_frames: int, *, prob: float, length: int, min_spans: int
) -> np.ndarray:
    """`span_mask` in NumPy, one row at a time. Tests compare the two."""
    masked = np.zeros((len(num_frames), total_frames), bool)
    for row, n in enumerate(num_frames):
        spans = max(min_spans, int(prob * n / length + rng.random()))
        choices = n - length if n - length > spans else min(spans + 1, n)
        starts = rng.choice(choices, min(spans, choices), replace=False)
        for start in starts:
            masked[row, start : min(start + length, n - 1)] = True
    return masked
