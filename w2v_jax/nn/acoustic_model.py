"""Acoustic models: features of any encoder -> frames that a linear layer turns into token logits.

`GatedConv` is the one of the wav2vec papers (Schneider et al. 2019, section 4.2; the gated convolutions of wav2letter's
lexicon-free WSJ recipe): weight-normed convolutions, gated linear units, dropout. `TransformerStack` is a Transformer
for comparison. Both are the same for every input. Padding never enters a real frame.

Differs: the papers train with the segmentation criterion ASG; here they feed CTC (see `methods/ctc.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import check_divides
from w2v_jax.nn.layers import LayerNorm, gathered, linear, partitioned
from w2v_jax.nn.transformer import Transformer, transformer_fields
from w2v_jax.ops import random as noises
from w2v_jax.ops.frames import valid_frames
from w2v_jax.ops.matmul import plus
from w2v_jax.ops.random import Stream

GatedSpec = Sequence[tuple[int, int, int]]
"""(output channels before gating, odd kernel width, stride) of each layer."""


class GatedConvLayer(nn.Module):
    """Convolution with weight norm per output channel, centred, then a gated linear unit: half the channels."""

    channels: int
    kernel: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B F C], zero on padding -> [B ceil(F / stride) channels / 2]."""
        shape = (self.kernel, x.shape[-1], self.channels)
        init = nn.initializers.normal(math.sqrt(4.0 / (self.kernel * x.shape[-1])))  # keeps the variance through GLU
        v = gathered(self.param("direction", partitioned(init, (None, None, "conv")), shape), (None, None, "conv"))
        norm = jnp.sqrt(jnp.sum(v * v, axis=(0, 1)))
        g = self.param("scale", partitioned(lambda *_: jnp.sqrt(jnp.sum(v * v, axis=(0, 1))), ("conv",)))
        bias = self.param("bias", partitioned(nn.initializers.zeros, ("conv",)), (self.channels,))
        g, bias = gathered(g, ("conv",)), gathered(bias, ("conv",))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            (v * (g / norm)).astype(self.dtype),
            window_strides=(self.stride,),
            padding=[(self.kernel // 2, self.kernel // 2)],
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return nn.glu(plus(y, bias))


class GatedConv(nn.Module):
    """Layers of `GatedConvLayer`, each followed by dropout.

    residual: a layer norm (Ba et al. 2016) follows each layer, and a layer that keeps the number of frames and channels
    adds its input to that (He et al. 2016). The papers' models have neither.
    """

    layers: GatedSpec
    dropout: float
    residual: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, num_frames, *, noise=None, layer_key=None) -> tuple[jax.Array, jax.Array]:
        """x [B F C], num_frames [B] -> (y [B F' D], num_frames' [B]); noise [B] words for the dropout of training."""
        for i, (channels, kernel, stride) in enumerate(self.layers):
            x = zero_padding(x, num_frames)
            y = GatedConvLayer(channels, kernel, stride, dtype=self.dtype, name=f"layer{i}")(x)
            y = LayerNorm("conv", self.dtype, name=f"norm{i}")(y) if self.residual else y
            y = noises.dropout(y, self.dropout, noises.fold(noise, i))
            x = x + y if self.residual and stride == 1 and x.shape[-1] == y.shape[-1] else y
            num_frames = -(-num_frames // stride)
        return x, num_frames


class TransformerStack(nn.Module):
    """Joins `stride` neighbouring frames, projects them, and runs a Transformer, which has `fields`."""

    stride: int
    width: int
    input_dropout: float
    fields: dict[str, Any]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, num_frames, *, noise=None, layer_key=None) -> tuple[jax.Array, jax.Array]:
        """As in `GatedConv`; layer_key draws the layers that are dropped."""
        x = zero_padding(x, num_frames)
        joined = -(-x.shape[1] // self.stride)
        x = jnp.pad(x, ((0, 0), (0, joined * self.stride - x.shape[1]), (0, 0)))
        x = x.reshape(x.shape[0], joined, x.shape[2] * self.stride)
        num_frames = -(-num_frames // self.stride)
        x = linear(self.width, x.shape[-1], ("conv", "embed"), dtype=self.dtype, name="projection")(x)
        x = noises.dropout(x, self.input_dropout, noises.fold(noise, Stream.NETWORK_INPUT))
        transformer = Transformer(**self.fields, dtype=self.dtype, name="transformer")
        return transformer(x, num_frames, noise=noise, layer_key=layer_key).output, num_frames


class Identity(nn.Module):
    """No acoustic model: the linear layer reads the encoder."""

    @nn.compact
    def __call__(self, x, num_frames, *, noise=None, layer_key=None) -> tuple[jax.Array, jax.Array]:
        return x, num_frames


def zero_padding(x: jax.Array, num_frames: jax.Array) -> jax.Array:
    """x [B F C] with zeros beyond the num_frames [B] real frames."""
    return jnp.where(valid_frames(num_frames, x.shape[1])[..., None], x, jnp.zeros((), x.dtype))


def acoustic_model(acoustic: Any, dtype: Any) -> nn.Module:
    """The model that a config's `acoustic` section describes. Raises UserError."""
    if acoustic.kind == "linear":
        return Identity()
    if acoustic.kind == "conv":
        for channels, kernel, _ in acoustic.conv_layers:
            if channels % 2 or not kernel % 2:
                raise UserError(f"acoustic.conv_layers: needs even channels and odd kernels, got {channels}, {kernel}")
        return GatedConv(acoustic.conv_layers, acoustic.dropout, residual=acoustic.residual, dtype=dtype)
    if acoustic.kind != "transformer":
        raise UserError(f"acoustic.kind is {acoustic.kind!r}; it is 'linear', 'conv' or 'transformer'")
    check_divides(acoustic, "width", ("heads", "pos_groups"), where="acoustic.")
    fields = dict(pre_norm=True, attention_dropout=acoustic.dropout, mlp_dropout=acoustic.dropout, layer_drop=0.0)
    fields |= transformer_fields(acoustic)
    return TransformerStack(acoustic.stride, acoustic.width, input_dropout=acoustic.dropout, fields=fields, dtype=dtype)


def frame_middles(acoustic: Any, frames: np.ndarray) -> np.ndarray:
    """Where the middles of `frames` (numbers) of the acoustic model lie, counted in frames of the encoder."""
    step = stride(acoustic)
    return frames * step + ((step - 1) / 2 if acoustic.kind == "transformer" else 0.0)


def stride(acoustic: Any) -> int:
    """Frames of the encoder per frame of the acoustic model."""
    if acoustic.kind == "conv":
        return functools.reduce(lambda total, layer: total * layer[2], acoustic.conv_layers, 1)
    return acoustic.stride if acoustic.kind == "transformer" else 1
