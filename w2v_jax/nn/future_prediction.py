"""Predicting the local features of coming frames from the context: what CPC, wav2vec and vq-wav2vec share.

A step s of S predicts the frame u = t + offset + s from the context of frame t. Everything here is aligned to the
target frame u, so that its distractors are drawn once and serve all steps that predict it, as in Schneider et al.
2019.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.types import Batch, Encoded, Mean
from w2v_jax.core.units import unit_rows
from w2v_jax.nn.encoders import causal_encoder
from w2v_jax.nn.layers import gathered, partitioned, symmetric_uniform
from w2v_jax.ops import losses
from w2v_jax.ops import random as noises
from w2v_jax.ops.frames import num_frames, receptive_field, valid_frames
from w2v_jax.ops.matmul import plus
from w2v_jax.ops.random import Stream


def first_offset(config: Config) -> int:
    """`loss.offset`, or for 0 the first frame that shares no sample with the present: ceil(receptive field / hop)."""
    field, hop = receptive_field(config.encoder.conv_layers)
    return config.loss.offset or -(-field // hop)


class FuturePredictor(nn.Module):
    """One linear map per step from the context to local features; `use_bias` adds one vector to all steps.

    Starts as PyTorch's transposed convolution does (wav2vec), or without bias as its linear layer (CPC).
    """

    steps: int
    width: int
    dtype: Any = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, context: jax.Array, offset: int) -> jax.Array:
        """context [B F D] -> [B F S C]: at (u, s) the prediction of frame u from the context of u - offset - s.

        Where that is before the first frame the prediction is 0.
        """
        depth = context.shape[-1]
        fan_in = self.width * self.steps if self.use_bias else depth
        init = symmetric_uniform(1.0 / math.sqrt(fan_in))
        kernel = self.param("kernel", partitioned(init, (None, "embed", "proj")), (self.steps, depth, self.width))
        kernel = gathered(kernel, (None, "embed", "proj"))
        y = jnp.einsum("bfd,sdc->bfsc", context.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            y = plus(y, self.param("bias", partitioned(init, ("proj",)), (self.width,)))
        frames = y.shape[1]
        later = [
            jnp.pad(y[:, : max(frames - offset - s, 0), s], ((0, 0), (min(offset + s, frames), 0), (0, 0)))
            for s in range(self.steps)
        ]
        return jnp.stack(later, axis=2)


class FutureModel(nn.Module):
    """The model of CPC and wav2vec: params "encoder" and "predictor"."""

    config: Config
    use_bias: bool = True

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.train.dtype)
        width = config.encoder.conv_layers[-1][0]
        self.encoder = causal_encoder(config, dtype)
        self.predictor = FuturePredictor(config.loss.steps, width, dtype, use_bias=self.use_bias)

    def __call__(self, batch: Batch) -> tuple[Encoded, jax.Array]:
        """The encoded batch and the predictions [B F S C], aligned to their target frames."""
        encoded = self.encoder(batch["wave"], batch["num_samples"])
        return encoded, self.predictor(encoded.context, first_offset(self.config))

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        """Local features, context and the output of every context layer."""
        return self.encoder(batch["wave"], batch["num_samples"]).record()


def real_frames(config: Config, batch: Batch) -> jax.Array:
    """[B F] bool: the frames that are predicted and drawn, those of real audio in rows that count."""
    total = num_frames(batch["wave"].shape[1], config.encoder.conv_layers)
    frames = num_frames(batch["num_samples"], config.encoder.conv_layers)
    return valid_frames(jnp.where(batch["weight"] > 0, frames, 0), total)


def real_pairs(config: Config, batch: Batch) -> jax.Array:
    """[B F S] bool: real frames u whose step s has a context frame."""
    real = real_frames(config, batch)
    reached = jnp.arange(real.shape[1])[:, None] >= first_offset(config) + jnp.arange(config.loss.steps)
    return real[..., None] & reached


@jax.named_scope("draws")
def draw(config: Config, batch: Batch, key: jax.Array) -> jax.Array:
    """Distractors [K J N] of every frame, as indices into the J frames of its block.

    `loss.negatives` other frames of its row and `loss.cross_negatives` frames of its unit; a block is a row, or with
    the latter a unit. Only real frames are drawn.
    """
    noise, real = noises.row_noise(key, batch["row"]), real_frames(config, batch)
    rows = unit_rows(config.data.unit_seconds, batch["wave"].shape[1])
    own = noises.fold(noise, Stream.FUTURE_DISTRACTORS), config.loss.negatives
    cross = noises.fold(noise, Stream.FUTURE_CROSS_DISTRACTORS), config.loss.cross_negatives
    return losses.draw_from_blocks(real, own=own, cross=cross, rows=rows)


def candidate_logits(predictions: jax.Array, targets: jax.Array, distractors: jax.Array) -> jax.Array:
    """Dot products [B F S 1+N], float32: the target frame first, then its distractors.

    predictions [B F S C]; targets [B F C]; distractors [K J N] into the J frames of each block. The vectors of the
    distractors are gathered: for N far below J that costs less than all products.
    """
    blocks, size, _ = distractors.shape
    pool = targets.reshape(blocks, size, -1)
    drawn = jax.vmap(lambda x, index: x[index])(pool, distractors)  # [K J N C]
    candidates = jnp.concatenate([pool[:, :, None], drawn], axis=2)
    flat = predictions.reshape(blocks, size, *predictions.shape[2:])
    logits = jnp.einsum("kjsc,kjnc->kjsn", flat, candidates, preferred_element_type=jnp.float32)
    return logits.reshape(*predictions.shape[:3], -1)


@jax.named_scope("loss")
def objective(
    config: Config, batch: Batch, *, targets: jax.Array, predictions: jax.Array, distractors: jax.Array
) -> tuple[Mean, dict[str, Mean]]:
    """(the summed loss with its weight, the number of predicted (frame, step) pairs; the metrics).

    targets [B F C]; predictions [B F S C] from `FuturePredictor`; distractors from `draw`.
    """
    logits = candidate_logits(predictions, targets, distractors)
    if config.loss.kind == "infonce":
        contrast = losses.info_nce(logits)
    elif config.loss.kind == "bce":
        weight = 1.0 / distractors.shape[-1] if config.loss.balanced else 1.0
        contrast = losses.noise_contrastive(logits, weight)
    else:
        raise UserError(f"loss.kind is {config.loss.kind!r}; it is 'bce' or 'infonce'")
    return contrast_metrics(contrast, real_pairs(config, batch), batch["weight"])


def contrast_metrics(contrast: losses.Contrast, counted: jax.Array, weight: jax.Array) -> tuple[Mean, dict[str, Mean]]:
    """(Mean of the loss over the counted pairs, metrics); contrast, counted [B F S]; weight [B], 0: rows to ignore.

    A row without any pair is too short: it adds nothing to the loss, and a metric gives the share of such rows.
    """
    pairs = counted.sum(axis=(0, 1)).astype(jnp.float32)  # [S]
    right = jnp.where(counted, contrast.correct, 0.0).sum(axis=(0, 1))
    total = Mean(jnp.where(counted, contrast.loss, 0.0).sum(), pairs.sum())
    short = (weight > 0) & ~counted.any(axis=(1, 2))
    metrics = {
        "loss": total,
        "accuracy": Mean(right.sum(), pairs.sum()),
        "too_short_share": Mean(short.sum().astype(jnp.float32), (weight > 0).sum().astype(jnp.float32)),
    }
    steps = {f"accuracy_step_{s + 1:02d}": Mean(right[s], pairs[s]) for s in range(len(right))}
    return total, metrics | steps


def levels(config: Config) -> dict[str, float]:
    """The loss of the best model that gives all frames the same logit.

    InfoNCE: ln(1 + N). Binary: the logit says 1 in 1 + wN, so ln(1 + wN) + wN ln(1 + 1 / wN); at the start, with
    logits near 0, the loss is higher: (1 + wN) ln 2.
    """
    count = config.loss.negatives + config.loss.cross_negatives
    noise = 1.0 if config.loss.balanced else float(count)
    chance = math.log(1.0 + count)
    if config.loss.kind == "bce":
        chance = math.log(1.0 + noise) + noise * math.log(1.0 + 1.0 / noise)
    return {"loss_chance": chance, "accuracy_chance": 1.0 / (1.0 + count)}
