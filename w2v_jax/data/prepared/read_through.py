"""Reads recordings to their ends, once: what cannot be decoded, what is silent, and where long ones are cut.

What was read is noted beside the listing (`kept/listings.py`), so that the same command goes on where it was stopped.
The note is removed at the end, and the next command reads all recordings again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from w2v_jax.core.cli import some_of
from w2v_jax.core.progress import ProgressBar
from w2v_jax.data.index import UNKNOWN, WAVE, Index, ReadError, Row, Skip, Source, TooFew, make_index, subset
from w2v_jax.data.io.audio import AudioFiles, is_silent
from w2v_jax.data.kept.headers import Measured
from w2v_jax.data.kept.listings import KeptListing
from w2v_jax.data.prepared.cuts import Cut, Piece, blocks_of, is_cut_by_level, levels_of, piece_row, pieces_of

NOTED_HOURS = 10.0
"""Audio after which a note is made of what was read: some ten seconds of work."""
SILENT_NAMED = 10  # of the recordings that are silent throughout


class Heard(NamedTuple):
    """What reading a recording to its end has shown: why it cannot be read, its pieces, and whether it is silent.

    is_known: an earlier start has read it.
    """

    error: str = ""
    pieces: Sequence[Piece] = ()
    is_silent: bool = False
    is_known: bool = False


class Notes:
    """What earlier starts of the same command have read, and what this one has. None of it is silent.

    source: the name of the source of the recordings. options: all else that decides what is found.
    """

    def __init__(self, source: str, roots: Sequence[str], options: str):
        self._kept = KeptListing(f"{source}-read", roots, options)
        self._kept.start(reads_headers=True)
        self._new: list[Measured] = []
        self._hours = 0.0

    @property
    def is_begun(self) -> bool:
        """Whether an earlier start has read anything."""
        return self._kept.knows_any

    def find(self, index: Index, row: int) -> Heard | None:
        """What an earlier start has found of a row, if its file is still the same."""
        state = _state(index, row)
        found: list[Piece] = []
        while state is not None and (not found or found[-1].stop < index.frames[row]):
            if (known := self._kept.find(_key(index, row, len(found)), *state)) is None:
                return None
            found.append(Piece(found[-1].stop if found else 0, known.frames))
        return Heard(pieces=found, is_known=True) if found else None

    def add(self, index: Index, row: int, heard: Heard) -> None:
        """Notes what was found of a row. Bad and silent ones are read again, which says so again."""
        state = _state(index, row)
        if state is None or heard.is_known or heard.error or heard.is_silent:
            return
        rate = int(index.rates[row])
        for number, piece in enumerate(heard.pieces):
            self._new.append(Measured(_key(index, row, number), *state, frames=piece.stop, rate=rate))
        self._hours += float(index.durations[row]) / 3600
        if self._hours >= NOTED_HOURS:
            self._kept.add(self._new)
            self._new, self._hours = [], 0.0

    def end(self) -> None:
        """Forgets everything, for all is done."""
        self._kept.remove_headers()

    def close(self) -> None:
        """Lets other processes make notes."""
        self._kept.close()


def read_through(source: Source, *, cut: Cut | None, decode: bool, workers: int, notes: Notes) -> tuple[Source, int]:
    """(the source of what can be read, of how many recordings): whole ones, or their pieces where `cut` says how.

    With `decode` every recording is read to its end; otherwise those alone that are cut by their levels. `workers` are
    threads. What cannot be read joins the skips, and silent ones are named in the notes of the index. Raises TooFew
    where nothing can be read.
    """
    index = source.index
    if not decode and cut is None:
        return source, len(index)
    find = functools.partial(_heard, source, cut=cut, decode=decode, notes=notes)
    heard: list[Heard] = []
    with ThreadPoolExecutor(workers) as pool, ProgressBar("reading audio", index.hours) as progress:
        for row, one in enumerate(pool.map(find, range(len(index)))):
            progress.add(float(index.durations[row]), is_new=not one.is_known, is_skipped=bool(one.error))
            notes.add(index, row, one)
            heard.append(one if cut else one._replace(pieces=()))
    notes.end()
    index.skipped.extend(Skip(str(index.paths[row]), one.error) for row, one in enumerate(heard) if one.error)
    silent = [str(index.paths[row]) for row, one in enumerate(heard) if one.is_silent]
    if silent:
        names = some_of(silent, SILENT_NAMED)
        index.notes.append(f"{len(silent):,} x silent throughout, and used all the same: {names}")
    readable = np.flatnonzero([not one.error for one in heard])
    if not len(readable):
        raise TooFew(
            f"none of the {len(index):,} recordings can be decoded: repair or replace the files that are skipped, or "
            "choose other data",
            index.skipped,
        )
    if cut is None:
        return subset(source, readable), len(readable)
    untold = sum(len(heard[row].pieces) > 1 and bool(index.transcripts[row]) for row in readable)
    cut_index = make_index(_piece_rows(index, heard), index.skipped)
    cut_index.notes[:0] = index.notes
    if untold:
        cut_index.notes.append(f"{untold:,} recordings with a transcript were cut; their pieces have none")
    return AudioFiles(cut_index), len(readable)


def _heard(source: Source, row: int, *, cut: Cut | None, decode: bool, notes: Notes) -> Heard:
    if (known := notes.find(source.index, row)) is not None:
        return known
    low, high, levels = np.inf, -np.inf, []
    needs_levels = is_cut_by_level(source.index, row, cut)
    try:
        for wave in blocks_of(source, row) if decode or needs_levels else ():
            low, high = min(low, wave.min(initial=np.inf)), max(high, wave.max(initial=-np.inf))
            if needs_levels:
                levels.append(levels_of(wave))
    except ReadError as error:
        return Heard(str(error))
    pieces = pieces_of(source.index, row, cut, levels=np.concatenate(levels) if needs_levels else None)
    return Heard(pieces=pieces, is_silent=decode and source.form == WAVE and is_silent(low, high))


def _piece_rows(index: Index, heard: Sequence[Heard]) -> Iterator[Row]:
    for row, one in enumerate(heard):
        yield from (piece_row(index, row, piece) for piece in one.pieces)


def _key(index: Index, row: int, number: int) -> str:
    """The name of a piece of a row in the notes."""
    return f"{index.paths[row]} {index.offsets[row]}+{index.frames[row]} {number}"


def _state(index: Index, row: int) -> tuple[int, int] | None:
    """The state that the file of a row had when it was listed; None where nobody looked."""
    state = int(index.sizes[row]), int(index.modified[row])
    return None if state == (UNKNOWN, UNKNOWN) else state
