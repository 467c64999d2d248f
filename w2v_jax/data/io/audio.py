"""Reads recordings from files: their lengths, crops of them, and any rate and channel count as 16 kHz mono.

The content of a file decides its format and its length; its name and its header do not. `containers.py` finds the
recordings in a file and `decoders.py` decodes them.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from w2v_jax.core.cli import os_error_text
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import present_state_of
from w2v_jax.core.stores import StoreFile, is_remote
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import UNKNOWN, WAVE, Index, ReadError, disk_errors
from w2v_jax.data.io.address import file_of, opened
from w2v_jax.data.io.containers import Part, Parts, find_parts
from w2v_jax.data.io.decoders import NAMES, Decoder, open_decoder, open_first, reason_of

MARGIN = 1024
"""16 kHz samples to read on both sides of a crop that is resampled (more for rates below 4 kHz)."""

FILES_KEPT = 1 << 14
"""Files whose recordings and lengths are remembered."""

MAX_LEVEL = 100.0
"""Float samples beyond this level are integers that were not scaled."""

SILENT = 1e-4
"""Audio that never leaves this level (-80 dB of full scale), on either side of a constant, is silent."""

CANCELLED = 1 / 32
"""Channels whose mean has less than this share of their level cancel: one is the other one with its sign changed."""

JUDGED_SECONDS = 20
"""The first seconds of a recording of several channels, which decide whether they cancel. No crop decides it."""


class Header(NamedTuple):
    """The length of a file in its own samples, its sampling rate in Hz, and what a person should know ("": nothing)."""

    frames: int
    rate: int
    note: str = ""


class AudioFiles:
    """The source of an index whose rows are audio files or segments of them. Opens the file anew at each read.

    A file may also be a part of another one: paths are addresses (`address.py`). `on_change` is called where a file is
    not the one that was listed.
    """

    form = WAVE

    __repr__ = short_repr

    def __init__(self, index: Index, on_change: Callable[[], None] = lambda: None):
        self.index, self._on_change = index, on_change

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """float32 [at most length], mono, 16 kHz, from sample `start` of the row. Raises ReadError."""
        rate, offset = int(self.index.rates[row]), int(self.index.offsets[row])
        total = int(self.index.frames[row]) if not offset else None
        try:
            listed = self._listed(row)
            state = listed if listed is not None and listed[1] != UNKNOWN else None
            with opened(self.index.paths[row], state, is_decoded=True) as (file, channel):
                about: Any = dict(rate=rate, channel=channel, total=total)
                read = lambda first, last: read_frames(file, offset + first, last - first, **about)
                wave = read_crop(self.index, row, start=start, length=length, read=read)
        except ReadError as error:
            self.check(row, f" ({error})")
            raise
        self.check(row)
        return wave

    def check(self, row: int, reason: str = "") -> None:
        """Raises ReadError where size or time of the file of a row are not those of the listing.

        `reason` says why it could not be read.
        """
        path, listed = self.index.paths[row], self._listed(row)
        if listed is None:
            return
        with disk_errors():
            now = present_state_of(file_of(path))
        is_dated = listed[1] != UNKNOWN
        if now == listed or (not is_dated and now is not None and now[0] == listed[0]):
            return
        self._on_change()
        told = (lambda _: "") if not is_dated else _version if is_remote(path) else _date
        before, after = (f"{state[0]:,} bytes{told(state[1])}" if state else "none" for state in (listed, now))
        remedy = "the next start lists it anew" if is_dated else "write its manifest anew (prepare --out)"
        raise ReadError(f"changed after listing: {before} then, {after} now{reason}; {remedy}")

    def _listed(self, row: int) -> tuple[int, int] | None:
        """The state of the file of a row when it was listed (its time may be UNKNOWN); None where nobody looked."""
        listed = int(self.index.sizes[row]), int(self.index.modified[row])
        return None if listed == (UNKNOWN, UNKNOWN) else listed


def read_crop(index: Index, row: int, *, start: int, length: int, read: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """float32 [at most length], mono, 16 kHz, from sample `start` (16 kHz) of the row.

    `read(first, last)` returns the samples first .. last of the row at its own rate, mono.
    """
    start = max(0, start)
    length = min(length, int(index.num_samples[row]) - start)
    if length <= 0:
        return np.zeros(0, np.float32)
    rate = int(index.rates[row])
    if rate == SAMPLE_RATE:
        return read(start, start + length)
    return _resample_crop(read, int(index.frames[row]), rate, start=start, length=length)


def _resample_crop(
    read: Callable[[int, int], np.ndarray], frames: int, rate: int, *, start: int, length: int
) -> np.ndarray:
    """Samples start .. start + length (16 kHz) of the resampled recording, as if all of it had been resampled.

    `read(first, last)` returns the samples first .. last at `rate`; there are `frames`. The function reads whole
    periods of the ratio of the rates, so that the phase is that of the whole recording. It reads a margin on each side
    that is longer than the filter.
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


def read_frames(
    path: str | BinaryIO,
    start: int,
    count: int,
    *,
    rate: int,
    channel: int | None = None,
    total: int | None = None,
) -> np.ndarray:
    """float32 [count] from sample `start` of a file, at its own rate, of a channel or all averaged. Raises ReadError.

    `path` may be an open file instead. Recordings that were joined in one file follow one another. total: the samples
    of all of them, if they are known; the file is then read without a search for more than one.
    """
    with _reasons(path):
        wave = _read_first(path, start, count, rate=rate, channel=channel, total=total)
        if wave is None:
            wave = _read_parts(path, start, count, rate=rate, channel=channel)
            check_samples(wave)
    return np.ascontiguousarray(wave)


def _read_first(
    path: str | BinaryIO, start: int, count: int, *, rate: int, channel: int | None, total: int | None
) -> np.ndarray | None:
    """The samples of a file, if the recording that it begins with has them all; None where a closer look is needed.

    It spares most files the search for further recordings, which costs as much as decoding a second.
    """
    if start and total is None:
        return None
    if (decoder := open_first(path, total if start else None)) is None:
        return None
    with contextlib.closing(decoder), contextlib.suppress(RuntimeError, OSError, ValueError):  # of libsndfile
        if decoder.rate == rate and (channel or 0) < decoder.channels:
            wave = decoder.read(start, count)
            if len(wave) == count:
                wave = _mono(wave, channel)
                if not decoder.is_bounded:
                    check_samples(wave)
                return wave
    return None


def _read_parts(path: str | BinaryIO, start: int, count: int, *, rate: int, channel: int | None) -> np.ndarray:
    """The samples of a file that may consist of several recordings. Raises ReadError."""
    pieces, position, slack = [], 0, 0
    recordings = _find(path)
    for part in recordings.parts:
        stop = (
            position + _measure(path, recordings, part, channel=channel).frames
            if part != recordings.parts[-1]
            else start + count
        )
        first, last = max(start, position), min(start + count, stop)
        if first < last:
            with _decoder(path, recordings, part) as decoder:
                if decoder.rate != rate:
                    raise ReadError(f"changed after listing: {decoder.rate} Hz, and the index has {rate} Hz")
                _check_channel(channel, decoder.channels)
                pieces.append(_mono(decoder.read(first - position, last - first), channel))
                slack += decoder.slack
        position = stop
    wave = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    if count - len(wave) > slack:
        raise ReadError(f"truncated: ends {count - len(wave)} of {start + count} samples early")
    return wave


def _mono(wave: np.ndarray, channel: int | None) -> np.ndarray:
    """float32 [T] of float32 [T channels]: one channel, or all averaged."""
    return average_channels(wave if channel is None else wave[:, channel])


def average_channels(wave: np.ndarray) -> np.ndarray:
    """float32 [T] of float32 [T channels] or [T]."""
    if wave.ndim == 1:
        return wave
    return wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1, dtype=np.float32)


def _check_channel(channel: int | None, channels: int) -> None:
    """Raises ReadError where a file with so many channels lacks the one to take."""
    if channel is not None and channel >= channels:
        raise ReadError(f"no channel {channel}: the file has {channels}, counted from 0")


def check_channels(wave: np.ndarray) -> None:
    """Raises ReadError where the channels of float32 [T channels] cancel when they are averaged."""
    if wave.ndim == 2 and wave.shape[1] > 1 and len(wave):
        moving = wave - wave.mean(axis=0)  # a constant is no sound
        if SILENT < level(moving) and level(moving.mean(axis=1)) < CANCELLED * level(moving):
            raise ReadError("channels cancel when they are averaged: write one of them to a file of its own")


def level(wave: np.ndarray) -> float:
    """The root of the mean square of samples."""
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def check_samples(wave: np.ndarray) -> None:
    """Raises ReadError for NaN and infinite samples, and for floats on the scale of integers."""
    low, high = check_finite(wave)
    if (peak := max(-low, high)) > MAX_LEVEL:
        raise ReadError(f"float samples on the scale of integers: they reach {peak:.6g} and must lie between -1 and 1")


def is_silent(low: float, high: float) -> bool:
    """Whether audio whose lowest and highest samples are `low` and `high` is silent."""
    return high - low < 2 * SILENT


def check_finite(content: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest of some numbers (0 and 0 of none). Raises ReadError for NaN and infinite ones."""
    if not content.size:
        return 0.0, 0.0
    low, high = float(content.min()), float(content.max())  # both are NaN where a number is
    if not math.isfinite(low) or not math.isfinite(high):
        raise ReadError("NaN or infinite samples")
    return low, high


def probe(path: str) -> Header:
    """The length of what is at an address, and the rate. Files that were cut raise ReadError.

    Damage in the middle shows only when that part is read.
    """
    with opened(path) as (file, channel):
        if isinstance(file, str) and not os.path.isfile(file):  # opening a pipe would block for ever
            raise ReadError("not a regular file" if os.path.exists(file) else "file does not exist")
        return probe_content(file, channel)


def probe_content(path: str | BinaryIO, channel: int | None = None) -> Header:
    """Does what `probe` does for a regular file; `path` may be an open file instead. Raises ReadError."""
    with _reasons(path):
        recordings = _find(path)
        headers = [_measure(path, recordings, part, channel=channel) for part in recordings.parts]
    frames, rates = sum(header.frames for header in headers), sorted({header.rate for header in headers})
    if len(rates) > 1:
        raise ReadError(f"recordings of {' and '.join(map(str, rates))} Hz in one file: write a file of each")
    rate = rates[0]
    if not frames:
        raise ReadError("no samples, or a header without a length")
    if not 1000 <= rate <= 1_000_000:
        raise ReadError(f"sampling rate out of range: {rate} Hz")
    return Header(frames, rate, recordings.note)


@contextlib.contextmanager
def _reasons(path: str | BinaryIO) -> Iterator[None]:
    """Errors of decoders and of the disk as ReadError."""
    import soundfile

    try:
        yield
    except (soundfile.SoundFileError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, FileNotFoundError) or (isinstance(path, str) and not os.path.exists(path)):
            raise ReadError("file does not exist") from None
        if isinstance(error, OSError):
            raise ReadError(f"unreadable file: {os_error_text(error)}") from None
        raise ReadError(reason_of(error)) from None


@contextlib.contextmanager
def _decoder(path: str | BinaryIO, recordings: Parts, part: Part) -> Iterator[Decoder]:
    """The decoder of a part of a file."""
    with _file(path) as file:
        name = path if isinstance(path, str) and recordings.is_whole_file and path.lower().endswith(NAMES) else None
        with contextlib.closing(open_decoder(file, part, name)) as decoder:
            yield decoder


def _file(path: str | BinaryIO) -> contextlib.AbstractContextManager[BinaryIO]:
    return open(path, "rb") if isinstance(path, str) else contextlib.nullcontext(path)


def _find(path: str | BinaryIO) -> Parts:
    """The recordings in a file. Those of a path and of an object are kept until it changes."""
    return _find_in(path, _state(path)) if isinstance(path, (str, StoreFile)) else find_parts(path)


def _measure(path: str | BinaryIO, recordings: Parts, part: Part, *, channel: int | None) -> Header:
    """The header of a part. Those of a path and of an object are kept until it changes."""
    if isinstance(path, (str, StoreFile)):
        return _measure_in(path, recordings, part, channel=channel, state=_state(path))
    return _decode_header(path, recordings, part, channel=channel)


def _decode_header(path: str | BinaryIO, recordings: Parts, part: Part, *, channel: int | None) -> Header:
    with _decoder(path, recordings, part) as decoder:
        header, channels = Header(decoder.length(), decoder.rate), decoder.channels
    _check_channel(channel, channels)
    if channels > 1 and channel is None:
        with _decoder(path, recordings, part) as decoder:
            check_channels(decoder.read(0, min(header.frames, JUDGED_SECONDS * header.rate)))
    return header


def _state(path: str | BinaryIO) -> tuple[int, ...]:
    """Size and time of change of what is at a path. An object in a store is equal to one of the same version alone."""
    if not isinstance(path, str):
        return ()
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(FILES_KEPT)
def _find_in(path: Any, state: tuple[int, ...]) -> Parts:
    with _file(path) as file:
        return find_parts(file)


@functools.lru_cache(FILES_KEPT)
def _measure_in(path: Any, recordings: Parts, part: Part, *, channel: int | None, state: tuple[int, ...]) -> Header:
    return _decode_header(path, recordings, part, channel=channel)


def _date(modified: int) -> str:
    return f" of {datetime.datetime.fromtimestamp(modified / 1e9).isoformat(' ', 'microseconds')}"


def _version(modified: int) -> str:
    return f" of version {modified:016x}"
