"""Frozen features to labels: pooling, the classifier, what is set aside, letters in time."""

from __future__ import annotations

import types

import numpy as np
import pytest

from w2v_jax import linear, probing
from w2v_jax.config import UserError
from w2v_jax.data.index import Row, make_index


def test_mutual_information_is_1_for_a_code_per_label_and_0_for_codes_that_know_nothing():
    assert linear.mutual_information(np.diag([3.0, 5.0, 2.0])) == pytest.approx(1)
    assert linear.mutual_information(np.outer([1.0, 2.0], [3.0, 1.0, 4.0])) == pytest.approx(0, abs=1e-12)
    assert linear.mutual_information(np.array([[4.0], [2.0]])) == 0
    half = np.array([[2.0, 2.0, 0, 0], [0, 0, 2.0, 2.0]])  # one bit of two
    assert linear.mutual_information(half) == pytest.approx(0.5)


def source(labels, speakers=None, prefix="r"):
    """A stand-in of a source: rows with transcripts and speakers, no audio."""
    speakers = speakers or ["s"] * len(labels)
    rows = [
        Row(f"{prefix}{i}", "x", 0, 16_000, 16_000, speaker, text)
        for i, (text, speaker) in enumerate(zip(labels, speakers, strict=True))
    ]
    return types.SimpleNamespace(index=make_index(rows), form=probing.WAVE)


def clouds(count=200, classes=3, width=5, seed=0, spread=0.1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(7).normal(size=(classes, width))
    return (centres[labels] + spread * rng.normal(size=(count, width))).astype(np.float32), labels


@pytest.mark.parametrize("width", [4, 40], ids=["tall", "wide"])
def test_ridge_equals_a_direct_solve(width):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(20, width)) * 3 + 1, rng.integers(0, 3, 20)
    for strength, ridge in zip((0.01, 1.0), linear.fit(x, labels, 3, (0.01, 1.0)), strict=True):
        z = (x - x.mean(0)) / x.std(0)
        y = np.eye(3)[labels]
        direct = np.linalg.solve(z.T @ z + strength * 20 * np.eye(width), z.T @ (y - y.mean(0)))
        np.testing.assert_allclose(ridge.weights, direct, atol=1e-8)
        np.testing.assert_array_equal(ridge.predict(x), (z @ direct + y.mean(0)).argmax(1))


def test_separable_clouds_are_told_apart_and_random_labels_are_not():
    (x, labels), (x_test, labels_test) = clouds(), clouds(seed=1)
    ridge = next(linear.fit(x, labels, 3, [1e-3]))
    assert (ridge.predict(x_test) == labels_test).mean() > 0.98
    rng = np.random.default_rng(3)
    noise, noise_test = rng.normal(size=(2, 200, 5))
    ridge = next(linear.fit(noise, labels, 3, [1e-3]))
    assert abs((ridge.predict(noise_test) == labels_test).mean() - 1 / 3) < 0.15


def test_a_constant_feature_does_no_harm():
    x, labels = clouds()
    x[:, 2] = 5.0
    ridge = next(linear.fit(x, labels, 3, [1e-3]))
    assert np.isfinite(ridge.weights).all() and (ridge.predict(x) == labels).mean() > 0.9


def test_pool_gives_mean_and_deviation_of_equal_stretches():
    frames = np.arange(12.0).reshape(6, 2)
    np.testing.assert_allclose(linear.pool(frames, 1), [*frames.mean(0), *frames.std(0)])
    halves = [frames[:3], frames[3:]]
    np.testing.assert_allclose(linear.pool(frames, 2), np.concatenate([[*h.mean(0), *h.std(0)] for h in halves]))
    assert np.isfinite(linear.pool(frames[:1], 4)).all() and linear.pool(frames[:1], 4).shape == (16,)


def test_whole_speakers_are_set_aside_where_there_are_enough():
    speakers = [f"s{i % 10}" for i in range(100)]
    index = source(["a"] * 100, speakers).index
    aside = linear.set_aside(index)
    assert 0 < aside.sum() < 50
    names = np.array(speakers)
    assert not set(names[aside]) & set(names[~aside])
    few = linear.set_aside(source(["a"] * 100, [f"s{i % 2}" for i in range(100)]).index)
    assert 5 < few.sum() < 50


def test_the_test_part_never_enters_the_fit():
    (x, labels), (x_test, labels_test) = clouds(), clouds(count=60, seed=1)
    names = ["a", "b", "c"]
    parts = [probing.Labels(source([names[i] for i in found]), found, names) for found in (labels, labels_test)]
    each = probing.Input("x", None, "local", None, None)
    found = probing.score(each, 1, x, parts[0], x_test, parts[1])
    wrong = probing.Labels(parts[1].source, (labels_test + 1) % 3, names)
    other = probing.score(each, 1, x, parts[0], 100 * x_test, wrong)
    assert found["strength"] == other["strength"] and found["validation"] == other["validation"]
    assert found["accuracy"] > 0.95 and found["low"] <= found["accuracy"] <= found["high"]


def test_recordings_that_could_not_be_read_are_counted_and_left_out():
    (x, labels), names = clouds(), ["a", "b", "c"]
    x[5] = np.nan
    part = probing.Labels(source([names[i] for i in labels]), labels, names)
    assert probing.score(probing.Input("x", None, "local", None, None), 1, x, part, x, part)["unread"] == 2


def test_labels_that_cannot_be_learned_are_named(capsys):
    train, test = probing.label(source(["a", "b", "", "a"]), source(["b", "c", "a"]), "transcript")
    assert train.names == ["a", "b"] and train.labels.tolist() == [0, 1, 0] and test.labels.tolist() == [1, 0]
    said = capsys.readouterr().out
    assert "1 recordings of the training part" in said and "1 recordings of the test part" in said and "c" in said


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["", ""], ["a"], "it has none"),
        (["a", "a"], ["a"], "only 'a'"),
        (["a", "b"], ["c"], "no recording of the test"),
    ],
)
def test_nothing_to_learn_or_to_score_is_an_error(train, test, message):
    with pytest.raises(UserError, match=message):
        probing.label(source(train), source(test), "transcript")
