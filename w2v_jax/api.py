"""The types that every layer shares, and the letters of all shapes. Read this first.

    B batch   T samples (16 kHz)   F frames   C feature channels   D context width   H heads   L layers
    G code groups   V codes per group   E dims per group vector   P contrastive dims   N negatives
    S prediction offsets   M masked frames per utterance (static)   U label length   A alphabet incl. blank   Q mel bins

`valid` is True on real frames, `masked` is True where self-supervised masking hides a frame, `num_*` is a length.
The paper's symbols: `local` is z, `context` is c, `targets` are q.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import flax.struct
import jax
import jax.numpy as jnp

PyTree = Any


class Batch(TypedDict):
    """What a method is given. Rows of one unit (`config.unit_rows`) stand together.

    wave [B T] float32; num_samples [B] int32, the real samples of each row; weight [B] float32, 0 on rows
    that only fill up a batch (evaluation, unreadable files), else 1; row [B] int32, the row's number in the
    step's global batch. All randomness is a function of (key, row, position), so that sharding, accumulation
    and padding cannot change it.
    """

    wave: jax.Array
    num_samples: jax.Array
    weight: jax.Array
    row: jax.Array


class CodeBatch(TypedDict):
    """What a method that reads codes is given: codes [B F] int32, ids of a vocabulary (`data/vocabulary.py`).

    num_samples [B] still counts 16 kHz samples, of which each code spans `encoder.hop`; the others as in `Batch`.
    """

    codes: jax.Array
    num_samples: jax.Array
    weight: jax.Array
    row: jax.Array


class Mean(flax.struct.PyTreeNode):
    """A mean kept as (total, weight), so that adding micro-batches, devices or steps stays exact."""

    total: jax.Array
    weight: jax.Array

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    def value(self) -> jax.Array:
        """total / weight; 0 where nothing was counted."""
        return jnp.where(self.weight > 0, self.total / jnp.maximum(self.weight, 1e-30), 0.0)


class State(flax.struct.PyTreeNode):
    """Everything a run needs to go on. `extra` is what a method owns without a gradient (teacher, centroids)."""

    step: jax.Array
    params: PyTree
    extra: PyTree
    opt: PyTree


class Method(NamedTuple):
    """A learning method: three pure functions. Each file of `methods/` exports `make(config) -> Method`.

    init(key, batch) -> (params, extra), params boxed with logical axis names; reusable weights under "encoder".
    loss(params, extra, batch, key, step, *, train) -> (Mean, (extra, metrics)), metrics a dict of Means. The
        gradient that is applied is that of the summed `total` divided by the summed `weight`.
    predict(params, extra, batch) -> dict with "local", "context", "hidden" (every layer), "valid" and the
        method's own (codes, logits), without masking or noise.
    """

    init: Callable[..., Any]
    loss: Callable[..., Any]
    predict: Callable[..., Any]
