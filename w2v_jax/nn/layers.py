"""Layers that all models share: norms, dense layers, activations, initialisers, rematerialisation."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.ops.matmul import KEPT, plus, product

REMAT = ("none", "products", "full")
"""Policies of rematerialisation (`rematerialised`), from most memory to least."""


partitioned: Any = nn.with_logical_partitioning

TENSOR_AXES = ("heads", "mlp", "vocab")
"""Logical axes along which a weight stays in pieces while it is used."""

Axes = tuple[str | None, ...]


def gathered(x: jax.Array, axes: Axes) -> jax.Array:
    """A parameter with these logical axes as a layer uses it: gathered from all devices, except along tensor axes.

    Without this constraint and with two mesh axes, XLA's partitioner moves pieces of kernels and gradients to devices
    that do not need them, and it gathers a kernel once per piece where Python code splits it. The layers of the
    Transformer have no such constraint: XLA gathers them one by one, and a constraint would copy all of them at once.
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
    constant = jax.lax.stop_gradient(x)
    return constant + scale * (x - constant)


class ChannelNorm(nn.Module):
    """Normalises each channel over time: group norm with as many groups as channels, float32, eps 1e-5.

    With `valid`, only real frames count, so that padding cannot change an utterance's features. Without it the
    padding is part of the statistics, as in fairseq.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """x [B F C], valid [B F] bool or None -> [B F C]."""
        scale = self.param("scale", partitioned(nn.initializers.ones, ("conv",)), (x.shape[-1],))
        bias = self.param("bias", partitioned(nn.initializers.zeros, ("conv",)), (x.shape[-1],))
        normalise = functools.partial(channel_norm, scale=scale, bias=bias)
        if x.shape[0] == 1:  # on CPU XLA sums [1 F C] over F, for the gradient, a hundred times slower than [F C]
            return normalise(x[0], None if valid is None else valid[0]).astype(self.dtype)[None]
        return jax.vmap(normalise)(x, valid).astype(self.dtype)


def channel_norm(x: jax.Array, valid: jax.Array | None, *, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """`ChannelNorm` of one utterance: x [F C], valid [F] bool or None -> [F C] float32."""
    shift = jax.lax.stop_gradient(x[:1]).astype(jnp.float32)
    y = x.astype(jnp.float32) - shift  # any shift gives the same result; this one keeps the squares accurate
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
    padding is part of the statistics, as in fairseq (wav2vec, fairseq's Fp32GroupNorm).
    """

    dtype: Any = jnp.float32
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """x [B F C], valid [B F] bool or None -> [B F C]."""
        scale = self.param("scale", partitioned(nn.initializers.ones, ("conv",)), (x.shape[-1],))
        bias = self.param("bias", partitioned(nn.initializers.zeros, ("conv",)), (x.shape[-1],))
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
        learned = ()
        if self.affine:
            scale = self.param("scale", partitioned(nn.initializers.ones, (self.axis,)), (x.shape[-1],))
            bias = self.param("bias", partitioned(nn.initializers.zeros, (self.axis,)), (x.shape[-1],))
            learned = (scale, bias)
        return layer_norm((self.dtype, self.unbiased), x, learned)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def layer_norm(form: tuple[Any, bool], x: jax.Array, learned: tuple[jax.Array, ...]) -> jax.Array:
    """`LayerNorm` of x [... C], form (type of the result, unbiased), learned (scale, bias) or ().

    For the gradient it keeps x in the type that it has, and two numbers per frame.
    """
    return _layer_norm_forward(form, x, learned)[0]


def _layer_norm_forward(form, x, learned):
    dtype, unbiased = form
    y = x.astype(jnp.float32)
    mean = y.mean(axis=-1, keepdims=True)
    y = y - mean
    inverse = jax.lax.rsqrt((y * y).sum(axis=-1, keepdims=True) / (y.shape[-1] - unbiased) + 1e-5)
    y = y * inverse
    if learned:
        y = y * learned[0] + learned[1]
    return y.astype(dtype), (x, learned[:1], mean, inverse)


def _layer_norm_backward(form, kept, g):
    x, scale, mean, inverse = kept
    g, y = g.astype(jnp.float32), (x.astype(jnp.float32) - mean) * inverse
    of_learned = ()
    if scale:
        frames = tuple(range(x.ndim - 1))
        of_learned = (g * y).sum(axis=frames), g.sum(axis=frames)
        g = g * scale[0]
    along = (g * y).sum(axis=-1, keepdims=True) / (x.shape[-1] - form[1])
    return (inverse * (g - g.mean(axis=-1, keepdims=True) - y * along)).astype(x.dtype), of_learned


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def rematerialised(
    target: Any, policy: str, key: str, *, auto: str = "", prevent_cse: bool = True, by: Any = nn.remat
) -> Any:
    """A module class (with by=jax.checkpoint a function) whose backward pass recomputes its activations.

    policy: "none" keeps all activations and "full" none. "products" keeps the results of matrix products and
    convolutions, and recomputes norms, activations, dropout and attention (Korthikanti et al. 2022, section 5).
    "auto" is the policy `auto`, where there is one. Raises UserError, which names the config's key, for other words.
    """
    policies = REMAT + ("auto",) * bool(auto)
    if policy not in policies:
        raise UserError(f"{key} is {policy!r}; it is one of {policies}")
    policy = auto if policy == "auto" else policy
    if policy == "none":
        return target
    keep = jax.checkpoint_policies.save_only_these_names(KEPT) if policy == "products" else None
    return by(target, policy=keep, prevent_cse=prevent_cse)


def symmetric_uniform(bound: float) -> nn.initializers.Initializer:
    """U(-bound, bound): PyTorch's default for biases and linear layers, which fairseq keeps."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.Module):
    """x @ kernel + bias over the last axis, with logical `axes` of the kernel.

    Kernel and bias are `gathered`. With gather=False they are not: XLA gathers the layers of the Transformer itself.
    """

    features: int
    axes: Axes
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer
    dtype: Any = jnp.float32
    gather: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", partitioned(self.kernel_init, self.axes), (x.shape[-1], self.features))
        bias = self.param("bias", partitioned(self.bias_init, self.axes[1:]), (self.features,))
        if self.gather:
            kernel, bias = gathered(kernel, self.axes), gathered(bias, self.axes[1:])
        return plus(product(x.astype(self.dtype), kernel.astype(self.dtype)), bias)


def linear(features: int, fan_in: int, axes: Axes, *, dtype: Any, name: str | None = None) -> Dense:
    """A dense layer with PyTorch's default initialisation, U(+-1/sqrt(fan_in)) for kernel and bias."""
    init = symmetric_uniform(1.0 / math.sqrt(fan_in))
    return Dense(features, axes, kernel_init=init, bias_init=init, dtype=dtype, name=name)
