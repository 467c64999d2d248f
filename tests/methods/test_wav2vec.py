"""wav2vec: what predicts what, and what is random. fairseq's arrays are compared in tests/test_golden_wav2vec.py."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import wave_batch
from commands import ROOT

from w2v_jax.core import config as configs
from w2v_jax.methods import wav2vec
from w2v_jax.nn import future_prediction
from w2v_jax.nn.future_prediction import FutureModel
from w2v_jax.training.sharding import bare

SAMPLES = 1_600
BATCH = wave_batch([1_600, 1_600, 1_000], SAMPLES)
SMALL = {"encoder.conv_layers": ((8, 10, 5), (8, 8, 4)), "encoder.context_kernels": (2,), "loss.steps": 2}
SMALL |= {"data.unit_seconds": 3 * SAMPLES / 16_000}


@functools.cache
def case():
    """(config, method, its parameters, a jitted loss: params, key, train -> (total, metrics))"""
    config = configs.changed(configs.load(f"{ROOT / 'configs' / 'wav2vec_small.py'}:tiny"), SMALL)
    method = wav2vec.make(config)
    params = jax.jit(lambda: bare(method.init(jax.random.key(0), BATCH)[0]))()

    def loss(params, key, train):
        total, (_, metrics) = method.loss(params, {}, BATCH, key, jnp.int32(0), train=train)
        return total, metrics

    return config, method, params, jax.jit(loss, static_argnames="train")


@functools.cache
def outputs():
    """(its Encoded, its predictions [B F S C])"""
    config, _, params, _ = case()
    return jax.jit(FutureModel(config).apply)({"params": params}, BATCH)


def test_predictions_are_linear_maps_of_the_context_some_frames_before():
    (config, _, params, _), (encoded, predictions) = case(), outputs()
    first, predictor = future_prediction.first_offset(config), params["predictor"]
    for s in range(2):
        expected = encoded.context[:, 3] @ predictor["kernel"][s] + predictor["bias"]
        np.testing.assert_allclose(predictions[:, 3 + first + s, s], expected, atol=1e-5)


def test_the_local_features_are_what_is_predicted():
    (config, _, params, loss), (encoded, predictions) = case(), outputs()
    key = jax.random.key(1)

    @jax.jit
    def score(key, targets, predictions):
        distractors = future_prediction.draw(config, BATCH, key)
        given = dict(targets=targets, predictions=predictions, distractors=distractors)
        return future_prediction.objective(config, BATCH, **given)[0]

    expected = score(key, encoded.local, predictions)
    total, _ = loss(params, key, train=True)
    np.testing.assert_allclose(total.total, expected.total, rtol=1e-5)
    assert total.weight == expected.weight > 0


def test_nothing_is_random_but_the_distractors():
    """Training has no noise of its own: with the same draws it is an evaluation."""
    _, _, params, loss = case()
    trained, scored, other = (
        float(loss(params, jax.random.key(key), train=train)[0].total)
        for key, train in ((1, True), (1, False), (2, True))
    )
    assert trained == pytest.approx(scored, rel=1e-6) and abs(other - scored) > 1e-3 * scored


def test_features_are_those_that_the_loss_is_made_of():
    (_, method, params, _), (encoded, _) = case(), outputs()
    found = jax.jit(method.predict)(params, {}, BATCH)
    assert found.keys() == {"local", "context", "hidden", "valid"}
    np.testing.assert_allclose(found["local"], encoded.local, atol=1e-5)
    np.testing.assert_allclose(found["context"], encoded.context, atol=1e-5)
    np.testing.assert_array_equal(found["valid"].sum(axis=1), method.output_frames(BATCH["num_samples"]))
