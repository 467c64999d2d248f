"""Any folder tree of audio: FLAC, WAV, OGG, MP3, Opus and whatever else libsndfile reads, in any number of roots.

`*.trans.txt` files beside the audio mark LibriSpeech's layout. They give ids, transcripts and speakers. Their lines
without audio are skipped, as are all lines of a repeated id but the last. Elsewhere the id is the path below the root
without the extension. Links to directories are followed.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from w2v_jax.core.cli import UserError, os_error_text
from w2v_jax.core.text import numbered_lines
from w2v_jax.data.index import Skip, roots
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.io.listing import SURROGATES, Candidate, list_files

EXTENSIONS = frozenset(".flac .wav .wave .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .sph .w64 .rf64".split())
TRANSCRIPTS = ".trans.txt"
MAC = "._"
"""How the files begin that a Mac writes beside each file on a disk of another format."""
LISTED_PER_EXTENSION = 1000
"""Skipped files with the same extension that are listed one by one. Any further ones are only counted."""


class Transcript(NamedTuple):
    """The text of an utterance, and its location: "path:line"."""

    text: str
    location: str


def make(data, root) -> AudioFiles:
    """The source of all audio below `root`. Uses data.min_seconds and data.workers. Raises UserError."""
    paths = roots(root)
    for path in paths:
        if not path.is_dir():
            raise UserError(f"data.root: {str(path)!r} is a file; data.name=folder needs directories")
    skipped: list[Skip] = []
    files, where = walk(paths, skipped), ", ".join(map(str, paths))
    return list_files(files, where=where, min_seconds=data.min_seconds, workers=data.workers, skipped=skipped)


def walk(paths: Sequence[pathlib.Path], skipped: list[Skip]) -> Iterator[Candidate]:
    """The audio files below some folders, with ids, transcripts and speakers. All other files join `skipped`."""
    visited: set[tuple[int, int]] = set()
    not_audio: Counter[str] = Counter()
    for root in paths:
        pending = [str(root)]
        while pending:
            folder = pending.pop()
            folders, files = _scan(folder, visited, skipped)
            pending.extend(reversed(folders))
            yield from _candidates(str(root), folder, files=files, not_audio=not_audio, skipped=skipped)
    for extension, count in not_audio.items():
        if count > LISTED_PER_EXTENSION:
            skipped.append(Skip(str(paths[0]), f"{_not_audio(extension)}: {count - LISTED_PER_EXTENSION:,} more"))


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


def _candidates(
    root: str, folder: str, *, files: list[str], not_audio: Counter[str], skipped: list[Skip]
) -> Iterator[Candidate]:
    """The audio files of a folder with their transcripts. Counts other files by extension in `not_audio`."""
    transcripts: dict[str, Transcript] = {}
    for name in files:
        if name.endswith(TRANSCRIPTS) and not name.startswith(MAC):
            _read_transcripts(os.path.join(folder, name), transcripts, skipped)
    with_audio = set()
    for name in files:
        stem, extension = os.path.splitext(name)
        path = os.path.join(folder, name)
        if name.startswith(MAC):
            skipped.append(Skip(path, "Mac resource file"))
        elif name.endswith(TRANSCRIPTS):
            continue
        elif extension.lower() not in EXTENSIONS:
            not_audio[extension] += 1
            if not_audio[extension] <= LISTED_PER_EXTENSION:
                skipped.append(Skip(path, _not_audio(extension) + _sniff(path)))
        elif stem in transcripts:
            with_audio.add(stem)
            yield Candidate(stem, path, speaker=_speaker(stem, folder), transcript=transcripts[stem].text)
        else:
            yield Candidate(os.path.relpath(os.path.join(folder, stem), root).replace(os.sep, "/"), path)
    for stem, transcript in transcripts.items():
        if stem not in with_audio:
            skipped.append(Skip(transcript.location, f"transcript without audio: {stem}"))


def _read_transcripts(path: str, transcripts: dict[str, Transcript], skipped: list[Skip]) -> None:
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


def _speaker(stem: str, folder: str) -> str:
    """SPEAKER in SPEAKER-CHAPTER-UTTERANCE, otherwise the name of the directory above the chapter's."""
    parts = stem.split("-")
    return parts[0] if len(parts) >= 3 else os.path.basename(os.path.dirname(folder))


def _not_audio(extension: str) -> str:
    return f"extension {extension or '(none)'} is not an audio extension"


def _sniff(path: str) -> str:
    """An addition to the reason where the content is audio after all, otherwise ""."""
    try:
        if not os.path.isfile(path):  # opening a pipe would block for ever
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
