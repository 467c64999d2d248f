"""Frame arithmetic, GELU, norms and the convolutions against NumPy; padding; the gradient scale."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.config import UserError
from w2v_jax.encoders import Wav2Vec2Encoder
from w2v_jax.frontend import (
    ChannelNorm,
    ConvFrontend,
    LayerNorm,
    UtteranceNorm,
    gelu,
    num_frames,
    receptive_field,
    scale_gradient,
    valid_frames,
)

WAV2VEC2 = [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
CPC = [(512, k, s) for k, s in zip((10, 8, 4, 4, 4), (5, 4, 2, 2, 2), strict=True)]
SMALL = ((6, 4, 2), (5, 3, 2))


@pytest.mark.parametrize(
    ("layers", "samples", "frames"),
    [
        *[(WAV2VEC2, n, f) for n, f in ((400, 1), (719, 1), (720, 2), (16000, 49), (32000, 99), (240_000, 749))],
        *[(WAV2VEC2, n, f) for n, f in ((250_000, 781), (320_000, 999), (399, 0), (9, 0), (0, 0))],
        *[(CPC, n, f) for n, f in ((10_000, 60), (16_000, 98), (20_480, 126), (150_000, 935), (464, 0), (465, 1))],
    ],
)
def test_num_frames_of_published_stacks(layers, samples, frames):
    assert num_frames(samples, layers) == frames
    assert num_frames(jnp.asarray([samples]), layers)[0] == frames
    assert num_frames(np.asarray([samples]), layers)[0] == frames


def test_receptive_field_of_published_stacks():
    assert receptive_field(WAV2VEC2) == (400, 320)
    assert receptive_field(CPC) == (465, 160)


def test_num_frames_is_what_the_convolutions_make():
    frontend, wave = ConvFrontend(WAV2VEC2, "group", False), jnp.zeros((1, 5000))
    made, _ = jax.eval_shape(lambda: frontend.init_with_output(jax.random.key(0), wave, jnp.asarray([720])))
    assert made.shape == (1, num_frames(5000, WAV2VEC2), 512)


def test_valid_frames_are_the_first_ones():
    np.testing.assert_array_equal(
        valid_frames(jnp.asarray([0, 2, 3]), 3), [[False] * 3, [True, True, False], [True] * 3]
    )


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


def random_params(module, *args):
    """Random values for all parameters, so that none is at a neutral value."""
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *args))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


def apply(module, *args):
    """(output, params)"""
    params = random_params(module, *args)
    return jax.jit(module.apply)({"params": params}, *args), params


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_layer_norm_is_that_of_numpy(offset):
    x = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32) + offset
    ours, params = apply(LayerNorm(), jnp.asarray(x))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(ours, expected * params["scale"] + params["bias"], atol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("masked", [True, False])
def test_channel_norm_is_that_of_numpy(masked, offset):
    """Also where the mean is much larger than the deviation, as in a recording with a constant offset."""
    x = np.random.default_rng(0).normal(size=(3, 50, 4)).astype(np.float32) * 0.1 + offset
    frames = np.asarray([50, 20, 1])
    valid = np.arange(50)[None] < frames[:, None]
    ours, params = apply(ChannelNorm(), jnp.asarray(x), jnp.asarray(valid) if masked else None)
    for row in range(3):
        kept = x[row][valid[row]].astype(np.float64) if masked else x[row].astype(np.float64)
        expected = (x[row] - kept.mean(0)) / np.sqrt(kept.var(0) + 1e-5)
        expected = expected * params["scale"] + params["bias"]
        if masked:
            expected, got = expected[valid[row]], ours[row][valid[row]]
        else:
            got = ours[row]
        np.testing.assert_allclose(got, expected, atol=1e-3 if frames[row] > 1 else 0.05)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_frontend_is_convolution_norm_gelu(norm):
    """Layer by layer in NumPy, on a row without padding."""
    wave = np.random.default_rng(0).normal(size=(1, 40)).astype(np.float32)
    ours, params = apply(ConvFrontend(SMALL, norm, True), jnp.asarray(wave), jnp.asarray([40]))
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
    long, _ = apply(module, wave, lengths)
    alone, _ = apply(module, short, lengths[1:])
    valid = num_frames(30, SMALL)
    assert valid == alone.shape[1]
    np.testing.assert_allclose(long[1, :valid], alone[0], atol=1e-5)


def test_padding_changes_features_of_the_unmasked_group_norm(padded):
    wave, short, lengths = padded
    module = ConvFrontend(SMALL, "group", False, padding_aware=False)
    long, _ = apply(module, wave, lengths)
    alone, _ = apply(module, short, lengths[1:])
    assert np.abs(long[1, : alone.shape[1]] - alone[0]).max() > 0.01
    np.testing.assert_allclose(long, apply(module, wave, lengths * 0)[0])  # lengths do not matter at all


def test_rows_without_samples_are_finite(padded):
    wave, _, _ = padded
    features, _ = apply(ConvFrontend(SMALL, "group", False), wave * 0, jnp.asarray([0, 3]))
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
    plain, *others = (jax.jit(jax.grad(functools.partial(loss, remat)))(params) for remat in policies)
    for other in others:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), other, plain)
    assert kept("none") > kept("products") > kept("full")
    assert kept("auto") == kept("none"), "on CPU"
    with pytest.raises(UserError, match="encoder.remat_frontend is 'True'; it is one of .*'full', 'auto'"):
        loss("True", params)


def test_scale_gradient_scales_the_gradient_alone():
    x = jnp.linspace(-3, 3, 7)
    for scale in (0.0, 0.1, 1.0):
        np.testing.assert_allclose(scale_gradient(x, scale), x)
        gradient = jax.grad(lambda v: (scale_gradient(v, scale) ** 2).sum())(x)  # noqa: B023
        np.testing.assert_allclose(gradient, 2 * x * scale, rtol=1e-6)


def test_frontend_gradient_is_scaled_including_the_penalty():
    """One tenth of the gradient of both the output and the mean square of the raw features, for the frontend alone."""
    wave = jax.random.normal(jax.random.key(0), (2, 80))
    lengths = jnp.asarray([80, 60])

    def gradient(scale: float):
        transformer = dict(layers=1, heads=1, mlp=4, pre_norm=True, pos_kernel=3, pos_groups=1, dropout=0.0)
        transformer |= dict(attention_dropout=0.0, mlp_dropout=0.0, layer_drop=0.0)
        encoder = Wav2Vec2Encoder(SMALL, "group", False, scale, True, 4, 0.0, transformer)

        def loss(params):
            encoded = encoder.apply({"params": params}, wave, lengths)
            return (encoded.context * jnp.arange(4.0)).sum() + 10 * (encoded.features**2).mean()

        return jax.grad(loss)(random_params(encoder, wave, lengths))

    whole, tenth = jax.jit(lambda: (gradient(1.0), gradient(0.1)))()
    for name in whole:
        factor = 0.1 if name == "frontend" else 1.0
        for a, b in zip(jax.tree.leaves(whole[name]), jax.tree.leaves(tenth[name]), strict=True):
            np.testing.assert_allclose(b, factor * a, rtol=1e-4, atol=1e-5, err_msg=name)
    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(whole["frontend"]))


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


@pytest.mark.parametrize("norm", ["utterance", "frame", "none"])
def test_padding_changes_no_real_frame_with_any_norm(norm):
    frontend = ConvFrontend(((8, 10, 5), (8, 8, 4), (8, 1, 1)), norm, False, activation="relu", kaiming=False)
    wave = np.random.default_rng(0).normal(size=(2, 600)).astype(np.float32)
    num_samples = jnp.asarray([600, 400])
    wave = jnp.asarray(wave * (np.arange(600) < np.asarray([[600], [400]])))
    params = frontend.init(jax.random.key(0), wave, num_samples)
    short = frontend.apply(params, wave, num_samples)
    long = frontend.apply(params, jnp.pad(wave, ((0, 0), (0, 200))), num_samples)
    alone = frontend.apply(params, wave[1:, :400], num_samples[1:])
    frames = np.asarray(num_frames(np.asarray(num_samples), frontend.layers))
    for b in range(2):
        np.testing.assert_allclose(long[b, : frames[b]], short[b, : frames[b]], atol=1e-5)
    np.testing.assert_allclose(alone[0], short[1, : frames[1]], atol=1e-5)


def test_frame_norm_divides_by_the_unbiased_variance():
    x = jax.random.normal(jax.random.key(0), (1, 3, 5))
    norm = LayerNorm("conv", unbiased=True)
    found = norm.apply(norm.init(jax.random.key(1), x), x)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(np.asarray(x).var(-1, ddof=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-5)
