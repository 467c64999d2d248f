"""Codes that `python -m w2v_jax.extract --what codes` has written: one id of the vocabulary per frame, no audio.

The ids are those of the folder's vocabulary.json. A missing root is made with letters for codes where data.hours is
above 0, so that a model over codes can be tried without a model of audio.
"""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError
from w2v_jax.data import synthetic
from w2v_jax.data.extracted import (
    Part,
    Utterance,
    layout_of,
    part_path,
    read_about,
    read_parts,
    read_row,
    rows_of,
    write_about,
    write_part,
)
from w2v_jax.data.index import Form, Index, Row, make_index, roots, usable
from w2v_jax.data.vocabulary import FILE, Counter, Vocabulary

SELF_MADE = "letters"
QUARTERS = 4
LETTER_HOP = 160


class Codes:
    """The source of rows whose path is a part and whose offset is the first sample of the utterance in it."""

    def __init__(self, index: Index, vocabulary: Vocabulary, hop: int, layouts: dict[str, tuple[int, str]]):
        """layouts: (header bytes, dtype) of the array of each part."""
        self.index, self.vocabulary, self.layouts = index, vocabulary, layouts
        self.form = Form("codes", "int32", hop, vocabulary.digest)

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """ids int32; start and length in 16 kHz samples, rounded down to whole frames."""
        law: dict[str, Any] = dict(hop=self.form.hop, width=self.vocabulary.groups, layouts=self.layouts)
        return self.vocabulary.encode(read_row(self.index, row, start, length, **law))


def make(data: Any, root: Any) -> Codes:
    """The source of all utterances in folders of codes. Uses data.min_seconds, data.vocab_size and data.hours.

    Raises UserError for folders that hold something else, are not finished or damaged, for a vocabulary that belongs
    to another model or differs between folders, and for one that is larger than data.vocab_size (0: any).
    """
    if data.hours > 0:
        for path in [root] if isinstance(root, (str, os.PathLike)) else root:
            write_letters(pathlib.Path(path).expanduser(), data.hours)
    folders = roots(root)
    abouts = [_about(folder) for folder in folders]
    vocabularies = [_vocabulary(folder, about) for folder, about in zip(folders, abouts, strict=True)]
    for folder, about, vocabulary in zip(folders, abouts, vocabularies, strict=True):
        if (vocabulary.digest, about["hop"]) != (vocabularies[0].digest, abouts[0]["hop"]):
            raise UserError(
                f"{folder} and {folders[0]} were coded by different models or vocabularies; use one of them"
            )
    size = vocabularies[0].size
    if 0 < data.vocab_size < size:
        raise UserError(
            f"data.vocab_size={data.vocab_size} is too small for the vocabulary of {folders[0]}, which has "
            f"{size:,} ids: --config.data.vocab_size={size}"
        )
    layouts: dict[str, tuple[int, str]] = {}
    rows = _rows(folders, abouts, vocabularies[0].groups, layouts)
    index, where = make_index(rows), ", ".join(map(str, folders))
    if not len(index):
        raise UserError(f"data.root: {where} holds no utterance; see its skipped.jsonl for what was left out and why")
    return Codes(usable(index, where, data.min_seconds), vocabularies[0], abouts[0]["hop"], layouts)


def _about(folder: pathlib.Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"data.root: {str(folder)!r} is a file; data.name=codes needs folders that extract has written")
    about = read_about(folder)
    if about["what"] != "codes":
        raise UserError(
            f"{folder} holds features ({about['what']}), and data.name=codes needs codes: extract them by "
            "python -m w2v_jax.extract --what codes"
        )
    return about


def _vocabulary(folder: pathlib.Path, about: dict[str, Any]) -> Vocabulary:
    if not (folder / FILE).exists():
        raise UserError(f"{folder}: {FILE} is missing; give the command of the extraction again, it puts it there")
    vocabulary = Vocabulary.load(folder / FILE)
    if vocabulary.model != about["model"]:
        raise UserError(
            f"{folder / FILE} belongs to the model {vocabulary.model}, the codes were made by {about['model']}: "
            "put the right one back (extraction leaves it in the folder of the run, too)"
        )
    if (vocabulary.groups, vocabulary.codes) != (about["groups"], about["codes"]):
        raise UserError(f"{folder / FILE} has other groups or codes than the folder; extract again")
    return vocabulary


def _rows(
    folders: Sequence[pathlib.Path], abouts: Sequence[dict[str, Any]], groups: int, layouts: dict[str, tuple[int, str]]
) -> Iterator[Row]:
    for folder, about in zip(folders, abouts, strict=True):
        for part in read_parts(folder, about):
            layouts[str(part.path)] = _layout(part, groups)
            yield from rows_of(part, about["hop"])


def _layout(part: Part, groups: int) -> tuple[int, str]:
    if part.array.shape[1] != groups or part.array.dtype.kind not in "iu":
        raise UserError(
            f"{part.path} holds {part.array.dtype} [frames {part.array.shape[1]}], not codes of {groups} groups"
        )
    return layout_of(part)


# Self-made codes


def write_letters(root: pathlib.Path, hours: float) -> None:
    """A folder of codes from the made-up language of `synthetic.py`, unless something stands there.

    The first code of a frame is its letter, the second the quarter of the letter's time that the frame lies in.
    """
    if root.exists():
        return
    partial = root.with_name(f".{root.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _fill(partial, hours)
        try:
            os.rename(partial, root)
        except OSError:
            if not root.exists():
                raise
            shutil.rmtree(partial)  # another process has made the same codes meanwhile
    except OSError as error:
        raise UserError(f"data.root: {root} cannot be written ({error.strerror or error})") from None


def _fill(folder: pathlib.Path, hours: float) -> None:
    found, frames, number = [], 0, 0
    codes = len(synthetic.ALPHABET) + 1
    counter = Counter(2, codes)
    while frames * LETTER_HOP < hours * 3600 * SAMPLE_RATE:
        speaker, turn = 1 + number % 8, number // 8
        letters, ends = synthetic.letters(speaker, turn)
        pairs = letter_codes(letters, ends)
        seconds = len(pairs) * LETTER_HOP / SAMPLE_RATE
        found.append((pairs, Utterance(f"{speaker}-{turn:04d}", 0, 0, seconds, str(speaker), letters)))
        counter.add(pairs)
        frames, number = frames + len(pairs), number + 1
    write_part(part_path(folder, 0), found, width=2, dtype="<u2")
    counter.vocabulary(SELF_MADE).save(folder / FILE)
    about = dict(what="codes", method=SELF_MADE, model=SELF_MADE, hop=LETTER_HOP, groups=2, codes=codes)
    write_about(folder, about | dict(parts=1, utterances=len(found), frames=frames, skipped=0, complete=True))


def letter_codes(letters: str, ends: np.ndarray) -> np.ndarray:
    """Codes [F 2] of a text whose i-th character ends at sample ends[i]: its number, and the quarter of its time."""
    starts = np.concatenate([[0], ends[:-1]])
    at = np.arange(0, int(ends[-1]) - LETTER_HOP // 2, LETTER_HOP) + LETTER_HOP // 2  # the middle of each frame
    which = np.searchsorted(ends, at, side="right")
    quarter = QUARTERS * (at - starts[which]) // np.maximum(ends[which] - starts[which], 1)
    number = np.array([(" " + "".join(synthetic.ALPHABET)).index(c) for c in letters])
    return np.stack([number[which], quarter], axis=1)
