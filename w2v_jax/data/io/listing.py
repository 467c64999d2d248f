"""From candidate files to an index: checks headers in threads, shows progress, and records why files are skipped.

All sources of audio files use it. The order of the candidates is the order of the rows.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from w2v_jax.core import stores
from w2v_jax.core.cli import UserError, needing, os_error_text
from w2v_jax.core.files import FileState, exists, state_of
from w2v_jax.core.progress import ProgressBar
from w2v_jax.core.stores import is_remote, joined_path
from w2v_jax.core.text import numbered_lines
from w2v_jax.data.index import UNKNOWN, Index, ReadError, Row, Skip, make_index, usable
from w2v_jax.data.io.address import file_of
from w2v_jax.data.io.audio import AudioFiles, Header, probe
from w2v_jax.data.kept.headers import Measured
from w2v_jax.data.kept.listings import FOLDER as KEPT_FOLDER
from w2v_jax.data.kept.listings import UNSETTLED, FileStates, KeptListing, note_state

SURROGATES = "[\ud800-\udfff]"
"""A regular expression of what is not a character, e.g. the bytes of a file name that is not UTF-8."""

CANDIDATES_AT_ONCE = 1024
"""Candidates whose headers are checked before the first of them becomes a row."""


PASSING = (
    "unreadable file",
    "unreadable directory",
    "unreadable directory entry",
    "unreadable archive",
    "unreadable transcripts",
)
"""Kinds of reasons that may pass although size and time stay: a disk that fails, a permission that is missing."""

Notes = defaultdict[str, list[str]]
"""The paths of the files about which there is the same thing to say."""


class Candidate(NamedTuple):
    """A file that should be audio. `offset` and `duration` in seconds choose a segment (None: to the end).

    `frames` is the length in the manifest, at the file's rate. The length in the file's header replaces it, unless
    `rate` is given as well. Then `prepare` checked the file when it wrote the manifest, and listing does not open it.
    `size`: the bytes of the file at that time, if it was noted.
    """

    id: str
    path: str
    offset: float = 0.0
    duration: float | None = None
    speaker: str = ""
    transcript: str = ""
    frames: int | None = None
    rate: int | None = None
    size: int | None = None


def list_files(
    candidates: Iterable[Candidate], *, where: str, min_seconds: float, workers: int, skipped: list[Skip]
) -> AudioFiles:
    """The source of all candidates that are readable audio of at least `min_seconds`. Nothing is kept.

    `where` names the data in messages. `workers` are threads (0: one per core). `skipped` may grow while `candidates`
    is iterated; the index takes all of it. Raises UserError where no row remains.
    """
    _check_packages()
    index = _list_index(candidates, workers or os.cpu_count() or 1, skipped=skipped, states={}, kept=None)
    return AudioFiles(usable(index, where, min_seconds))


def list_parts(
    data,
    parts: Iterable[Iterable[Candidate]],
    *,
    kind: str,
    where: Sequence[str | os.PathLike],
    skipped: list[Skip],
    states: FileStates,
    notes: Iterable[str] = (),
    options: str = "",
) -> AudioFiles:
    """`list_files` of the candidates of several folders, files or lists. Uses data.min_seconds and data.workers.

    An index that is kept takes their place while it holds (`kept/listings.py`). kind: the name of the source. where:
    the roots, which name the data in messages. states: of all that decides the candidates, and may grow with `skipped`
    and `notes` while they are iterated. options: what else decides them.
    """
    _check_packages()
    stores.note_reading(where)
    workers = stores.threads(data.workers, str(where[0]))
    with contextlib.ExitStack() as stack:
        stack.callback(stores.forget_listings)
        kept = stack.enter_context(contextlib.closing(KeptListing(kind, where, options)))
        is_used = getattr(data, "kept", True)
        index = kept.open(workers) if is_used else None
        if index is None:
            kept.start(reads_headers=is_used)
            candidates = itertools.chain.from_iterable(parts)
            index = _list_index(candidates, workers, skipped=skipped, states=states, kept=kept)
            index.notes.extend(notes)
            index = kept.write(index, states)
    return AudioFiles(usable(index, ", ".join(map(str, where)), data.min_seconds), on_change=kept.forget)


def _list_index(
    candidates: Iterable[Candidate], workers: int, *, skipped: list[Skip], states: FileStates, kept: KeptListing | None
) -> Index:
    """The index of all candidates that are readable. Adds the files of those that are not to `states`."""
    notes: Notes = defaultdict(list)
    results = _rows(candidates, workers, notes=notes, states=states, kept=kept)
    index = make_index(usable_rows(results, skipped), skipped)
    index.notes.extend(f"{len(paths):,} x {note}; first: {paths[0]}" for note, paths in notes.items())
    states |= {skip.path: UNSETTLED for skip in skipped if skip.kind in PASSING}
    return index


def _check_packages() -> None:
    with needing("reading audio files needs soundfile and soxr ({error}): pip install soundfile soxr", OSError):
        import soundfile  # noqa: F401
        import soxr  # noqa: F401


class _Checked(NamedTuple):
    """The header of a file, or the reason why it has none, and the file's state before it was read."""

    header: Header | str
    file: str
    state: FileState
    is_new: bool


def _rows(
    candidates: Iterable[Candidate], workers: int, *, notes: Notes, states: FileStates, kept: KeptListing | None
) -> Iterator[tuple[str, Row | str]]:
    """(path, row) of each candidate; the reason as text in place of the row where there is none."""
    check = functools.lru_cache(4 * CANDIDATES_AT_ONCE)(functools.partial(_check, kept))  # a file of segments once
    remaining = iter(candidates)
    with ThreadPoolExecutor(workers) as pool:
        while block := list(itertools.islice(remaining, CANDIDATES_AT_ONCE)):
            unchecked = [c.path for c in block if not _is_checked(c)]
            found = dict(zip(unchecked, pool.map(check, unchecked), strict=True))
            for candidate in block:
                if _is_checked(candidate):
                    yield candidate.path, _row(candidate, frames=candidate.frames or 0, rate=candidate.rate or 0)
                    continue
                checked = found[candidate.path]
                if isinstance(row := _segment(candidate, checked, notes), str):
                    states.setdefault(checked.file, checked.state)
                yield candidate.path, row
            if kept is not None and (kept.is_begun or len(block) == CANDIDATES_AT_ONCE):
                kept.add([_measured(path, checked) for path, checked in found.items() if _is_worth_keeping(checked)])


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


def _check(kept: KeptListing | None, path: str) -> _Checked:
    file = file_of(path)
    try:
        state = state_of(file)
        if kept is not None and state is not None and (known := kept.find(path, *state[:2])) is not None:
            return _Checked(Header(known.frames, known.rate), file, state, is_new=False)
        return _Checked(probe(path), file, state, is_new=True)
    except ReadError as error:
        return _Checked(str(error), file, state, is_new=True)
    except OSError as error:
        return _Checked(f"unreadable file: {os_error_text(error)}", file, UNSETTLED, is_new=True)


def _is_worth_keeping(checked: _Checked) -> bool:
    """Whether a header is new, and has nothing to say that its numbers do not."""
    return checked.is_new and isinstance(checked.header, Header) and not checked.header.note


def _measured(path: str, checked: _Checked) -> Measured:
    header, state = checked.header, checked.state
    assert isinstance(header, Header) and state is not None
    return Measured(path, *state[:2], frames=header.frames, rate=header.rate)


def _is_checked(candidate: Candidate) -> bool:
    return candidate.rate is not None and candidate.frames is not None


def _row(candidate: Candidate, *, frames: int, rate: int, state: FileState = None) -> Row:
    size, modified, *_ = state or (candidate.size or UNKNOWN, UNKNOWN)
    return Row(
        candidate.id,
        candidate.path,
        offset=round(candidate.offset * rate),
        frames=frames,
        rate=rate,
        speaker=candidate.speaker,
        transcript=candidate.transcript,
        size=size,
        modified=modified,
    )


def _segment(candidate: Candidate, checked: _Checked, notes: Notes) -> Row | str:
    """The row of a candidate, cut at the end of the file; the reason as text if it lies outside the file."""
    header = checked.header
    if isinstance(header, str):
        return header
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
    return _row(candidate, frames=frames, rate=header.rate, state=checked.state)


# Folders


def folders_below(
    paths: Sequence[str | os.PathLike], skipped: list[Skip], states: FileStates
) -> Iterator[tuple[str, str, list[str]]]:
    """(root, folder, sorted names of its files) for each of `paths` and all folders below, each once, in one order."""
    visited: set[Hashable] = set()
    for root in map(str, paths):
        pending = [root]
        while pending:
            folder = pending.pop()
            if folder == root or not is_remote(folder):
                note_state(folder, states)
            folders, files = _scan(root, folder, visited=visited, skipped=skipped, states=states)
            pending.extend(reversed(folders))
            yield root, folder, files


def _scan(
    root: str, folder: str, *, visited: set[Hashable], skipped: list[Skip], states: FileStates
) -> tuple[list[str], list[str]]:
    """Sorted paths of the directories and sorted names of the files in `folder`; none if it was visited before.

    Links to what is not there yet join `states`.
    """
    if is_remote(folder):
        return _scan_store(root, folder, visited=visited, skipped=skipped)
    folders, files = [], []
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # a loop of links, or roots that overlap
            skipped.append(Skip(folder, "directory listed already"))
            return [], []
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == KEPT_FOLDER:
                    continue
                if re.search(SURROGATES, entry.name):
                    skipped.append(Skip(os.fsencode(entry.path).decode("utf-8", "replace"), "file name is not UTF-8"))
                    continue
                try:
                    folders.append(entry.path) if entry.is_dir() else files.append(entry.name)
                    if entry.is_symlink() and not os.path.exists(entry.path):
                        note_state(entry.path, states)
                except OSError as error:  # e.g. a link that points at itself
                    skipped.append(Skip(entry.path, f"unreadable directory entry: {os_error_text(error)}"))
    except OSError as error:
        skipped.append(Skip(folder, f"unreadable directory: {os_error_text(error)}"))
    return sorted(folders), sorted(files)


def _scan_store(root: str, folder: str, *, visited: set[Hashable], skipped: list[Skip]) -> tuple[list[str], list[str]]:
    """`_scan` of a folder in a store, from the one listing of its root."""
    if folder in visited:
        skipped.append(Skip(folder, "directory listed already"))
        return [], []
    visited.add(folder)
    folders, files = stores.listed(root).folders.get(folder[len(root) + 1 :], ((), ()))
    return sorted(f"{folder}/{name}" for name in folders if name != KEPT_FOLDER), sorted(files)


def beside(folder: str | os.PathLike, path: str) -> str:
    """A path in a list of files: relative to the folder of the list or, where it is not there, to the present one.

    Beside a list in a store nobody looks: it is relative to the list.
    """
    there = joined_path(folder, path)
    return path if not is_remote(there) and not exists(there) and exists(path) else there


# Transcripts


class Transcript(NamedTuple):
    """The text of an utterance, and its location: "path:line"."""

    text: str
    location: str


def read_transcripts(path: str, transcripts: dict[str, Transcript], *, skipped: list[Skip], states: FileStates) -> None:
    """Adds the lines "utterance text", with white space between, to `transcripts`, and the file to `states`.

    The last text of a repeated utterance counts.
    """
    note_state(path, states)
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
