"""Recordings that are in memory already: arrays at any rate and channel count, read exactly as files of them are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError
from w2v_jax.data.audio import resample_crop
from w2v_jax.data.index import WAVE, Row, make_index

SCALES = {"uint8": (128.0, 128.0), "int16": (0.0, 32768.0), "int32": (0.0, 2147483648.0)}
"""(value of silence, full scale) of the integers that audio files hold."""
MAX_CHANNELS = 64
LOUDEST = 100.0
"""No float recording is as loud: such numbers are integers that were not scaled."""


class Arrays:
    """The source of recordings that `check_wave` let through, all at one rate. They are not copied."""

    form = WAVE

    def __init__(self, waves: Sequence[np.ndarray], rate: int):
        self.waves, self.rate = waves, rate
        self.index = make_index(Row(str(i), f"recording {i}", 0, len(wave), rate) for i, wave in enumerate(waves))

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """float32 [at most length], mono, 16 kHz, from sample `start` of the row."""
        wave, start = self.waves[row], max(0, start)
        length = min(length, int(self.index.num_samples[row]) - start)
        if length <= 0:
            return np.zeros(0, np.float32)
        if self.rate == SAMPLE_RATE:
            return mono(wave[start : start + length])
        return resample_crop(lambda a, b: mono(wave[a:b]), len(wave), self.rate, start, length)


def mono(wave: np.ndarray) -> np.ndarray:
    """float32 [T] of [T] or [T, channels], channels averaged; integers become floats as in an audio file."""
    if wave.dtype.name in SCALES:
        silence, full = SCALES[wave.dtype.name]
        wave = (wave.astype(np.float32) - np.float32(silence)) / np.float32(full)
    wave = wave.astype(np.float32)
    if wave.ndim == 2:
        wave = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1, dtype=np.float32)
    return np.ascontiguousarray(wave)


def check_rate(rate: Any) -> int:
    """A sampling rate in Hz. Raises UserError for what is none, and when resampling is needed and soxr is missing."""
    try:
        number = float(rate)
    except (TypeError, ValueError):
        raise UserError(f"rate={rate!r}: needs the sampling rate of the recording in Hz, such as 16000") from None
    if not (math.isfinite(number) and number == int(number) and 1000 <= number <= 1_000_000):
        raise UserError(f"rate={rate!r}: needs whole Hz from 1000 to 1000000, such as 16000 (not kHz)")
    if number != SAMPLE_RATE:
        try:
            import soxr  # noqa: F401
        except (ImportError, OSError) as error:
            raise UserError(
                f"rate={rate}: resampling to {SAMPLE_RATE} Hz needs soxr ({error}): pip install soxr"
            ) from None
    return int(number)


def check_wave(wave: Any, name: str) -> np.ndarray:
    """The recording as an array [T] or [T, channels] of floats or of SCALES's integers. Raises UserError."""
    wave = np.asarray(wave)
    shape = "x".join(map(str, wave.shape))
    if wave.ndim not in (1, 2):
        raise UserError(
            f"{name} has shape [{shape}]: a recording is [samples] or [samples, channels], a batch is a list"
        )
    if not wave.size:
        raise UserError(f"{name} is empty (shape [{shape}])")
    if wave.ndim == 2 and (wave.shape[1] > wave.shape[0] or wave.shape[1] > MAX_CHANNELS):
        raise UserError(
            f"{name} has shape [{shape}], which would be {wave.shape[1]} channels: give [samples, channels], that is "
            f"{name}.T, or list({name}) for a batch of {wave.shape[0]} recordings"
        )
    if wave.dtype.kind != "f" and wave.dtype.name not in SCALES:
        raise UserError(
            f"{name} is {wave.dtype}: needs floats from -1 to 1, or {', '.join(SCALES)} as audio files hold"
        )
    if wave.dtype.kind == "f":
        _check_floats(wave, name)
    return wave


def _check_floats(wave: np.ndarray, name: str) -> None:
    finite = np.isfinite(wave)
    if not finite.all():
        place = tuple(int(i) for i in np.unravel_index(np.argmin(finite), wave.shape))
        raise UserError(f"{name} has {(~finite).sum():,} samples that are NaN or infinite, the first at {place}")
    loudest = max(abs(float(wave.min())), abs(float(wave.max())))
    if loudest > LOUDEST:
        raise UserError(
            f"{name} is {wave.dtype} and reaches {loudest:.6g}; floats go from -1 to 1: divide by the full scale "
            "(32768 for 16 bits), or give the integers"
        )
