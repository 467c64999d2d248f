"""From candidate files to an index: checks headers in threads, with progress, and keeps the reason of each skip.

Shared by the sources whose audio lies in files. The order of the candidates is the order of the rows.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from w2v_jax.config import UserError
from w2v_jax.data.audio import AudioFiles, Header, probe
from w2v_jax.data.index import ReadError, Row, Skip, make_index, usable

BLOCK = 1024
PROGRESS_SECONDS = 5.0


class Candidate(NamedTuple):
    """A file that should be audio. `offset` and `duration` in seconds choose a segment (None: to the end).

    `frames` is a length that a manifest claims, at the file's rate. The header's is the one that counts, unless
    `rate` is given too: then the file was checked when the manifest was written, and stays closed until it is read.
    """

    id: str
    path: str
    offset: float = 0.0
    duration: float | None = None
    speaker: str = ""
    transcript: str = ""
    frames: int | None = None
    rate: int | None = None


def list_files(
    candidates: Iterable[Candidate], *, where: str, min_seconds: float, workers: int, skipped: list[Skip]
) -> AudioFiles:
    """The source of all candidates that are readable audio of at least `min_seconds`.

    `skipped` may grow while the candidates are drawn; the index takes all of it. Raises UserError when no row is left.
    """
    try:
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except (ImportError, OSError) as error:
        raise UserError(f"reading audio files needs soundfile and soxr ({error}): pip install soundfile soxr") from None
    notes: dict[str, int] = {}
    rows = _rows(candidates, workers or os.cpu_count() or 1, skipped, notes)
    index = make_index(rows)
    index.notes.extend(f"{count:,} x {note}" for note, count in notes.items())
    index.skipped.extend(skipped)
    return AudioFiles(usable(index, where, min_seconds))


def _rows(candidates: Iterable[Candidate], workers: int, skipped: list[Skip], notes: dict[str, int]) -> Iterator[Row]:
    header = functools.lru_cache(maxsize=4 * BLOCK)(_probe)  # many segments of one file: one look
    waiting, progress = iter(candidates), Progress()
    with ThreadPoolExecutor(workers) as pool:
        while block := list(itertools.islice(waiting, BLOCK)):
            headers = pool.map(header, [c.path for c in block if not _is_checked(c)])
            for candidate in block:
                row = _checked(candidate) if _is_checked(candidate) else next(headers)
                if isinstance(row, Header):
                    row = _segment(candidate, row, notes)
                progress.count(row)
                if isinstance(row, str):
                    skipped.append(Skip(candidate.path, row))
                else:
                    yield row
    progress.finish()


def _probe(path: str) -> Header | str:
    try:
        return probe(path)
    except ReadError as error:
        return str(error)


def _is_checked(candidate: Candidate) -> bool:
    return candidate.rate is not None and candidate.frames is not None


def _checked(candidate: Candidate) -> Row:
    rate, frames = candidate.rate or 0, candidate.frames or 0
    offset = round(candidate.offset * rate)
    return Row(candidate.id, candidate.path, offset, frames, rate, candidate.speaker, candidate.transcript)


def _segment(candidate: Candidate, header: Header, notes: dict[str, int]) -> Row | str:
    """The row of a candidate, cut to the file; the reason as text if nothing of it lies in the file."""
    offset = round(candidate.offset * header.rate)
    frames = header.frames - offset
    if frames <= 0:
        return f"segment outside its file: starts at {candidate.offset:g} s of {header.frames / header.rate:.2f} s"
    if candidate.duration is not None:
        wanted = round(candidate.duration * header.rate)
        if wanted > frames + 0.1 * header.rate:
            _note(notes, "a manifest's segment reached past the end of its file and was cut there")
        frames = min(frames, wanted)
        if frames <= 0:
            return f"segment without length: {candidate.duration:g} s from {candidate.offset:g} s"
    if candidate.frames is not None and candidate.frames != header.frames:
        _note(notes, "a manifest's length differs from the file's, which counts")
    return Row(candidate.id, candidate.path, offset, frames, header.rate, candidate.speaker, candidate.transcript)


def _note(notes: dict[str, int], text: str) -> None:
    notes[text] = notes.get(text, 0) + 1


class Progress:
    """A line on stderr every few seconds, for trees that take longer than that to list."""

    def __init__(self):
        self.files = self.skips = 0
        self.seconds = 0.0
        self.next = time.monotonic() + PROGRESS_SECONDS
        self.shown = False

    def count(self, row: Row | str) -> None:
        self.files += 1
        if isinstance(row, str):
            self.skips += 1
        else:
            self.seconds += row.frames / row.rate
        if time.monotonic() > self.next:
            self.next = time.monotonic() + PROGRESS_SECONDS
            self.shown = True
            self._show()

    def finish(self) -> None:
        if self.shown:
            self._show()

    def _show(self) -> None:
        line = f"listing audio: {self.files:,} files, {self.seconds / 3600:,.1f} h, {self.skips:,} skipped"
        print(line, file=sys.stderr, flush=True)
