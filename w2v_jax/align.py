"""Where the letters of a transcript are spoken: labels of frames for probes, from recordings and transcripts alone.

A flat start as in speech recognition before neural networks: every recording is cut into equal pieces, one per letter,
with optional silence before, between and after the words. Then, by turns, Gaussians with one covariance for all letters
are fitted to the frames of each (linear discriminants), and the best path through every transcript is found anew
(Viterbi). No network is trained, and the same recordings give the same labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SILENCE = 0
ROUNDS = 8
BATCH = 64
OFFSETS = (-6, -3, 0, 3, 6)
"""Neighbouring frames that a letter is told by, beside its own."""
BANDS = 4
"""Neighbouring bands of the log-mel features that are averaged."""


def align(features: Sequence[np.ndarray], tokens: Sequence[np.ndarray], rounds: int = ROUNDS) -> list[np.ndarray]:
    """Token of every frame: features [F D] and tokens [U] (0 between words) of each recording -> [F] int32.

    0 is silence, which may be skipped; every other token takes a frame at least. A recording with fewer frames than
    that, or without a token, has labels of silence alone.
    """
    states = [_states(row) for row in tokens]
    usable = [i for i, row in enumerate(states) if 0 < (row != SILENCE).sum() <= len(features[i])]
    found = [np.zeros(len(x), np.int32) for x in features]
    if not usable:
        return found
    inputs = [_spliced(features[i]) for i in usable]
    for place, i in enumerate(usable):
        found[i] = states[i][np.linspace(0, len(states[i]), len(inputs[place]), endpoint=False).astype(int)]
    classes = 1 + max(int(row.max()) for row in states)
    order = sorted(range(len(usable)), key=lambda place: len(inputs[place]))
    for _ in range(rounds):
        weights, bias = discriminants(inputs, [found[i] for i in usable], classes)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            paths = best_paths([inputs[p] @ weights + bias for p in places], [states[usable[p]] for p in places])
            for p, path in zip(places, paths, strict=True):
                found[usable[p]] = path
    return found


def prepared(log_mel: np.ndarray) -> np.ndarray:
    """Log-mel features [F B] of a recording -> [F B / 4] with zero mean and unit variance, to align by."""
    coarse = log_mel.reshape(len(log_mel), -1, BANDS).mean(axis=2)
    return ((coarse - coarse.mean(axis=0)) / (coarse.std(axis=0) + 1e-3)).astype(np.float32)


def discriminants(
    inputs: Sequence[np.ndarray], labels: Sequence[np.ndarray], classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """(weights [D C], bias [C]): x @ weights + bias is the log likelihood of each class but for a common constant.

    A class without a frame gets the mean of all frames.
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


def best_paths(scores: Sequence[np.ndarray], states: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The token of each frame on the best path: scores [F C], states [S] of each recording; Viterbi, all at once."""
    rows, width = len(scores), max(map(len, states))
    frames, sizes = np.array([len(x) for x in scores]), np.array([len(x) for x in states])
    token = np.zeros((rows, width), np.int64)
    for i, row in enumerate(states):
        token[i, : len(row)] = row
    skippable = np.pad(token == SILENCE, ((0, 0), (1, 0)))[:, :-1]  # the state before may be left out
    given = np.full((rows, frames.max(), scores[0].shape[1]), 0.0, np.float32)
    for i, x in enumerate(scores):
        given[i, : len(x)] = x
    every = np.arange(rows)
    reached = np.full((rows, width), -np.inf)
    reached[:, :2] = given[every[:, None], 0, token[:, :2]]
    came = np.zeros((frames.max(), rows, width), np.int8)  # from how many states before
    last = reached.copy()
    for t in range(1, frames.max()):
        moved = np.full((3, rows, width), -np.inf)
        moved[0], moved[1, :, 1:] = reached, reached[:, :-1]
        moved[2, :, 2:] = np.where(skippable[:, 2:], reached[:, :-2], -np.inf)
        came[t] = moved.argmax(axis=0)
        reached = moved.max(axis=0) + given[every[:, None], t, token]
        last = np.where((t < frames)[:, None], reached, last)
    ends = np.stack([sizes - 2, sizes - 1])
    state = ends[last[every, ends].argmax(axis=0), every]
    path = np.zeros((rows, frames.max()), np.int32)
    for t in range(frames.max() - 1, -1, -1):
        inside = t < frames
        path[:, t] = token[every, state]
        state = np.where(inside, state - came[t, every, state], state)
    return [path[i, :n] for i, n in enumerate(frames)]


def _states(tokens: np.ndarray) -> np.ndarray:
    """The tokens with one optional silence before, between words and after."""
    kept = [SILENCE]
    for token in [*map(int, tokens), SILENCE]:
        if token != SILENCE or kept[-1] != SILENCE:
            kept.append(token)
    return np.array(kept, np.int32)


def _spliced(x: np.ndarray) -> np.ndarray:
    """[F D] -> [F 5 D]: frames with their neighbours; those beyond the ends are the first and the last."""
    place = np.clip(np.arange(len(x))[:, None] + np.array(OFFSETS), 0, len(x) - 1)
    return x[place].reshape(len(x), -1)
