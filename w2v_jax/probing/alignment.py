"""Aligns transcripts with recordings: a letter for every frame, as labels for probes.

This is a flat start, as in speech recognition before neural networks. Every recording is cut into equal pieces, one
per letter, with optional silence before, between and after the words. Then two steps alternate. Linear discriminants
(Gaussians with one shared covariance) are fitted to the frames of each letter, and the Viterbi algorithm finds the best
path through every transcript. No network is trained, and the same recordings always give the same labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SILENCE = 0
ROUNDS = 8
BATCH = 64
OFFSETS = (-6, -3, 0, 3, 6)
"""The frames that are stacked to classify a frame, relative to it."""
BANDS = 4
"""Neighbouring bands of the log-mel features that are averaged."""

FeatureArrays = Sequence[np.ndarray]
"""One array per recording."""


def align(features: FeatureArrays, tokens: FeatureArrays, rounds: int = ROUNDS) -> list[np.ndarray]:
    """The token of every frame [F] int32, from features [F D] and tokens [U] (0 between words) of each recording.

    Token 0 is silence, which a path may skip. Every other token takes at least one frame. A recording gets silence
    alone where it has no token, or fewer frames than tokens.
    """
    states = [_states(row) for row in tokens]
    usable = [i for i, row in enumerate(states) if 0 < (row != SILENCE).sum() <= len(features[i])]
    labels = [np.zeros(len(x), np.int32) for x in features]
    inputs = {i: _spliced(features[i]) for i in usable}
    for i, x in inputs.items():
        labels[i] = states[i][np.linspace(0, len(states[i]), len(x), endpoint=False).astype(int)]
    classes = 1 + max((int(row.max()) for row in states), default=0)
    by_length = sorted(usable, key=lambda i: len(inputs[i]))
    for _ in range(rounds if usable else 0):
        weights, bias = discriminants(list(inputs.values()), [labels[i] for i in usable], classes)
        for start in range(0, len(by_length), BATCH):
            batch = by_length[start : start + BATCH]
            paths = best_paths([inputs[i] @ weights + bias for i in batch], [states[i] for i in batch])
            for i, path in zip(batch, paths, strict=True):
                labels[i] = path
    return labels


def alignment_features(log_mel: np.ndarray) -> np.ndarray:
    """The features [F B / 4] that `align` reads, from log-mel features [F B]: zero mean and unit variance over time."""
    coarse = log_mel.reshape(len(log_mel), -1, BANDS).mean(axis=2)
    return ((coarse - coarse.mean(axis=0)) / (coarse.std(axis=0) + 1e-3)).astype(np.float32)


def discriminants(inputs: FeatureArrays, labels: FeatureArrays, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(weights [D C], bias [C]): x @ weights + bias is the log likelihood of each class, up to a shared constant.

    A class without a frame gets the mean of all frames. scikit-learn's LinearDiscriminantAnalysis gives the same
    classifier, but needs all frames in one array and a frame of every class. This sums products over recordings.
    """
    width = inputs[0].shape[1]
    count, total, second = np.zeros(classes), np.zeros((classes, width)), np.zeros((width, width))
    for x, y in zip(inputs, labels, strict=True):
        count += np.bincount(y, minlength=classes)
        np.add.at(total, y, x)
        second += x.T @ x
    frames = count.sum()
    means = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], total.sum(axis=0) / frames)
    covariance = second / frames - (means.T * count) @ means / frames
    covariance += 1e-2 * max(np.trace(covariance) / width, 1e-6) * np.eye(width)
    weights = np.linalg.solve(covariance, means.T)
    return weights.astype(np.float32), (-0.5 * (means.T * weights).sum(axis=0)).astype(np.float32)


def best_paths(scores: FeatureArrays, states: FeatureArrays) -> list[np.ndarray]:
    """The token of each frame on the best path, from scores [F C] and states [S] of each recording.

    The Viterbi algorithm runs on all recordings at once.
    """
    frames, sizes = np.array([len(x) for x in scores]), np.array([len(x) for x in states])
    rows, width = np.arange(len(scores)), sizes.max()
    token = np.zeros((len(rows), width), np.int64)
    emission = np.zeros((len(rows), frames.max(), scores[0].shape[1]), np.float32)
    for i, (row, x) in enumerate(zip(states, scores, strict=True)):
        token[i, : len(row)], emission[i, : len(x)] = row, x
    skippable = np.pad(token == SILENCE, ((0, 0), (1, 0)))[:, :-1]  # whether a path may skip the state before
    best = np.full((len(rows), width), -np.inf)
    best[:, :2] = emission[rows[:, None], 0, token[:, :2]]
    jump = np.zeros((frames.max(), len(rows), width), np.int8)  # how many states the best path went forward
    last = best.copy()  # `best` at the last frame of each recording
    for t in range(1, frames.max()):
        candidates = np.full((3, len(rows), width), -np.inf)
        candidates[0], candidates[1, :, 1:] = best, best[:, :-1]
        candidates[2, :, 2:] = np.where(skippable[:, 2:], best[:, :-2], -np.inf)
        jump[t] = candidates.argmax(axis=0)
        best = candidates.max(axis=0) + emission[rows[:, None], t, token]
        last = np.where((t < frames)[:, None], best, last)
    ends = np.stack([sizes - 2, sizes - 1])
    state = ends[last[rows, ends].argmax(axis=0), rows]
    path = np.zeros((len(rows), frames.max()), np.int32)
    for t in range(frames.max() - 1, -1, -1):
        path[:, t] = token[rows, state]
        state = np.where(t < frames, state - jump[t, rows, state], state)
    return [path[i, :n] for i, n in enumerate(frames)]


def _states(tokens: np.ndarray) -> np.ndarray:
    """The tokens with one optional silence at the beginning, between words, and at the end."""
    states = [SILENCE]
    for token in [*map(int, tokens), SILENCE]:
        if token != SILENCE or states[-1] != SILENCE:
            states.append(token)
    return np.array(states, np.int32)


def _spliced(x: np.ndarray) -> np.ndarray:
    """[F D] -> [F 5 D]: each frame with its neighbours at OFFSETS. The ends are repeated."""
    neighbours = np.clip(np.arange(len(x))[:, None] + np.array(OFFSETS), 0, len(x) - 1)
    return x[neighbours].reshape(len(x), -1)
