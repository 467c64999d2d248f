"""Contrastive predictive coding (van den Oord, Li, Vinyals 2018, arXiv 1807.03748): tell coming frames from others.

A strided convolutional encoder makes local features z, a recurrent network makes the context c; for each of K steps a
linear map of c_t must tell z_{t+k} from distractors (InfoNCE, equation 4). The loss is the mean over all real pairs of
a frame and a step. `loss.negatives_from` says where distractors come from: "same", other frames of the utterance;
"others", the other utterances of its unit; "both", the whole unit (Table 2 of the paper).

Differs: the convolutions are not padded, so that 20480 samples give 126 frames, not 128. After Riviere et al. 2020
(arXiv 2002.02848) the stable form normalises the channels of each frame (`encoder.conv_norm`); "none" is the paper's.
Distractors are drawn once per frame that is predicted and serve all steps, and are never that frame; the published code
of Riviere et al. draws them per present frame and may draw the positive. There the loss sums over the steps; here it
is their mean, which scales all gradients and so changes nothing under Adam.
"""

from __future__ import annotations

import math
from typing import Any, cast

import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.types import Batch, Mean, Method, PyTree
from w2v_jax.core.units import unit_rows
from w2v_jax.nn import future_prediction
from w2v_jax.nn.encoders import causal_encoder
from w2v_jax.ops import losses
from w2v_jax.ops import random as noises
from w2v_jax.ops.random import Stream

NEGATIVES = ("same", "others", "both")
SCALES = ("dot", "mean")


@jax.named_scope("draws")
def draw(config: Config, batch: Batch, key: jax.Array) -> jax.Array:
    """Distractors [K J N] int32 of every frame, into the J frames of its block: a row ("same"), else a unit.

    Each row's depend on (key, its number, the lengths in its block) alone.
    """
    samples, where = batch["wave"].shape[1], config.loss.negatives_from
    real = future_prediction.real_frames(config, batch)
    if real.shape[1] < 2:
        raise UserError(f"rows of {samples} samples have {real.shape[1]} frames; raise data.bucket_seconds")
    noise = noises.fold(noises.row_noise(key, batch["row"]), Stream.FUTURE_DISTRACTORS)
    if where == "same":
        return losses.draw_distractors(noise, real, config.loss.negatives)
    rows = unit_rows(config.data.unit_seconds, samples)
    if where == "others" and rows == 1:
        raise UserError(
            f"loss.negatives_from='others' needs two utterances per unit, but data.unit_seconds="
            f"{config.data.unit_seconds:g} holds one of {samples} samples; raise it, or use 'same' or 'both'"
        )
    index = losses.draw_cross_distractors(noise, real, config.loss.negatives, rows=rows, other_rows=where == "others")
    return index.reshape(-1, rows * real.shape[1], index.shape[-1])


@jax.named_scope("loss")
def objective(
    config: Config, batch: Batch, *, local: jax.Array, predictions: jax.Array, distractors: jax.Array
) -> tuple[Mean, dict[str, Mean]]:
    """(the summed loss with its weight, the number of (frame, step) pairs that have a distractor; the metrics).

    local [B F C]; predictions [B F S C]; distractors from `draw`.
    """
    blocks, size, _ = distractors.shape
    real = future_prediction.real_frames(config, batch)
    counts = losses.distractor_counts(distractors, real.reshape(blocks, size))
    contrast = losses.future_info_nce(
        predictions.reshape(blocks, size, *predictions.shape[2:]),
        local.reshape(blocks, size, -1),
        counts,
        scale=1.0 if config.loss.scale == "dot" else 1.0 / local.shape[-1],
    )
    contrast = jax.tree.map(lambda x: x.reshape(predictions.shape[:3]), contrast)
    drawn = counts.any(axis=-1).reshape(real.shape)
    return future_prediction.contrast_metrics(
        contrast, future_prediction.real_pairs(config, batch) & drawn[..., None], batch["weight"]
    )


def make(config: Config) -> Method:
    """CPC for a config. Raises UserError for words that the loss does not know."""
    for key, known in (("negatives_from", NEGATIVES), ("scale", SCALES)):
        if config.loss[key] not in known:
            raise UserError(f"loss.{key} is {config.loss[key]!r}; it is one of {', '.join(known)}")
    model = future_prediction.FutureModel(config, use_bias=False)
    encoder = causal_encoder(config, jnp.dtype(config.train.dtype))
    entries = 1 + config.loss.negatives

    def init(key: jax.Array, batch: Batch) -> tuple[PyTree, PyTree]:
        return model.init(key, batch)["params"], {}

    def loss(params, extra, batch, key, step, *, train):
        encoded, predictions = cast(Any, model.apply({"params": params}, batch))
        total, metrics = objective(
            config, batch, local=encoded.local, predictions=predictions, distractors=draw(config, batch, key)
        )
        return total, (extra, metrics)

    def predict(params, extra, batch):
        return model.apply({"params": params}, batch, method="features")

    def levels():
        return {"loss_chance": math.log(entries), "accuracy_chance": 1.0 / entries}

    return Method(init, loss, predict, levels=levels, output_frames=encoder.frames, encoder=encoder)
