"""The convolutions against NumPy; padding; what is kept for the gradient."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import AS_USERS
from parameters import applied, random_params

from w2v_jax.core.cli import UserError
from w2v_jax.nn.feature_encoder import ConvFrontend
from w2v_jax.ops.frames import num_frames

SMALL = ((6, 4, 2), (5, 3, 2))


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_frontend_is_convolution_norm_gelu(norm):
    """Layer by layer in NumPy, on a row without padding."""
    wave = np.random.default_rng(0).normal(size=(1, 40)).astype(np.float32)
    ours, params = applied(ConvFrontend(SMALL, norm, True), jnp.asarray(wave), jnp.asarray([40]))
    x = wave[0][:, None].astype(np.float64)
    for i, (channels, kernel, stride) in enumerate(SMALL):
        layer = jax.tree.map(np.asarray, params[f"conv{i}"])
        frames = (len(x) - kernel) // stride + 1
        windows = np.stack([x[f * stride : f * stride + kernel] for f in range(frames)])
        x = np.einsum("fkc,kcd->fd", windows, layer["kernel"]) + layer["bias"]
        assert x.shape == (frames, channels)
        if norm == "layer" or i == 0:
            axis = 0 if norm == "group" else 1
            x = (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)
            x = x * layer["norm"]["scale"] + layer["norm"]["bias"]
        x = x * np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))(x)
    np.testing.assert_allclose(ours[0], x, atol=1e-4)


@pytest.fixture(scope="module")
def padded():
    """(waves [2 60] with a row of 30 samples, the same without padding, lengths)"""
    wave = np.random.default_rng(1).normal(size=(2, 60)).astype(np.float32)
    return jnp.asarray(wave), jnp.asarray(wave[1:, :30]), jnp.asarray([60, 30])


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_padding_does_not_change_valid_features(padded, norm):
    wave, short, lengths = padded
    module = ConvFrontend(SMALL, norm, False)
    long, _ = applied(module, wave, lengths)
    alone, _ = applied(module, short, lengths[1:])
    valid = num_frames(30, SMALL)
    assert valid == alone.shape[1]
    np.testing.assert_allclose(long[1, :valid], alone[0], atol=1e-5)


def test_padding_changes_features_of_the_unmasked_group_norm(padded):
    wave, short, lengths = padded
    module = ConvFrontend(SMALL, "group", False, padding_aware=False)
    long, _ = applied(module, wave, lengths)
    alone, _ = applied(module, short, lengths[1:])
    assert np.abs(long[1, : alone.shape[1]] - alone[0]).max() > 0.01
    np.testing.assert_allclose(long, applied(module, wave, lengths * 0)[0])  # lengths do not matter at all


def test_rows_without_samples_are_finite(padded):
    wave, _, _ = padded
    features, _ = applied(ConvFrontend(SMALL, "group", False), wave * 0, jnp.asarray([0, 3]))
    assert np.isfinite(features).all()


def test_unknown_norm_is_an_error(padded):
    with pytest.raises(UserError, match="conv_norm is 'batch'"):
        ConvFrontend(SMALL, "batch", False).init(jax.random.key(0), padded[0], padded[2])


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_policies_of_remat_agree_and_keep_less(padded, norm):
    """Gradients of what is kept and of what is computed anew, and the bytes that wait for the backward pass."""
    wave, _, lengths = padded
    params = random_params(ConvFrontend(SMALL, norm, True), wave, lengths)

    def loss(remat, params):
        return (ConvFrontend(SMALL, norm, True, remat=remat).apply({"params": params}, wave, lengths) ** 2).sum()

    def kept(remat):
        residuals = jax.eval_shape(lambda p: jax.vjp(functools.partial(loss, remat), p)[1], params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))

    policies = ("none", "products", "full")
    gradient = lambda remat: jax.jit(jax.grad(functools.partial(loss, remat)), compiler_options=AS_USERS)(params)
    plain, *others = map(gradient, policies)
    for other in others:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), other, plain)
    assert kept("none") > kept("products") > kept("full")
    assert kept("auto") == kept("none"), "on CPU"
    with pytest.raises(UserError, match="encoder.remat_frontend is 'True'; it is one of .*'full', 'auto'"):
        loss("True", params)


@pytest.mark.parametrize("norm", ["utterance", "frame", "none"])
def test_padding_changes_no_real_frame_with_any_norm(norm):
    frontend = ConvFrontend(((8, 10, 5), (8, 8, 4), (8, 1, 1)), norm, False, activation="relu", kaiming=False)
    wave = np.random.default_rng(0).normal(size=(2, 600)).astype(np.float32)
    num_samples = jnp.asarray([600, 400])
    wave = jnp.asarray(wave * (np.arange(600) < np.asarray([[600], [400]])))
    params, apply = jax.jit(frontend.init)(jax.random.key(0), wave, num_samples), jax.jit(frontend.apply)
    short = apply(params, wave, num_samples)
    long = apply(params, jnp.pad(wave, ((0, 0), (0, 200))), num_samples)
    alone = apply(params, wave[1:, :400], num_samples[1:])
    frames = np.asarray(num_frames(np.asarray(num_samples), frontend.layers))
    for b in range(2):
        np.testing.assert_allclose(long[b, : frames[b]], short[b, : frames[b]], atol=1e-5)
    np.testing.assert_allclose(alone[0], short[1, : frames[1]], atol=1e-5)
