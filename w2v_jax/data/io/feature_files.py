"""The folder that extraction writes: frames of many utterances in parts, in formats that every tool reads.

    DIR/part-00000.npy      [frames of all utterances of the part, G] integers (codes), or [.., D] floats (features)
    DIR/part-00000.jsonl    one object per utterance: id, first (its first row of the array), frames, seconds, speaker,
                            transcript
    DIR/part-00000.txt      with --text: one line of "i-j" tokens per utterance, in the same order
    DIR/extract.json        metadata: content and origin; "complete" is true once every part is written
    DIR/skipped.jsonl       path and reason of everything that was left out
    DIR/vocabulary.json     for codes: see `code_vocabulary.py`

Features can be written as Parquet or HDF5 instead. Then `feature_tables.py` writes the parts; the other files are the
same. Every array library reads .npy, and `np.load(mmap_mode="r")` gives random access. tf.data reads it with
`FixedLengthRecordDataset(file, row_bytes, header_bytes)`; `layout_of` gives the bytes of the header. A part whose .npy
exists is complete, because the array is renamed last. Nothing here depends on a model.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError, os_error_text
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import whole_file, write_whole
from w2v_jax.core.storage import fetched
from w2v_jax.core.stores import is_remote
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.code_vocabulary import code_text
from w2v_jax.data.index import Form, Index, ReadError, Row, make_index, roots
from w2v_jax.data.io import feature_tables

METADATA = "extract.json"
FORMATS = {"numpy": ".npy", "parquet": ".parquet", "hdf5": ".h5"}
"""Formats of features, and the suffixes of their parts."""
SENT_LAST = (*(f"*{suffix}" for suffix in FORMATS.values()), METADATA)
"""Each says that what was written before it is complete: the arrays of parts, and then the metadata."""


class Utterance(NamedTuple):
    """Rows first .. first + frames of a part's array."""

    id: str
    first: int
    frames: int
    seconds: float
    speaker: str = ""
    transcript: str = ""


class PartContent(NamedTuple):
    """The array of a part, memory-mapped from its file, and its utterances."""

    path: pathlib.Path
    array: np.ndarray
    utterances: list[Utterance]

    __repr__ = short_repr


Layouts = dict[str, tuple[int, str]]
"""(header bytes, dtype) of the array of each part, by the path of the part."""
Folders = list[tuple[pathlib.Path, dict[str, Any]]]
"""Folders and their metadata."""


def part_path(folder: pathlib.Path, number: int, suffix: str = FORMATS["numpy"]) -> pathlib.Path:
    """The file of a part."""
    return folder / f"part-{number:05d}{suffix}"


def write_part(
    path: pathlib.Path, pairs: Sequence[tuple[np.ndarray, Utterance]], *, width: int, dtype: str, text: bool = False
) -> None:
    """Writes (frames [F width], utterance) pairs as one part, and sets each utterance's `first` and `frames`.

    With `text`, also writes the codes as lines of tokens.
    """
    total = sum(len(frames) for frames, _ in pairs)
    lines, first = [], 0
    with whole_file(path) as partial:  # renamed last, so that a part whose array exists is complete
        with open(partial, "wb") as file:
            descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
            header = {"descr": descr, "fortran_order": False, "shape": (total, width)}
            np.lib.format.write_array_header_1_0(file, header)
            for frames, utterance in pairs:
                file.write(np.ascontiguousarray(frames, dtype).tobytes())
                utterance = utterance._replace(first=first, frames=len(frames))
                lines.append(json.dumps(utterance._asdict(), ensure_ascii=False))
                first += len(frames)
        if text:
            write_whole(path.with_suffix(".txt"), [code_text(frames) for frames, _ in pairs])
        write_whole(path.with_suffix(".jsonl"), lines)


def write_metadata(folder: pathlib.Path, metadata: dict[str, Any]) -> None:
    """Writes extract.json, whole or not at all."""
    write_whole(folder / METADATA, [json.dumps(metadata, indent=2)])


def read_metadata(folder: pathlib.Path, *, complete: bool = True) -> dict[str, Any]:
    """The content of extract.json. Raises UserError where it is missing, or incomplete although `complete` is set."""
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        is_complete = metadata["complete"]
    except OSError:
        raise UserError(
            f"{folder}: {METADATA} is missing; give a folder that python -m w2v_jax.extract (or units) has written"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / METADATA} is not readable; extract again into another folder") from None
    if complete and not is_complete:
        raise UserError(f"{folder}: the extraction is not finished; give its command again, it goes on from there")
    return {"format": "numpy"} | metadata  # folders of the first version state no format


def read_parts(folder: pathlib.Path, metadata: dict[str, Any]) -> Iterator[PartContent]:
    """Every part, in order. Raises UserError for a part that is missing, cut short or does not fit its .jsonl."""
    if metadata["format"] != "numpy":
        raise UserError(
            f"{folder} holds features as {metadata['format']}, for other programs; extract them with --format numpy"
        )
    for number in range(metadata["parts"]):
        yield read_part(part_path(folder, number))


def part_size(path: pathlib.Path) -> tuple[int, int]:
    """(utterances, frames) of a part in any format. Raises UserError where it is missing or damaged."""
    if path.suffix != FORMATS["numpy"]:
        return feature_tables.table_size(path)
    part = read_part(path)
    return len(part.utterances), len(part.array)


def read_part(path: pathlib.Path) -> PartContent:
    """One part, whose array is memory-mapped. Raises UserError where it is missing or damaged."""
    advice = f"delete {path.name} and give the command of the extraction again"
    try:
        array = np.load(path, mmap_mode="r") if os.path.getsize(path) else np.zeros((0, 0))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; give the command of the extraction again") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is truncated or not an array ({error}); {advice}") from None
    try:
        lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").split("\n")
        utterances = [Utterance(**json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path.with_suffix('.jsonl')} is not readable ({error}); {advice}") from None
    frames = sum(u.frames for u in utterances)
    if array.ndim != 2 or len(array) != frames:
        raise UserError(f"{path} holds {len(array)} frames, its .jsonl {frames}: one of them is truncated; {advice}")
    return PartContent(path, array, utterances)


def check_numbers(part: PartContent, groups: int, what: str) -> None:
    """Raises UserError unless a part holds integers of so many groups. what: e.g. "codes of {} groups"."""
    if part.array.shape[1] != groups or part.array.dtype.kind not in "iu":
        found = f"{part.array.dtype} [frames {part.array.shape[1]}]"
        raise UserError(f"{part.path} holds {found}, not {what.format(groups)}")


MADE_BY = {"codes": "extract --what codes", "features": "extract --what context", "units": "units label"}
"""Kind of content -> the command that writes it."""


def open_folders(root: Any, kind: str, key: str = "data.root") -> Folders:
    """(folder, metadata) of each folder of a data.root. `kind` is one of MADE_BY; `key` is the config key of the root.

    A folder in a store is fetched: what models make of recordings is far smaller than these, but for features.
    Raises UserError for folders that are missing, unfinished or hold another kind.
    """
    folders = []
    name = "speech_units" if kind == "units" else kind
    needs = f"data.name={name}" if key == "data.root" else key
    for folder in roots(root, key):
        folder = fetched(str(folder)) if is_remote(folder) else folder
        if not folder.is_dir():
            extracted = "" if kind == "units" else "extracted "
            raise UserError(f"{key}: {str(folder)!r} is a file; {needs} needs folders of {extracted}{kind}")
        metadata = read_metadata(folder)
        what = metadata.get("what")
        if (what if what in MADE_BY else "features") != kind:
            content = what if what in MADE_BY else f"features ({what})"
            verb = "label the recordings" if kind == "units" else "extract them"
            raise UserError(
                f"{folder} holds {content}, and {needs} needs {kind}: {verb} with python -m w2v_jax.{MADE_BY[kind]}"
            )
        if metadata.get("collapse"):
            raise UserError(f"{folder} holds units without their repeats; label again without --collapse")
        folders.append((folder, metadata))
    return folders


def of_one_model(folders: Folders, keys: Sequence[str], kind: str) -> dict[str, Any]:
    """The metadata of the first of `open_folders`. Raises UserError where another differs from it in these keys."""
    first_folder, first = folders[0]
    for folder, metadata in folders:
        if [metadata.get(key) for key in keys] != [first.get(key) for key in keys]:
            raise UserError(f"{folder} and {first_folder} are {kind} of different models or layers; use one of them")
    return first


def index_parts(folders: Folders, check: Callable[[PartContent], None]) -> tuple[Index, Layouts]:
    """(the index of all utterances in `open_folders`, with offsets and lengths in 16 kHz samples; the layouts).

    Passes each part to `check`.
    """
    layouts: Layouts = {}

    def rows() -> Iterator[Row]:
        for folder, metadata in folders:
            hop = metadata["hop"]
            for part in read_parts(folder, metadata):
                check(part)
                path = str(part.path)
                layouts[path] = layout_of(part)
                for u in part.utterances:
                    yield Row(
                        u.id,
                        path,
                        offset=u.first * hop,
                        frames=u.frames * hop,
                        rate=SAMPLE_RATE,
                        speaker=u.speaker,
                        transcript=u.transcript,
                    )

    return make_index(rows()), layouts


def layout_of(part: PartContent) -> tuple[int, str]:
    """(header bytes, dtype) of a part's array."""
    return os.path.getsize(part.path) - part.array.nbytes, part.array.dtype.str


class FrameSource:
    """Frames in parts. A row's path is a part, and its offset is the first sample of the utterance there."""

    __repr__ = short_repr

    def __init__(self, index: Index, form: Form, layouts: Layouts):
        self.index, self.form, self.layouts = index, form, layouts

    def frames(self, row: int, start: int, length: int, *, width: int) -> np.ndarray:
        """Frames [F width] of a row, as they are stored.

        `start` and `length` are in samples and are rounded down to whole frames. Raises ReadError.
        """
        index, hop = self.index, self.form.hop
        path, first = str(index.paths[row]), start // hop
        count = max(min(length // hop, int(index.num_samples[row]) // hop - first), 0)
        header, dtype = self.layouts[path]
        skipped = (int(index.offsets[row]) // hop + first) * width * np.dtype(dtype).itemsize
        try:
            frames = np.fromfile(path, dtype, count * width, offset=header + skipped)
        except OSError as error:
            raise ReadError(f"unreadable file: {os_error_text(error)}") from None
        if len(frames) < count * width:
            raise ReadError(f"truncated: {len(frames) // width} of {count} frames are left")
        return frames.reshape(-1, width)
