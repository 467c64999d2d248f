"""From a recording to the records that are stored of it: FLAC, whole or in pieces, and what is known of it.

It is a function of the recording and the options alone, wherever it runs. What is FLAC already, and is neither cut nor
resampled, keeps its bytes. Samples that are integers of up to 24 bits stay what they are, in all channels. All else is
stored as training would read it, mono: what is lossy in 16 bits, and floats in 24.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from w2v_jax.data.index import ReadError, disk_errors
from w2v_jax.data.io.address import opened
from w2v_jax.data.io.audio import AudioFiles, average_channels, is_silent, probe_content, read_frames
from w2v_jax.data.io.containers import PartFile, find_parts
from w2v_jax.data.prepared.cuts import Cut, Piece, piece_row, pieces

EXACT = {"PCM_S8": "PCM_S8", "PCM_U8": "PCM_S8", "PCM_16": "PCM_16", "PCM_24": "PCM_24"}
"""libsndfile's types of samples that FLAC stores as they are, and the type in FLAC."""
FINE = ("PCM_32", "FLOAT", "DOUBLE")
"""Types of samples with more than 16 bits that FLAC rounds to 24."""
FLAC_CHANNELS, FLAC_RATE = 8, 655_350
MOST_BYTES = 1 << 30
"""Of one record. A protocol buffer holds less than twice as much."""
TOO_LONG = "too long for a record: more than 1 GiB of FLAC; cut it with --cut-seconds"
BLOCK_SECONDS = 60


class Options(NamedTuple):
    """How recordings are stored. rate: SAMPLE_RATE, or 0 for that of each; cut: None for whole recordings.

    decode: whether FLAC that keeps its bytes is read to its end first.
    """

    rate: int = 0
    cut: Cut | None = None
    decode: bool = True


class StoredRecord(NamedTuple):
    """A recording or a piece of one, as FLAC. frames: its length in samples at its `rate`."""

    id: str
    audio: bytes
    frames: int
    rate: int
    speaker: str
    transcript: str


class Stored(NamedTuple):
    """The records of a recording.

    is_kept: it has its old bytes. is_silent: nothing can be heard in it. clipped: samples beyond full scale, which
    FLAC does not hold. untold: whether it was cut, and a transcript left out.
    """

    records: list[StoredRecord]
    is_kept: bool
    is_silent: bool
    clipped: int
    untold: bool


def stored(source: AudioFiles, row: int, options: Options) -> Stored:
    """What is stored of a row. Raises ReadError where it cannot be read, or changed after it was listed."""
    index = source.index
    source.check(row)
    parts = pieces(source, row, options.cut)
    level = _Level()
    with opened(index.paths[row]) as (file, channel), _file_of(file) as content:
        is_same_rate = options.rate in (0, int(index.rates[row]))
        encoded, is_kept = None, False
        if is_same_rate and len(parts) == 1 and channel is None and _is_whole(source, row, content):
            encoded, is_kept = [_kept(source, row, content, level=level, decode=options.decode)], True
        elif is_same_rate:
            encoded = _exact(source, row, content, channel=channel, parts=parts, level=level)
        if encoded is None:
            subtype = "PCM_24" if _sample_type(content) in (*FINE, "PCM_24") else "PCM_16"
            encoded = [
                _rounded(_blocks(source, row, file, channel=channel, piece=piece, rate=options.rate), level, subtype)
                for piece in parts
            ]
    source.check(row)
    records = []
    for piece, flac in zip(parts, encoded, strict=True):
        about = piece_row(index, row, piece)
        if len(flac.audio) > MOST_BYTES:
            raise ReadError(TOO_LONG)
        record = StoredRecord(
            about.id,
            flac.audio,
            frames=flac.frames,
            rate=flac.rate,
            speaker=about.speaker,
            transcript=about.transcript,
        )
        records.append(record)
    untold = len(parts) > 1 and bool(index.transcripts[row])
    silent = is_silent(level.low, level.high)
    return Stored(records, is_kept, is_silent=silent, clipped=level.clipped, untold=untold)


class _Flac(NamedTuple):
    audio: bytes
    frames: int
    rate: int


class _Level:
    """The lowest and the highest sample that has passed, and how many were beyond full scale."""

    def __init__(self):
        self.low, self.high, self.clipped = np.inf, -np.inf, 0

    def add(self, wave: np.ndarray) -> None:
        self.low, self.high = min(self.low, wave.min(initial=np.inf)), max(self.high, wave.max(initial=-np.inf))


@contextlib.contextmanager
def _file_of(file: str | BinaryIO) -> Iterator[BinaryIO]:
    """An open file of a path, or of what is open already. Raises ReadError."""
    if not isinstance(file, str):
        yield file
        return
    with disk_errors(), open(file, "rb") as opened_file:
        yield opened_file


def _is_whole(source: AudioFiles, row: int, content: BinaryIO) -> bool:
    """Whether a row is all that there is in a FLAC file."""
    found = find_parts(content)
    content.seek(0)
    if not found.is_whole_file or content.read(4) != b"fLaC" or source.index.offsets[row]:
        return False
    return probe_content(content).frames == source.index.frames[row]


def _kept(source: AudioFiles, row: int, content: BinaryIO, *, level: _Level, decode: bool) -> _Flac:
    """The bytes of a FLAC file. With `decode` it is read to its end first."""
    frames, rate = int(source.index.frames[row]), int(source.index.rates[row])
    content.seek(0)
    audio = content.read(MOST_BYTES + 1)
    if len(audio) > MOST_BYTES:
        raise ReadError(TOO_LONG)
    if decode:
        for start in range(0, frames, BLOCK_SECONDS * rate):
            count = min(BLOCK_SECONDS * rate, frames - start)
            level.add(read_frames(io.BytesIO(audio), start, count, rate=rate, total=frames))
    else:
        level.low, level.high = -1.0, 1.0  # nobody listened
    return _Flac(audio, frames, rate)


def _exact(
    source: AudioFiles, row: int, content: BinaryIO, *, channel: int | None, parts: list[Piece], level: _Level
) -> list[_Flac] | None:
    """The pieces of a row as FLAC of the same samples; None where FLAC cannot hold them, or it is not one recording.

    Raises ReadError.
    """
    import soundfile

    first, *others = find_parts(content).parts
    if others or first.is_mp3:
        return None
    try:
        file = soundfile.SoundFile(PartFile(content, first))  # type: ignore[arg-type]
    except (soundfile.SoundFileError, RuntimeError):
        return None  # FFmpeg has to read it
    with file:
        index, rate = source.index, file.samplerate
        fits = file.channels <= FLAC_CHANNELS and rate <= FLAC_RATE and file.seekable()
        if file.subtype not in EXACT or not fits or rate != index.rates[row]:
            return None
        encoded, subtype = [], EXACT[file.subtype]
        for piece in parts:
            try:
                file.seek(int(index.offsets[row]) + piece.start)
                blocks = _integers(file, piece.stop - piece.start, channel=channel, level=level)
                encoded.append(_encoded(blocks, rate, subtype))
            except (soundfile.SoundFileError, RuntimeError) as error:
                raise ReadError(f"corrupt audio: {getattr(error, 'error_string', error)}") from None
        return encoded


def _integers(file: Any, frames: int, *, channel: int | None, level: _Level) -> Iterator[np.ndarray]:
    """int32 [at most a minute, channels] of the next `frames` samples of an open file. Raises ReadError."""
    left = frames
    while left:
        block = file.read(min(left, BLOCK_SECONDS * file.samplerate), dtype="int32", always_2d=True)
        if not len(block):
            raise ReadError(f"truncated: ends {left} of {frames} samples early")
        block = block if channel is None else block[:, channel : channel + 1]
        level.add(average_channels(block.astype(np.float32)) / 2**31)
        left -= len(block)
        yield block


def _blocks(
    source: AudioFiles, row: int, file: str | BinaryIO, *, channel: int | None, piece: Piece, rate: int
) -> tuple[Iterator[np.ndarray], int]:
    """(float32 blocks [T] of a piece of a row, mono, and their rate): that asked for, or the row's own for 0."""
    own, offset = int(source.index.rates[row]), int(source.index.offsets[row])
    if rate:
        start, stop = piece.start * rate // own, piece.stop * rate // own
        step = BLOCK_SECONDS * rate
        return (source.read(row, at, min(step, stop - at)) for at in range(start, stop, step)), rate
    step = BLOCK_SECONDS * own
    starts = range(piece.start, piece.stop, step)
    read = lambda at, count: read_frames(file, offset + at, count, rate=own, channel=channel)
    return (read(at, min(step, piece.stop - at)) for at in starts), own


def _rounded(wave: tuple[Iterator[np.ndarray], int], level: _Level, subtype: str) -> _Flac:
    """Blocks of floats as FLAC, rounded to its integers. What is beyond full scale is clipped and counted."""
    blocks, rate = wave
    bits = int(subtype[-2:])
    scale = float(1 << bits - 1)

    def integers() -> Iterator[np.ndarray]:
        for block in blocks:
            level.add(block)
            samples = np.rint(block.astype(np.float64) * scale)
            within = np.clip(samples, -scale, scale - 1)
            level.clipped += int((np.abs(samples - within) > 1).sum())  # exactly full scale is one step too many
            yield (within.astype(np.int64) << 32 - bits).astype(np.int32)[:, None]

    return _encoded(integers(), rate, subtype)


def _encoded(blocks: Iterator[np.ndarray], rate: int, subtype: str) -> _Flac:
    """int32 blocks [T channels] as FLAC."""
    import soundfile

    memory, frames = io.BytesIO(), 0
    first = next(blocks, np.zeros((0, 1), np.int32))
    with soundfile.SoundFile(memory, "w", rate, first.shape[-1], subtype, format="FLAC") as file:
        block: np.ndarray | None = first
        while block is not None:
            file.write(block)
            frames += len(block)
            block = next(blocks, None)
    if not frames:
        raise ReadError("no samples")
    return _Flac(memory.getvalue(), frames, rate)


def _sample_type(content: BinaryIO) -> str:
    """libsndfile's type of the samples in a file; "" where it cannot read it."""
    import soundfile

    content.seek(0)
    try:
        return soundfile.info(content).subtype  # type: ignore[arg-type]
    except (soundfile.SoundFileError, RuntimeError):
        return ""
