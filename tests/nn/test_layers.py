"""Layers that all models share: GELU and norms against NumPy, the gradient scale, how dense layers start."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import applied

from w2v_jax.core.cli import UserError
from w2v_jax.nn.layers import ChannelNorm, LayerNorm, UtteranceNorm, activate, gelu, layer_norm, linear, scale_gradient


def test_gelu_and_its_gradient_are_exact():
    x = np.concatenate([np.linspace(-12, 12, 481), [-1e4, 1e4, 0.0]])
    cdf = np.asarray([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    pdf = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    ours = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(gelu(ours), x * cdf, atol=2e-6, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda v: gelu(v).sum())(ours), cdf + x * pdf, atol=2e-6)


def test_gelu_in_bfloat16_keeps_its_type_and_is_rounded_once():
    x = jnp.linspace(-4, 4, 101).astype(jnp.bfloat16)
    np.testing.assert_array_equal(gelu(x), gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))
    gradient = jax.grad(lambda v: gelu(v).astype(jnp.float32).sum())(x)
    assert gradient.dtype == jnp.bfloat16


def test_scale_gradient_scales_the_gradient_alone():
    x = jnp.linspace(-3, 3, 7)
    for scale in (0.0, 0.1, 1.0):
        np.testing.assert_allclose(scale_gradient(x, scale), x)
        gradient = jax.grad(lambda v: (scale_gradient(v, scale) ** 2).sum())(x)  # noqa: B023
        np.testing.assert_allclose(gradient, 2 * x * scale, rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_layer_norm_is_that_of_numpy(offset):
    x = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32) + offset
    ours, params = applied(LayerNorm(), jnp.asarray(x))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(ours, expected * params["scale"] + params["bias"], atol=1e-4)


def test_frame_norm_divides_by_the_unbiased_variance():
    x = jax.random.normal(jax.random.key(0), (1, 3, 5))
    norm = LayerNorm("conv", unbiased=True)
    found = norm.apply(norm.init(jax.random.key(1), x), x)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(np.asarray(x).var(-1, ddof=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
def test_the_gradient_of_a_layer_norm_is_that_of_its_formula(affine, unbiased):
    x, target = 3.0 * jax.random.normal(jax.random.key(0), (2, 2, 3, 8)) + 5.0
    learned = tuple(1.0 + 0.3 * jax.random.normal(jax.random.key(1), (2, 8))) if affine else ()

    def formula(x, learned):
        y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, ddof=int(unbiased), keepdims=True) + 1e-5)
        return y * learned[0] + learned[1] if learned else y

    ours, back = jax.vjp(lambda *x: layer_norm((jnp.float32, unbiased), *x), x, learned)
    expected, expected_back = jax.vjp(formula, x, learned)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5),
        (ours, *back(target)),
        (expected, *expected_back(target)),
    )


def test_a_layer_norm_keeps_its_input_as_it_is_and_two_numbers_per_frame():
    """A layer of a Transformer would otherwise keep its stream in float32, up to four times."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 64), jnp.bfloat16)
    norm = LayerNorm(dtype=jnp.bfloat16)
    params = norm.init(jax.random.key(1), x)
    kept = jax.tree.leaves(jax.vjp(norm.apply, params, x)[1])
    assert [(a.shape, a.dtype) for a in kept if a.size >= x.size] == [(x.shape, jnp.bfloat16)]
    assert sum(a.size for a in kept) <= x.size + 2 * 64 + 2 * 6


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("masked", [True, False])
def test_channel_norm_is_that_of_numpy(masked, offset):
    """Also where the mean is much larger than the deviation, as in a recording with a constant offset."""
    x = np.random.default_rng(0).normal(size=(3, 50, 4)).astype(np.float32) * 0.1 + offset
    frames = np.asarray([50, 20, 1])
    valid = np.arange(50)[None] < frames[:, None]
    ours, params = applied(ChannelNorm(), jnp.asarray(x), jnp.asarray(valid) if masked else None)
    for row in range(3):
        kept = x[row][valid[row]].astype(np.float64) if masked else x[row].astype(np.float64)
        expected = (x[row] - kept.mean(0)) / np.sqrt(kept.var(0) + 1e-5)
        expected = expected * params["scale"] + params["bias"]
        if masked:
            expected, got = expected[valid[row]], ours[row][valid[row]]
        else:
            got = ours[row]
        np.testing.assert_allclose(got, expected, atol=1e-3 if frames[row] > 1 else 0.05)


@pytest.mark.parametrize("groups", [1, 2])
def test_utterance_norm_pools_all_real_frames_and_the_channels_of_a_group(groups):
    x = jax.random.normal(jax.random.key(0), (2, 7, 6)) * 3 + 5
    valid = jnp.arange(7)[None] < jnp.asarray([[7], [4]])
    norm = UtteranceNorm(groups=groups)
    found = norm.apply(norm.init(jax.random.key(1), x, valid), x, valid)
    for b, n in enumerate((7, 4)):
        real = np.asarray(x)[b, :n].reshape(n, groups, -1)
        expected = (real - real.mean((0, 2), keepdims=True)) / np.sqrt(real.var((0, 2), keepdims=True) + 1e-5)
        np.testing.assert_allclose(found[b, :n], expected.reshape(n, 6), atol=1e-5)
    everything = norm.apply(norm.init(jax.random.key(1), x, None), x, None)
    np.testing.assert_allclose(everything[0], found[0], atol=1e-6)
    assert np.abs(everything[1, :4] - found[1, :4]).max() > 1e-2  # padding in the statistics


def test_layer_norm_without_affine_has_no_parameters():
    x = jax.random.normal(jax.random.key(0), (2, 3, 16)) + 5
    found, variables = LayerNorm(affine=False).init_with_output(jax.random.key(1), x)
    assert not variables
    np.testing.assert_allclose(found, LayerNorm().init_with_output(jax.random.key(1), x)[0])


def test_activations_are_gelu_and_relu_and_others_are_named():
    x = jnp.asarray([-2.0, 0.0, 3.0])
    np.testing.assert_array_equal(activate(x, "relu"), [0.0, 0.0, 3.0])
    np.testing.assert_array_equal(activate(x, "gelu"), gelu(x))
    with pytest.raises(UserError, match="encoder.activation is 'swish'; it is 'gelu' or 'relu'"):
        activate(x, "swish")


def test_linear_layers_start_as_in_pytorch():
    """Kernel and bias are uniform within 1 / sqrt(fan in)."""
    params = nn.unbox(linear(256, 64, ("embed", "mlp"), dtype=jnp.float32).init(jax.random.key(0), jnp.ones((1, 64))))[
        "params"
    ]
    assert params["kernel"].shape == (64, 256)
    for leaf in params.values():
        assert 0.95 / 8 < np.abs(leaf).max() <= 1 / 8
        np.testing.assert_allclose(np.std(leaf), 1 / 8 / math.sqrt(3), rtol=0.1)
