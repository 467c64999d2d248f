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
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.config import REMAT, UserError
from w2v_jax.products import KEPT, plus, product, strided_conv

part: Any = nn.with_logical_partitioning

NORMS = ("group", "layer", "utterance", "frame", "none")

TENSOR_AXES = ("heads", "mlp", "vocab")
"""Logical axes along which a weight stays in pieces while it is used."""

Axes = tuple[str | None, ...]

ConvSpec = Sequence[tuple[int, int, int]]
"""(channels, kernel, stride) of each convolution, first to last."""


def num_frames(num_samples: Any, layers: ConvSpec) -> Any:
    """Frames that `layers` make of `num_samples` samples (an int or an array): floor((n - k) / s) + 1 per layer.

    Not below 0: too short an input has no frame. The length of an exported program, which is a symbol, is longer than
    that by its constraints.
    """
    for _, kernel, stride in layers:
        num_samples = (num_samples - kernel) // stride + 1
        if isinstance(num_samples, int):
            num_samples = max(num_samples, 0)
        elif hasattr(num_samples, "clip"):
            num_samples = num_samples.clip(0)
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


def gathered(x: jax.Array, axes: Axes) -> jax.Array:
    """A parameter with these logical axes as it is used: gathered from all devices, but along tensor axes.

    Left to itself XLA's partitioner moves pieces of kernels and of their gradients between devices that do not need
    them as soon as there are two mesh axes, and gathers a kernel that is split in Python once per piece. The layers
    of the Transformer are left to it: those it gathers one by one as they come, forward and backward, which a
    constraint would turn into copies of all of them.
    """
    return nn.with_logical_constraint(x, tuple(axis if axis in TENSOR_AXES else None for axis in axes))


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


def activate(x: jax.Array, name: str) -> jax.Array:
    """ "gelu" (exact) or "relu" of x."""
    if name not in ("gelu", "relu"):
        raise UserError(f"encoder.activation is {name!r}; it is 'gelu' or 'relu'")
    return gelu(x) if name == "gelu" else jax.nn.relu(x)


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
        if x.shape[0] == 1:  # on CPU XLA sums [1 F C] over F, for the gradient, a hundred times slower than [F C]
            return channel_norm(x[0], None if valid is None else valid[0], scale, bias).astype(self.dtype)[None]
        return jax.vmap(channel_norm, in_axes=(0, 0, None, None))(x, valid, scale, bias).astype(self.dtype)


def channel_norm(x: jax.Array, valid: jax.Array | None, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """`ChannelNorm` of one utterance: x [F C], valid [F] bool or None -> [F C] float32."""
    y = x.astype(jnp.float32)
    y = y - jax.lax.stop_gradient(y[:1])  # any shift gives the same result; this one keeps the squares accurate
    if valid is None:
        count, kept = x.shape[0], y
    else:
        count, kept = jnp.maximum(valid.sum(), 1).astype(jnp.float32), jnp.where(valid[:, None], y, 0.0)
    mean, square = kept.sum(axis=0) / count, (kept * kept).sum(axis=0) / count
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + 1e-5) * scale
    return y * inverse + (bias - mean * inverse)


class UtteranceNorm(nn.Module):
    """Normalises all frames of an utterance and all channels of a group together: group norm, float32, eps 1e-5.

    With `valid`, only real frames count, so that padding cannot change an utterance's features. Without it the
    padding is part of the statistics, as in the reference (wav2vec, fairseq's Fp32GroupNorm).
    """

    dtype: Any = jnp.float32
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """x [B F C], valid [B F] bool or None -> [B F C]."""
        scale = self.param("scale", part(nn.initializers.ones, ("conv",)), (x.shape[-1],))
        bias = self.param("bias", part(nn.initializers.zeros, ("conv",)), (x.shape[-1],))
        y = x.astype(jnp.float32).reshape(*x.shape[:2], self.groups, -1)
        real = (jnp.ones(x.shape[:2], bool) if valid is None else valid)[..., None, None]
        count = jnp.maximum(real.sum(axis=1, keepdims=True), 1).astype(jnp.float32) * y.shape[-1]
        y = y - jnp.where(real, y, 0.0).sum(axis=(1, 3), keepdims=True) / count
        square = jnp.where(real, y * y, 0.0).sum(axis=(1, 3), keepdims=True) / count
        y = (y * jax.lax.rsqrt(square + 1e-5)).reshape(x.shape)
        return (y * scale + bias).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer norm over the last axis in float32, eps 1e-5; `axis` names the logical axis.

    `unbiased` divides the squares by C - 1, as CPC's norm does. Without `affine` it has no scale and bias.
    """

    axis: str = "embed"
    dtype: Any = jnp.float32
    unbiased: bool = False
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - y.mean(axis=-1, keepdims=True)
        count = y.shape[-1] - 1 if self.unbiased else y.shape[-1]
        inverse = jax.lax.rsqrt((y * y).sum(axis=-1, keepdims=True) / count + 1e-5)
        y = y * inverse
        if self.affine:
            scale = self.param("scale", part(nn.initializers.ones, (self.axis,)), (x.shape[-1],))
            bias = self.param("bias", part(nn.initializers.zeros, (self.axis,)), (x.shape[-1],))
            y = y * scale + bias
        return y.astype(self.dtype)


def rematerialised(
    target: Any, policy: str, key: str, *, auto: str = "", prevent_cse: bool = True, by: Any = nn.remat
) -> Any:
    """The module class, or with by=jax.checkpoint the function, whose backward pass computes its inside anew.

    policy: "none" keeps everything, "full" nothing, "products" the results of matrix products and convolutions, so that
    norms, activations, dropout and attention are computed anew (Korthikanti et al. 2022, section 5). "auto" is the
    policy `auto`, where there is one. Raises UserError, which names the config's key, for other words.
    """
    policies = REMAT + ("auto",) * bool(auto)
    if policy not in policies:
        raise UserError(f"{key} is {policy!r}; it is one of {policies}")
    policy = auto if policy == "auto" else policy
    if policy == "none":
        return target
    keep = jax.checkpoint_policies.save_only_these_names(KEPT) if policy == "products" else None
    return by(target, policy=keep, prevent_cse=prevent_cse)


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
        kernel = self.param("kernel", part(init, (None, None, "conv")), (self.kernel, x.shape[-1], self.channels))
        kernel = gathered(kernel, (None, None, "conv"))
        if self.pad:
            # jnp.pad's "edge" would also touch the batch axis, and devices would exchange zeros for it
            first = jnp.zeros_like(x[:, :1]) if self.zero_pad else x[:, :1]
            x = jnp.concatenate([jnp.repeat(first, self.pad, axis=1), x], axis=1)
        y = strided_conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.convolution)
        if self.use_bias:
            y = plus(y, self.param("bias", part(uniform, ("conv",)), (self.channels,)))
        if self.norm in ("group", "utterance"):
            norm = ChannelNorm if self.norm == "group" else UtteranceNorm
            y = norm(self.dtype, name="norm")(y, valid)
        elif self.norm != "none":
            y = LayerNorm("conv", self.dtype, self.norm == "frame", name="norm")(y)
        return activate(y, self.activation)


class ConvFrontend(nn.Module):
    """The feature encoder: `layers` of (channels, kernel, stride), `norm` one of NORMS.

    remat: a policy of `rematerialised`, "auto" for "none" on CPU, whose XLA undoes part of the recomputation, and for
    "full" elsewhere. convolution: the formulation of `strided_conv`.
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
        best = "none" if jax.default_backend() == "cpu" else "full"
        layer_class = rematerialised(ConvLayer, self.remat, "encoder.remat_frontend", auto=best)
        x = wave[..., None]
        for i, (channels, kernel, stride) in enumerate(self.layers):
            norm = "none" if self.norm == "group" and i else self.norm
            layer = layer_class(
                channels,
                kernel,
                stride,
                norm,
                self.use_bias,
                self.activation,
                self.kaiming,
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


def symmetric_uniform(bound: float) -> nn.initializers.Initializer:
    """U(-bound, bound): PyTorch's default for biases and linear layers, which the reference keeps."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.Module):
    """x @ kernel + bias over the last axis, with logical `axes` of the kernel.

    Both are `gathered` but with `gather=False`, in layers that XLA's partitioner is left to gather one by one.
    """

    features: int
    axes: Axes
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer
    dtype: Any = jnp.float32
    gather: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", part(self.kernel_init, self.axes), (x.shape[-1], self.features))
        bias = self.param("bias", part(self.bias_init, self.axes[1:]), (self.features,))
        if self.gather:
            kernel, bias = gathered(kernel, self.axes), gathered(bias, self.axes[1:])
        return plus(product(x.astype(self.dtype), kernel.astype(self.dtype)), bias)


def linear(features: int, fan_in: int, axes: Axes, dtype: Any, name: str | None = None) -> Dense:
    """A dense layer with PyTorch's default initialisation, U(+-1/sqrt(fan_in)) for kernel and bias."""
    init = symmetric_uniform(1.0 / math.sqrt(fan_in))
    return Dense(features, axes, init, init, dtype, name=name)
