"""The folder that extraction writes: frames of many utterances in parts, in formats that every tool reads.

    DIR/part-00000.npy      [frames of all utterances of the part, G] integers (codes), or [.., D] floats (features)
    DIR/part-00000.jsonl    one object per utterance: id, first (its first row of the array), frames, seconds, speaker,
                            transcript
    DIR/part-00000.txt      with --text: one line of "i-j" tokens per utterance, in the same order
    DIR/extract.json        what it is and where it comes from; "complete" is true once everything is there
    DIR/skipped.jsonl       path and reason of everything that was left out
    DIR/vocabulary.json     of codes: see vocabulary.py

Features can be written as Parquet or HDF5 instead: the parts are then those of `tables.py`, the other files the same.
.npy because every array library reads it, `np.load(mmap_mode="r")` gives random access, and tf.data reads it as it
is: `FixedLengthRecordDataset(file, row_bytes, header_bytes)` with the numbers of `tf_layout`. A part whose .npy exists
is whole: the array is renamed last. Nothing here knows a model.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError
from w2v_jax.data import tables
from w2v_jax.data.index import Index, ReadError, Row
from w2v_jax.data.vocabulary import text as tokens

ABOUT = "extract.json"
SKIPPED = "skipped.jsonl"
FORMATS = {"numpy": ".npy", "parquet": ".parquet", "hdf5": ".h5"}
"""Of features, and how the names of their parts end."""


class Utterance(NamedTuple):
    """Rows first .. first + frames of a part's array."""

    id: str
    first: int
    frames: int
    seconds: float
    speaker: str = ""
    transcript: str = ""


class Part(NamedTuple):
    """The array of a part, mapped from its file, and its utterances."""

    path: pathlib.Path
    array: np.ndarray
    utterances: list[Utterance]


def part_path(folder: pathlib.Path, number: int, form: str = "numpy") -> pathlib.Path:
    return folder / f"part-{number:05d}{FORMATS[form]}"


def write_part(
    path: pathlib.Path,
    found: Sequence[tuple[np.ndarray, Utterance]],
    *,
    width: int,
    dtype: str,
    text: bool = False,
) -> None:
    """Writes (frames [F width], utterance) pairs as one part; `first` and `frames` are filled in here."""
    total = sum(len(frames) for frames, _ in found)
    lines, first = [], 0
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": (total, width),
        }
        np.lib.format.write_array_header_1_0(file, header)
        for frames, utterance in found:
            file.write(np.ascontiguousarray(frames, dtype).tobytes())
            utterance = utterance._replace(first=first, frames=len(frames))
            lines.append(json.dumps(utterance._asdict(), ensure_ascii=False))
            first += len(frames)
    if text:
        write_lines(path.with_suffix(".txt"), [tokens(frames) for frames, _ in found])
    write_lines(path.with_suffix(".jsonl"), lines)
    os.replace(partial, path)


def write_lines(path: pathlib.Path, lines: Sequence[str]) -> None:
    """Writes lines to a file that appears whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    os.replace(partial, path)


def write_about(folder: pathlib.Path, about: dict[str, Any]) -> None:
    write_lines(folder / ABOUT, [json.dumps(about, indent=2)])


def read_about(folder: pathlib.Path, *, complete: bool = True) -> dict[str, Any]:
    """The content of extract.json. Raises UserError when there is none, or when `complete` is asked for in vain."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        is_complete = about["complete"]
    except OSError:
        raise UserError(
            f"{folder}: {ABOUT} is missing, so this is no folder that python -m w2v_jax.extract has written"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / ABOUT} is not readable; extract again into another folder") from None
    if complete and not is_complete:
        raise UserError(f"{folder}: the extraction is not finished; give its command again, it goes on from there")
    return {"format": "numpy"} | about  # the only one that there was at first


def read_parts(folder: pathlib.Path, about: dict[str, Any]) -> Iterator[Part]:
    """Every part, in order. Raises UserError for one that is missing, cut short or does not fit its lines."""
    if about["format"] != "numpy":
        raise UserError(
            f"{folder} holds features as {about['format']}, for other programs; what is read here was extracted with "
            "--format numpy"
        )
    for number in range(about["parts"]):
        yield read_part(part_path(folder, number))


def count(path: pathlib.Path) -> tuple[int, int]:
    """(utterances, frames) of a part of any format. Raises UserError for one that is missing or damaged."""
    if path.suffix != FORMATS["numpy"]:
        return tables.count(path)
    part = read_part(path)
    return len(part.utterances), len(part.array)


def read_part(path: pathlib.Path) -> Part:
    """One part, its array mapped and not read. Raises UserError."""
    again = f"delete {path.name} and give the command of the extraction again"
    try:
        array = np.load(path, mmap_mode="r") if os.path.getsize(path) else np.zeros((0, 0))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; give the command of the extraction again") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is truncated or not an array ({error}); {again}") from None
    try:
        lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").split("\n")
        utterances = [Utterance(**json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path.with_suffix('.jsonl')} is not readable ({error}); {again}") from None
    frames = sum(u.frames for u in utterances)
    if array.ndim != 2 or len(array) != frames:
        raise UserError(f"{path} holds {len(array)} frames, its .jsonl {frames}: one of them is truncated; {again}")
    return Part(path, array, utterances)


def rows_of(part: Part, hop: int) -> Iterator[Row]:
    """The rows of an index for a part's utterances: offsets and lengths in 16 kHz samples, `hop` per frame."""
    for u in part.utterances:
        yield Row(u.id, str(part.path), u.first * hop, u.frames * hop, SAMPLE_RATE, u.speaker, u.transcript)


def layout_of(part: Part) -> tuple[int, str]:
    """(header bytes, dtype) of a part's array: what `read_row` needs."""
    return os.path.getsize(part.path) - part.array.nbytes, part.array.dtype.str


def read_row(
    index: Index, row: int, start: int, length: int, *, hop: int, width: int, layouts: dict[str, tuple[int, str]]
) -> np.ndarray:
    """Frames [F width] of a row that `rows_of` made; start and length in samples, rounded down to whole frames.

    layouts: `layout_of` each part. Raises ReadError.
    """
    path, first = str(index.paths[row]), start // hop
    count = max(min(length // hop, int(index.num_samples[row]) // hop - first), 0)
    header, dtype = layouts[path]
    place = int(index.offsets[row]) // hop + first
    try:
        found = np.fromfile(path, dtype, count * width, offset=header + place * width * np.dtype(dtype).itemsize)
    except OSError as error:
        raise ReadError(f"unreadable file: {error.strerror or error}") from None
    if len(found) < count * width:
        raise ReadError(f"truncated: {len(found) // width} of {count} frames are left")
    return found.reshape(-1, width)


def tf_layout(part: Part) -> tuple[int, int]:
    """(row_bytes, header_bytes) of a part: what tf.data.FixedLengthRecordDataset needs to read its rows."""
    row_bytes = part.array.dtype.itemsize * part.array.shape[1]
    return row_bytes, layout_of(part)[0]
