"""The labels that a probe learns: of recordings (transcript, speaker) or of frames (letters)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError, some_of
from w2v_jax.core.display import short_repr
from w2v_jax.data import open_source
from w2v_jax.data.index import WAVE, Source, some_hours, split_heldout, subset
from w2v_jax.data.transcripts import BOUNDARY, build_alphabet, clean_text
from w2v_jax.ops import logmel
from w2v_jax.probing import alignment
from w2v_jax.probing.inputs import log_mel_input
from w2v_jax.probing.ridge import VALIDATION_SHARE

LABELS = ("transcript", "speaker", "letter")


class RecordingLabels(NamedTuple):
    """Recordings with one label each. `labels` [N] are indices into `names`."""

    source: Source
    labels: np.ndarray
    names: list[str]

    __repr__ = short_repr

    @property
    def all_labels(self) -> np.ndarray:
        """The labels of all recordings."""
        return self.labels

    def at(self, row: int, centres: np.ndarray) -> np.ndarray:
        """The label of a recording, for every frame."""
        return np.full(len(centres), self.labels[row])


class LetterLabels(NamedTuple):
    """Recordings with one label per log-mel frame: an index into `names`, or -1 in silence."""

    source: Source
    frames: list[np.ndarray]
    names: list[str]

    __repr__ = short_repr

    @property
    def all_labels(self) -> np.ndarray:
        """The labels of all frames but silence."""
        labels = np.concatenate(self.frames)
        return labels[labels >= 0]

    def at(self, row: int, centres: np.ndarray) -> np.ndarray:
        """The letters at these 16 kHz samples of a recording; -1 in silence and outside of the recording."""
        frames = np.round((centres - logmel.FIELD / 2) / logmel.HOP).astype(int)
        labels = self.frames[row]
        if not len(labels):
            return np.full(len(frames), -1)
        return np.where((frames >= 0) & (frames < len(labels)), labels[np.clip(frames, 0, len(labels) - 1)], -1)


LabelledPart = RecordingLabels | LetterLabels


def open_parts(
    name: str, train: Sequence[str], test: Sequence[str], *, what: str, hours: float = 0.0, workers: int = 0
) -> tuple[LabelledPart, LabelledPart]:
    """The training part and the test part: labelled recordings of the source `name` in the folders `train` and `test`.

    Without `test`, a fifth of the recordings becomes the test part. hours: at most so much of each part (0: all).
    Raises UserError when there is nothing to learn or to score.
    """
    if what not in LABELS:
        raise UserError(f"a probe cannot learn the label {what!r}; choose one of {', '.join(LABELS)}")
    reading: dict[str, Any] = {"workers": workers} | ({"labels": "letters"} if what == "letter" else {})
    source = open_source(name, tuple(train), **reading)
    if test:
        parts = source, open_source(name, tuple(test), **reading)
    else:
        train_rows, test_rows = split_heldout(source.index, VALIDATION_SHARE)
        parts = subset(source, train_rows), subset(source, test_rows)
    if hours > 0:
        parts = subset(parts[0], some_hours(parts[0].index, hours)), subset(parts[1], some_hours(parts[1].index, hours))
    return letter_labels(*parts) if what == "letter" else recording_labels(*parts, what)


def recording_labels(train: Source, test: Source, what: str) -> tuple[RecordingLabels, RecordingLabels]:
    """The recordings of both parts that have a label of the training part. Prints how many have none."""
    column = "transcripts" if what == "transcript" else "speakers"
    train_labels, test_labels = (list(map(clean_text, getattr(s.index, column).tolist())) for s in (train, test))
    names = sorted(set(train_labels) - {""})
    if len(names) < 2:
        present = f"only {names[0]!r}" if names else "none"
        raise UserError(f"--label {what}: the training part needs two different labels or more; it has {present}")
    number = {name: i for i, name in enumerate(names)}
    unknown = sorted(set(test_labels) - set(names) - {""})
    parts = []
    for source, labels, part in ((train, train_labels, "training"), (test, test_labels, "test")):
        rows = np.array([i for i, label in enumerate(labels) if label in number], np.int64)
        if len(rows) < len(labels):
            hint = (
                f"; the training part lacks these labels: {', '.join(unknown[:5])}"
                if part == "test" and unknown
                else ""
            )
            left_out = [id for id, label in zip(source.index.ids, labels, strict=True) if label not in number]
            named = f"{len(left_out):,} recordings of the {part} part without a label ({some_of(left_out)})"
            print(f"  skipped {named}{hint}", flush=True)
        if not len(rows):
            raise UserError(f"--label {what}: no recording of the {part} part has a label of the training part")
        parts.append(RecordingLabels(subset(source, rows), np.array([number[labels[i]] for i in rows]), names))
    return parts[0], parts[1]


def letter_labels(train: Source, test: Source) -> tuple[LetterLabels, LetterLabels]:
    """Both parts with the letters of their frames. One alignment places both, so that they are labelled alike.

    A recording whose transcript is missing or cannot be aligned has no labels. Prints how many those are.
    """
    if train.form != WAVE:
        raise UserError(f"--label letter aligns transcripts with audio, but the source holds {train.form.name}")
    alphabet = build_alphabet(train.index.transcripts.tolist(), "letters", "keep", remove="", min_count=1)[0]
    names = [token for token in alphabet.tokens[1:] if token != BOUNDARY]
    if len(names) < 2:
        raise UserError(
            f"--label letter: the training transcripts need two different letters or more; they have {names}"
        )
    number = {name: 1 + i for i, name in enumerate(names)} | {BOUNDARY: alignment.SILENCE}
    features, tokens = [], []
    for source in (train, test):
        of_source: list[np.ndarray] = [np.zeros((0, 1), np.float32)] * len(source.index)
        for row, log_mel in log_mel_input().encode(source):
            of_source[row] = alignment.alignment_features(log_mel)
        features += of_source
        for text in source.index.transcripts.tolist():
            letters = alphabet.split(text)
            is_known = all(letter in number for letter in letters)
            tokens.append(np.array([number[letter] for letter in letters] if is_known else [], np.int32))
    frames = [labels - 1 for labels in alignment.align(features, tokens)]
    count = len(train.index)
    parts = LetterLabels(train, frames[:count], names), LetterLabels(test, frames[count:], names)
    for labels, part in zip(parts, ("training", "test"), strict=True):
        ids = labels.source.index.ids
        left_out = [ids[i] for i, row in enumerate(labels.frames) if not (row >= 0).any()]
        if left_out:
            named = f"{len(left_out):,} recordings of the {part} part ({some_of(left_out)})"
            print(f"  skipped {named}: no transcript, or none that can be aligned", flush=True)
        if len(left_out) == len(ids):
            raise UserError(f"--label letter: no transcript of the {part} part can be aligned with its recording")
    return parts
