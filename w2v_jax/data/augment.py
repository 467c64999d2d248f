"""Changes of recordings that make them new each time they are read. What is drawn is decided in `batch_plan.py`."""

from __future__ import annotations

import numpy as np

from w2v_jax.core.units import SAMPLE_RATE


def mixed(
    wave: np.ndarray, other: np.ndarray, *, length: float, start: float, place: float, decibels: float
) -> np.ndarray:
    """The wave [T] with a part of another one [T'] added to it: [T] float32.

    The part has up to half of the wave's samples, and no more than the other one has. length, start, place: shares in
    [0, 1) of that many, and of the last sample in `other` and in the wave where it may begin. Its power is such that
    the mean power of the whole wave is `decibels` above that of the whole other one. A silent one changes nothing.
    (Utterance mixing of UniSpeech-SAT and WavLM, Chen et al. 2021, arXiv 2110.13900.) Differs: there all rows of a
    batch have one length, and a row may be mixed with itself.
    """
    count = int(length * (min(len(wave) // 2, len(other)) + 1))
    first, here = int(start * (len(other) - count + 1)), int(place * (len(wave) - count + 1))
    power, of_other = (np.square(x, dtype=np.float64).mean() for x in (wave, other))
    result = np.array(wave, np.float32)
    if of_other > 0:
        scale = np.sqrt(power / of_other * 10 ** (-decibels / 10))
        result[here : here + count] += np.float32(scale) * other[first : first + count]
    return result


def at_speed(wave: np.ndarray, speed: float) -> np.ndarray:
    """The wave [T] played `speed` times as fast: [T / speed] float32. Its pitch changes with it (Ko et al. 2015)."""
    import soxr

    return soxr.resample(np.asarray(wave, np.float32), SAMPLE_RATE * speed, SAMPLE_RATE, quality="HQ")
