"""HuBERT pretraining (Hsu et al. 2021, arXiv 2106.07447).

Spans of the projected local features are replaced by a learned vector. The Transformer's output at a masked frame must
name the cluster (a speech unit) that k-means gave that frame before training. `nn/unit_prediction.py` has the logits,
the loss, and what departs from fairseq there. Masking: see `ops/masking.py`.

Without `loss.classes` it is the encoder alone, as transformers keeps it: it gives features and has no loss.
"""

from __future__ import annotations

from w2v_jax.core.config import Config
from w2v_jax.core.types import Method
from w2v_jax.nn.unit_prediction import unit_method


def make(config: Config) -> Method:
    """HuBERT for a config. Raises UserError for classes that are none, and for labels at a rate that does not fit."""
    return unit_method(config)
