"""Laws of labels in time: which frame has which, and what is no alignment of these recordings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.kept.columns import Column
from w2v_jax.data.sources import synthetic
from w2v_jax.discrete.time_labels import corpus_letters, frame_times, read_time_labels


def read(tmp_path, text):
    (tmp_path / "phones.tsv").write_text(text, encoding="utf-8")
    return read_time_labels(tmp_path / "phones.tsv")


GOOD = "id\tstart\tend\tlabel\n# a remark\nu1\t0.30\t0.40\tAH\nu1\t0.10\t0.30\tB\n\nu2\t0\t1.5\tSIL\r\n"


def test_a_frame_has_the_label_of_the_segment_that_it_lies_in(tmp_path):
    labels = read(tmp_path, GOOD)
    assert labels.names == ["AH", "B", "SIL"]
    found = labels.segments["u1"].at(np.array([0.05, 0.1, 0.29, 0.3, 0.399, 0.4, 9.0]))
    assert found.tolist() == [-1, 1, 1, 0, 0, -1, -1]


def test_times_between_segments_have_no_label(tmp_path):
    labels = read(tmp_path, "a\t0.0\t0.1\tx\na\t0.5\t0.6\ty\n")
    assert labels.segments["a"].at(np.array([0.05, 0.3, 0.55])).tolist() == [0, -1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u1\t0\t1\tA\nu1 0.5 0.7 AH\n", r"line 2: 'u1 0\.5 0\.7 AH' is not id, start, end and label with tabs"),
        ("u1\tzero\t1\tA\n", "line 1"),
        ("u1\t0.5\t0.4\tA\n", r"line 1: a segment from 0\.5 s to 0\.4 s cannot be"),
        ("u1\t0\tnan\tA\n", "cannot be"),
        ("u1\t0\t1\tA\n", "has 1 different labels"),
        ("", "has 0 different labels"),
    ],
)
def test_what_is_no_alignment_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


def test_alignments_of_other_recordings_are_refused_and_missing_ones_are_counted(tmp_path):
    labels = read(tmp_path, GOOD)
    assert labels.check({"u1": 0.4, "u2": 1.5, "u3": 2.0}, "it") == ["u3"]
    assert labels.check({"u2": 1.45}, "it") == []
    with pytest.raises(UserError, match=r"it is of other recordings: it has none of the 2 .* v, w; its own are u1, u2"):
        labels.check({"v": 1.0, "w": 1.0}, "it")
    with pytest.raises(UserError, match=r"ends after the recording, as in u2 \(1\.50 s of 1\.00 s\)"):
        labels.check({"u1": 1.0, "u2": 1.0}, "it")


@pytest.fixture(scope="module")
def spoken(tiny_corpus):
    return open_source("folder", tiny_corpus / "train")


def test_the_letters_of_a_self_made_corpus_fill_its_recordings(spoken):
    """Each letter between pauses, in the order of the transcript, from the first pause to the last."""
    labels = corpus_letters(spoken.index)
    assert set("AEIOU ") <= set(labels.names)
    for row, id in enumerate(spoken.index.ids.tolist()):
        segments = labels.segments[id]
        assert "".join(labels.names[label] for label in segments.labels) == spoken.index.transcripts[row]
        np.testing.assert_array_equal(segments.starts[1:], segments.ends[:-1])
        assert 0.02 < segments.starts[0] and segments.ends[-1] < spoken.index.durations[row]
        assert (segments.ends > segments.starts).all()


def test_letters_are_heard_where_they_are_said_to_be(spoken):
    """The fricative S is noise of high frequency, vowels are not: zero crossings tell them apart."""
    labels, crossings = corpus_letters(spoken.index), {"S": [], "A": []}
    for row, id in enumerate(spoken.index.ids.tolist()):
        wave, segments = spoken.read(row, 0, 10**9), labels.segments[id]
        for start, end, label in zip(*segments):
            if labels.names[label] in crossings:
                piece = wave[int(16_000 * (start + 0.02)) : int(16_000 * (end - 0.02))]
                crossings[labels.names[label]].append(np.mean(np.diff(np.signbit(piece))))
    assert np.median(crossings["S"]) > 3 * np.median(crossings["A"])


def test_other_recordings_have_no_letters_in_time(spoken, tmp_path):
    path = str(tmp_path / "a" / "b" / "c" / "d.flac")
    index = dataclasses.replace(spoken.index.select(np.arange(2)), paths=Column.of([path] * 2))
    with pytest.raises(UserError, match="is not of a self-made corpus.*give a file to --alignment"):
        corpus_letters(index)
    index = dataclasses.replace(spoken.index.select(np.arange(2)), transcripts=Column.of(["ANOTHER"] * 2))
    with pytest.raises(UserError, match="is not what the corpus says"):
        corpus_letters(index)


def test_bounds_end_where_letter_times_do():
    text, bounds = synthetic.letter_bounds(3, 1)
    same, ends = synthetic.letter_times(3, 1)
    assert text == same and 0 < bounds[0] < bounds[1]
    np.testing.assert_array_equal(bounds[1:], ends)


def test_frame_times_follow_the_cut_of_the_recipe():
    whole = dict(cut="even", max_samples=1_600, hop=320, field=400)
    np.testing.assert_allclose(frame_times(3, whole), (np.arange(3) * 320 + 199.5) / 16_000)
    cut = frame_times(6, whole | dict(cut="recipe"))  # pieces of 1,600 samples have 4 frames
    np.testing.assert_allclose(cut[4:], (1_600 + np.arange(2) * 320 + 199.5) / 16_000)
