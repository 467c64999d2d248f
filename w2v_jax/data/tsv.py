"""fairseq manifests: a first line with the audio's root, then "relative path TAB number of samples".

A `.wrd` (words) or `.ltr` (letters, "|" between words) file of the same stem, line for line, gives transcripts.
The header of each file is checked; where its length differs from the manifest's, the header counts.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator

from w2v_jax.config import UserError
from w2v_jax.data.audio import AudioFiles
from w2v_jax.data.index import Skip, roots
from w2v_jax.data.listing import Candidate, list_files


def make(data, root) -> AudioFiles:
    """The source of the manifests `root`. Uses data.min_seconds, data.workers. Raises UserError with file and line."""
    return manifest_source(data, root, ".tsv", _read)


def manifest_source(data, root, suffix: str, read: Callable[[pathlib.Path], Iterator[Candidate]]) -> AudioFiles:
    """The source of the manifests with `suffix` that `root` names; `read` gives the candidates of one."""
    skipped: list[Skip] = []
    manifests = manifest_files(root, suffix)
    return list_files(
        (candidate for manifest in manifests for candidate in read(manifest)),
        where=", ".join(map(str, manifests)),
        min_seconds=data.min_seconds,
        workers=data.workers,
        skipped=skipped,
    )


def manifest_files(root, extension: str) -> tuple[pathlib.Path, ...]:
    """The manifests that `root` names. Raises UserError for a directory, with the manifests in it."""
    paths = roots(root)
    for path in paths:
        if path.is_dir():
            there = sorted(p.name for p in path.glob(f"*{extension}"))
            hint = f"; did you mean {', '.join(there[:3])} in it?" if there else ""
            raise UserError(f"data.root: {str(path)!r} is a directory; a {extension} manifest is needed{hint}")
    return paths


def numbered_lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end); blank lines are left out. Raises UserError if it is not UTF-8."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text after line {number}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _read(manifest: pathlib.Path) -> Iterator[Candidate]:
    lines = numbered_lines(manifest)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{manifest}: empty; line 1 must be the directory of the audio")
    folder = first[1].strip()
    if not os.path.isdir(folder):
        folder = os.path.join(manifest.parent, folder)
    if "\t" in folder or not os.path.isdir(folder):
        raise UserError(f"{manifest}:1: the first line must be the audio's directory; {first[1]!r} is not one")
    texts = _transcripts(manifest)
    for number, line in lines:
        name, tab, count = line.partition("\t")
        if not tab or not count.strip().isdecimal() or not name:
            raise UserError(f"{manifest}:{number}: needs 'path TAB number of samples', got {line!r}")
        text = next(texts, None) if texts else ""
        if text is None:
            raise UserError(f"{manifest}:{number}: the transcripts beside it end before this line")
        path = os.path.join(folder, name)
        yield Candidate(os.path.splitext(name)[0], path, transcript=text, frames=int(count))
    if texts and next(texts, None) is not None:
        raise UserError(f"{manifest}: the transcripts beside it have more lines than the manifest has files")


def _transcripts(manifest: pathlib.Path) -> Iterator[str] | None:
    words, letters = manifest.with_suffix(".wrd"), manifest.with_suffix(".ltr")
    if not words.is_file() and not letters.is_file():
        return None
    file = words if words.is_file() else letters
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    if file is letters:
        lines = ["".join(line.split()).replace("|", " ").strip() for line in lines]
    return iter(lines)
