"""fairseq manifests: the directory of the audio, then one line "relative path TAB number of samples" per file.

A file of the same stem gives the transcripts, line by line: `.wrd` (words), `.ltr` (letters) or `.phn` (phonemes).
data.labels says how they are read. Symbols are what white space separates. Letters may be written as fairseq does,
"H E L L O | W O R L D |" for "HELLO WORLD". Where data.labels says nothing, such lines are joined to words, too.
Listing checks the header of each file. Its length replaces the manifest's where they differ.
"""

from __future__ import annotations

import os
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import OPTIONAL
from w2v_jax.core.files import is_folder
from w2v_jax.core.stores import joined_path
from w2v_jax.core.text import numbered_lines
from w2v_jax.data.index import roots
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.io.listing import Candidate, list_parts
from w2v_jax.data.kept.listings import states_of
from w2v_jax.data.transcripts import BOUNDARY

TRANSCRIPTS = (".wrd", ".ltr", ".phn")
"""The endings of transcripts, from words to phonemes."""


def make(data, root) -> AudioFiles:
    """The source of the manifests `root`. Uses data.min_seconds, data.workers and, where it is set, data.labels.

    Raises UserError with file and line.
    """
    notes: list[str] = []
    labels = getattr(data, "labels", OPTIONAL["data.labels"])
    manifests = manifest_files(root, ".tsv")
    states = states_of(file for m in manifests for file in (m, *map(m.with_suffix, TRANSCRIPTS)))
    parts = (_read(manifest, labels=labels, notes=notes) for manifest in manifests)
    return list_parts(data, parts, kind="tsv", where=manifests, skipped=[], states=states, notes=notes, options=labels)


def manifest_files(root, extension: str) -> tuple[pathlib.Path, ...]:
    """The manifests that `root` names. Raises UserError for a directory, and suggests the manifests in it."""
    paths = roots(root)
    for path in paths:
        if path.is_dir():
            manifests = sorted(p.name for p in path.glob(f"*{extension}"))
            hint = f"; did you mean {', '.join(manifests[:3])} in it?" if manifests else ""
            raise UserError(f"data.root: {str(path)!r} is a directory; a {extension} manifest is needed{hint}")
    return paths


def _read(manifest: pathlib.Path, *, labels: str, notes: list[str]) -> Iterator[Candidate]:
    lines = ((number, line) for number, line in numbered_lines(manifest) if line.strip())
    first = next(lines, None)
    if first is None:
        raise UserError(f"{manifest}: empty; line 1 must be the directory of the audio")
    folder = first[1].strip()
    if not is_folder(folder):
        folder = joined_path(manifest.parent, folder)
    if "\t" in folder or not is_folder(folder):
        raise UserError(f"{manifest}:1: the first line must be the audio's directory; {first[1]!r} is not a directory")
    texts = _transcripts(manifest, labels, notes)
    for number, line in lines:
        name, tab, count = line.partition("\t")
        if not tab or not count.strip().isdecimal() or not name:
            raise UserError(f"{manifest}:{number}: needs 'path TAB number of samples', got {line!r}")
        text = next(texts, None) if texts else ""
        if text is None:
            raise UserError(f"{manifest}:{number}: the transcripts beside it end before this line")
        path = joined_path(folder, name)
        yield Candidate(os.path.splitext(name)[0], path, transcript=text, frames=int(count))
    if texts and next(texts, None) is not None:
        raise UserError(f"{manifest}: the transcripts beside it have more lines than the manifest has files")


def _transcripts(manifest: pathlib.Path, labels: str, notes: list[str]) -> Iterator[str] | None:
    """The transcripts beside a manifest; None without any. Adds to `notes` what the person did not decide.

    Of several files, symbols are those of the finest that does not merely spell words, and letters those of the words.
    """
    endings = TRANSCRIPTS[::-1] if labels == "symbols" else TRANSCRIPTS
    files = [file for ending in endings if (file := manifest.with_suffix(ending)).is_file()]
    for file in files:
        lines = [line for _, line in numbered_lines(file)]
        is_spelt = _is_spelt(lines, labels, file.suffix)
        if labels == "symbols" and is_spelt and file != files[-1]:
            continue  # the letters of the words in the next file
        if len(files) > 1:
            notes.append(f"the transcripts are those of {file}, not of {', '.join(f.name for f in files if f != file)}")
        if labels == "symbols" or not is_spelt:
            return iter(lines)
        if not labels:
            notes.append(f"{file}: its letters are joined to words; data.labels=symbols keeps them apart")
        return iter(["".join(line.split()).replace(BOUNDARY, " ").strip() for line in lines])
    return None


def _is_spelt(lines: Sequence[str], labels: str, ending: str) -> bool:
    """Whether lines are words letter by letter: "H E L L O | W O R L D |".

    They are where all tokens are single letters and some are boundaries. Where letters are learnt, and the file is none
    of words, single letters alone are enough, or a boundary in every line.
    """
    rows = [row for line in lines if (row := unicodedata.normalize("NFC", line).split())]
    are_single = all(len(token) == 1 for row in rows for token in row)
    if labels == "letters" and ending != ".wrd":
        return are_single or all(BOUNDARY in row for row in rows)
    return are_single and any(BOUNDARY in row for row in rows)
