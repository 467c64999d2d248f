"""From the waveform to local features: strided convolutions, and the arithmetic of their frames.

Two styles of wav2vec 2.0 (Baevski et al. 2020, section 2): "group" normalises each channel of the first layer
over time (a group norm with one channel per group), "layer" normalises the channels of each frame in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.config import UserError

part: Any = nn.with_logical_partitioning

ConvSpec = Sequence[tuple[int, int, int]]
"""(channels, kernel, stride) of each convolution, first to last."""


def num_frames(num_samples: Any, layers: ConvSpec) -> Any:
    """Frames that `layers` make of `num_samples` samples (an int or an array): floor((n - k) / s) + 1 per layer.

    Not below 0: too short an input has no frame.
    """
    for _, kernel, stride in layers:
        num_samples = (num_samples - kernel) // stride + 1
        num_samples = max(num_samples, 0) if isinstance(num_samples, int) else num_samples.clip(0)
    return num_samples


def receptive_field(layers: ConvSpec) -> tuple[int, int]:
    """(samples that one frame sees, samples between two frames)."""
    field, hop = 1, 1
    for _, kernel, stride in layers:
        field += (kernel - 1) * hop
        hop *= stride
    return field, hop


def valid_frames(num: jax.Array, total: int) -> jax.Array:
    """[B F] bool, True on the first num [B] of `total` frames."""
    return jnp.arange(total)[None] < num[:, None]


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x) with the exact normal distribution function, evaluated in float32; keeps only x for the gradient."""
    y = x.astype(jnp.float32)
    return (y * (0.5 * (1.0 + jax.lax.erf(y * math.sqrt(0.5))))).astype(x.dtype)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    y = x.astype(jnp.float32)
    cdf = 0.5 * (1.0 + jax.lax.erf(y * math.sqrt(0.5)))
    pdf = jnp.exp(-0.5 * y * y) * (1.0 / math.sqrt(2.0 * math.pi))
    return ((g.astype(jnp.float32) * (cdf + y * pdf)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def scale_gradient(x: jax.Array, scale: float) -> jax.Array:
    """x itself, with its gradient multiplied by `scale`."""
    if scale == 1.0:
        return x
    if scale == 0.0:
        return jax.lax.stop_gradient(x)
    held = jax.lax.stop_gradient(x)
    return held + scale * (x - held)


class ChannelNorm(nn.Module):
    """Normalises each channel over time: group norm with as many groups as channels, float32, eps 1e-5.

    With `valid`, only real frames count, so that padding cannot change an utterance's features. Without it the
    padding is part of the statistics, as in the reference.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """x [B F C], valid [B F] bool or None -> [B F C]."""
        scale = self.param("scale", part(nn.initializers.ones, ("conv",)), (x.shape[-1],))
        bias = self.param("bias", part(nn.initializers.zeros, ("conv",)), (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y - jax.lax.stop_gradient(y[:, :1])  # any shift gives the same result; this one keeps the squares accurate
        if valid is None:
            count, kept = x.shape[1], y
        else:
            count = jnp.maximum(valid.sum(axis=1), 1).astype(jnp.float32)[:, None, None]
            kept = jnp.where(valid[..., None], y, 0.0)
        mean = kept.sum(axis=1, keepdims=True) / count
        square = (kept * kept).sum(axis=1, keepdims=True) / count
        inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + 1e-5) * scale
        return (y * inverse + (bias - mean * inverse)).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer norm over the last axis in float32, eps 1e-5, one pass of sums; `axis` names the logical axis."""

    axis: str = "embed"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", part(nn.initializers.ones, (self.axis,)), (x.shape[-1],))
        bias = self.param("bias", part(nn.initializers.zeros, (self.axis,)), (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y - y.mean(axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt((y * y).mean(axis=-1, keepdims=True) + 1e-5)
        return (y * inverse * scale + bias).astype(self.dtype)


class ConvLayer(nn.Module):
    """Convolution without padding -> norm ("channel", "layer" or "none") -> GELU; frames are [B F C]."""

    channels: int
    kernel: int
    stride: int
    norm: str
    use_bias: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        fan_in = self.kernel * x.shape[-1]
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # kaiming, as in the reference
        kernel = self.param("kernel", part(init, (None, None, "conv")), (self.kernel, x.shape[-1], self.channels))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride,),
            "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        if self.use_bias:
            bias_init = part(_symmetric_uniform(1.0 / math.sqrt(fan_in)), ("conv",))
            y = y + self.param("bias", bias_init, (self.channels,)).astype(self.dtype)
        if self.norm == "channel":
            y = ChannelNorm(self.dtype, name="norm")(y, valid)
        elif self.norm == "layer":
            y = LayerNorm("conv", self.dtype, name="norm")(y)
        return gelu(y)


class ConvFrontend(nn.Module):
    """The feature encoder of wav2vec 2.0: `layers` of (channels, kernel, stride), `norm` "group" or "layer"."""

    layers: ConvSpec
    norm: str
    use_bias: bool
    padding_aware: bool = True
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, wave: jax.Array, num_samples: jax.Array) -> jax.Array:
        """wave [B T], num_samples [B] -> local features [B F C]."""
        if self.norm not in ("group", "layer"):
            raise UserError(f"encoder.conv_norm is {self.norm!r}; it is one of 'group', 'layer'")
        layer_class = nn.remat(ConvLayer) if self.remat else ConvLayer
        x = wave[..., None]
        for i, (channels, kernel, stride) in enumerate(self.layers):
            norm = "layer" if self.norm == "layer" else ("channel" if i == 0 else "none")
            valid = None
            if norm == "channel" and self.padding_aware:
                total = num_frames(wave.shape[1], self.layers[:1])
                valid = valid_frames(num_frames(num_samples, self.layers[:1]), total)
            x = layer_class(channels, kernel, stride, norm, self.use_bias, self.dtype, name=f"conv{i}")(x, valid)
            x = nn.with_logical_constraint(x, ("batch", "frames", "conv"))
        return x


def _symmetric_uniform(bound: float) -> nn.initializers.Initializer:
    """U(-bound, bound): PyTorch's default for biases and linear layers, which the reference keeps."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def linear(features: int, fan_in: int, axes: tuple[str, str], dtype: Any, name: str | None = None) -> nn.Dense:
    """A dense layer with PyTorch's default initialisation, U(+-1/sqrt(fan_in)) for kernel and bias."""
    init = _symmetric_uniform(1.0 / math.sqrt(fan_in))
    return nn.Dense(features, dtype=dtype, kernel_init=part(init, axes), bias_init=part(init, axes[1:]), name=name)
