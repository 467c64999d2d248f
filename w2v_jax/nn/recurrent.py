"""Recurrent context networks, GRU and LSTM: the context of CPC, and selectable for wav2vec.

Equations, order of the gates, the two bias vectors and initialisation are PyTorch's, so that weights can be carried
over (kernels transposed). The products of the inputs, of all frames and gates, are one matrix product before the scan;
inside it stands the product with the state alone. Gradients of the weights are one product after the backward scan:
differentiating through `jax.lax.scan` would compute and add them frame by frame. Causal, and a state of zeros before
the first frame: padding behind an utterance changes nothing in it. The state is not carried between utterances.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.nn.layers import gathered, partitioned, symmetric_uniform

States = tuple[jax.Array, ...]
Cell = Callable[[States, jax.Array, jax.Array], States]

UNROLL = 4
"""Frames per turn of the loop. On CPU 1 to 8 are equally fast for the GRU, 16 is slower; compile time grows with it."""


def gru(state: States, x: jax.Array, h: jax.Array) -> States:
    """One frame of a GRU: state ([B D],), x and h [B 3D] the products of the input and of the state, with biases.

    Gates in the order reset, update, new. The reset gate scales the state's product including its bias (the variant
    of PyTorch and cuDNN), not the state.
    """
    x_reset, x_update, x_new = jnp.split(x, 3, axis=-1)
    h_reset, h_update, h_new = jnp.split(h, 3, axis=-1)
    update = jax.nn.sigmoid(x_update + h_update)
    new = jnp.tanh(x_new + jax.nn.sigmoid(x_reset + h_reset) * h_new)
    return (new + update * (state[0] - new),)


def lstm(state: States, x: jax.Array, h: jax.Array) -> States:
    """One frame of an LSTM: state (output [B D], cell [B D]), x and h [B 4D]; gates input, forget, cell, output."""
    into, forget, new, out = jnp.split(x + h, 4, axis=-1)
    memory = jax.nn.sigmoid(forget) * state[1] + jax.nn.sigmoid(into) * jnp.tanh(new)
    return jax.nn.sigmoid(out) * jnp.tanh(memory), memory


CELLS: dict[str, tuple[Cell, int, int]] = {"gru": (gru, 3, 1), "lstm": (lstm, 4, 2)}
"""The cell, its number of gates and of state vectors; the first state vector is the output."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def recurrence(cell: Cell, vectors: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> States:
    """The states ([F B D], ...) after each frame, float32: time major, from `vectors` zeros.

    x [F B G*D] float32, the inputs' products; kernel [D G*D] in the dtype of the product with the state; bias [G*D].
    """
    zeros = jnp.zeros((x.shape[1], kernel.shape[0]), jnp.float32)

    def frame(state: States, x: jax.Array) -> tuple[States, States]:
        state = cell(state, x, state_product(state[0], kernel) + bias)
        return state, state

    unroll = UNROLL if isinstance(x.shape[0], int) else 1  # a symbolic length, in an export, cannot be divided
    return jax.lax.scan(frame, (zeros,) * vectors, x, unroll=unroll)[1]


def state_product(h: jax.Array, kernel: jax.Array) -> jax.Array:
    """h [... D] x kernel [D E] -> [... E] float32; the factors in the kernel's dtype."""
    return jnp.matmul(h.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)


def _forward(cell: Cell, vectors: int, x: jax.Array, kernel: jax.Array, bias: jax.Array):
    states = recurrence(cell, vectors, x, kernel, bias)
    return states, (x, kernel, bias, states)


def _backward(cell: Cell, vectors: int, kept: Any, gradient: States):
    x, kernel, bias, states = kept
    before = tuple(jnp.pad(s[:-1], ((1, 0), (0, 0), (0, 0))) for s in states)
    h = state_product(before[0], kernel) + bias

    def frame(ahead: States, this: Any) -> tuple[States, tuple[jax.Array, jax.Array]]:
        state, x, h, gradient = this
        total = tuple(a + g for a, g in zip(ahead, gradient))
        to_state, to_x, to_h = jax.vjp(cell, state, x, h)[1](total)
        return (to_state[0] + state_product(to_h, kernel.T), *to_state[1:]), (to_x, to_h)

    zeros = tuple(jnp.zeros_like(s[0]) for s in states)
    _, (to_x, to_h) = jax.lax.scan(frame, zeros, (before, x, h, gradient), reverse=True, unroll=UNROLL)
    to_kernel = jnp.einsum(
        "fbd,fbe->de", before[0].astype(kernel.dtype), to_h.astype(kernel.dtype), preferred_element_type=jnp.float32
    )
    return to_x, to_kernel.astype(kernel.dtype), to_h.sum(axis=(0, 1)).astype(bias.dtype)


recurrence.defvjp(_forward, _backward)


class RecurrentLayer(nn.Module):
    """One layer: kernels [C G*D] and [D G*D] with a bias each, all of them U(+-1/sqrt(D)) at the start."""

    cell: str
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B F C] -> [B F D]."""
        cell, gates, vectors = CELLS[self.cell]
        init, wide = symmetric_uniform(1.0 / math.sqrt(self.width)), gates * self.width
        kernel = self.param("kernel", partitioned(init, ("conv", None)), (x.shape[-1], wide))
        bias = self.param("bias", partitioned(init, (None,)), (wide,))
        state_kernel = self.param("state_kernel", partitioned(init, ("embed", None)), (self.width, wide))
        state_bias = self.param("state_bias", partitioned(init, (None,)), (wide,))
        x = state_product(jnp.swapaxes(x, 0, 1), gathered(kernel, ("conv", None)).astype(self.dtype)) + bias
        x = nn.with_logical_constraint(x, ("frames", "batch", None))
        whole = gathered(state_kernel, ("embed", None)).astype(self.dtype)  # once, not at every frame
        states: Any = recurrence(cell, vectors, x, whole, state_bias)
        y = states[0].astype(self.dtype)
        return nn.with_logical_constraint(jnp.swapaxes(y, 0, 1), ("batch", "frames", None))


class Recurrent(nn.Module):
    """`layers` layers of `cell` "gru" or "lstm", each of `width`."""

    cell: str
    width: int
    layers: int
    dtype: Any = jnp.float32

    @property
    def hidden_states(self) -> int:
        return self.layers

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B F C] -> (context [B F D], output of every layer [L B F D])."""
        if self.cell not in CELLS:
            raise UserError(f"encoder.context is {self.cell!r}; a recurrent one is {' or '.join(CELLS)}")
        outputs = []
        for i in range(self.layers):
            x = RecurrentLayer(self.cell, self.width, self.dtype, name=f"layer{i}")(x.astype(self.dtype))
            outputs.append(x)
        return x, jnp.stack(outputs)
