"""Codes that `python -m w2v_jax.extract --what codes` has written: one id of the vocabulary per frame, no audio.

The folder's vocabulary.json assigns the ids. Where data.hours is above 0, a missing root is made, with the letters of
`synthetic.py` as codes. This way one can try a model over codes without a model of audio.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError, writing
from w2v_jax.core.files import sole_maker, whole_folder
from w2v_jax.core.stores import is_remote, path_of
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.code_vocabulary import VOCABULARY_FILE, CodeCounter, Vocabulary
from w2v_jax.data.index import Form, Index, root_entries, usable
from w2v_jax.data.io import feature_files
from w2v_jax.data.io.feature_files import FrameSource, Layouts, Utterance, check_numbers, index_parts
from w2v_jax.data.sources import synthetic

LETTERS = "letters"
"""Method and model of self-made codes in their metadata."""
QUARTERS = 4
LETTER_CODE_HOP = 160


class Codes(FrameSource):
    """The source of codes."""

    def __init__(self, index: Index, vocabulary: Vocabulary, *, hop: int, layouts: Layouts):
        super().__init__(index, Form("codes", "int32", hop=hop, made_by=vocabulary.digest), layouts)
        self.vocabulary = vocabulary

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """Ids int32 [F]. `start` and `length` are in 16 kHz samples and are rounded down to whole frames."""
        return self.vocabulary.encode(self.frames(row, start, length, width=self.vocabulary.groups))


def make(data: Any, root: Any) -> Codes:
    """The source of all utterances in folders of codes. Uses data.min_seconds, data.vocab_size and data.hours.

    Raises UserError for folders that hold something else, are unfinished or damaged. Also raises it for a
    vocabulary that belongs to another model, differs between folders, or is larger than data.vocab_size (0: any size).
    """
    if data.hours > 0:
        for path in root_entries(root):
            write_letters(path_of(path), data.hours)
    folders = feature_files.open_folders(root, "codes")
    first_folder, first = folders[0]
    vocabularies = [_vocabulary(folder, metadata) for folder, metadata in folders]
    vocabulary = vocabularies[0]
    for (folder, metadata), other in zip(folders, vocabularies, strict=True):
        if (other.digest, metadata["hop"]) != (vocabulary.digest, first["hop"]):
            raise UserError(
                f"{folder} and {first_folder} were coded with different models or vocabularies; use one of them"
            )
    if 0 < data.vocab_size < vocabulary.size:
        raise UserError(
            f"data.vocab_size={data.vocab_size} is too small for the vocabulary of {first_folder}, which has "
            f"{vocabulary.size:,} ids: --config.data.vocab_size={vocabulary.size}"
        )
    index, layouts = index_parts(folders, lambda part: check_numbers(part, vocabulary.groups, "codes of {} groups"))
    where = ", ".join(str(folder) for folder, _ in folders)
    if not len(index):
        raise UserError(f"data.root: {where} holds no utterance; see its skipped.jsonl for what was left out and why")
    return Codes(usable(index, where, data.min_seconds), vocabulary, hop=first["hop"], layouts=layouts)


def _vocabulary(folder: pathlib.Path, metadata: dict[str, Any]) -> Vocabulary:
    if not (folder / VOCABULARY_FILE).exists():
        raise UserError(
            f"{folder}: {VOCABULARY_FILE} is missing; give the command of the extraction again, which restores it"
        )
    vocabulary = Vocabulary.load(folder / VOCABULARY_FILE)
    if vocabulary.model != metadata["model"]:
        raise UserError(
            f"{folder / VOCABULARY_FILE} belongs to the model {vocabulary.model}, and the codes were made by "
            f"{metadata['model']}: restore the right file; extraction also writes it to the folder of the run"
        )
    if (vocabulary.groups, vocabulary.codes) != (metadata["groups"], metadata["codes"]):
        raise UserError(f"{folder / VOCABULARY_FILE} has other groups or codes than the folder; extract again")
    return vocabulary


# Self-made codes


def write_letters(root: pathlib.Path, hours: float) -> None:
    """Writes a folder of codes from the made-up language of `synthetic.py`, unless `root` exists.

    The first code of a frame is its letter. The second is the quarter of the letter's duration in which it lies.
    """
    made_once(root, "data.root", lambda partial: _fill(partial, hours))


def made_once(folder: pathlib.Path, key: str, fill: Callable[[pathlib.Path], None]) -> None:
    """Makes a folder with what `fill` writes, unless it exists or is one of a store. `key`: the config key of it."""
    if is_remote(folder) or folder.exists():
        return
    with writing(f"{key}: {folder}"):
        with sole_maker(folder):
            if not folder.exists():  # another process may have made it in the meantime
                with whole_folder(folder, key) as partial:
                    fill(partial)


def _fill(folder: pathlib.Path, hours: float) -> None:
    utterances, frames, number = [], 0, 0
    codes = len(synthetic.ALPHABET) + 1
    counter = CodeCounter(2, codes)
    while frames * LETTER_CODE_HOP < hours * 3600 * SAMPLE_RATE:
        speaker, turn = 1 + number % 8, number // 8
        letters, ends = synthetic.letter_times(speaker, turn)
        pairs = letter_codes(letters, ends)
        seconds = len(pairs) * LETTER_CODE_HOP / SAMPLE_RATE
        id = f"{speaker}-{turn:04d}"
        about = Utterance(id, first=0, frames=0, seconds=seconds, speaker=str(speaker), transcript=letters)
        utterances.append((pairs, about))
        counter.add(pairs)
        frames, number = frames + len(pairs), number + 1
    feature_files.write_part(feature_files.part_path(folder, 0), utterances, width=2, dtype="<u2")
    counter.vocabulary(LETTERS).save(folder / VOCABULARY_FILE)
    metadata = dict(what="codes", method=LETTERS, model=LETTERS, hop=LETTER_CODE_HOP, groups=2, codes=codes)
    metadata |= dict(parts=1, utterances=len(utterances), frames=frames, skipped=0, complete=True)
    feature_files.write_metadata(folder, metadata)


def letter_codes(letters: str, ends: np.ndarray, hop: int = LETTER_CODE_HOP) -> np.ndarray:
    """Codes [F 2] of a text whose i-th character ends at sample ends[i]: letter, and quarter of its duration."""
    starts = np.concatenate([[0], ends[:-1]])
    middles = np.arange(0, int(ends[-1]) - hop // 2, hop) + hop // 2  # of the frames
    position = np.searchsorted(ends, middles, side="right")  # of each frame's character in the text
    quarter = QUARTERS * (middles - starts[position]) // np.maximum(ends[position] - starts[position], 1)
    letter = np.array([f" {synthetic.ALPHABET}".index(c) for c in letters])
    return np.stack([letter[position], quarter], axis=1)
