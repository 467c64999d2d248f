"""HuBERT pretraining (Hsu et al. 2021, arXiv 2106.07447).

Spans of the projected local features are replaced by a learned vector. The Transformer's output at a masked frame must
name the cluster (a speech unit) that k-means gave that frame before training. `nn/unit_prediction.py` has the logits,
the loss, and what departs from fairseq there. Masking: see `ops/masking.py`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from w2v_jax.core.config import Config
from w2v_jax.core.types import Method, PyTree, TargetBatch
from w2v_jax.nn.encoders import wav2vec2_encoder
from w2v_jax.nn.unit_prediction import UnitPredictor, check_labels, draw, levels, objective
from w2v_jax.ops import random as noises
from w2v_jax.ops.random import Stream


def make(config: Config) -> Method:
    """HuBERT for a config. Raises UserError for classes that are none, and for labels at a rate that does not fit."""
    model, encoder = UnitPredictor(config), wav2vec2_encoder(config, jnp.dtype(config.train.dtype))
    check_labels(config)

    def init(key: jax.Array, batch: TargetBatch) -> tuple[PyTree, PyTree]:
        return model.init(key, batch, draw(config, batch, key))["params"], {}

    def loss(params, extra, batch, key, step, *, train):
        masked = draw(config, batch, key)
        noise = noises.fold(noises.row_noise(key, batch["row"]), Stream.UNIT_NETWORK) if train else None
        layer_key = jax.random.fold_in(key, Stream.LAYER_DROP.number) if train else None
        prediction: Any = model.apply({"params": params}, batch, masked, noise, layer_key)
        total, metrics = objective(config, batch, masked, prediction)
        return total, (extra, metrics)

    def predict(params, extra, batch):
        return model.apply({"params": params}, batch, method=UnitPredictor.features)

    return Method(init, loss, predict, lambda: levels(config), encoder.frames, encoder)
