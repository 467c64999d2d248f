"""Matrix products, strided convolutions and biases, by the formulation that suits the platform or that a config names.

Of bfloat16, XLA reaches a CPU's matrix unit (AMX) only where the result is asked for in float32, and for sums over
rows, of which gradients of weights are made, only where the columns of one operand are in two axes; otherwise it widens
the operands. Gradients of strided convolutions are products in float32, too: XLA convolves the gradient spread by
zeros, which takes longer, and makes and gives back large arrays at each call. A sum in bfloat16 over rows, as the
gradient of a bias is, takes it some thirty times longer than one in float32. Platforms other than CPU keep XLA's
products and, unless the config names another formulation, its convolutions.

Results of products and convolutions have the name KEPT, by which rematerialisation can keep them and them alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from w2v_jax.core.cli import UserError

CONVOLUTIONS = ("auto", "xla", "products", "patches")
KEPT = "product"

LAST_FIRST = (((1,), (0,)), ((), ()))
LAST_LAST = (((1,), (1,)), ((), ()))
FIRST_FIRST = (((0,), (0,)), ((), ()))


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [... I] by kernel [I O], of one type -> [... O] of that type."""
    return checkpoint_name(_product(False, x, kernel), KEPT)


@jax.custom_vjp
def plus(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [... C] with bias [C] added in x's type; the gradient of the bias is summed in float32, on all platforms."""
    return x + bias.astype(x.dtype)


def _plus_backward(bias, g):
    return g, g.astype(jnp.float32).sum(axis=tuple(range(g.ndim - 1))).astype(bias.dtype)


plus.defvjp(lambda x, bias: (plus(x, bias), bias), _plus_backward)


def strided_conv(x: jax.Array, kernel: jax.Array, *, stride: int, formulation: str = "auto") -> jax.Array:
    """x [B T I] by kernel [K I O], no padding -> [B F O]. Raises UserError.

    formulation, of values and gradients: "xla" is XLA's convolution; "products" are matrix products where the kernel
    spans one to two strides and there is more than one channel, else as "xla"; "patches": as "products", and a single
    channel is cut into windows for one product. "auto" is "xla", but on CPU "products" for gradients and for values in
    bfloat16.
    """
    if formulation not in CONVOLUTIONS:
        raise UserError(f"encoder.convolution is {formulation!r}; it is one of {CONVOLUTIONS}")
    taps, channels, _ = kernel.shape
    if formulation == "xla" or not stride <= taps <= 2 * stride:
        y = _convolution(stride, x, kernel)
    elif channels > 1:
        y = _strided(formulation != "auto", stride, x, kernel)
    else:
        y = (_by_patches if formulation == "patches" else _convolution)(stride, x, kernel)
    return checkpoint_name(y, KEPT)


def _chosen(everywhere: bool, ours: Callable[..., Any], xla: Callable[..., Any], *args: jax.Array) -> Any:
    """What `ours` makes of the args, everywhere or on CPU alone; else what `xla` makes of them."""
    return ours(*args) if everywhere else jax.lax.platform_dependent(*args, cpu=ours, default=xla)


# Products in bfloat16


def _product(everywhere: bool, x: jax.Array, kernel: jax.Array) -> jax.Array:
    if x.dtype != jnp.bfloat16:
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    y: Any = _half(everywhere, x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


def _plain(x, kernel):
    return jax.lax.dot_general(x, kernel, LAST_FIRST)


def _wide(a: jax.Array, b: jax.Array, dimensions: jax.lax.DotDimensionNumbers = LAST_FIRST) -> jax.Array:
    """The product in float32. XLA would fold what is done to it into one that it then has no program for."""
    return jax.lax.optimization_barrier(jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32))


def _over_rows(x: jax.Array, g: jax.Array) -> jax.Array:
    """x [R I], g [R O] -> the sum over the rows [I O] float32."""
    rows, width, outputs = *x.shape, g.shape[1]
    if x.dtype == jnp.bfloat16 and width % 2 == 0:
        return _wide(x.reshape(rows, 2, width // 2), g, FIRST_FIRST).reshape(width, outputs)
    return _wide(x, g, FIRST_FIRST)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _half(everywhere: bool, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [R I] by kernel [I O], bfloat16."""
    return _chosen(everywhere, lambda *a: _wide(*a).astype(x.dtype), _plain, x, kernel)


def _half_backward(everywhere, kept, g):
    def products(x, kernel, g):
        return _wide(g, kernel, LAST_LAST).astype(x.dtype), _over_rows(x, g).astype(kernel.dtype)

    return _chosen(everywhere, products, functools.partial(_gradients, function=_plain), *kept, g)


_half.defvjp(lambda everywhere, x, kernel: (_half(everywhere, x, kernel), (x, kernel)), _half_backward)


def _gradients(x, kernel, g, *, function):
    return jax.vjp(function, x, kernel)[1](g)


# Strided convolutions


def _convolution(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _strided(everywhere: bool, stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    plain = functools.partial(_convolution, stride)
    if x.dtype != jnp.bfloat16 and not everywhere:
        return plain(x, kernel)
    return _chosen(everywhere, functools.partial(_by_products, stride=stride), plain, x, kernel)


def _strided_backward(everywhere, stride, kept, g):
    plain = functools.partial(_gradients, function=functools.partial(_convolution, stride))
    products = functools.partial(_gradients_by_products, stride=stride)
    return _chosen(everywhere, products, plain, *kept, g)


_strided.defvjp(lambda *args: (_strided(*args), args[2:]), _strided_backward)


def _by_patches(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B T 1]. A window is a block of S samples and the K - S first ones of the next block."""
    taps, batch, frames = kernel.shape[0], x.shape[0], (x.shape[1] - kernel.shape[0]) // stride + 1
    blocks = jnp.pad(x, ((0, 0), (0, stride), (0, 0)))[:, : (frames + 1) * stride].reshape(batch, frames + 1, stride)
    patches = jnp.concatenate([blocks[:, :-1], blocks[:, 1:, : taps - stride]], axis=-1)
    return _product(True, patches.reshape(-1, taps), kernel[:, 0]).reshape(batch, frames, -1)


# x is seen as blocks of S frames. Output f reads block f with the taps up to S, and the K - S first frames of block
# f + 1 with the others, which are taken tap by tap.


def _by_products(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    taps, channels, outputs = kernel.shape
    batch, frames = x.shape[0], (x.shape[1] - taps) // stride + 1
    blocks = x[:, : frames * stride].reshape(batch * frames, stride * channels)
    y = _wide(blocks, kernel[:stride].reshape(stride * channels, outputs))
    for tap in range(stride, taps):
        y = y + _wide(_every(x, tap, stride=stride, frames=frames), kernel[tap])
    return y.astype(x.dtype).reshape(batch, frames, outputs)


def _gradients_by_products(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, stride: int
) -> tuple[jax.Array, jax.Array]:
    """Gradients of x [B T I] and kernel [K I O], K = S to 2 S, from that of the output, g [B F O]."""
    taps, channels, outputs = kernel.shape
    batch, length, _ = x.shape
    frames, near, far = g.shape[1], stride * channels, (taps - stride) * channels
    rows = g.reshape(batch * frames, outputs)  # in two axes: contracting over B and F takes a third longer
    of_taps = _wide(rows, kernel.reshape(taps * channels, outputs), LAST_LAST).astype(x.dtype)
    of_taps = of_taps.reshape(batch, frames, near + far)
    of_x = jnp.pad(of_taps[..., :near], ((0, 0), (0, 1), (0, 0)))
    if far:
        of_x = of_x + jnp.pad(of_taps[..., near:], ((0, 0), (1, 0), (0, near - far)))
    of_x = of_x.reshape(batch, (frames + 1) * stride, channels)[:, :length]
    of_x = jnp.pad(of_x, ((0, 0), (0, length - of_x.shape[1]), (0, 0)))

    pieces = [_over_rows(x[:, : frames * stride].reshape(batch * frames, near), rows)]
    pieces += [_over_rows(_every(x, tap, stride=stride, frames=frames), rows) for tap in range(stride, taps)]
    return of_x, jnp.concatenate(pieces).reshape(kernel.shape).astype(kernel.dtype)


def _every(x: jax.Array, first: int, *, stride: int, frames: int) -> jax.Array:
    """Frames first, first + stride, ... of x [B T I], `frames` of them -> [B frames, I]."""
    return x[:, first : first + stride * (frames - 1) + 1 : stride].reshape(-1, x.shape[-1])
