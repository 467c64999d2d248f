"""wav2vec (Schneider et al. 2019, arXiv 1904.05862): predict coming frames of an utterance among its other frames.

A strided convolutional encoder makes local features z, a causal context network makes c; for each of S steps a linear
map of c_t must tell z_{t + offset + s} from distractors of the same utterance. The loss is binary cross-entropies
summed over the positive and its distractors (equation 2), or InfoNCE (`loss.kind`).

Differs: fairseq draws distractors frame by frame but reads them back transposed, so that the frame that is left
out is not the target; here a target is never its own distractor. Its recurrent context runs over the rows of the
batch; here it runs over time. Padding enters neither norms, targets nor distractors (`encoder.padding_aware`).
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp

from w2v_jax.core.config import Config
from w2v_jax.core.types import Batch, Method, PyTree
from w2v_jax.nn import future_prediction
from w2v_jax.nn.encoders import causal_encoder


def make(config: Config) -> Method:
    """wav2vec for a config."""
    model, encoder = future_prediction.FutureModel(config), causal_encoder(config, jnp.dtype(config.train.dtype))

    def init(key: jax.Array, batch: Batch) -> tuple[PyTree, PyTree]:
        return model.init(key, batch)["params"], {}

    def loss(params, extra, batch, key, step, *, train):
        encoded, predictions = cast(Any, model.apply({"params": params}, batch))
        distractors = future_prediction.draw(config, batch, key)
        total, metrics = future_prediction.objective(
            config, batch, targets=encoded.local, predictions=predictions, distractors=distractors
        )
        return total, (extra, metrics)

    def predict(params, extra, batch):
        return model.apply({"params": params}, batch, method="features")

    def levels():
        return future_prediction.levels(config)

    return Method(init, loss, predict, levels=levels, output_frames=encoder.frames, encoder=encoder)
