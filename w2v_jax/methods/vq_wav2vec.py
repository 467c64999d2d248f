"""vq-wav2vec (Baevski, Schneider, Auli 2020, arXiv 1910.05453): wav2vec on discrete codes, from either quantizer.

The local features of every frame are replaced by the vectors of their codes; the context network reads those, and
they are what the context of earlier frames must tell from distractors. `quantizer.kind` is "gumbel" (section 3.1) or
"kmeans" (section 3.2). What makes a codebook collapse, and its remedies, are named in configs/vq_wav2vec.py.

Differs: as in `wav2vec.py`; and the diversity term, which the paper does not have (`loss.diversity_weight` 0), is
normalised by the number of codes as in wav2vec 2.0, where fairseq's wav2vec leaves it as it is. Perplexities
pool over a unit of the batch (`data.unit_seconds`), the analogue of fairseq's batch of one GPU.
"""

from __future__ import annotations

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.types import Batch, Encoded, Mean, Method, PyTree
from w2v_jax.core.units import num_units
from w2v_jax.nn import future_prediction, quantizers
from w2v_jax.nn.encoders import causal_encoder
from w2v_jax.ops import random as noises
from w2v_jax.ops.frames import num_frames, valid_frames
from w2v_jax.ops.random import Stream


class VQWav2Vec(nn.Module):
    """The model: params "encoder", "quantizer" and "predictor"."""

    config: Config

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.train.dtype)
        q, channels = config.quantizer, config.encoder.conv_layers[-1][0]
        self.encoder = causal_encoder(config, dtype)
        if q.kind == "gumbel":
            inputs = channels if q.depth == 2 else 0
            self.quantizer = quantizers.GumbelQuantizer(
                q.groups,
                q.codes,
                channels,
                dtype=dtype,
                inputs=inputs,
                activation=config.encoder.activation,
                shared=q.shared,
            )
        else:
            self.quantizer = quantizers.KMeansQuantizer(q.groups, q.codes, channels, dtype=dtype, shared=q.shared)
        self.predictor = future_prediction.FuturePredictor(config.loss.steps, channels, dtype)

    def encode(self, batch: Batch, *, tau: Any = 1.0, gumbel=None, moved=None) -> tuple[Encoded, quantizers.Quantized]:
        """The encoded batch and its codes; gumbel [B F G V] noise, moved [G V E] what `revive` adds to the codes."""
        z = self.encoder.local(batch["wave"], batch["num_samples"])
        frames = num_frames(batch["num_samples"], self.config.encoder.conv_layers)
        if isinstance(self.quantizer, quantizers.GumbelQuantizer):
            quantized = self.quantizer(z, tau, gumbel)
        else:
            valid = valid_frames(frames, z.shape[1]) if self.config.encoder.padding_aware else None
            quantized = self.quantizer(z, valid, moved)
        context, hidden = self.encoder.context(quantized.vectors, batch["num_samples"])
        return Encoded(z, local=z, context=context, hidden=hidden, num_frames=frames), quantized

    def __call__(
        self, batch: Batch, *, tau: Any = 1.0, gumbel=None, moved=None
    ) -> tuple[Encoded, quantizers.Quantized, jax.Array]:
        """As `encode`, and the predictions [B F S C], aligned to their target frames."""
        encoded, quantized = self.encode(batch, tau=tau, gumbel=gumbel, moved=moved)
        return encoded, quantized, self.predictor(encoded.context, future_prediction.first_offset(self.config))

    def features(self, batch: Batch, moved=None) -> dict[str, Any]:
        """Local features, context, the output of every context layer, and the codes of every frame."""
        encoded, quantized = self.encode(batch, moved=moved)
        return encoded.record() | {"codes": quantized.codes}


@jax.named_scope("loss")
def objective(
    config: Config, batch: Batch, *, quantized: quantizers.Quantized, predictions: jax.Array, distractors: jax.Array
) -> tuple[Mean, dict[str, Mean]]:
    """(the prediction loss and the quantizer's own term, per predicted (frame, step) pair; the metrics)."""
    total, metrics = future_prediction.objective(
        config, batch, targets=quantized.vectors, predictions=predictions, distractors=distractors
    )
    valid = future_prediction.real_frames(config, batch)
    units = num_units(config.data.unit_seconds, *batch["wave"].shape)
    pairs = future_prediction.real_pairs(config, batch).sum(axis=(1, 2))  # [B]
    codes_used = quantizers.code_perplexity(quantized.codes, valid, units, size=config.quantizer.codes)
    alive = valid.reshape(units, -1).any(axis=1).astype(jnp.float32)
    if config.quantizer.kind == "kmeans":
        term = (pairs * quantizers.commitment(quantized, valid, config.loss.commitment_gamma)).sum()
        name, factor = "commitment", config.loss.commitment_weight
    else:
        codes_likely = quantizers.prob_perplexity(quantized.logits, valid, units)
        entries = config.quantizer.groups * config.quantizer.codes
        term = (pairs.reshape(units, -1).sum(axis=1) * (entries - codes_likely) / entries).sum()
        name, factor = "diversity", config.loss.diversity_weight
        metrics["prob_perplexity"] = Mean((codes_likely * alive).sum(), alive.sum())
    metrics["code_perplexity"] = Mean((codes_used * alive).sum(), alive.sum())
    metrics[name] = Mean(term, total.weight)
    return Mean(total.total + factor * term, total.weight), metrics


def make(config: Config) -> Method:
    """vq-wav2vec for a config. Its context reads codes, so that no other model can stand on the encoder alone."""
    q, model, encoder = config.quantizer, VQWav2Vec(config), causal_encoder(config, jnp.dtype(config.train.dtype))
    if q.kind not in ("gumbel", "kmeans"):
        raise UserError(f"quantizer.kind is {q.kind!r}; it is 'gumbel' or 'kmeans'")
    if q.depth not in (1, 2):
        raise UserError(f"quantizer.depth is {q.depth!r}; it is 1 or 2")
    revives = q.kind == "kmeans" and (q.restart > 0 or q.init_iterations > 0)
    width = quantizers.group_width(config.encoder.conv_layers[-1][0], q.groups)

    def init(key: jax.Array, batch: Batch) -> tuple[PyTree, PyTree]:
        extra = quantizers.first_life(1 if q.shared else q.groups, q.codes, width) if revives else {}
        return model.init(key, batch)["params"], extra

    def loss(params, extra, batch, key, step, *, train):
        noise, gumbel = noises.row_noise(key, batch["row"]), None
        if train and q.kind == "gumbel":
            frames = num_frames(batch["wave"].shape[1], config.encoder.conv_layers)
            gumbel = noises.gumbel(noises.fold(noise, Stream.FUTURE_GUMBEL), frames, q.groups, q.codes)
        tau = quantizers.temperature(step, q.temperature) if q.kind == "gumbel" else jnp.float32(1.0)
        outputs = model.apply({"params": params}, batch, tau=tau, gumbel=gumbel, moved=extra.get("moved"))
        _, quantized, predictions = cast(Any, outputs)
        distractors = future_prediction.draw(config, batch, key)
        total, metrics = objective(config, batch, quantized=quantized, predictions=predictions, distractors=distractors)
        valid = future_prediction.real_frames(config, batch)
        if revives and train:
            codebook = jax.lax.stop_gradient(params["quantizer"]["codebook"])
            extra = quantizers.revive(
                extra,
                quantized,
                codebook,
                valid=valid,
                noise=noises.fold(noise, Stream.REVIVED_CODES),
                step=step,
                threshold=q.restart,
                iterations=q.init_iterations,
            )
        if q.kind == "gumbel":
            metrics["temperature"] = Mean(tau, jnp.float32(1.0))
        if not train:
            metrics["code_usage"] = quantizers.code_usage(quantized.codes, valid, size=q.codes)
        return total, (extra, metrics)

    def predict(params, extra, batch):
        return model.apply({"params": params}, batch, extra.get("moved"), method=VQWav2Vec.features)

    def levels():
        limits = {"perplexity_floor": float(q.groups), "perplexity_max": float(q.groups * q.codes)}
        return future_prediction.levels(config) | limits

    return Method(init, loss, predict, levels=levels, output_frames=encoder.frames, encoder=encoder, reusable=False)
