"""Changes of recordings that make them new each time they are read. What is drawn is decided in `draws.py`.

Each keeps the samples where they are in time, so that labels of the clean audio stay right. None clips: floats may pass
full scale.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import ReadError

TELEPHONE_RATE, TELEPHONE_BAND = 8_000, (300.0, 3_400.0)
"""The sampling rate of a telephone and what it lets through, in Hz (ITU-T G.711, G.712)."""


def mixed(
    wave: np.ndarray,
    other: np.ndarray,
    *,
    length: float,
    start: float,
    place: float,
    decibels: float,
    part: tuple[float, float] = (0.0, 0.5),
) -> np.ndarray:
    """The wave [T] with a part of another one [T'] added to it: [T] float32.

    The part covers the shares `part` of the wave, at least and at most, and has no more samples than the other one,
    which is repeated where it is shorter than the least. length, start, place: shares in [0, 1) of what that leaves
    open, and of the last sample in `other` and in the wave where it may begin. Its power is such that the mean power of
    the whole wave is `decibels` above that of the whole other one; above that of the part, where it covers the wave. A
    silent one changes nothing. (Utterance mixing of UniSpeech-SAT and WavLM, Chen et al. 2021, arXiv 2110.13900; NEST,
    Huang et al. 2024, arXiv 2408.13106, with a part of half the wave.) Differs: in WavLM all rows of a batch have one
    length, and a row may be mixed with itself.
    """
    least = int(part[0] * len(wave))
    if len(other) < least:
        other = np.resize(other, least)
    most = min(int(part[1] * len(wave)), len(other))
    count = least + int(length * (most - least + 1))
    first, here = int(start * (len(other) - count + 1)), int(place * (len(wave) - count + 1))
    if count == len(wave):
        first, other = 0, other[first : first + count]
    power, of_other = (np.square(x, dtype=np.float64).mean() for x in (wave, other))
    result = np.array(wave, np.float32)
    if of_other > 0:
        scale = np.sqrt(power / of_other * 10 ** (-decibels / 10))
        result[here : here + count] += np.float32(scale) * other[first : first + count]
    return result


def babble(voices: Sequence[np.ndarray]) -> np.ndarray:
    """Several waves [T_i], made equally loud and repeated to the length of the longest, added: [T] float32.

    One alone stays as it is. Silent ones add nothing.
    """
    if len(voices) == 1:
        return voices[0]
    longest = max(map(len, voices))
    total = np.zeros(longest)
    for voice in voices:
        if power := float(np.square(voice, dtype=np.float64).mean()):
            total += np.resize(voice, longest) / np.sqrt(power)
    return total.astype(np.float32)


def in_room(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The wave [T] as it is heard in the room of an impulse response [T']: [T] float32.

    The largest sample of the response is the direct path: what comes over it stays where it is in time. The mean power
    stays that of the wave. Raises ReadError for a silent response.
    """
    from scipy.signal import oaconvolve

    direct = int(np.argmax(np.abs(response)))
    if not response[direct]:
        raise ReadError("the impulse response is silent")
    heard = oaconvolve(np.asarray(wave, np.float64), np.asarray(response, np.float64))[direct : direct + len(wave)]
    power, of_heard = (np.square(x, dtype=np.float64).mean() for x in (wave, heard))
    return (heard * np.sqrt(power / of_heard if of_heard > 0 else 0.0)).astype(np.float32)


def by_telephone(wave: np.ndarray) -> np.ndarray:
    """The wave [T] as a telephone lets it through, TELEPHONE_BAND at TELEPHONE_RATE: [T] float32.

    The edges of the band lie 6 dB below its middle. The filter runs forward and backward, so that nothing is delayed.
    """
    import soxr
    from scipy.signal import sosfiltfilt

    narrow = soxr.resample(np.asarray(wave, np.float64), SAMPLE_RATE, TELEPHONE_RATE, quality="HQ")
    band = _telephone_filter()
    narrow = sosfiltfilt(band, narrow, padlen=min(3 * (2 * len(band) + 1), max(len(narrow) - 1, 0)))
    wide = soxr.resample(narrow, TELEPHONE_RATE, SAMPLE_RATE, quality="HQ")
    return np.pad(wide, (0, max(0, len(wave) - len(wide))))[: len(wave)].astype(np.float32)


@functools.cache
def _telephone_filter() -> np.ndarray:
    from scipy.signal import butter

    return np.asarray(butter(4, TELEPHONE_BAND, "bandpass", fs=TELEPHONE_RATE, output="sos"))


def louder_by(wave: np.ndarray, decibels: float) -> np.ndarray:
    """The wave [T] with its level raised: [T] float32."""
    return np.asarray(wave, np.float32) * np.float32(10 ** (decibels / 20))


def at_speed(wave: np.ndarray, speed: float) -> np.ndarray:
    """The wave [T] played `speed` times as fast: [T / speed] float32. Its pitch changes with it (Ko et al. 2015)."""
    import soxr

    return soxr.resample(np.asarray(wave, np.float32), SAMPLE_RATE * speed, SAMPLE_RATE, quality="HQ")
