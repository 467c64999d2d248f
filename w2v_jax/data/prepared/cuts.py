"""Where long recordings are cut: into equal pieces, or at their quietest moments. Every sample stays in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from w2v_jax.core.progress import ProgressBar
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import Index, ReadError, Row, Skip, Source, make_index
from w2v_jax.data.io.audio import AudioFiles

PLACES = ("silence", "length")
READ_AT_ONCE = 60 * SAMPLE_RATE
FRAME = SAMPLE_RATE // 50
PAUSE_FRAMES = 15
"""Frames of 20 ms over which the level is averaged: a moment is quiet where 0.3 s around it are."""


class Cut(NamedTuple):
    """Pieces of at most `seconds`, which end at a `place` of PLACES."""

    seconds: float
    place: str = "silence"


class Piece(NamedTuple):
    """The samples start .. stop of a row, at its own rate."""

    start: int
    stop: int


def pieces(source: Source, row: int, cut: Cut | None) -> list[Piece]:
    """The pieces of a row in their order: the whole of it where it is short enough. Raises ReadError.

    "length" cuts into equal pieces. "silence" ends each piece at the quietest moment of the second half of the time
    that it may take, and leaves no piece shorter than a quarter of it.
    """
    frames, rate = int(source.index.frames[row]), int(source.index.rates[row])
    if cut is None or frames <= cut.seconds * rate:
        return [Piece(0, frames)]
    if cut.place == "length":
        count = int(np.ceil(frames / (cut.seconds * rate)))
        edges = [number * frames // count for number in range(count + 1)]
    else:
        ends = quiet_moments(_levels(source, row), round(cut.seconds * SAMPLE_RATE) // FRAME)
        edges = [0, *(end * FRAME * rate // SAMPLE_RATE for end in ends), frames]
    return [Piece(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def quiet_moments(levels: np.ndarray, longest: int) -> list[int]:
    """The frames before which frames of some levels [F] are cut, so that no piece has more than `longest`."""
    kernel = np.ones(min(PAUSE_FRAMES, len(levels)))
    around = np.convolve(levels, kernel, mode="same")
    ends, start = [], 0
    while len(levels) - start > longest:
        first = start + max(1, longest // 2)
        last = max(first, min(start + longest, len(levels) - longest // 4))
        start = first + int(around[first : last + 1].argmin())
        ends.append(start)
    return ends


def _levels(source: Source, row: int) -> np.ndarray:
    """The mean square of each frame of 20 ms of a row, float64 [F]. Reads it from its beginning to its end."""
    found = []
    for start in range(0, int(source.index.num_samples[row]), READ_AT_ONCE):
        wave = source.read(row, start, READ_AT_ONCE)
        whole = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)
        found.append(np.square(whole, dtype=np.float64).mean(axis=1))
    return np.concatenate(found)


def piece_row(index: Index, row: int, piece: Piece) -> Row:
    """The row of a piece. A part of a recording is called ID@SECOND, and has no transcript: nobody knows its words."""
    frames, rate = int(index.frames[row]), int(index.rates[row])
    is_part = piece != Piece(0, frames)
    return Row(
        f"{index.ids[row]}@{piece.start / rate:.3f}" if is_part else str(index.ids[row]),
        str(index.paths[row]),
        offset=int(index.offsets[row]) + piece.start,
        frames=piece.stop - piece.start,
        rate=rate,
        speaker=str(index.speakers[row]),
        transcript="" if is_part else str(index.transcripts[row]),
        size=int(index.sizes[row]),
        modified=int(index.modified[row]),
    )


def cut_source(source: Source, cut: Cut, workers: int) -> AudioFiles:
    """The source of the pieces of all recordings, in so many threads. What cannot be read joins the skips."""
    index, skipped, untold = source.index, list(source.index.skipped), 0

    def found(row: int) -> list[Piece] | str:
        try:
            return pieces(source, row, cut)
        except ReadError as error:
            return str(error)

    def rows(progress: ProgressBar) -> Iterator[Row]:
        nonlocal untold
        for row, parts in enumerate(pool.map(found, range(len(index)))):
            progress.add(float(index.durations[row]), is_skipped=isinstance(parts, str))
            if isinstance(parts, str):
                skipped.append(Skip(str(index.paths[row]), parts))
                continue
            untold += len(parts) > 1 and bool(index.transcripts[row])
            yield from (piece_row(index, row, piece) for piece in parts)

    with ThreadPoolExecutor(workers) as pool, ProgressBar("cutting", index.hours) as progress:
        cut_index = make_index(rows(progress), skipped)
    cut_index.notes[:0] = index.notes
    if untold:
        cut_index.notes.append(f"{untold:,} recordings with a transcript were cut; their pieces have none")
    return AudioFiles(cut_index)
