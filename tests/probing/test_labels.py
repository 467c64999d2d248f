"""Laws of labels: which recordings and which frames have one, and what cannot be learned."""

from __future__ import annotations

import types

import numpy as np
import pytest
from labelled import source

from w2v_jax.core.cli import UserError
from w2v_jax.data.index import Form
from w2v_jax.ops import logmel
from w2v_jax.probing import labels as probing_labels
from w2v_jax.probing.labels import LetterLabels, RecordingLabels, letter_labels, open_parts, recording_labels


def test_labels_that_cannot_be_learned_are_named(capsys):
    train, test = recording_labels(source(["a", "b", "", "a"]), source(["b", "c", "a"]), "transcript")
    assert train.names == ["a", "b"] and train.labels.tolist() == [0, 1, 0] and test.labels.tolist() == [1, 0]
    said = capsys.readouterr().out
    assert "1 recordings of the training part" in said and "1 recordings of the test part" in said and ": c\n" in said


def test_what_is_missing_is_no_label(capsys):
    """Neither white space nor signs that nobody can see; and labels are compared in one form."""
    train = source([" ", "\ufeff", "caf\u00e9", " cafe\u0301\t", "tea"])
    part = recording_labels(train, source(["tea", "\u200b"]), "transcript")[0]
    assert part.names == ["caf\u00e9", "tea"] and part.labels.tolist() == [0, 0, 1]
    said = capsys.readouterr().out
    assert (
        "2 recordings of the training part without a label (r0, r1)" in said
        and "test part without a label (r1)" in said
    )


def test_recordings_without_letters_are_counted_and_named(monkeypatch, capsys):
    features = np.random.default_rng(0).normal(size=(40, 80)).astype(np.float32)
    every_row = lambda source: ((row, features) for row in range(len(source.index)))
    monkeypatch.setattr(probing_labels, "log_mel_input", lambda: types.SimpleNamespace(encode=every_row))
    train, test = letter_labels(source(["ab", "", "ba"]), source(["\u200b", "ab", "xyz"], prefix="t"))
    assert [(row >= 0).any() for row in train.frames + test.frames] == [True, False, True, False, True, False]
    said = capsys.readouterr().out
    assert "1 recordings of the training part (r1)" in said and "2 recordings of the test part (t0, t2)" in said


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
        recording_labels(source(train), source(test), "transcript")


def test_the_label_of_a_recording_is_that_of_its_frames():
    part = RecordingLabels(source("abc"), np.array([0, 2, 1]), ["a", "b", "c"])
    assert part.at(1, np.array([200.0, 360.0])).tolist() == [2, 2]
    assert part.all_labels.tolist() == [0, 2, 1]


def test_letters_are_those_of_the_nearest_log_mel_frame():
    part = LetterLabels(source("ab"), [np.array([-1, 0, 1, 1]), np.array([], int)], ["a", "b"])
    middles = logmel.FIELD / 2 + logmel.HOP * np.array([-1, -0.4, 0.6, 1.4, 2, 3.4, 3.6])
    assert part.at(0, middles).tolist() == [-1, -1, 0, 0, 1, 1, -1]
    assert part.at(1, middles[:2]).tolist() == [-1, -1]
    assert part.all_labels.tolist() == [0, 1, 1]


@pytest.fixture
def recordings(monkeypatch):
    """A stand-in of `open_source`: a hundred recordings of two speakers in each folder."""

    def open_source(name, roots, workers):
        return source(["a", "b"] * 50, ["anna", "otto"] * 50, prefix=roots[0])

    monkeypatch.setattr(probing_labels, "open_source", open_source)


def test_without_a_test_folder_the_parts_share_no_recording(recordings):
    train, test = (part.source.index for part in open_parts("folder", ["r"], [], what="speaker"))
    assert len(train) + len(test) == 100 and 5 < len(test) < 50
    assert not set(train.ids) & set(test.ids)


def test_parts_have_their_folders_and_at_most_the_hours_that_are_asked_for(recordings):
    parts = open_parts("folder", ["train"], ["test"], what="transcript", hours=20 / 3600)
    for part, prefix in zip(parts, ("train", "test"), strict=True):
        assert len(part.source.index) == 20 and all(name.startswith(prefix) for name in part.source.index.ids)
        assert part.names == ["a", "b"]


def test_letters_need_audio_and_two_letters():
    codes = types.SimpleNamespace(index=source("ab").index, form=Form("codes", "int32", 160, "x"))
    with pytest.raises(UserError, match="the source holds codes"):
        letter_labels(codes, codes)
    with pytest.raises(UserError, match=r"two different letters or more; they have \['a'\]"):
        letter_labels(source(["a aa"]), source(["a"]))
