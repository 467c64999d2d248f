"""WavLM pretraining (Chen et al. 2021, arXiv 2110.13900).

As in HuBERT, spans of the projected local features are replaced by a learned vector, and the Transformer's output at a
masked frame must name the cluster (a speech unit) that k-means gave that frame before training. WavLM adds the gated
bias of the distance in every layer's attention (`encoder.relative_buckets`). `ops/relative_bias.py` has the
bias, `nn/unit_prediction.py` the logits and the loss. Masking: see `ops/masking.py`.

Without `loss.classes` it is the encoder alone, as released models are: it gives features and has no loss.

Some utterances come with a part of another one mixed in, and keep their labels (`data.mix_prob`). The data
do that: `data/augment.py`. Differs: the paper's larger models also mix noise in; here it is speech alone.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.types import Method, PyTree, TargetBatch
from w2v_jax.nn.encoders import wav2vec2_encoder
from w2v_jax.nn.unit_prediction import UnitPredictor, check_labels, draw, levels, objective
from w2v_jax.ops import random as noises
from w2v_jax.ops.random import Stream


def make(config: Config) -> Method:
    """WavLM for a config. Raises UserError without the bias, and for classes or labels that do not fit."""
    model, encoder = UnitPredictor(config), wav2vec2_encoder(config, jnp.dtype(config.train.dtype))
    if not config.encoder.relative_buckets:
        raise UserError('encoder.relative_buckets=0: without the gated bias of the distance, WavLM is method="hubert"')
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
        prediction: Any = model.apply({"params": params}, batch, masked, noise, layer_key)
        total, metrics = objective(config, batch, masked, prediction)
        return total, (extra, metrics)

    def predict(params, extra, batch):
        return model.apply({"params": params}, batch, method=UnitPredictor.features)

    return Method(init, loss, predict, lambda: levels(config), encoder.frames, encoder)
