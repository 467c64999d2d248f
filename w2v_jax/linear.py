"""A linear classifier in closed form, and what it is given: ridge regression, pooling over time, what is set aside.

NumPy alone; nothing here knows a model. `probing.py` applies it to frozen features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from w2v_jax.data.index import Index, hash_ids, split_heldout

STRENGTHS = tuple(10.0**power for power in range(-4, 5))
"""Ridge penalties that are tried, in units of the mean variance of a feature times the number of recordings."""
VALIDATION_SHARE = 0.2


class Ridge(NamedTuple):
    """Scores = (x - mean) / scale @ weights + bias."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The best label [N] of features [N P]."""
        return (((x - self.mean) / self.scale) @ self.weights + self.bias).argmax(axis=1)


def fit(x: np.ndarray, labels: np.ndarray, classes: int, strengths: Sequence[float]) -> Iterator[Ridge]:
    """Ridge regressions of the one-hot labels on standardised features [N P], one per strength, in closed form.

    One eigendecomposition serves all strengths: of the smaller of the Gram matrices [P P] and [N N].
    """
    x = x.astype(np.float64)
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-8)
    x = (x - mean) / scale
    y = np.eye(classes)[labels]
    bias = y.mean(axis=0)
    y = y - bias
    if x.shape[0] >= x.shape[1]:
        values, vectors = np.linalg.eigh(x.T @ x)
        right = vectors.T @ (x.T @ y)
        solve = lambda penalty: vectors @ (right / (values + penalty)[:, None])
    else:
        values, vectors = np.linalg.eigh(x @ x.T)
        right = vectors.T @ y
        solve = lambda penalty: x.T @ (vectors @ (right / (values + penalty)[:, None]))
    for strength in strengths:
        yield Ridge(mean, scale, solve(strength * len(x)), bias)


def mutual_information(counts: np.ndarray) -> float:
    """I(code; label) / H(label) of joint counts [codes labels]; 0 where there is one label only."""
    joint = counts / counts.sum()
    code, label = joint.sum(axis=1, keepdims=True), joint.sum(axis=0, keepdims=True)
    entropy = -(label[label > 0] * np.log(label[label > 0])).sum()
    seen = joint > 0
    information = (joint[seen] * np.log(joint[seen] / (code * label)[seen])).sum()
    return float(information / entropy) if entropy > 0 else 0.0


def pool(frames: np.ndarray, segments: int) -> np.ndarray:
    """[F D] -> [segments * 2 D]: mean and standard deviation of each of `segments` stretches of about equal length."""
    edges = np.linspace(0, len(frames), segments + 1).round().astype(int)
    starts = np.minimum(edges[:-1], len(frames) - 1)
    pieces = [frames[a : max(b, a + 1)] for a, b in zip(starts, edges[1:], strict=True)]
    return np.concatenate([x for piece in pieces for x in (piece.mean(axis=0), piece.std(axis=0))])


def set_aside(index: Index) -> np.ndarray:
    """[N] bool: about a fifth of the speakers, with all that they said; of the recordings where there are too few."""
    speakers = np.unique(index.speakers)
    if len(speakers) >= 5:
        order = speakers[np.argsort(hash_ids(speakers))]
        return np.isin(index.speakers, order[: max(1, round(VALIDATION_SHARE * len(order)))])
    aside = np.zeros(len(index), bool)
    aside[split_heldout(index, VALIDATION_SHARE)[1]] = True
    return aside
