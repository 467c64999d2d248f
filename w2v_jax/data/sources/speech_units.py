"""Speech units that `python -m w2v_jax.units label` has written: the clusters of each frame, no audio.

A folder has the form of `feature_files.py`, with what="units" in its metadata, and one or more label sets (groups). As
a source they are read alone. `targets.py` reads them beside the audio that they were made of.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.data.index import Form, Index, ReadError, root_entries, usable
from w2v_jax.data.io import corpus, feature_files
from w2v_jax.data.io.feature_files import FrameSource, Layouts, Utterance
from w2v_jax.data.sources import codes, synthetic

UNITS = "units"
"""What the metadata of such a folder call its content."""
LETTER_UNIT_HOP = 320
CHECKED = 1 << 20
"""Frames of each part whose units are checked when the folder is opened. All others are when they are read."""


class Units(FrameSource):
    """The source of units.

    `clusters` are those of each label set, and `model` made them. `piece`: (samples, frames) of the pieces into which
    long recordings were cut, whose last frames are lost as in HuBERT's recipe; None where no frame is lost.
    """

    def __init__(
        self, index: Index, form: Form, layouts: Layouts, *, model: str, clusters: int, piece: tuple[int, int] | None
    ):
        super().__init__(index, form, layouts)
        self.model, self.clusters, self.piece = model, clusters, piece

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """Units int32 [F G]. `start` and `length` are in 16 kHz samples and are rounded down to whole frames.

        Raises ReadError, also for a unit that is no cluster.
        """
        found = self.frames(row, start, length, width=self.form.width)
        if (beyond := _beyond(found, self.clusters)) is not None:
            raise ReadError(f"unit {beyond} of {self.clusters} clusters")
        return found.astype(np.int32)

    def frame_at(self, samples: np.ndarray) -> np.ndarray:
        """The number of the frame at each sample of a recording. A frame that was lost at a cut is that before it."""
        if self.piece is None:
            return samples // self.form.hop
        length, frames = self.piece
        piece, rest = np.divmod(samples, length)
        return piece * frames + np.minimum(rest // self.form.hop, frames - 1)

    def labelled_samples(self) -> np.ndarray:
        """How many samples the units of each row span."""
        if self.piece is None:
            return self.index.num_samples
        length, frames = self.piece
        pieces, rest = np.divmod(self.index.num_samples // self.form.hop, frames)
        return pieces * length + rest * self.form.hop


def make(data: Any, root: Any) -> Units:
    """The source of all recordings in folders of units. Uses data.min_seconds. Raises UserError."""
    units = open_units(root)
    units.index = usable(units.index, ", ".join(root_entries(root)), data.min_seconds)
    return units


def open_units(root: Any, key: str = "data.root") -> Units:
    """The units of one or more folders, which one model made. `key` is the config key that messages name.

    Raises UserError for folders that hold something else, are unfinished or damaged, have clusters beyond those of
    their metadata, or come from different models.
    """
    folders = feature_files.open_folders(root, UNITS, key)
    for folder, metadata in folders:
        _check_metadata(folder, metadata)
    first = feature_files.of_one_model(folders, _KEYS, "units")
    index, layouts = feature_files.index_parts(folders, lambda part: _check_part(part, first["groups"], first["codes"]))
    if not len(index):
        raise UserError(f"{key}: {folders[0][0]} holds no recording; its skipped.jsonl says what was left out and why")
    layer = first.get("layer")
    made_by = first["model"] if layer is None else f"{first['model']} {layer}"
    form = Form(UNITS, "int32", hop=first["hop"], made_by=made_by, width=first["groups"])
    piece = None
    if first.get("cut") == "recipe":
        piece = first["max_samples"], (first["max_samples"] - first["field"]) // first["hop"] + 1
    return Units(index, form, layouts, model=first["model"], clusters=first["codes"], piece=piece)


_KEYS = ("model", "layer", "hop", "groups", "codes", "cut", "max_samples")


def _check_metadata(folder: pathlib.Path, metadata: dict[str, Any]) -> None:
    names = ("hop", "groups", "codes") + ("max_samples", "field") * (metadata.get("cut") == "recipe")
    numbers = [metadata.get(name) for name in names]
    if not all(type(number) is int and number > 0 for number in numbers) or not isinstance(metadata.get("model"), str):
        raise UserError(
            f"{folder / feature_files.METADATA}: needs model, hop, groups and codes (the clusters of each "
            "group); label the recordings again into another folder"
        )


def _check_part(part: feature_files.PartContent, groups: int, clusters: int) -> None:
    feature_files.check_numbers(part, groups, "units of {} label sets")
    if (beyond := _beyond(part.array[:CHECKED], clusters)) is not None:
        raise UserError(
            f"{part.path} has unit {beyond}, and its folder says that there are {clusters} clusters; label the "
            "recordings again into another folder"
        )


def _beyond(units: np.ndarray, clusters: int) -> int | None:
    """A unit that is no cluster, or None."""
    beyond = (units < 0) | (units >= clusters)
    return int(units[beyond][0]) if beyond.any() else None


# Self-made units


def write_letters(folder: pathlib.Path, homes: list[pathlib.Path]) -> None:
    """Writes the letters of self-made corpora (`synthetic.py`) as units, unless the folder exists.

    The labels of a self-made corpus are its letters, at LETTER_UNIT_HOP: cluster 0 is a pause, the others are ALPHABET.
    """
    codes.made_once(folder, "data.targets", lambda partial: _fill(partial, homes))


def _fill(folder: pathlib.Path, homes: list[pathlib.Path]) -> None:
    utterances, frames = [], 0
    for home in homes:
        seed = (corpus.read_settings(home) or {}).get("seed", 0)
        for record in corpus.read_manifest(home):
            speaker, chapter, place = map(int, record["id"].split("-"))
            number = (chapter - 1) * corpus.RECORDINGS_PER_CHAPTER + place - 1
            letters, bounds = synthetic.letter_bounds(speaker, number, seed=seed)
            units = codes.letter_codes(f" {letters} ", np.append(bounds, record["frames"]), LETTER_UNIT_HOP)[:, :1]
            seconds = record["frames"] / record["rate"]
            about = Utterance(
                record["id"], first=0, frames=0, seconds=seconds, speaker=str(speaker), transcript=letters
            )
            utterances.append((units, about))
            frames += len(units)
    feature_files.write_part(feature_files.part_path(folder, 0), utterances, width=1, dtype="<u2")
    metadata = dict(what=UNITS, method=codes.LETTERS, model=codes.LETTERS, hop=LETTER_UNIT_HOP, groups=1)
    metadata |= dict(codes=len(synthetic.ALPHABET) + 1, text=False, parts=1, utterances=len(utterances))
    feature_files.write_metadata(folder, metadata | dict(frames=frames, skipped=0, complete=True))
