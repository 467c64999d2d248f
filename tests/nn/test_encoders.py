"""Encoders: each is what it says of itself; the gradient scale of the frontend; standardised channels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT
from parameters import random_params

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.nn.encoders import BUILDERS, GivenEncoder, MfccEncoder, Wav2Vec2Encoder, causal_encoder, standardise
from w2v_jax.ops import mfcc

CASES = [
    ("wav2vec2", "w2v2_base.py:tiny"),
    ("causal", "cpc.py:tiny"),
    ("causal", "wav2vec_small.py:tiny"),
    ("codes", "bert_codes_base.py:tiny"),
    ("logmel", "acoustic_logmel.py:tiny"),
    ("features", "acoustic_frozen.py:features_demo"),
]


def config_of(file: str):
    return configs.load(f"{ROOT / 'configs' / file}")


@pytest.mark.parametrize(("kind", "file"), CASES, ids=[file for _, file in CASES])
def test_an_encoder_gives_what_it_says_of_itself(kind, file):
    """Its kind, its frames, how many samples one of them sees, how far apart they are, its hidden states."""
    encoder = BUILDERS[kind](config_of(file), jnp.float32)
    (field, hop), samples = encoder.geometry, 4_000
    places = jax.ShapeDtypeStruct((2, samples // hop), jnp.int32)
    inputs = dict(wave=jnp.zeros((2, samples)), codes=places, features=jnp.zeros((*places.shape, 24)))
    run = functools.partial(encoder.init_with_output, collect=True)
    lengths = jax.ShapeDtypeStruct((2,), jnp.int32)
    found, _ = jax.eval_shape(run, jax.random.key(0), inputs[encoder.reads], lengths)
    assert encoder.kind == kind and found.num_frames.shape == (2,)
    assert found.local.shape[:2] == found.context.shape[:2] == (2, encoder.frames(samples))
    assert (0 if found.hidden is None else len(found.hidden)) == encoder.hidden_states
    assert [encoder.frames(n) for n in (field - 1, field, field + hop - 1, field + hop)] == [0, 1, 1, 2]


def test_every_kind_of_encoder_is_tested_here():
    assert {kind for kind, _ in CASES} == BUILDERS.keys()


def test_an_unknown_context_is_named():
    config = configs.changed(config_of("cpc.py:tiny"), {"encoder.context": "rnn"})
    with pytest.raises(UserError, match="encoder.context is 'rnn'; it is 'conv', 'gru' or 'lstm'"):
        causal_encoder(config, jnp.float32)


def test_given_features_have_no_more_real_frames_than_there_are():
    features = jnp.ones((3, 5, 4))
    encoded = GivenEncoder(hop=160).apply({}, features, jnp.asarray([320, 799, 3_200]))
    np.testing.assert_array_equal(encoded.num_frames, [2, 4, 5])
    np.testing.assert_array_equal(encoded.context, features)


def test_frontend_gradient_is_scaled_including_the_penalty():
    """One tenth of the gradient of both the output and the mean square of the raw features, for the frontend alone."""
    wave = jax.random.normal(jax.random.key(0), (2, 80))
    lengths = jnp.asarray([80, 60])

    def gradient(scale: float):
        transformer = dict(layers=1, heads=1, mlp=4, pre_norm=True, pos_kernel=3, pos_groups=1, dropout=0.0)
        transformer |= dict(attention_dropout=0.0, mlp_dropout=0.0, layer_drop=0.0)
        encoder = Wav2Vec2Encoder(((6, 4, 2), (5, 3, 2)), "group", False, scale, True, 4, 0.0, transformer)

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


def test_standardised_channels_have_zero_mean_and_unit_variance_over_real_frames():
    rng = np.random.default_rng(0)
    x, frames = rng.normal(size=(3, 9, 4)).astype(np.float32) * 5 + 3, np.array([9, 4, 0])
    x[:, :, 3] = 7.0  # a constant channel
    y = standardise(jnp.asarray(x), jnp.asarray(frames))
    for row, n in enumerate(frames):
        assert not np.any(y[row, n:])
        if n:
            np.testing.assert_allclose(y[row, :n].mean(0), 0, atol=1e-5)
            np.testing.assert_allclose(y[row, :n, :3].std(0), 1, atol=1e-4)
    assert np.isfinite(y).all() and not np.any(y[:, :, 3])


def test_masked_frames_do_not_change_the_scale_of_the_others():
    rng = np.random.default_rng(0)
    x, frames = rng.normal(size=(2, 9, 4)).astype(np.float32), np.array([9, 6])
    masked = np.zeros((2, 9), bool)
    masked[:, 2:4] = True
    loud = np.where(masked[..., None], 50.0, x).astype(np.float32)
    y = np.asarray(jax.jit(standardise)(loud, frames, masked))
    for row, n in enumerate(frames):
        seen = ~masked[row, :n]
        np.testing.assert_allclose(y[row, :n][seen].mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(y[row, :n][seen].std(0), 1, atol=1e-4)
        assert (y[row, :n][~seen] > 5).all() and not np.any(y[row, n:])


def test_mfcc_are_frames_of_a_convolution_of_their_shape():
    """They are no kind that a config names: nothing is trained on them but units."""
    wave = jax.random.normal(jax.random.key(0), (2, 4_000))
    encoded = jax.jit(MfccEncoder().apply)({}, wave, jnp.asarray([4_000, 399]))
    np.testing.assert_array_equal(encoded.local, jax.jit(mfcc.mfcc)(wave, jnp.asarray([4_000, 399])))
    assert encoded.num_frames.tolist() == [23, 0] and encoded.hidden is None
    assert MfccEncoder().geometry == (mfcc.FIELD, mfcc.HOP)
