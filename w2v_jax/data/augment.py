"""Changes of recordings that make them new each time they are read. What is drawn is decided in `batch_plan.py`."""

from __future__ import annotations

import numpy as np

from w2v_jax.core.units import SAMPLE_RATE


def at_speed(wave: np.ndarray, speed: float) -> np.ndarray:
    """The wave [T] played `speed` times as fast: [T / speed] float32. Its pitch changes with it (Ko et al. 2015)."""
    import soxr

    return soxr.resample(np.asarray(wave, np.float32), SAMPLE_RATE * speed, SAMPLE_RATE, quality="HQ")
