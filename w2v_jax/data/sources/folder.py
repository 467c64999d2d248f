"""Any folder tree of audio: FLAC, WAV, OGG, MP3, Opus and whatever else libsndfile reads, in any number of roots.

`*.trans.txt` files beside the audio mark LibriSpeech's layout. They give ids, transcripts and speakers. Their lines
without audio are skipped, as are all lines of a repeated id but the last. Elsewhere the id is the path below the root
without the extension. NAME.json beside NAME.flac marks that of Libri-Light: its "speaker" is that of the whole folder.
Links to directories are followed.
"""

from __future__ import annotations

import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence

from w2v_jax.core.cli import UserError
from w2v_jax.core.files import is_file, open_binary
from w2v_jax.core.text import json_object
from w2v_jax.data.index import Skip, roots
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.io.listing import (
    Candidate,
    Transcript,
    folders_below,
    list_parts,
    not_audio,
    read_transcripts,
    skip_without_audio,
)
from w2v_jax.data.kept.listings import FileStates, note_state

EXTENSIONS = frozenset(".flac .wav .wave .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .sph .w64 .rf64".split())
TRANSCRIPTS = ".trans.txt"
MAC = "._"
"""How the files begin that a Mac writes beside each file on a disk of another format."""
LISTED_PER_EXTENSION = 1000
"""Skipped files with the same extension that are listed one by one. Any further ones are only counted."""


def make(data, root) -> AudioFiles:
    """The source of all audio below `root`. Uses data.min_seconds and data.workers. Raises UserError."""
    paths = roots(root)
    for path in paths:
        if not path.is_dir():
            raise UserError(f"data.root: {str(path)!r} is a file; data.name=folder needs directories")
    skipped: list[Skip] = []
    states: FileStates = {}
    parts = [walk(paths, skipped, states)]
    return list_parts(data, parts, kind="folder", where=paths, skipped=skipped, states=states)


def walk(paths: Sequence[pathlib.Path], skipped: list[Skip], states: FileStates) -> Iterator[Candidate]:
    """The audio files below some folders, with ids, transcripts and speakers. All other files join `skipped`."""
    others: Counter[str] = Counter()
    for root, folder, files in folders_below(paths, skipped, states):
        yield from _candidates(root, folder, files=files, others=others, skipped=skipped, states=states)
    for extension, count in others.items():
        if count > LISTED_PER_EXTENSION:
            skipped.append(Skip(str(paths[0]), f"{not_audio(extension)}: {count - LISTED_PER_EXTENSION:,} more"))


def _candidates(
    root: str, folder: str, *, files: list[str], others: Counter[str], skipped: list[Skip], states: FileStates
) -> Iterator[Candidate]:
    """The audio files of a folder with their transcripts. Counts other files by extension in `others`."""
    transcripts: dict[str, Transcript] = {}
    for name in files:
        if name.endswith(TRANSCRIPTS) and not name.startswith(MAC):
            read_transcripts(os.path.join(folder, name), transcripts, skipped=skipped, states=states)
    with_audio, speaker = set(), _book_speaker(folder, files, states)
    for name in files:
        stem, extension = os.path.splitext(name)
        path = os.path.join(folder, name)
        if name.startswith(MAC):
            skipped.append(Skip(path, "Mac resource file"))
        elif name.endswith(TRANSCRIPTS):
            continue
        elif extension.lower() not in EXTENSIONS:
            others[extension] += 1
            if others[extension] <= LISTED_PER_EXTENSION:
                skipped.append(Skip(path, not_audio(extension) + _sniff(path)))
        elif stem in transcripts:
            with_audio.add(stem)
            yield Candidate(stem, path, speaker=_speaker(stem, folder), transcript=transcripts[stem].text)
        else:
            id = os.path.relpath(os.path.join(folder, stem), root).replace(os.sep, "/")
            yield Candidate(id, path, speaker=speaker)
    skip_without_audio(transcripts, with_audio, skipped)


def _book_speaker(folder: str, files: list[str], states: FileStates) -> str:
    """The speaker of a folder of Libri-Light, who reads one book there: that of the first recording; else ""."""
    names = set(files)
    stems = (stem for stem, extension in map(os.path.splitext, files) if extension.lower() in EXTENSIONS)
    if (first := next((f"{stem}.json" for stem in stems if f"{stem}.json" in names), None)) is None:
        return ""
    path = os.path.join(folder, first)
    note_state(path, states)
    try:
        with open_binary(path) as file:
            noted = json_object(file.read())
    except OSError:
        return ""
    return str((noted or {}).get("speaker") or "")


def _speaker(stem: str, folder: str) -> str:
    """SPEAKER in SPEAKER-CHAPTER-UTTERANCE, otherwise the name of the directory above the chapter's."""
    parts = stem.split("-")
    return parts[0] if len(parts) >= 3 else os.path.basename(os.path.dirname(folder))


def _sniff(path: str) -> str:
    """An addition to the reason where the content is audio after all, otherwise ""."""
    try:
        if not is_file(path):  # opening a pipe would block for ever
            return ""
        with open_binary(path) as file:
            head = file.read(12)
    except OSError:
        return ""
    kinds = ((b"fLaC", "FLAC"), (b"RIFF", "WAV"), (b"OggS", "OGG"), (b"ID3", "MP3"), (b"ftyp", "MP4"))
    for magic, kind in kinds:
        if head.startswith(magic) or (kind == "MP4" and head[4:8] == magic):
            advice = "rename it" if kind != "MP4" else "convert it to FLAC"
            return f": wrong extension, the content looks like {kind}; {advice} to have it read"
    return ""
