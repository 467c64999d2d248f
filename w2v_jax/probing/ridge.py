"""The linear classifier of a probe, by scikit-learn, and its data: pooling over time, and the validation speakers.

Nothing here knows a model. `measure.py` applies it to frozen features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from w2v_jax.data.index import Index, hash_ids, split_heldout

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

STRENGTHS = tuple(10.0**power for power in range(-4, 5))
"""Ridge penalties to try, in units of the variance of a feature (1) times the number of recordings."""
VALIDATION_SHARE = 0.2


def fit(x: np.ndarray, labels: np.ndarray, strengths: Sequence[float]) -> Iterator[Pipeline]:
    """One classifier of features [N P] per strength: standardised features, then scikit-learn's RidgeClassifier.

    scikit-learn solves the smaller of the normal equations, [P P] or [N N], in the precision of `x`.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    standardised = scaler.transform(x)
    for strength in strengths:
        ridge = RidgeClassifier(alpha=strength * len(x), copy_X=False)
        yield make_pipeline(scaler, ridge.fit(standardised, labels))


def mutual_information(codes: np.ndarray, labels: np.ndarray) -> float:
    """I(code; label) / H(label) of codes [N] and labels [N], which scikit-learn calls homogeneity.

    Differs: 0 instead of 1 where there is one label only.
    """
    from sklearn.metrics import homogeneity_score

    return float(homogeneity_score(labels, codes)) if len(np.unique(labels)) > 1 else 0.0


def pool(frames: np.ndarray, segments: int) -> np.ndarray:
    """[F D] -> [segments * 2 D]: mean and standard deviation of each of `segments` stretches of about equal length."""
    edges = np.linspace(0, len(frames), segments + 1).round().astype(int)
    starts = np.minimum(edges[:-1], len(frames) - 1)
    stretches = [frames[a : max(b, a + 1)] for a, b in zip(starts, edges[1:], strict=True)]
    return np.concatenate([f(stretch, axis=0) for stretch in stretches for f in (np.mean, np.std)])


def validation_rows(index: Index) -> np.ndarray:
    """[N] bool: all recordings of about a fifth of the speakers; with fewer than 5 speakers, a fifth of the recordings.

    A hash of their names chooses them.
    """
    speakers = np.unique(index.speakers)
    if len(speakers) >= 5:
        order = speakers[np.argsort(hash_ids(speakers))]
        return np.isin(index.speakers, order[: max(1, round(VALIDATION_SHARE * len(order)))])
    return np.isin(np.arange(len(index)), split_heldout(index, VALIDATION_SHARE)[1])
