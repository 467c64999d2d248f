"""Frozen features to labels: pooling, the classifier, what is set aside."""

from __future__ import annotations

import numpy as np
import pytest
from labelled import clouds, source

from w2v_jax.probing.ridge import fit, mutual_information, pool, validation_rows


def test_mutual_information_is_1_for_a_code_per_label_and_0_for_codes_that_know_nothing():
    assert of_counts(np.diag([3, 5, 2])) == pytest.approx(1)
    assert of_counts(np.outer([1, 2], [3, 1, 4])) == pytest.approx(0, abs=1e-12)
    assert of_counts(np.array([[4], [2]])) == 0
    half = np.array([[2, 2, 0, 0], [0, 0, 2, 2]])  # one bit of two
    assert of_counts(half) == pytest.approx(0.5)


def test_mutual_information_equals_its_definition():
    counts = np.random.default_rng(0).integers(0, 9, (6, 4))
    joint = counts / counts.sum()
    code, label = joint.sum(axis=1, keepdims=True), joint.sum(axis=0)
    information = np.nansum(joint * np.log(np.where(joint > 0, joint, np.nan) / (code * label)))
    assert of_counts(counts) == pytest.approx(information / -(label * np.log(label)).sum())


def of_counts(counts):
    """`mutual_information` of codes and labels that occur together as often as counts [codes labels] says."""
    codes, labels = (np.repeat(places, counts.ravel()) for places in np.indices(counts.shape).reshape(2, -1))
    return mutual_information(codes, labels)


@pytest.mark.parametrize("width", [4, 40], ids=["tall", "wide"])
def test_ridge_equals_a_direct_solve(width):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(20, width)) * 3 + 1, rng.integers(0, 3, 20)
    for strength, ridge in zip((0.01, 1.0), fit(x, labels, (0.01, 1.0)), strict=True):
        z = (x - x.mean(0)) / x.std(0)
        y = np.eye(3)[labels]
        direct = np.linalg.solve(z.T @ z + strength * 20 * np.eye(width), z.T @ (y - y.mean(0)))
        np.testing.assert_allclose(ridge[-1].coef_.T / 2, direct, atol=1e-8)  # its targets are -1 and 1
        np.testing.assert_array_equal(ridge.predict(x), (z @ direct + y.mean(0)).argmax(1))


def test_a_label_without_a_recording_and_a_single_label_can_be_fitted():
    x, labels = clouds(classes=2)
    assert set(next(fit(x, 2 * labels, [1e-3])).predict(x)) == {0, 2}
    assert set(next(fit(x, np.full(len(x), 1), [1e-3])).predict(x)) == {1}


def test_separable_clouds_are_told_apart_and_random_labels_are_not():
    (x, labels), (x_test, labels_test) = clouds(), clouds(seed=1)
    ridge = next(fit(x, labels, [1e-3]))
    assert (ridge.predict(x_test) == labels_test).mean() > 0.98
    rng = np.random.default_rng(3)
    noise, noise_test = rng.normal(size=(2, 200, 5))
    ridge = next(fit(noise, labels, [1e-3]))
    assert abs((ridge.predict(noise_test) == labels_test).mean() - 1 / 3) < 0.15


def test_a_constant_feature_does_no_harm():
    x, labels = clouds()
    x[:, 2] = 5.0
    ridge = next(fit(x, labels, [1e-3]))
    assert np.isfinite(ridge[-1].coef_).all() and (ridge.predict(x) == labels).mean() > 0.9


def test_pool_gives_mean_and_deviation_of_equal_stretches():
    frames = np.arange(12.0).reshape(6, 2)
    np.testing.assert_allclose(pool(frames, 1), [*frames.mean(0), *frames.std(0)])
    halves = [frames[:3], frames[3:]]
    np.testing.assert_allclose(pool(frames, 2), np.concatenate([[*h.mean(0), *h.std(0)] for h in halves]))
    assert np.isfinite(pool(frames[:1], 4)).all() and pool(frames[:1], 4).shape == (16,)


def test_whole_speakers_are_set_aside_where_there_are_enough():
    speakers = [f"s{i % 10}" for i in range(100)]
    index = source(["a"] * 100, speakers).index
    aside = validation_rows(index)
    assert 0 < aside.sum() < 50
    names = np.array(speakers)
    assert not set(names[aside]) & set(names[~aside])
    few = validation_rows(source(["a"] * 100, [f"s{i % 2}" for i in range(100)]).index)
    assert 5 < few.sum() < 50
