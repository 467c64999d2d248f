"""Predicting speech units at frames: the model, its logits, its loss and its metrics, for HuBERT and WavLM.

The logit of a class is the cosine between the projected output of the encoder and the class's vector, divided by a
temperature (Hsu et al. 2021, arXiv 2106.07447). There may be several label sets, whose losses are added.
Frame i has label floor(i * r), where r is the number of labels per frame.

The batch has `targets` [B S U]: S label sets, U labels at their own rate, `NO_TARGET` where there is none.

Differs: fairseq cuts the features where the labels end and crops all clips of a batch to the shortest. Here a frame
without a label in each set is seen by the Transformer and does not count in the loss. The feature penalty of each row
averages over its valid frames when `encoder.padding_aware`; otherwise, up to the end of the labels, over a unit of the
batch (`data.unit_seconds`), as fairseq's does over the batch of a GPU.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.display import short_repr
from w2v_jax.core.types import Batch, Encoded, Levels, Mean, Method, PyTree, TargetBatch
from w2v_jax.core.units import NO_TARGET, num_units
from w2v_jax.nn.encoders import wav2vec2_encoder
from w2v_jax.nn.layers import gathered, linear, partitioned
from w2v_jax.nn.quantizers import code_perplexity, code_usage
from w2v_jax.ops import masking
from w2v_jax.ops import random as noises
from w2v_jax.ops.frames import num_frames, valid_frames
from w2v_jax.ops.losses import unit_length
from w2v_jax.ops.random import Stream


class Prediction(NamedTuple):
    """vectors [B F S*P] (tied: [B F P]), the projected context; logits [B F S V], -inf at classes a set lacks."""

    encoded: Encoded
    vectors: jax.Array
    logits: jax.Array

    __repr__ = short_repr


class UnitPredictor(nn.Module):
    """The model: params "encoder", "final_proj", and "label_embeddings" [all classes, P], one set after the other.

    Without `loss.classes` it is the encoder alone, which gives features and has no loss.
    """

    config: Config

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.train.dtype)
        sets, width = len(config.loss.classes), config.loss.proj
        self.encoder = wav2vec2_encoder(config, dtype)
        if not sets:
            return
        outputs = sets * width if config.loss.untied else width
        self.final_proj = linear(outputs, config.encoder.width, ("embed", "proj"), dtype=dtype)
        table = partitioned(nn.initializers.uniform(1.0), ("codes", "proj"))
        self.label_embeddings = self.param("label_embeddings", table, (sum(table_rows(config)), width))

    def __call__(self, batch: Batch, masked: jax.Array, *, noise=None, layer_key=None, collect=False) -> Prediction:
        """masked [B F] frames; noise [B] words and layer_key switch dropouts and LayerDrop on."""
        encoded = self.encoder(
            batch["wave"], batch["num_samples"], masked=masked, noise=noise, layer_key=layer_key, collect=collect
        )
        vectors = self.final_proj(encoded.context)
        table = gathered(self.label_embeddings, ("codes", "proj"))
        return Prediction(encoded, vectors, cosine_logits(self.config, vectors, table))

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        """Local features, context and all hidden states of every frame, without masking or noise."""
        return self.encoder(batch["wave"], batch["num_samples"], collect=True).record()


def table_rows(config: Config) -> tuple[int, ...]:
    """Rows of each set's table: its clusters, after `loss.extra_classes` rows that are never right."""
    return tuple(config.loss.extra_classes + clusters for clusters in config.loss.classes)


@jax.named_scope("logits")
def cosine_logits(config: Config, vectors: jax.Array, table: jax.Array) -> jax.Array:
    """Logits [B F S V] float32 of all classes of all sets, as one product; V is the most classes of a set."""
    rows, width = table_rows(config), config.loss.proj
    tables = jnp.split(table, np.cumsum(rows)[:-1])
    stacked = jnp.stack([jnp.pad(x, ((0, max(rows) - len(x)), (0, 0))) for x in tables])  # [S V P]
    stacked = unit_length(stacked)
    if vectors.shape[-1] == width:
        cosines = jnp.einsum("bfp,svp->bfsv", unit_length(vectors), stacked, precision="highest")
    else:
        apart = vectors.reshape(*vectors.shape[:2], len(rows), width)
        cosines = jnp.einsum("bfsp,svp->bfsv", unit_length(apart), stacked, precision="highest")
    return jnp.where(_is_class(config), cosines / config.loss.temperature, -jnp.inf)


def _is_class(config: Config) -> np.ndarray:
    """[S V] bool: the classes that each set has."""
    rows = np.array(table_rows(config))
    return np.arange(rows.max()) < rows[:, None]


def labels_per_frame(config: Config) -> int:
    """r: how many labels a frame spans. Raises UserError where it is not a whole number."""
    hop = math.prod(stride for _, _, stride in config.encoder.conv_layers)
    if hop % config.data.targets_hop:
        raise UserError(
            f"data.targets_hop={config.data.targets_hop}: labels must be {hop} samples apart, as the frames of the "
            f"encoder are, or a whole fraction of that, such as {hop // 2}"
        )
    return hop // config.data.targets_hop


def frame_labels(targets: jax.Array, frames: int, ratio: int) -> jax.Array:
    """The label [B F S] of each frame: number i * ratio of targets [B S U] for frame i, NO_TARGET after their end."""
    last = (frames - 1) * ratio + 1
    targets = jnp.pad(targets, ((0, 0), (0, 0), (0, max(last - targets.shape[2], 0))), constant_values=NO_TARGET)
    return targets[:, :, :last:ratio].swapaxes(1, 2)


@jax.named_scope("draws")
def draw(config: Config, batch: Batch, key: jax.Array) -> jax.Array:
    """The masked frames [B F] of one pass. Those of a row depend on nothing but (key, its number, its length)."""
    m, conv_layers = config.masking, config.encoder.conv_layers
    total = num_frames(batch["wave"].shape[1], conv_layers)
    if total < 2:
        raise UserError(f"rows of {batch['wave'].shape[1]} samples have {total} frames; raise data.bucket_seconds")
    noise = noises.fold(noises.row_noise(key, batch["row"]), Stream.HIDDEN_UNITS)
    frames = num_frames(batch["num_samples"], conv_layers)
    return masking.span_mask(noise, frames, total, prob=m.prob, length=m.length, min_spans=m.min_spans)


@jax.named_scope("loss")
def objective(
    config: Config, batch: TargetBatch, *, masked: jax.Array, prediction: Prediction
) -> tuple[Mean, dict[str, Mean]]:
    """(the summed loss with its weight, the number of frames that count in it; the metrics).

    A target that is neither a cluster nor NO_TARGET makes the loss NaN.
    """
    loss, logits = config.loss, prediction.logits
    sets = len(loss.classes)
    labels, valid, labelled = _labels(config, batch, prediction)
    known = (labels >= 0) & (labels < np.array(loss.classes))
    is_right = jnp.arange(logits.shape[-1]) == (labels + loss.extra_classes)[..., None]
    chosen = jnp.where(is_right & known[..., None], logits, 0.0).sum(axis=-1)
    losses = jnp.where(known, jax.nn.logsumexp(logits, axis=-1) - chosen, jnp.nan)
    highest = logits.max(axis=-1)
    flat = jnp.where(_is_class(config), logits, jnp.inf).min(axis=-1) == highest  # a dead model is not right
    correct = ((chosen >= highest) & ~flat & known).astype(jnp.float32)

    hidden, shown = masked & labelled, ~masked & labelled
    total_of = lambda x, frames: jnp.where(frames[..., None], x, 0.0).sum()
    counts = [frames.sum().astype(jnp.float32) for frames in (hidden, shown)]
    in_loss = (hidden & (loss.masked_weight > 0)) | (shown & (loss.unmasked_weight > 0))
    size = in_loss.sum().astype(jnp.float32)
    penalty = _penalty(config, batch, prediction.encoded, in_loss=in_loss)
    total = loss.masked_weight * total_of(losses, hidden) + loss.penalty_weight * penalty
    if loss.unmasked_weight:
        total += loss.unmasked_weight * total_of(losses, shown)

    metrics = {"objective": Mean(total, size), "penalty": Mean(penalty, size)}
    for prefix, frames, count in zip(("", "unmasked_"), (hidden, shown), counts):
        metrics[f"{prefix}loss"] = Mean(total_of(losses, frames), count * sets)
        metrics[f"{prefix}accuracy"] = Mean(total_of(correct, frames), count * sets)
    units = num_units(config.data.unit_seconds, *batch["wave"].shape)
    metrics["label_entropy"] = _over_sets(jnp.log, labels, used=labelled, units=units, size=logits.shape[-1])
    best = jnp.argmax(logits, axis=-1)
    metrics["prediction_perplexity"] = _over_sets(lambda x: x, best, used=hidden, units=units, size=logits.shape[-1])
    metrics["masked_share"] = Mean((masked & valid).sum().astype(jnp.float32), valid.sum().astype(jnp.float32))
    return Mean(total, size), metrics


def _labels(config: Config, batch: TargetBatch, prediction: Prediction) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(the label [B F S] of each frame, the real frames [B F], those of them with a label in each set)."""
    frames = prediction.logits.shape[1]
    labels = frame_labels(batch["targets"], frames, labels_per_frame(config))
    valid = valid_frames(prediction.encoded.num_frames, frames) & (batch["weight"] > 0)[:, None]
    return labels, valid, valid & (labels != NO_TARGET).all(axis=-1)


def prediction_usage(config: Config, batch: TargetBatch, *, masked: jax.Array, prediction: Prediction) -> Mean:
    """How often each class of each set [S V] is predicted at hidden frames."""
    _, _, labelled = _labels(config, batch, prediction)
    best = jnp.argmax(prediction.logits, axis=-1)
    return code_usage(best, masked & labelled, size=prediction.logits.shape[-1])


def _penalty(config: Config, batch: TargetBatch, encoded: Encoded, *, in_loss: jax.Array) -> jax.Array:
    """The mean square of the raw features, summed over the frames [B F] that count in the loss."""
    square = jnp.square(encoded.features.astype(jnp.float32)).mean(axis=-1)  # [B F]
    count = in_loss.sum(axis=1).astype(jnp.float32)
    if config.encoder.padding_aware:
        valid = valid_frames(encoded.num_frames, square.shape[1])
        mean = jnp.where(valid, square, 0.0).sum(axis=1) / jnp.maximum(encoded.num_frames, 1)
        return (count * mean).sum()
    kept = min(square.shape[1], batch["targets"].shape[2] // labels_per_frame(config))
    units = num_units(config.data.unit_seconds, *batch["wave"].shape)
    rows, weight = (x.reshape(units, -1) for x in (square[:, :kept].mean(axis=1), batch["weight"]))
    mean = (weight * rows).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1.0)
    return (count.reshape(units, -1).sum(axis=1) * mean).sum()


def _over_sets(quantity: Any, classes: jax.Array, *, used: jax.Array, units: int, size: int) -> Mean:
    """`quantity` of the perplexity of the classes [B F S] in the used frames of each unit; its mean over the sets."""
    sets = classes.shape[-1]
    each = [quantity(code_perplexity(classes[..., i : i + 1], used, units, size=size)) for i in range(sets)]
    alive = used.reshape(units, -1).any(axis=1).astype(jnp.float32)
    return Mean((sum(each) / sets * alive).sum(), alive.sum())


def check_labels(config: Config) -> None:
    """Raises UserError for classes that are none, and for labels at a rate that does not fit the frames."""
    if not config.loss.classes or min(config.loss.classes) < 2:
        raise UserError(f"loss.classes={config.loss.classes}: needs the number of clusters of each label set")
    labels_per_frame(config)


def levels(config: Config) -> Levels:
    """What a model reaches that takes every cluster for equally likely."""
    clusters = config.loss.classes
    return {
        "loss_chance": sum(map(math.log, clusters)) / len(clusters),
        "accuracy_chance": sum(1.0 / count for count in clusters) / len(clusters),
    }


def unit_method(config: Config) -> Method:
    """The method of a config around `UnitPredictor`. Without `loss.classes` it is the encoder alone.

    Raises UserError for classes or labels that do not fit.
    """
    model, encoder = UnitPredictor(config), wav2vec2_encoder(config, jnp.dtype(config.train.dtype))
    has_heads = bool(config.loss.classes)
    if has_heads:
        check_labels(config)

    def init(key: jax.Array, batch: TargetBatch) -> tuple[PyTree, PyTree]:
        if not has_heads:
            return model.init(key, batch, method=UnitPredictor.features)["params"], {}
        return model.init(key, batch, draw(config, batch, key))["params"], {}

    def loss(params, extra, batch, key, step, *, train):
        if not has_heads:
            raise UserError("loss.classes=() is an encoder alone, which has no loss; start from it with init.run")
        masked = draw(config, batch, key)
        noise = noises.fold(noises.row_noise(key, batch["row"]), Stream.UNIT_NETWORK) if train else None
        layer_key = jax.random.fold_in(key, Stream.LAYER_DROP.number) if train else None
        prediction: Any = model.apply({"params": params}, batch, masked, noise=noise, layer_key=layer_key)
        total, metrics = objective(config, batch, masked=masked, prediction=prediction)
        if not train:
            usage = prediction_usage(config, batch, masked=masked, prediction=prediction)
            metrics["prediction_usage"] = usage
        return total, (extra, metrics)

    def predict(params, extra, batch):
        return model.apply({"params": params}, batch, method=UnitPredictor.features)

    return Method(init, loss, predict, levels=lambda: levels(config), output_frames=encoder.frames, encoder=encoder)
