"""Any folder tree of audio: FLAC, WAV, OGG, MP3, Opus and what else libsndfile reads, in any number of roots.

LibriSpeech's layout is recognised by the `*.trans.txt` files beside the audio: they give ids, transcripts and
speakers; their lines without audio, and all but the last of a repeated id, join the skipped ones. Elsewhere the id is
the path below its root without the extension. Links to directories are followed.
"""

from __future__ import annotations

import os
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from w2v_jax.config import UserError
from w2v_jax.data.audio import AudioFiles
from w2v_jax.data.index import Skip, roots
from w2v_jax.data.listing import Candidate, list_files

EXTENSIONS = frozenset(".flac .wav .wave .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .sph .w64 .rf64".split())
TRANSCRIPTS = ".trans.txt"
LISTED_PER_EXTENSION = 1000
"""Files of an extension that is not audio are listed one by one up to here, then counted."""


class Transcript(NamedTuple):
    """The text of an utterance, and where it stands: "path:line"."""

    text: str
    place: str


def make(data, root) -> AudioFiles:
    """The source of all audio below `root`. Uses data.min_seconds and data.workers. Raises UserError."""
    paths = roots(root)
    for path in paths:
        if not path.is_dir():
            raise UserError(f"data.root: {str(path)!r} is a file; data.name=folder needs directories")
    skipped: list[Skip] = []
    return list_files(
        _walk(paths, skipped),
        where=", ".join(map(str, paths)),
        min_seconds=data.min_seconds,
        workers=data.workers,
        skipped=skipped,
    )


def _walk(paths: tuple[pathlib.Path, ...], skipped: list[Skip]) -> Iterator[Candidate]:
    seen: set[tuple[int, int]] = set()
    others: Counter[str] = Counter()
    for root in paths:
        waiting = [str(root)]
        while waiting:
            folder = waiting.pop()
            folders, files = _scan(folder, seen, skipped)
            waiting.extend(reversed(folders))
            yield from _candidates(str(root), folder, files, others, skipped)
    for extension, count in others.items():
        if count > LISTED_PER_EXTENSION:
            skipped.append(Skip(str(paths[0]), f"{_not_audio(extension)}: {count - LISTED_PER_EXTENSION:,} more"))


def _scan(folder: str, seen: set[tuple[int, int]], skipped: list[Skip]) -> tuple[list[str], list[str]]:
    """Sorted paths of the directories and sorted names of the files in `folder`; nothing if it was seen before."""
    folders, files = [], []
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a loop of links, or roots that overlap
            skipped.append(Skip(folder, "directory listed already"))
            return [], []
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_text(entry.name):
                    skipped.append(Skip(os.fsencode(entry.path).decode("utf-8", "replace"), "file name is not UTF-8"))
                elif entry.is_dir():
                    folders.append(entry.path)
                else:
                    files.append(entry.name)
    except OSError as error:
        skipped.append(Skip(folder, f"unreadable directory: {error.strerror or error}"))
    return sorted(folders), sorted(files)


def _candidates(
    root: str, folder: str, files: list[str], others: Counter[str], skipped: list[Skip]
) -> Iterator[Candidate]:
    transcripts: dict[str, Transcript] = {}
    for name in files:
        if name.endswith(TRANSCRIPTS):
            _read_transcripts(os.path.join(folder, name), transcripts, skipped)
    heard = set()
    for name in files:
        stem, extension = os.path.splitext(name)
        path = os.path.join(folder, name)
        if name.endswith(TRANSCRIPTS):
            continue
        if name.startswith("._"):  # what a Mac leaves beside each file on a foreign disk
            skipped.append(Skip(path, "Mac resource file"))
        elif extension.lower() not in EXTENSIONS:
            others[extension] += 1
            if others[extension] <= LISTED_PER_EXTENSION:
                skipped.append(Skip(path, _not_audio(extension) + _sniff(path)))
        elif stem in transcripts:
            heard.add(stem)
            yield Candidate(stem, path, speaker=_speaker(stem, folder), transcript=transcripts[stem].text)
        else:
            yield Candidate(os.path.relpath(os.path.join(folder, stem), root).replace(os.sep, "/"), path)
    for stem, found in transcripts.items():
        if stem not in heard:
            skipped.append(Skip(found.place, f"transcript without audio: {stem}"))


def _read_transcripts(path: str, found: dict[str, Transcript], skipped: list[Skip]) -> None:
    """Adds the lines "utterance text" to `found`; of a repeated utterance the last text counts."""
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        skipped.append(Skip(path, f"unreadable transcripts: {error}"))
        return
    for number, line in enumerate(lines, 1):
        name, _, text = line.strip().partition(" ")
        place = f"{path}:{number}"
        if name in found:
            skipped.append(Skip(found[name].place, f"repeated transcript: {name}, whose text in {place} counts"))
        if name:
            found[name] = Transcript(text.strip(), place)


def _speaker(stem: str, folder: str) -> str:
    """SPEAKER of SPEAKER-CHAPTER-UTTERANCE, else the directory above the chapter's."""
    parts = stem.split("-")
    return parts[0] if len(parts) >= 3 else os.path.basename(os.path.dirname(folder))


def _not_audio(extension: str) -> str:
    return f"extension {extension or '(none)'} is not one of audio"


def _sniff(path: str) -> str:
    """What to add to the reason if the content is audio nevertheless, else nothing."""
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            return ""
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return ""
    kinds = ((b"fLaC", "FLAC"), (b"RIFF", "WAV"), (b"OggS", "OGG"), (b"ID3", "MP3"), (b"ftyp", "MP4"))
    for magic, kind in kinds:
        if head.startswith(magic) or (kind == "MP4" and head[4:8] == magic):
            advice = "rename it" if kind != "MP4" else "convert it to FLAC"
            return f": wrong extension, the content looks like {kind}; {advice} to have it read"
    return ""


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
