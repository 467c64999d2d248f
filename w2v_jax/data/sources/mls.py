"""Multilingual LibriSpeech: `transcripts.txt` beside `audio/SPEAKER/BOOK/SPEAKER_BOOK_NUMBER.flac` (or .opus).

`data.root` names folders of a part (`mls_german/train`). The rows are the lines of `transcripts.txt`, "ID TAB TEXT", in
their order. For recordings without transcripts, take data.name=folder.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from w2v_jax.core.cli import UserError
from w2v_jax.core.files import exists
from w2v_jax.core.stores import is_remote, listed
from w2v_jax.core.text import numbered_lines
from w2v_jax.data.index import Skip, roots
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.io.listing import Candidate, list_parts
from w2v_jax.data.kept.listings import FileStates, states_of

EXTENSIONS = (".flac", ".opus")


def make(data, root) -> AudioFiles:
    """The source of some parts. Uses data.min_seconds and data.workers. Raises UserError."""
    folders = roots(root)
    for folder in folders:
        if not (folder / "transcripts.txt").is_file():
            parts = ", ".join(sorted(path.parent.name for path in folder.glob("*/transcripts.txt")))
            hint = f"; name one of its parts: {parts}" if parts else ""
            raise UserError(f"data.root: {str(folder)!r} has no transcripts.txt as in MLS{hint}")
    skipped: list[Skip] = []
    states = states_of(folder / "transcripts.txt" for folder in folders)
    parts = (_candidates(folder, skipped, states) for folder in folders)
    return list_parts(data, parts, kind="mls", where=folders, skipped=skipped, states=states)


def _candidates(folder: pathlib.Path, skipped: list[Skip], states: FileStates) -> Iterator[Candidate]:
    extensions = list(EXTENSIONS)
    if is_remote(folder):
        listed(str(folder))  # in place of a look for each line
    for number, line in numbered_lines(folder / "transcripts.txt"):
        id, _, text = line.partition("\t")
        speaker, *_ = names = id.split("_")
        if len(names) != 3:
            if line:
                where = f"{folder / 'transcripts.txt'}:{number}"
                skipped.append(
                    Skip(where, f"line without an id: it needs 'SPEAKER_BOOK_NUMBER TAB TEXT', got {line[:60]!r}")
                )
            continue
        stem = str(folder / "audio" / speaker / names[1] / id)
        extensions.sort(key=lambda extension: not exists(stem + extension))  # the kind that is there comes first
        if not exists(stem + extensions[0]):
            states |= states_of(stem + extension for extension in extensions)
        yield Candidate(id, stem + extensions[0], speaker=speaker, transcript=text.strip())
