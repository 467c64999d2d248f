"""Laws of the scores of a probe: what is fitted, what is counted, and which frames are classified."""

from __future__ import annotations

import types

import numpy as np
import pytest
from labelled import clouds, source

from w2v_jax.core.cli import UserError
from w2v_jax.probing import measure
from w2v_jax.probing.inputs import Input
from w2v_jax.probing.labels import LetterLabels, RecordingLabels
from w2v_jax.probing.ridge import pool


def test_the_test_part_never_enters_the_fit():
    (x, labels), (x_test, labels_test) = clouds(), clouds(count=60, seed=1)
    names = ["a", "b", "c"]
    parts = [RecordingLabels(source([names[i] for i in numbers]), numbers, names) for numbers in (labels, labels_test)]
    each = Input("x", None, "local")
    found = measure.score(each, x, parts[0], x_test=x_test, test=parts[1], segments=1)
    wrong = RecordingLabels(parts[1].source, (labels_test + 1) % 3, names)
    other = measure.score(each, x, parts[0], x_test=100 * x_test, test=wrong, segments=1)
    assert found["strength"] == other["strength"] and found["validation"] == other["validation"]
    assert found["accuracy"] > 0.95 and found["low"] <= found["accuracy"] <= found["high"]


def test_recordings_that_could_not_be_read_are_counted_and_left_out():
    (x, labels), names = clouds(), ["a", "b", "c"]
    x[5] = np.nan
    part = RecordingLabels(source([names[i] for i in labels]), labels, names)
    assert measure.score(Input("x", None, "local"), x, part, x_test=x, test=part, segments=1)["unread"] == 2


def test_chance_and_majority_are_those_of_the_training_part():
    train = RecordingLabels(source("aab"), np.array([0, 0, 1]), ["a", "b", "c", "d"])
    test = RecordingLabels(source("abbb"), np.array([0, 1, 1, 1]), train.names)
    assert measure.chance_levels(train, test) == {"chance": 0.25, "majority": 0.25}


class Frames:
    """A stand-in of an input: given features, one frame every 160 samples from a field of 400."""

    name, quantizer = "x", None
    run = types.SimpleNamespace(geometry=(400, 160))

    def __init__(self, features):
        self.features = features

    def encode(self, source):
        yield from self.features.items()


def test_a_recording_that_was_not_encoded_is_pooled_to_nan():
    features = {2: np.arange(12.0).reshape(6, 2), 0: np.ones((3, 2))}
    pooled = measure.pooled_features(Frames(features), source("abc"), [1, 2])
    for segments, array in pooled.items():
        assert array.shape == (3, 4 * segments) and np.isnan(array[1]).all()
        for row, frames in features.items():
            np.testing.assert_allclose(array[row], pool(frames, segments), rtol=1e-6)
    with pytest.raises(UserError, match="x: no recording has a frame"):
        measure.pooled_features(Frames({}), source("abc"), [1])


def test_frames_are_taken_evenly_of_each_recording_and_none_in_silence(monkeypatch):
    """Frame number f of a recording has the value f, so that the chosen ones can be told."""
    frames = [np.array([-1, 0, 0, 1, 1, 0, -1, 1, 0, 0]), np.array([1, -1, -1])]
    part = LetterLabels(source("ab"), frames, ["x", "y"])
    given = Frames({1: np.arange(3.0)[:, None], 0: np.arange(10.0)[:, None]})
    x, labels = measure.frame_features(given, part)
    assert x[:, 0].tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 0]
    assert labels.labels.tolist() == [0, 0, 1, 1, 0, 1, 0, 0, 1] and labels.names == ["x", "y"]
    assert len(labels.source.index) == 9
    monkeypatch.setattr(measure, "FRAMES", 8)
    x, labels = measure.frame_features(given, part)
    assert x[:, 0].tolist() == [1, 3, 5, 8, 0]
    silent = LetterLabels(part.source, [np.full(10, -1), np.full(3, -1)], part.names)
    with pytest.raises(UserError, match="x: no frame has a label"):
        measure.frame_features(given, silent)
