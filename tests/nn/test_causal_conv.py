"""The causal context of wav2vec: what each frame sees, what stands before the first one, the skip connections."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.nn.causal_conv import ConvContext

F, C = 11, 6


@pytest.mark.parametrize("zero_pad", [True, False])
def test_conv_context_sees_no_future_but_through_the_norm(zero_pad):
    """With the statistics held by a mask of the first frames, what comes later changes nothing before."""
    context = ConvContext((2, 3, 4), True, zero_pad, "relu")
    x = jax.random.normal(jax.random.key(0), (1, F, C))
    valid = jnp.arange(F)[None] < 6
    params, apply = jax.jit(context.init)(jax.random.key(1), x, valid), jax.jit(context.apply)
    changed = x.at[:, 6:].set(9.0)
    (a, hidden), (b, _) = (apply(params, y, valid) for y in (x, changed))
    np.testing.assert_allclose(a[:, :6], b[:, :6], atol=1e-6)
    assert np.abs(a[:, 6:] - b[:, 6:]).max() > 0.1
    assert hidden.shape == (3, 1, F, C)
    np.testing.assert_array_equal(hidden[-1], a)


@pytest.mark.parametrize("zero_pad", [True, False])
def test_copies_of_the_first_frame_stand_before_it_or_zeros(zero_pad):
    """A sound that never changes has one context from the first frame on, unless silence stands before it."""
    context = ConvContext((3, 2), False, zero_pad, "relu")
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 1, C)), (1, F, C))
    (found, _), _ = context.init_with_output(jax.random.key(1), x, None)
    spread = np.abs(found - found[:, -1:]).max(axis=(0, 2))
    assert (spread[:3] > 1e-3).any() == zero_pad and spread[3:].max() < 1e-5


def test_a_skip_connection_adds_the_input_and_keeps_the_scale():
    x = jax.random.normal(jax.random.key(0), (1, F, C))
    plain, skipping = (ConvContext((3,), skip, False, "relu") for skip in (False, True))
    params = plain.init(jax.random.key(1), x, None)
    (layer, _), (found, _) = (context.apply(params, x, None) for context in (plain, skipping))
    np.testing.assert_allclose(found, (layer + x) / np.sqrt(2), atol=1e-6)


def test_every_layer_has_a_hidden_state():
    context = ConvContext((2, 3, 4, 3), True, False, "relu")
    (_, hidden), _ = jax.eval_shape(context.init_with_output, jax.random.key(1), jnp.zeros((2, F, C)), None)
    assert hidden.shape == (context.hidden_states, 2, F, C) and context.hidden_states == 4
