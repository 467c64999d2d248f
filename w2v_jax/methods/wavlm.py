"""WavLM pretraining (Chen et al. 2021, arXiv 2110.13900).

As in HuBERT, spans of the projected local features are replaced by a learned vector, and the Transformer's output at a
masked frame must name the cluster (a speech unit) that k-means gave that frame before training. WavLM adds the gated
bias of the distance in every layer's attention (`encoder.relative_buckets`). `ops/relative_bias.py` has the
bias, `nn/unit_prediction.py` the logits and the loss. Masking: see `ops/masking.py`.

Without `loss.classes` it is the encoder alone, as released models are: it gives features and has no loss.

Some utterances come with a part of another one mixed in, and keep their labels (`data.mix_prob`). The data
do that: `data/augment.py`. The paper's larger models also mix noise in: `data.noise_root` and `data.noise_prob`.
"""

from __future__ import annotations

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.types import Method
from w2v_jax.nn.unit_prediction import unit_method


def make(config: Config) -> Method:
    """WavLM for a config. Raises UserError without the bias, and for classes or labels that do not fit."""
    if not config.encoder.relative_buckets:
        raise UserError('encoder.relative_buckets=0: without the gated bias of the distance, WavLM is method="hubert"')
    return unit_method(config)
