"""From candidate files to an index: checks headers in threads, shows progress, and records why files are skipped.

All sources of audio files use it. The order of the candidates is the order of the rows.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from w2v_jax.core.cli import UserError, os_error_text
from w2v_jax.core.progress import ProgressBar
from w2v_jax.core.text import numbered_lines
from w2v_jax.data.index import ReadError, Row, Skip, make_index, usable
from w2v_jax.data.io.audio import AudioFiles, Header, probe

SURROGATES = "[\ud800-\udfff]"
"""A regular expression of what is not a character, e.g. the bytes of a file name that is not UTF-8."""

CANDIDATES_AT_ONCE = 1024
"""Candidates whose headers are checked before the first of them becomes a row."""


Notes = defaultdict[str, list[str]]
"""The paths of the files about which there is the same thing to say."""


class Candidate(NamedTuple):
    """A file that should be audio. `offset` and `duration` in seconds choose a segment (None: to the end).

    `frames` is the length in the manifest, at the file's rate. The length in the file's header replaces it, unless
    `rate` is given as well. Then `prepare` checked the file when it wrote the manifest, and listing does not open it.
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

    `where` names the data in messages. `workers` are threads (0: one per core). `skipped` may grow while `candidates`
    is iterated; the index takes all of it. Raises UserError where no row remains.
    """
    try:
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except (ImportError, OSError) as error:
        packages = "pip install soundfile soxr"
        raise UserError(f"reading audio files needs soundfile and soxr ({error}): {packages}") from None
    notes: Notes = defaultdict(list)
    results = _rows(candidates, workers or os.cpu_count() or 1, notes)
    index = make_index(usable_rows(results, skipped), skipped)
    index.notes.extend(f"{len(paths):,} x {note}; first: {paths[0]}" for note, paths in notes.items())
    return AudioFiles(usable(index, where, min_seconds))


def list_parts(
    data, parts: Iterable[Iterable[Candidate]], *, where: Iterable[object], skipped: list[Skip]
) -> AudioFiles:
    """`list_files` of the candidates of several folders, files or lists. Uses data.min_seconds and data.workers.

    where: the paths that name the data in messages.
    """
    return list_files(
        itertools.chain.from_iterable(parts),
        where=", ".join(map(str, where)),
        min_seconds=data.min_seconds,
        workers=data.workers,
        skipped=skipped,
    )


def _rows(candidates: Iterable[Candidate], workers: int, notes: Notes) -> Iterator[tuple[str, Row | str]]:
    """(path, row) of each candidate; the reason as text in place of the row where there is none."""
    cached_probe = functools.lru_cache(maxsize=4 * CANDIDATES_AT_ONCE)(_probe)  # opens a file of many segments once
    remaining = iter(candidates)
    with ThreadPoolExecutor(workers) as pool:
        while block := list(itertools.islice(remaining, CANDIDATES_AT_ONCE)):
            headers = pool.map(cached_probe, [c.path for c in block if not _is_checked(c)])
            for candidate in block:
                if _is_checked(candidate):
                    yield candidate.path, _checked_row(candidate)
                else:
                    header = next(headers)
                    yield candidate.path, header if isinstance(header, str) else _segment(candidate, header, notes)


def usable_rows(results: Iterable[tuple[str, Row | str]], skipped: list[Skip]) -> Iterator[Row]:
    """The rows of (path, row) pairs. Where a reason is in place of the row, it joins `skipped`. Shows progress."""
    with ProgressBar("listing audio") as progress:
        for path, row in results:
            if isinstance(row, str):
                progress.add(0.0, is_skipped=True)
                skipped.append(Skip(path, row))
            else:
                progress.add(row.frames / row.rate)
                yield row


def _probe(path: str) -> Header | str:
    try:
        return probe(path)
    except ReadError as error:
        return str(error)


def _is_checked(candidate: Candidate) -> bool:
    return candidate.rate is not None and candidate.frames is not None


def _checked_row(candidate: Candidate) -> Row:
    rate, frames = candidate.rate or 0, candidate.frames or 0
    offset = round(candidate.offset * rate)
    return Row(
        candidate.id,
        candidate.path,
        offset=offset,
        frames=frames,
        rate=rate,
        speaker=candidate.speaker,
        transcript=candidate.transcript,
    )


def _segment(candidate: Candidate, header: Header, notes: Notes) -> Row | str:
    """The row of a candidate, cut at the end of the file; the reason as text if it lies outside the file."""
    if header.note:
        notes[header.note].append(candidate.path)
    offset = round(candidate.offset * header.rate)
    frames = header.frames - offset
    if frames <= 0:
        return f"segment outside its file: starts at {candidate.offset:g} s of {header.frames / header.rate:.2f} s"
    if candidate.duration is not None:
        requested = round(candidate.duration * header.rate)
        if requested > frames + 0.1 * header.rate:
            notes["a manifest's segment reached past the end of its file and was cut there"].append(candidate.path)
        frames = min(frames, requested)
        if frames <= 0:
            return f"segment without length: {candidate.duration:g} s from {candidate.offset:g} s"
    if candidate.frames is not None and candidate.frames != header.frames:
        notes["a manifest's length differs from that of the file, which is used"].append(candidate.path)
    return Row(
        candidate.id,
        candidate.path,
        offset=offset,
        frames=frames,
        rate=header.rate,
        speaker=candidate.speaker,
        transcript=candidate.transcript,
    )


# Folders


def folders_below(paths: Sequence[str | os.PathLike], skipped: list[Skip]) -> Iterator[tuple[str, str, list[str]]]:
    """(root, folder, sorted names of its files) for each of `paths` and all folders below, each once, in one order."""
    visited: set[tuple[int, int]] = set()
    for root in map(str, paths):
        pending = [root]
        while pending:
            folder = pending.pop()
            folders, files = _scan(folder, visited, skipped)
            pending.extend(reversed(folders))
            yield root, folder, files


def _scan(folder: str, visited: set[tuple[int, int]], skipped: list[Skip]) -> tuple[list[str], list[str]]:
    """Sorted paths of the directories and sorted names of the files in `folder`; none if it was visited before."""
    folders, files = [], []
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # a loop of links, or roots that overlap
            skipped.append(Skip(folder, "directory listed already"))
            return [], []
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if re.search(SURROGATES, entry.name):
                    skipped.append(Skip(os.fsencode(entry.path).decode("utf-8", "replace"), "file name is not UTF-8"))
                    continue
                try:
                    folders.append(entry.path) if entry.is_dir() else files.append(entry.name)
                except OSError as error:  # e.g. a link that points at itself
                    skipped.append(Skip(entry.path, f"unreadable directory entry: {os_error_text(error)}"))
    except OSError as error:
        skipped.append(Skip(folder, f"unreadable directory: {os_error_text(error)}"))
    return sorted(folders), sorted(files)


def beside(folder: str | os.PathLike, path: str) -> str:
    """A path in a list of files: relative to the folder of the list or, where it is not there, to the present one."""
    joined = os.path.join(folder, os.path.expanduser(path))
    return path if not os.path.exists(joined) and os.path.exists(path) else joined


# Transcripts


class Transcript(NamedTuple):
    """The text of an utterance, and its location: "path:line"."""

    text: str
    location: str


def read_transcripts(path: str, transcripts: dict[str, Transcript], skipped: list[Skip]) -> None:
    """Adds the lines "utterance text", with white space between, to `transcripts`.

    The last text of a repeated utterance counts.
    """
    try:
        lines = list(numbered_lines(path))
    except UserError as error:
        skipped.append(Skip(path, f"unreadable transcripts: {error}"))
        return
    for number, line in lines:
        name, text = (*line.split(maxsplit=1), "", "")[:2]
        location = f"{path}:{number}"
        if name in transcripts:
            reason = f"repeated transcript: {name}, whose text in {location} counts"
            skipped.append(Skip(transcripts[name].location, reason))
        if name:
            transcripts[name] = Transcript(text.rstrip(), location)


def skip_without_audio(transcripts: Mapping[str, Transcript], used: Iterable[str], skipped: list[Skip]) -> None:
    """Adds the transcripts whose recordings are not in `used` to `skipped`."""
    used = set(used)
    for name, transcript in transcripts.items():
        if name not in used:
            skipped.append(Skip(transcript.location, f"transcript without audio: {name}"))


def not_audio(extension: str) -> str:
    """The reason to skip a file of another kind."""
    return f"extension {extension or '(none)'} is not an audio extension"
