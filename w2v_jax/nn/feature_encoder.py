"""From the waveform to local features: strided convolutions, and the arithmetic of their frames.

The norms are those of the family's papers:

    "group"      wav2vec 2.0: each channel of the first layer over time (a group norm with one channel per group)
    "layer"      wav2vec 2.0 Large: the channels of each frame, in every layer
    "utterance"  wav2vec and vq-wav2vec: all channels and frames together, in every layer (a group norm of one group)
    "frame"      CPC after Riviere et al. 2020: as "layer", with the unbiased variance
    "none"       CPC as van den Oord et al. 2018 wrote it
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.nn.layers import (
    ChannelNorm,
    LayerNorm,
    UtteranceNorm,
    activate,
    gathered,
    partitioned,
    rematerialised,
    symmetric_uniform,
)
from w2v_jax.ops.devices import platform
from w2v_jax.ops.frames import ConvSpec, num_frames, valid_frames
from w2v_jax.ops.matmul import plus, strided_conv

NORMS = ("group", "layer", "utterance", "frame", "none")


class ConvLayer(nn.Module):
    """Convolution -> norm -> activation; frames are [B F C]. `norm` is one of NORMS, "group" for this very layer.

    `pad` frames stand before the first one: copies of it, or zeros with `zero_pad`. Weights start as in PyTorch
    (uniform) or, with `kaiming`, as wav2vec 2.0's (normal). `convolution` is the formulation of `strided_conv`.
    """

    channels: int
    kernel: int
    stride: int
    norm: str
    use_bias: bool
    activation: str = "gelu"
    kaiming: bool = True
    pad: int = 0
    zero_pad: bool = False
    convolution: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        fan_in = self.kernel * x.shape[-1]
        uniform = symmetric_uniform(1.0 / math.sqrt(fan_in))
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal") if self.kaiming else uniform
        kernel = self.param(
            "kernel", partitioned(init, (None, None, "conv")), (self.kernel, x.shape[-1], self.channels)
        )
        kernel = gathered(kernel, (None, None, "conv"))
        if self.pad:
            # jnp.pad's "edge" would also touch the batch axis, and devices would exchange zeros for it
            first = jnp.zeros_like(x[:, :1]) if self.zero_pad else x[:, :1]
            x = jnp.concatenate([jnp.repeat(first, self.pad, axis=1), x], axis=1)
        y = strided_conv(
            x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, formulation=self.convolution
        )
        if self.use_bias:
            y = plus(y, self.param("bias", partitioned(uniform, ("conv",)), (self.channels,)))
        if self.norm in ("group", "utterance"):
            norm = ChannelNorm if self.norm == "group" else UtteranceNorm
            y = norm(self.dtype, name="norm")(y, valid)
        elif self.norm != "none":
            y = LayerNorm("conv", self.dtype, self.norm == "frame", name="norm")(y)
        return activate(y, self.activation)


class ConvFrontend(nn.Module):
    """The feature encoder: `layers` of (channels, kernel, stride), `norm` one of NORMS.

    remat: a policy of `rematerialised`. "auto" is "none" on CPU, where XLA undoes part of the recomputation, and "full"
    elsewhere. convolution: the formulation of `strided_conv`.
    """

    layers: ConvSpec
    norm: str
    use_bias: bool
    padding_aware: bool = True
    remat: str = "none"
    convolution: str = "auto"
    dtype: Any = jnp.float32
    activation: str = "gelu"
    kaiming: bool = True

    @nn.compact
    def __call__(self, wave: jax.Array, num_samples: jax.Array) -> jax.Array:
        """wave [B T], num_samples [B] -> local features [B F C]."""
        if self.norm not in NORMS:
            raise UserError(f"encoder.conv_norm is {self.norm!r}; it is one of {NORMS}")
        best = "none" if platform() == "cpu" else "full"
        layer_class = rematerialised(ConvLayer, self.remat, "encoder.remat_frontend", auto=best)
        x = wave[..., None]
        for i, (channels, kernel, stride) in enumerate(self.layers):
            norm = "none" if self.norm == "group" and i else self.norm
            layer = layer_class(
                channels,
                kernel,
                stride,
                norm=norm,
                use_bias=self.use_bias,
                activation=self.activation,
                kaiming=self.kaiming,
                convolution=self.convolution,
                dtype=self.dtype,
                name=f"conv{i}",
            )
            valid = None
            if norm in ("group", "utterance") and self.padding_aware:
                shorter = self.layers[: i + 1]
                valid = valid_frames(num_frames(num_samples, shorter), num_frames(wave.shape[1], shorter))
            x = nn.with_logical_constraint(layer(x, valid), ("batch", "frames", "conv"))
        return x
