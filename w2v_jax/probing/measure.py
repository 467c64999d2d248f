"""The accuracy of a linear classifier on frozen features, for the command `probe` and for training.

The labels are those of recordings (transcript, speaker), whose features are pooled over time, or those of frames
(letters, see `alignment.py`). The classifier is a ridge regression. Validation speakers, who are part of the training
recordings, decide its strength; the test part never does. No network is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.data.index import Source, subset
from w2v_jax.decoding.error_rates import interval
from w2v_jax.probing.inputs import Input, frame_centres
from w2v_jax.probing.labels import LabelledPart, RecordingLabels
from w2v_jax.probing.ridge import STRENGTHS, fit, mutual_information, pool, validation_rows

FRAMES = 40_000
"""About how many frames of each part are classified."""
Result = dict[str, Any]
"""The scores of one input, as a row of probe.json."""


def chance_levels(train: LabelledPart, test: LabelledPart) -> dict[str, float]:
    """The accuracy of random guesses, and of always naming the most frequent label of the training part."""
    frequent = np.bincount(train.all_labels).argmax()
    return {"chance": 1 / len(train.names), "majority": float((test.all_labels == frequent).mean())}


def measure(features: Input, train: LabelledPart, test: LabelledPart, *, segments: Sequence[int]) -> list[Result]:
    """The scores of an input: one per number of `segments` for labels of recordings, a single one for frames."""
    if isinstance(train, RecordingLabels) and isinstance(test, RecordingLabels):
        x, x_test = (pooled_features(features, part.source, segments) for part in (train, test))
        return [score(features, x[n], train, x_test=x_test[n], test=test, segments=n) for n in segments]
    (x, frames), (x_test, frames_test) = (frame_features(features, part) for part in (train, test))
    return [score(features, x, frames, x_test=x_test, test=frames_test, segments=0)]


def code_information(features: Input, part: LabelledPart) -> list[float]:
    """Mutual information of code and label over all frames, as a share of the label's entropy, per group of codes.

    features: an input of the run whose codes they are. It stays below 1 where the label is that of a whole recording.
    """
    codes, labels = [], []
    for row, frames in features._replace(what="codes", layer=None, quantizer=None).encode(part.source):
        frame_labels = part.at(row, frame_centres(features.run, len(frames)))
        codes.append(frames[frame_labels >= 0])
        labels.append(frame_labels[frame_labels >= 0])
    all_labels = np.concatenate(labels)
    return [mutual_information(group, all_labels) for group in np.concatenate(codes).T]


def score(
    features: Input, x: np.ndarray, train: RecordingLabels, *, x_test: np.ndarray, test: RecordingLabels, segments: int
) -> Result:
    """Accuracy on the test part [N P] with its 95 % interval, and the strength that the validation speakers decide."""
    rows, test_rows = (np.flatnonzero(np.isfinite(array).all(axis=1)) for array in (x, x_test))
    known, labels = x[rows].astype(np.float64), train.labels[rows]
    held_out = validation_rows(train.source.index.select(rows))
    accuracies = [float("nan")]  # where a single recording leaves none for validation
    if held_out.any():
        classifiers = fit(known[~held_out], labels[~held_out], STRENGTHS)
        accuracies = [float((c.predict(known[held_out]) == labels[held_out]).mean()) for c in classifiers]
    strength = STRENGTHS[int(np.argmax(accuracies))]
    classifier = next(fit(known, labels, [strength]))
    hits = (classifier.predict(x_test[test_rows].astype(np.float64)) == test.labels[test_rows]).astype(float)
    low, high = interval(hits, np.ones(len(hits)), np.asarray(test.source.index.speakers)[test_rows])
    unread = len(x) + len(x_test) - len(rows) - len(test_rows)
    result = dict(name=features.name, what=features.what, layer=features.layer, segments=segments, width=x.shape[1])
    result |= dict(accuracy=float(hits.mean()), low=low, high=high)
    return result | dict(validation=max(accuracies), strength=strength, unread=unread)


def pooled_features(features: Input, source: Source, segments: Sequence[int]) -> dict[int, np.ndarray]:
    """{segments: features [recordings P]}; NaN where a recording could not be read."""
    pooled: dict[int, np.ndarray] = {}
    for row, frames in features.encode(source):
        for n in segments:
            vector = pool(frames, n)
            if n not in pooled:
                pooled[n] = np.full((len(source.index), len(vector)), np.nan, np.float32)
            pooled[n][row] = vector
    if not pooled:
        raise UserError(f"{features.name}: no recording has a frame")
    return pooled


def frame_features(features: Input, part: LabelledPart) -> tuple[np.ndarray, RecordingLabels]:
    """(features [N D], their labels) of about FRAMES labelled frames, evenly spaced, as many of each recording."""
    per_recording = -(-FRAMES // len(part.source.index))
    first = features.quantizer or features.run
    chosen: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for row, frames in features.encode(part.source):
        labels = part.at(row, frame_centres(first, len(frames)))
        labelled = np.flatnonzero(labels >= 0)
        count = min(per_recording, len(labelled))
        labelled = labelled[np.linspace(0, len(labelled), count, endpoint=False).astype(int)]
        chosen[row] = frames[labelled], labels[labelled]
    rows = sorted(chosen)
    labels = np.concatenate([chosen[row][1] for row in rows])
    if not len(labels):
        raise UserError(f"{features.name}: no frame has a label")
    source = subset(part.source, np.repeat(rows, [len(chosen[row][1]) for row in rows]))
    return np.concatenate([chosen[row][0] for row in rows]), RecordingLabels(source, labels, part.names)
