"""Recordings in memory: arrays at any rate and channel count. They give the same samples as files of them would."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError, needing
from w2v_jax.core.display import short_repr
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import WAVE, ReadError, Row, make_index
from w2v_jax.data.io.audio import MAX_LEVEL, average_channels, check_channels, read_crop
from w2v_jax.data.io.decoders import INTEGER_SCALES, scaled

MAX_CHANNELS = 64


class Arrays:
    """The source of recordings that `check_wave` accepted, all at one rate. It does not copy them."""

    form = WAVE

    __repr__ = short_repr

    def __init__(self, waves: Sequence[np.ndarray], rate: int):
        self.waves = waves
        self.index = make_index(
            Row(str(i), f"recording {i}", offset=0, frames=len(wave), rate=rate) for i, wave in enumerate(waves)
        )

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """float32 [at most length], mono, 16 kHz, from sample `start` of the row."""
        wave = self.waves[row]
        read = lambda first, last: mono(wave[first:last])
        return read_crop(self.index, row, start=start, length=length, read=read)


def mono(wave: np.ndarray) -> np.ndarray:
    """float32 [T] of [T] or [T, channels]: as a file of them is read."""
    return np.ascontiguousarray(average_channels(scaled(wave)))


def check_rate(rate: Any) -> int:
    """The sampling rate in Hz. Raises UserError for an invalid rate, and where it needs soxr, which is missing."""
    try:
        number = float(rate)
    except (TypeError, ValueError):
        raise UserError(f"rate={rate!r} must be the sampling rate of the recording in Hz, such as 16000") from None
    if not (math.isfinite(number) and number == int(number) and 1000 <= number <= 1_000_000):
        raise UserError(f"rate={rate!r} must be a whole number of Hz from 1000 to 1000000, such as 16000 (not kHz)")
    if number != SAMPLE_RATE:
        with needing(f"rate={rate}: resampling to {SAMPLE_RATE} Hz needs soxr ({{error}}): pip install soxr", OSError):
            import soxr  # noqa: F401
    return int(number)


def check_wave(wave: Any, name: str) -> np.ndarray:
    """The recording as an array [T] or [T, channels] of floats or of a type in INTEGER_SCALES. Raises UserError."""
    wave = np.asarray(wave)
    shape = "x".join(map(str, wave.shape))
    if wave.ndim not in (1, 2):
        raise UserError(
            f"{name} has shape [{shape}]; a recording is [samples] or [samples, channels], a batch is a list"
        )
    if not wave.size:
        raise UserError(f"{name} is empty (shape [{shape}])")
    if wave.ndim == 2 and (wave.shape[1] > wave.shape[0] or wave.shape[1] > MAX_CHANNELS):
        raise UserError(
            f"{name} has shape [{shape}], which would be {wave.shape[1]} channels; give [samples, channels], that is "
            f"{name}.T, or list({name}) for a batch of {wave.shape[0]} recordings"
        )
    if wave.dtype.kind != "f" and wave.dtype.name not in INTEGER_SCALES:
        raise UserError(
            f"{name} has type {wave.dtype}; give floats from -1 to 1, or {', '.join(INTEGER_SCALES)} as in audio files"
        )
    if wave.dtype.kind == "f":
        _check_floats(wave, name)
    try:
        check_channels(scaled(wave))
    except ReadError as error:
        raise UserError(f"{name}: {error}") from None
    return wave


def _check_floats(wave: np.ndarray, name: str) -> None:
    finite = np.isfinite(wave)
    if not finite.all():
        position = tuple(int(i) for i in np.unravel_index(np.argmin(finite), wave.shape))
        raise UserError(f"{name} has {(~finite).sum():,} samples that are NaN or infinite, the first at {position}")
    level = max(abs(float(wave.min())), abs(float(wave.max())))
    if level > MAX_LEVEL:
        raise UserError(
            f"{name} has type {wave.dtype} and reaches {level:.6g}; floats must lie between -1 and 1: divide by the "
            "full scale (32768 for 16 bits), or give the integers"
        )
