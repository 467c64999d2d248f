"""Predicting units: which labels belong to which frames, what counts in the loss.

The maths is compared with fairseq's arrays in tests/test_golden_hubert.py.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import wave_batch
from commands import ROOT

from w2v_jax.core import config as configs
from w2v_jax.core.types import Encoded
from w2v_jax.core.units import NO_TARGET
from w2v_jax.nn import unit_prediction
from w2v_jax.nn.quantizers import perplexity
from w2v_jax.ops.frames import num_frames

SAMPLES = 4_000
FRAMES = 12
TWO = {"loss__classes": (5, 3), "loss__proj": 4}


def config_of(**changes):
    """The tiny config with units of two rows; `section__key=value` changes it."""
    config = configs.load(f"{ROOT / 'configs' / 'hubert_base.py'}:tiny")
    changes = {"data__unit_seconds": 2 * SAMPLES / 16_000} | changes
    return configs.changed(config, {key.replace("__", "."): value for key, value in changes.items()})


def case_of(config, lengths=(4_000, 2_500, 4_000, 4_000), weight=(1, 1, 0, 1)):
    """(batch, masked frames, prediction) of random features, projections and labels."""
    rng, rows = np.random.default_rng(0), len(lengths)
    assert num_frames(SAMPLES, config.encoder.conv_layers) == FRAMES
    sets, ratio = len(config.loss.classes), unit_prediction.labels_per_frame(config)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    labels = [rng.integers(clusters, size=(rows, FRAMES * ratio)) for clusters in config.loss.classes]
    batch = wave_batch(lengths, SAMPLES, weight) | dict(targets=np.stack(labels, axis=1).astype(np.int32))
    vectors = normal(rows, FRAMES, config.loss.proj * (sets if config.loss.untied else 1))
    table = normal(sum(unit_prediction.table_rows(config)), config.loss.proj)
    frames = jnp.asarray(num_frames(np.asarray(lengths), config.encoder.conv_layers))
    features = normal(rows, FRAMES, 3)
    encoded = Encoded(features, features, features, None, frames)
    logits = jax.jit(lambda *x: unit_prediction.cosine_logits(config, *x))(vectors, table)
    return batch, rng.random((rows, FRAMES)) < 0.5, unit_prediction.Prediction(encoded, vectors, logits), table


def objective(config, batch, *, masked, prediction):
    """That of `unit_prediction`, as one program."""
    score = lambda x, m, p: unit_prediction.objective(config, x, masked=m, prediction=p)
    return jax.jit(score)(batch, jnp.asarray(masked), prediction)


def frames_of(batch, prediction) -> list[tuple[int, int]]:
    """The (row, frame) of all real frames."""
    lengths = zip(np.asarray(prediction.encoded.num_frames), batch["weight"])
    return [(b, f) for b, (length, weight) in enumerate(lengths) if weight for f in range(length)]


@pytest.mark.parametrize("untied", [True, False])
@pytest.mark.parametrize(("hop", "unmasked_weight"), [(320, 0.0), (160, 0.5)])
def test_loss_is_the_cross_entropy_over_all_classes_of_each_set_and_the_penalty(untied, hop, unmasked_weight):
    config = config_of(data__targets_hop=hop, loss__untied=untied, loss__unmasked_weight=unmasked_weight, **TWO)
    batch, masked, prediction, table = case_of(config)
    tables = np.split(np.asarray(table), [5 + 4])
    features = np.asarray(prediction.encoded.features)
    sums, size, penalty = {True: 0.0, False: 0.0}, 0, 0.0
    for b, f in frames_of(batch, prediction):
        counts = bool(masked[b, f]) or unmasked_weight > 0
        size += counts
        penalty += counts * np.square(features[b, : prediction.encoded.num_frames[b]]).mean()
        for i in range(2):
            z = np.asarray(prediction.vectors)[b, f, 4 * i * untied :][:4]
            cosines = tables[i] @ z / np.linalg.norm(tables[i], axis=1) / np.linalg.norm(z)
            right = batch["targets"][b, i, f * 320 // hop] + 4
            sums[bool(masked[b, f])] += np.log(np.exp(cosines / 0.1).sum()) - cosines[right] / 0.1
    total, metrics = objective(config, batch, masked=masked, prediction=prediction)
    assert float(total.weight) == size
    expected = sums[True] + unmasked_weight * sums[False] + config.loss.penalty_weight * penalty
    np.testing.assert_allclose(total.total, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].total, sums[True], rtol=1e-5)
    np.testing.assert_allclose(metrics["unmasked_loss"].total, sums[False], rtol=1e-5)
    shown = sum(not masked[place] for place in frames_of(batch, prediction))
    assert float(metrics["unmasked_loss"].weight) == 2 * shown


def test_frame_takes_the_label_at_its_own_time():
    """Labels that are their own number, at the rate of the frames and at twice that; too few of them."""
    numbers = jnp.arange(24)[None, None]
    np.testing.assert_array_equal(unit_prediction.frame_labels(numbers, 12, 1)[0, :, 0], np.arange(12))
    np.testing.assert_array_equal(unit_prediction.frame_labels(numbers, 12, 2)[0, :, 0], 2 * np.arange(12))
    short = unit_prediction.frame_labels(numbers[:, :, :7], 6, 2)[0, :, 0]
    np.testing.assert_array_equal(short, [0, 2, 4, 6, NO_TARGET, NO_TARGET])


def test_frames_without_a_label_in_every_set_do_not_count():
    config = config_of(**TWO)
    batch, masked, prediction, _ = case_of(config)
    holes = np.random.default_rng(1).random((4, 2, FRAMES)) < 0.3
    batch["targets"] = np.where(holes, NO_TARGET, batch["targets"])
    total, metrics = objective(config, batch, masked=masked, prediction=prediction)
    counted = [(b, f) for b, f in frames_of(batch, prediction) if masked[b, f] and not holes[b, :, f].any()]
    assert float(total.weight) == len(counted) and np.isfinite(total.total)
    full, _ = objective(config, batch, masked=jnp.asarray(masked & ~holes.any(axis=1)), prediction=prediction)
    np.testing.assert_allclose(total.total, full.total, rtol=1e-6)
    everywhere = {"targets": np.full_like(batch["targets"], NO_TARGET)}
    total, metrics = objective(config, batch | everywhere, masked=jnp.asarray(masked), prediction=prediction)
    assert float(total.total) == float(total.weight) == 0
    assert all(np.isfinite(mean.value()) for mean in metrics.values())


@pytest.mark.parametrize("label", [5, 1000, -2])
def test_label_that_is_no_cluster_makes_the_loss_nan_unless_it_is_in_padding(label):
    config = config_of(**TWO)
    batch, _, prediction, _ = case_of(config)
    masked = jnp.ones((4, FRAMES), bool)
    batch["targets"][1, 0, -1] = batch["targets"][2, 0, 0] = label  # padding, and a row of weight 0
    table = case_of(config)[3]

    @jax.jit
    @jax.value_and_grad
    def loss(vectors, batch):
        said = prediction._replace(logits=unit_prediction.cosine_logits(config, vectors, table))
        return unit_prediction.objective(config, batch, masked=masked, prediction=said)[0].total

    total, gradient = loss(prediction.vectors, batch)
    assert np.isfinite(total) and np.isfinite(gradient).all()
    batch["targets"][0, 0, 0] = label
    assert np.isnan(loss(prediction.vectors, batch)[0])


def test_right_means_the_highest_logit_and_not_all_alike():
    config = config_of(loss__classes=(5,), loss__proj=4)
    batch, _, prediction, _ = case_of(config)
    masked, logits = jnp.ones((4, FRAMES), bool), np.zeros((4, FRAMES, 1, 9), np.float32)
    accuracy = lambda: objective(
        config, batch, masked=masked, prediction=prediction._replace(logits=jnp.asarray(logits))
    )[1]
    assert float(accuracy()["accuracy"].total) == 0, "a dead model is not right"
    logits[0, 0, 0, 4 + batch["targets"][0, 0, 0]] = 1.0
    assert float(accuracy()["accuracy"].total) == 1
    logits[:, :, 0, 2] = 2.0  # a special symbol
    found = accuracy()
    assert float(found["accuracy"].total) == 0
    assert float(found["prediction_perplexity"].value()) == pytest.approx(1.0, abs=1e-5)


def test_entropy_of_the_labels_is_that_of_the_frames_of_a_unit():
    config = config_of(loss__classes=(8,), data__unit_seconds=SAMPLES / 16_000)
    batch, masked, prediction, _ = case_of(config, lengths=(4_000, 4_000), weight=(1, 1))
    batch["targets"] = np.stack([np.full((1, 12), 3), np.arange(12)[None] % 4]).astype(np.int32)
    _, metrics = objective(config, batch, masked=masked, prediction=prediction)
    assert float(metrics["label_entropy"].value()) == pytest.approx(math.log(4) / 2, abs=1e-4)


def test_usage_is_that_of_the_predictions_at_hidden_frames_with_labels():
    """Its perplexity is therefore the metric, where a batch is one unit."""
    config = config_of(**TWO, data__unit_seconds=4 * SAMPLES / 16_000)
    batch, masked, prediction, _ = case_of(config)
    batch["targets"][0, 0, :4] = NO_TARGET
    masked = jnp.asarray(masked)
    usage = unit_prediction.prediction_usage(config, batch, masked=masked, prediction=prediction).value()
    _, metrics = objective(config, batch, masked=masked, prediction=prediction)
    assert usage.shape == prediction.logits.shape[2:]
    np.testing.assert_allclose(usage.sum(axis=1), 1.0, rtol=1e-6)
    mean = np.mean([perplexity(group[None]) for group in usage])
    np.testing.assert_allclose(mean, metrics["prediction_perplexity"].value(), rtol=1e-6)
