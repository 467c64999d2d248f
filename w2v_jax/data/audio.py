"""Reading recordings from files: headers, crops by seek, any rate and channel count to 16 kHz mono.

The content of a file decides its format, not its name. Nothing here caches or batches.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np

from w2v_jax.config import SAMPLE_RATE
from w2v_jax.data.index import WAVE, Index, ReadError

__all__ = ["AudioFiles", "Header", "ReadError", "probe", "probe_content", "read_frames", "resample_crop"]

MARGIN = 1024
"""16 kHz samples read on both sides of a crop that is resampled (more of rates below 4 kHz)."""

LOSSY_SLACK = 2 * 1152
"""Samples by which an MP3 or OGG file may end before its header says: two frames of the encoder."""

LAST_PAGE_SECONDS = 4
"""The end of an OGG file that is read from its beginning rather than by seek."""

_UNKNOWN_LENGTH = 0x7FFF0000  # what a WAV that was written to a pipe gives as its length


class Header(NamedTuple):
    """What a file says about itself: length and rate in its own samples."""

    frames: int
    rate: int


class AudioFiles:
    """The source of an index whose rows are (segments of) audio files. Opens the file anew at each read."""

    form = WAVE

    def __init__(self, index: Index):
        self.index = index

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """float32 [at most length], mono, 16 kHz, from sample `start` of the row. Raises ReadError."""
        index = self.index
        path, rate = index.paths[row], int(index.rates[row])
        offset, frames = int(index.offsets[row]), int(index.frames[row])
        start = max(0, start)
        length = min(length, int(index.num_samples[row]) - start)
        if length <= 0:
            return np.zeros(0, np.float32)
        if rate == SAMPLE_RATE:
            return read_frames(path, offset + start, length, rate)
        return resample_crop(lambda a, b: read_frames(path, offset + a, b - a, rate), frames, rate, start, length)


def resample_crop(
    read: Callable[[int, int], np.ndarray], frames: int, rate: int, start: int, length: int
) -> np.ndarray:
    """Samples start .. start + length (16 kHz) of the resampled recording, as if all of it had been resampled.

    read(a, b) gives the samples a .. b at `rate`, of `frames`. Reads whole periods of the ratio of the rates, so
    that the crop has the phase of the whole, and a margin on each side that is longer than the filter's reach.
    """
    import soxr

    common = math.gcd(rate, SAMPLE_RATE)
    period_in, period_out = rate // common, SAMPLE_RATE // common
    margin = max(MARGIN, 256 * SAMPLE_RATE // rate)
    first = max(0, start - margin) // period_out
    last = -(-(start + length + margin) // period_out)
    wave = soxr.resample(read(first * period_in, min(last * period_in, frames)), rate, SAMPLE_RATE, quality="HQ")
    begin = start - first * period_out
    return np.ascontiguousarray(wave[begin : begin + length], np.float32)


def read_frames(path: str | BinaryIO, start: int, count: int, rate: int) -> np.ndarray:
    """float32 [count] at the file's own rate, channels averaged, found by seek. Raises ReadError.

    `path` may be the open content of a file instead.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            if file.samplerate != rate:
                raise ReadError(f"changed after listing: {file.samplerate} Hz, the index says {rate} Hz")
            lossy = file.format in ("MP3", "OGG")
            first = min(start, file.frames)
            if file.format == "OGG":  # a seek into the last page of Vorbis lands up to 192 samples off
                first = min(first, max(0, file.frames - LAST_PAGE_SECONDS * rate))
            file.seek(first)
            wave = file.read(start - first + count, dtype="float32", always_2d=True)[start - first :]
    except (soundfile.SoundFileError, OSError, ValueError, RuntimeError) as error:
        raise ReadError(_reason(path, error)) from None
    if count - len(wave) > (LOSSY_SLACK if lossy else 0):
        raise ReadError(f"truncated: ends {count - len(wave)} of {start + count} samples early")
    wave = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1, dtype=np.float32)
    if not np.isfinite(wave).all():
        raise ReadError("NaN or infinite samples")
    return np.ascontiguousarray(wave)


def probe(path: str) -> Header:
    """Length and rate from the header, after a look at the end: a cut file does not pass. Raises ReadError.

    A fault in the middle shows only when that part is read.
    """
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise ReadError("not a regular file" if os.path.exists(path) else "file does not exist")
        with open(path, "rb") as raw:
            if not raw.read(1):
                raise ReadError("empty file")
    except (OSError, ValueError) as error:
        raise ReadError(_reason(path, error)) from None
    return probe_content(path)


def probe_content(path: str | BinaryIO) -> Header:
    """What `probe` does once the file is known to be one; takes open content too. Raises ReadError."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            header = Header(file.frames, file.samplerate)
            if not 0 < header.frames < 1 << 48:
                raise ReadError("no samples, or a header without a length")
            if not 1000 <= header.rate <= 1_000_000:
                raise ReadError(f"sampling rate out of range: {header.rate} Hz")
            _check_end(file)
    except (soundfile.SoundFileError, OSError, ValueError, RuntimeError) as error:
        raise ReadError(_reason(path, error)) from None
    return header


def _check_end(file) -> None:
    import soundfile

    seconds = file.frames / file.samplerate
    declared = re.search(r"\bdata *: (\d+) \(should be (\d+)\)", file.extra_info)  # what libsndfile says of a cut WAV
    if declared:
        said, there = map(int, declared.groups())
        if 0.1 < seconds * (said / max(there, 1) - 1) and said < _UNKNOWN_LENGTH:
            raise ReadError(f"truncated: {seconds:.2f} s are left of {seconds * said / there:.2f} s")
    tail = 2 * LOSSY_SLACK if file.format in ("MP3", "OGG") else 1
    try:
        file.seek(max(0, file.frames - tail))
        found = len(file.read(tail, dtype="float32", always_2d=True))
    except (soundfile.SoundFileError, RuntimeError):
        found = 0
    if not found:
        raise ReadError(f"truncated: the header says {seconds:.2f} s, the end cannot be read")


def _reason(path: str | BinaryIO, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) or (isinstance(path, str) and not os.path.exists(path)):
        return "file does not exist"
    if isinstance(error, OSError):
        return f"unreadable file: {error.strerror or error}"
    text = getattr(error, "error_string", str(error)).replace(str(path), "").strip(" .:'\"")
    kind = "not audio" if "recognised" in text else "corrupt audio"
    return f"{kind}: {text}"
