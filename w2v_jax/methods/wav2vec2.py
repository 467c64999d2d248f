"""wav2vec 2.0 pretraining (Baevski et al. 2020, arXiv 2006.11477).

Spans of the projected local features are replaced by a learned vector; the Transformer's output at a masked frame
must pick the quantized features of that frame among distractors from other masked frames of the utterance. Only
masked frames go through the quantizer, the projections and the loss.

Differs: code statistics of the diversity term pool over a unit of the batch (`data.unit_seconds`), the analogue of
fairseq's batch of one GPU, whatever the number of devices. The feature penalty of each row averages over its
valid frames when `encoder.padding_aware`; fairseq counts padding. Masking: see `masking.py`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.display import short_repr
from w2v_jax.core.types import Batch, Encoded, Mean, Method, PyTree
from w2v_jax.core.units import num_units, unit_rows
from w2v_jax.nn.encoders import wav2vec2_encoder
from w2v_jax.nn.layers import linear
from w2v_jax.nn.quantizers import (
    GumbelQuantizer,
    Quantized,
    code_perplexity,
    code_usage,
    prob_perplexity,
    temperature,
)
from w2v_jax.ops import losses, masking
from w2v_jax.ops import random as noises
from w2v_jax.ops.frames import num_frames, valid_frames
from w2v_jax.ops.random import Stream


class Draws(NamedTuple):
    """Everything random in one pass but dropout, so that tests can put fairseq's own draws in.

    masked [B F] bool; slots [B M] int32 and used [B M] bool, the masked frames in order; gumbel [B M G V] or
    None; distractors [units J N] int32 into the J slots of a block (a row, or a unit with cross-utterance
    distractors); codebook [B M X G] int32, codes of codebook distractors, or None.
    """

    masked: jax.Array
    slots: jax.Array
    used: jax.Array
    gumbel: jax.Array | None
    distractors: jax.Array
    codebook: jax.Array | None

    __repr__ = short_repr


class Prediction(NamedTuple):
    """context [B M P] and targets [B M P] of the masked slots, their codes, and codebook distractors [B M X P]."""

    encoded: Encoded
    context: jax.Array
    targets: jax.Array
    quantized: Quantized
    codebook: jax.Array | None

    __repr__ = short_repr


class Wav2Vec2(nn.Module):
    """The model: params "encoder", "quantizer", "target_proj" (project_q), "context_proj" (final_proj).

    With `quantizer.groups` 0 it is the encoder alone, which gives features and has no loss.
    """

    config: Config

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.train.dtype)
        q, width = config.quantizer, config.loss.proj
        self.encoder = wav2vec2_encoder(config, dtype)
        if not q.groups:
            return
        self.quantizer = GumbelQuantizer(q.groups, q.codes, q.dim, dtype=dtype)
        self.target_proj = linear(width, q.dim, ("codes", "proj"), dtype=dtype)
        self.context_proj = linear(width, config.encoder.width, ("embed", "proj"), dtype=dtype)

    def __call__(self, batch: Batch, draws: Draws, tau: jax.Array, *, noise=None, layer_key=None) -> Prediction:
        """noise [B] words and layer_key switch dropouts and LayerDrop on; tau is the Gumbel temperature."""
        encoded = self.encoder(
            batch["wave"], batch["num_samples"], masked=draws.masked, noise=noise, layer_key=layer_key
        )
        local = jnp.take_along_axis(encoded.local, draws.slots[..., None], axis=1)  # [B M C]
        context = jnp.take_along_axis(encoded.context, draws.slots[..., None], axis=1)  # [B M D]
        stream = noises.fold(noise, Stream.NETWORK_OUTPUT)
        local = noises.dropout(local, self.config.quantizer.input_dropout, stream)
        quantized = self.quantizer(local, tau, draws.gumbel)
        targets, codebook = self.target_proj(quantized.vectors), None
        if draws.codebook is not None:
            codebook = self.target_proj(self.quantizer.lookup(draws.codebook))
        return Prediction(
            encoded, context=self.context_proj(context), targets=targets, quantized=quantized, codebook=codebook
        )

    def features(self, batch: Batch) -> dict[str, Any]:
        """Local features, context, all hidden states and codes of every frame, without masking or noise."""
        encoded = self.encoder(batch["wave"], batch["num_samples"], collect=True)
        if not self.config.quantizer.groups:
            return encoded.record()
        return encoded.record() | {"codes": self.quantizer(encoded.local, jnp.float32(1.0), None).codes}


@jax.named_scope("draws")
def draw(config: Config, batch: Batch, key: jax.Array, *, train: bool) -> Draws:
    """The random draws of one pass. Those of a row depend on nothing but (key, its number, its length)."""
    m, q, contrast = config.masking, config.quantizer, config.loss
    noise = noises.row_noise(key, batch["row"])
    total = num_frames(batch["wave"].shape[1], config.encoder.conv_layers)
    if total < 2:
        raise UserError(f"rows of {batch['wave'].shape[1]} samples have {total} frames; raise data.bucket_seconds")
    frames = num_frames(batch["num_samples"], config.encoder.conv_layers)
    masked = masking.span_mask(
        noises.fold(noise, Stream.HIDDEN_SPANS), frames, total, prob=m.prob, length=m.length, min_spans=m.min_spans
    )
    num_slots = masking.num_slots(total, prob=m.prob, length=m.length, min_spans=m.min_spans)
    slots, used = masking.masked_slots(masked, num_slots)
    used &= (batch["weight"] > 0)[:, None]
    size = used.shape[1]
    gumbel = noises.gumbel(noises.fold(noise, Stream.GUMBEL), size, q.groups, q.codes) if train else None
    own = noises.fold(noise, Stream.DISTRACTORS), contrast.negatives
    cross = noises.fold(noise, Stream.CROSS_DISTRACTORS), contrast.cross_negatives
    rows = unit_rows(config.data.unit_seconds, batch["wave"].shape[1])
    distractors = losses.draw_from_blocks(used, own=own, cross=cross, rows=rows)
    codebook = None
    if contrast.codebook_negatives:
        choice = noises.uniform(
            noises.fold(noise, Stream.CODEBOOK_DISTRACTORS), size, contrast.codebook_negatives, q.groups
        )
        codebook = jnp.minimum((choice * q.codes).astype(jnp.int32), q.codes - 1)
    return Draws(masked, slots, used, gumbel=gumbel, distractors=distractors, codebook=codebook)


@jax.named_scope("loss")
def objective(config: Config, batch: Batch, *, draws: Draws, prediction: Prediction) -> tuple[Mean, dict[str, Mean]]:
    """(the summed loss with its weight, the number of masked frames; the metrics)."""
    units = num_units(config.data.unit_seconds, *batch["wave"].shape)
    used = draws.used.astype(jnp.float32)
    count = used.sum()
    blocks = draws.distractors.shape[0]
    contrast = _contrast(config, draws, prediction, blocks=blocks)
    per_row, per_unit = used.sum(axis=1), used.reshape(units, -1).sum(axis=1)
    codes_used = code_perplexity(prediction.quantized.codes, draws.used, units, size=config.quantizer.codes)
    codes_likely = prob_perplexity(prediction.quantized.logits, draws.used, units)
    entries = config.quantizer.groups * config.quantizer.codes
    terms = {
        "loss": (contrast.loss.reshape(used.shape) * used).sum(),
        "diversity": (per_unit * (entries - codes_likely) / entries).sum(),
        "penalty": (per_row * _mean_square(config, prediction.encoded)).sum(),
    }
    weights = {"loss": 1.0, "diversity": config.loss.diversity_weight, "penalty": config.loss.penalty_weight}
    total = jnp.stack([weights[name] * term for name, term in terms.items()]).sum()
    alive = (per_unit > 0).astype(jnp.float32)
    metrics = {name: Mean(term, count) for name, term in terms.items()}
    metrics |= {
        "objective": Mean(total, count),
        "accuracy": Mean((contrast.correct.reshape(used.shape) * used).sum(), count),
        "code_perplexity": Mean((codes_used * alive).sum(), alive.sum()),
        "prob_perplexity": Mean((codes_likely * alive).sum(), alive.sum()),
        "masked_share": Mean(count, (prediction.encoded.num_frames * batch["weight"]).sum()),
    }
    return Mean(total, count), metrics


def _contrast(config: Config, draws: Draws, prediction: Prediction, *, blocks: int) -> losses.Contrast:
    """Contrastive terms [blocks J] of all slots; a block is what distractors are drawn from."""

    def block(x: jax.Array) -> jax.Array:
        return x.reshape(blocks, -1, *x.shape[2:])

    used = block(draws.used)
    extra = None
    if prediction.codebook is not None and draws.codebook is not None:
        extra = (block(prediction.codebook), block(draws.codebook))
    return losses.contrastive(
        block(prediction.context),
        block(prediction.targets),
        block(prediction.quantized.chosen),
        counts=losses.distractor_counts(draws.distractors, used),
        temperature=config.loss.temperature,
        extra=extra,
    )


def _mean_square(config: Config, encoded: Encoded) -> jax.Array:
    """Mean square [B] of the raw features of each row."""
    square = jnp.square(encoded.features.astype(jnp.float32)).mean(axis=-1)
    if not config.encoder.padding_aware:
        return square.mean(axis=1)
    valid = valid_frames(encoded.num_frames, square.shape[1])
    return jnp.where(valid, square, 0.0).sum(axis=1) / jnp.maximum(encoded.num_frames, 1)


def make(config: Config) -> Method:
    """wav2vec 2.0 for a config."""
    model, encoder = Wav2Vec2(config), wav2vec2_encoder(config, jnp.dtype(config.train.dtype))

    def init(key: jax.Array, batch: Batch) -> tuple[PyTree, PyTree]:
        if not config.quantizer.groups:
            return model.init(key, batch, method=Wav2Vec2.features)["params"], {}
        draws = draw(config, batch, key, train=False)
        return model.init(key, batch, draws, jnp.float32(1.0))["params"], {}

    def loss(params, extra, batch, key, step, *, train):
        if not config.quantizer.groups:
            raise UserError("quantizer.groups=0 is an encoder alone, which has no loss; start from it with init.run")
        draws = draw(config, batch, key, train=train)
        tau = temperature(step, config.quantizer.temperature)
        noise = noises.fold(noises.row_noise(key, batch["row"]), Stream.CONTEXT_NETWORK) if train else None
        layer_key = jax.random.fold_in(key, Stream.LAYER_DROP.number) if train else None
        prediction: Any = model.apply({"params": params}, batch, draws, tau, noise=noise, layer_key=layer_key)
        total, metrics = objective(config, batch, draws=draws, prediction=prediction)
        metrics["temperature"] = Mean(tau, jnp.float32(1.0))
        if not train:
            metrics["code_usage"] = code_usage(prediction.quantized.codes, draws.used, size=config.quantizer.codes)
        return total, (extra, metrics)

    def predict(params, extra, batch):
        return model.apply({"params": params}, batch, method=Wav2Vec2.features)

    def levels():
        entries = config.loss.negatives + config.loss.cross_negatives + config.loss.codebook_negatives + 1
        return {
            "loss_chance": math.log(entries),
            "accuracy_chance": 1.0 / entries,
            "perplexity_floor": float(config.quantizer.groups),
            "perplexity_max": float(config.quantizer.groups * config.quantizer.codes),
        }

    return Method(init, loss, predict, levels=levels, output_frames=encoder.frames, encoder=encoder)
