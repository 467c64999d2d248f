"""Causal convolutions over local features: the context network of wav2vec and vq-wav2vec.

Schneider et al. 2019, section 3.1: each layer sees its own frame and the kernel - 1 frames before it, so that the
context of a frame knows nothing of the future, up to the statistics of the norm. Recurrent contexts: `recurrent.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.nn.feature_encoder import ConvLayer


class ConvContext(nn.Module):
    """One causal convolution with utterance norm per entry of `kernels`; the width is that of the input.

    skip: out = (layer(x) + x) * sqrt(0.5). The frames before the first one are copies of it, or zeros (`zero_pad`).
    convolution: the formulation of `matmul.strided_conv`.
    """

    kernels: Sequence[int]
    skip: bool
    zero_pad: bool
    activation: str
    convolution: str = "auto"
    dtype: Any = jnp.float32

    @property
    def hidden_states(self) -> int:
        return len(self.kernels)

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """x [B F C]; valid [B F] keeps padding out of the norms, None lets it in -> (context, outputs [L B F C])."""
        outputs = []
        for i, kernel in enumerate(self.kernels):
            layer = ConvLayer(
                x.shape[-1],
                kernel,
                1,
                norm="utterance",
                use_bias=True,
                activation=self.activation,
                kaiming=False,
                pad=kernel - 1,
                zero_pad=self.zero_pad,
                convolution=self.convolution,
                dtype=self.dtype,
                name=f"conv{i}",
            )
            y = layer(x, valid)
            x = (y + x) * math.sqrt(0.5) if self.skip else y
            x = nn.with_logical_constraint(x, ("batch", "frames", "conv"))
            outputs.append(x)
        return x, jnp.stack(outputs)
