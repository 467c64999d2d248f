"""Batches of noise, as methods that read waveforms are given them."""

from __future__ import annotations

import numpy as np


def wave_batch(lengths, samples: int, weight=None) -> dict[str, np.ndarray]:
    """Rows of `samples` samples with zeros after the given lengths; weight is 1 unless it is given."""
    lengths = np.asarray(lengths, np.int32)
    rows = len(lengths)
    wave = np.random.default_rng(0).normal(size=(rows, samples)) * (np.arange(samples) < lengths[:, None])
    weight = np.ones(rows, np.float32) if weight is None else np.asarray(weight, np.float32)
    return dict(wave=wave.astype(np.float32), num_samples=lengths, weight=weight, row=np.arange(rows, dtype=np.int32))
