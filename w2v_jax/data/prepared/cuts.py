"""Where long recordings are cut: into equal pieces, or at their quietest moments. Every sample stays in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import Index, Row, Source

PLACES = ("silence", "length")
READ_AT_ONCE = 60 * SAMPLE_RATE
"""A whole number of frames."""
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
    """`pieces_of` a row, which is read to its end where its levels decide. Raises ReadError."""
    needs_levels = is_cut_by_level(source.index, row, cut)
    levels = np.concatenate([levels_of(wave) for wave in blocks_of(source, row)]) if needs_levels else None
    return pieces_of(source.index, row, cut, levels=levels)


def pieces_of(index: Index, row: int, cut: Cut | None, *, levels: np.ndarray | None) -> list[Piece]:
    """The pieces of a row in their order: the whole of it where it is short enough.

    "length" cuts into equal pieces. "silence" ends each piece at the quietest moment of the second half of the time
    that it may take, and leaves no piece shorter than a quarter of it; it needs the levels [F] of the row.
    """
    frames, rate = int(index.frames[row]), int(index.rates[row])
    if cut is None or frames <= cut.seconds * rate:
        return [Piece(0, frames)]
    if levels is None:
        count = int(np.ceil(frames / (cut.seconds * rate)))
        edges = [number * frames // count for number in range(count + 1)]
    else:
        ends = quiet_moments(levels, round(cut.seconds * SAMPLE_RATE) // FRAME)
        edges = [0, *(end * FRAME * rate // SAMPLE_RATE for end in ends), frames]
    return [Piece(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def is_cut_by_level(index: Index, row: int, cut: Cut | None) -> bool:
    """Whether the levels of a row decide where it is cut."""
    return cut is not None and cut.place == "silence" and index.frames[row] > cut.seconds * index.rates[row]


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


def blocks_of(source: Source, row: int) -> Iterator[np.ndarray]:
    """A row from its beginning to its end, in blocks of a minute. Raises ReadError."""
    for start in range(0, int(source.index.num_samples[row]), READ_AT_ONCE):
        yield source.read(row, start, READ_AT_ONCE)


def levels_of(wave: np.ndarray) -> np.ndarray:
    """The mean square of each whole frame of 20 ms of some samples, float64 [F]."""
    whole = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)
    return np.square(whole, dtype=np.float64).mean(axis=1)


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
