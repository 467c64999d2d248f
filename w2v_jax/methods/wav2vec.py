"""wav2vec (Schneider et al. 2019, arXiv 1904.05862): predict coming frames of an utterance among its other frames.

A strided convolutional encoder makes local features z, a causal context network makes c; for each of S steps a linear
map of c_t must tell z_{t + offset + s} from distractors of the same utterance. The loss is binary cross-entropies
summed over the positive and its distractors (equation 2), or InfoNCE (`loss.kind`).

Differs: the reference draws distractors frame by frame but reads them back transposed, so that the frame that is left
out is not the target; here a target is never its own distractor. Its recurrent context runs over the rows of the
batch; here it runs over time. Padding enters neither norms, targets nor distractors (`encoder.padding_aware`).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax import prediction
from w2v_jax.api import Batch, Method, PyTree
from w2v_jax.encoders import Encoded, causal_encoder
from w2v_jax.frontend import valid_frames


class Wav2Vec(nn.Module):
    """The model: params "encoder" and "predictor"."""

    config: Any

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.train.dtype)
        self.encoder = causal_encoder(config.encoder, dtype)
        self.predictor = prediction.FuturePredictor(config.loss.steps, config.encoder.conv_layers[-1][0], dtype)

    def __call__(self, batch: Batch) -> tuple[Encoded, jax.Array]:
        """The encoded batch and the predictions [B F S C], aligned to their target frames."""
        encoded = self.encoder(batch["wave"], batch["num_samples"])
        return encoded, self.predictor(encoded.context, prediction.first_offset(self.config))

    def features(self, batch: Batch) -> dict[str, Any]:
        """Local features, context and the output of every context layer."""
        encoded = self.encoder(batch["wave"], batch["num_samples"])
        return {
            "local": encoded.local,
            "context": encoded.context,
            "hidden": encoded.hidden,
            "valid": valid_frames(encoded.num_frames, encoded.local.shape[1]),
        }


def make(config: Any) -> Method:
    """The three functions of wav2vec for a config."""
    model = Wav2Vec(config)

    def init(key: jax.Array, batch: Batch) -> tuple[PyTree, PyTree]:
        return model.init(key, batch)["params"], {}

    def loss(params, extra, batch, key, step, *, train):
        found: Any = model.apply({"params": params}, batch)
        encoded, predictions = found
        distractors = prediction.draw(config, batch, key)
        total, metrics = prediction.objective(config, batch, encoded.local, predictions, distractors)
        return total, (extra, metrics)

    def predict(params, extra, batch):
        return model.apply({"params": params}, batch, method=Wav2Vec.features)

    return Method(init, loss, predict)


def levels(config: Any) -> dict[str, float]:
    """What a useless model reaches: drawn into the curves and watched by the watchdog."""
    return prediction.levels(config)
