"""Speech units in files: one number per frame and codebook, for HuBERT and for language models.

    numpy    part-00000.npy      [frames G] uint16 (int32 above 65,536 clusters), and part-00000.jsonl, which names the
                                 recordings: the folder of `feature_files.py`, which training reads
    text     part-00000.txt      a line per recording: "12 12 7 ...", of G codebooks "12-3 12-3 7-0 ..."; its ids in
                                 part-00000.jsonl. The lines of one codebook are the .km files of fairseq
    jsonl    part-00000.jsonl    an object per recording: id, units (a list of numbers, or of lists of G numbers),
                                 frames, seconds, speaker, transcript
    parquet  part-00000.parquet  a row per recording: id, units (frames * G numbers), frames, seconds, speaker,
                                 transcript

Collapsed units leave repeats out. Then `frames` counts what is left, and durations (in frames) stand beside the units:
part-00000.durations.npy or .txt, or a field of that name. A part that exists is complete. NumPy only.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import whole_file, write_whole
from w2v_jax.data.code_vocabulary import code_text
from w2v_jax.data.io.feature_files import Utterance, part_size, read_metadata, read_parts, write_part

UNIT_FORMATS = {"numpy": ".npy", "text": ".txt", "jsonl": ".jsonl", "parquet": ".parquet"}
"""Formats of units, and the suffixes of their parts."""
TEXTS = ("id", "speaker", "transcript")


class UnitRow(NamedTuple):
    """units [F G] of one recording; `durations` [F] where repeats are left out, else None."""

    utterance: Utterance
    units: np.ndarray
    durations: np.ndarray | None

    __repr__ = short_repr

    def fields(self) -> dict[str, Any]:
        """The recording as an object of JSON."""
        units = self.units[:, 0] if self.units.shape[1] == 1 else self.units
        fields: dict[str, Any] = {"id": self.utterance.id, "units": units.tolist()}
        if self.durations is not None:
            fields["durations"] = self.durations.tolist()
        u = self.utterance
        return fields | dict(frames=len(self.units), seconds=u.seconds, speaker=u.speaker, transcript=u.transcript)


def collapsed(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """units [F G] without repeats [S G], and how many frames each lasts [S] int32."""
    if not len(units):
        return units, np.zeros(0, np.int32)
    firsts = np.concatenate([[0], 1 + np.flatnonzero((units[1:] != units[:-1]).any(axis=1))])
    return units[firsts], np.diff(np.append(firsts, len(units))).astype(np.int32)


def unit_dtype(codes: int) -> str:
    """The type of numbers below `codes`."""
    return "uint16" if codes <= 1 << 16 else "int32"


def write_units(
    path: pathlib.Path,
    pairs: Sequence[tuple[np.ndarray, Utterance]],
    *,
    groups: int,
    dtype: str,
    form: str,
    collapse: bool,
) -> None:
    """Writes (units [F G], utterance) pairs as one part, without repeats if `collapse` is set."""
    rows = [UnitRow(utterance, *(collapsed(units) if collapse else (units, None))) for units, utterance in pairs]
    durations = [row.durations for row in rows if row.durations is not None]
    if form == "numpy":
        if collapse:
            with whole_file(path.with_suffix(".durations.npy")) as partial, open(partial, "wb") as file:
                np.save(file, np.concatenate([*durations, np.zeros(0, np.int32)]))
        write_part(path, [(row.units, row.utterance) for row in rows], width=groups, dtype=dtype)
    elif form == "text":
        if collapse:
            write_whole(path.with_suffix(".durations.txt"), (code_text(each[:, None]) for each in durations))
        utterances = (row.utterance._replace(frames=len(row.units))._asdict() for row in rows)
        lines = [json.dumps({k: v for k, v in u.items() if k != "first"}, ensure_ascii=False) for u in utterances]
        write_whole(path.with_suffix(".jsonl"), lines)
        write_whole(path, (code_text(row.units) for row in rows))
    elif form == "jsonl":
        write_whole(path, (json.dumps(row.fields(), ensure_ascii=False) for row in rows))
    else:
        _write_parquet(path, rows, dtype=dtype, collapse=collapse)


def units_size(path: pathlib.Path) -> tuple[int, int]:
    """(recordings, frames) of a part in any format. Raises UserError where it is missing or damaged."""
    if path.suffix in (".npy", ".parquet"):
        return part_size(path)
    try:
        objects = [json.loads(line) for line in path.with_suffix(".jsonl").read_text("utf-8").split("\n") if line]
        lines = path.read_text("utf-8").count("\n")
        if lines == len(objects):
            return lines, sum(each["frames"] for each in objects)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); delete it and give the command again") from None
    raise UserError(f"{path} holds {lines} lines for {len(objects)} recordings; delete it and give the command again")


def read_units(folder: pathlib.Path) -> tuple[dict[str, Any], Iterator[tuple[Utterance, np.ndarray]]]:
    """(metadata, (utterance, units [F G]) of each recording) of a finished folder. Raises UserError.

    Repeats must be there: what reads units by time needs one for every frame.
    """
    metadata = read_metadata(folder)
    if metadata.get("what") != "units":
        raise UserError(f"{folder} holds {metadata.get('what')}, not units; python -m w2v_jax.units label makes them")
    if metadata["collapse"]:
        raise UserError(f"{folder} holds units without their repeats; label again without --collapse")
    if metadata["format"] != "numpy":
        raise UserError(f"{folder} holds units as {metadata['format']}, for other programs; label with --format numpy")
    rows = (
        (utterance, np.asarray(part.array[utterance.first : utterance.first + utterance.frames]))
        for part in read_parts(folder, metadata)
        for utterance in part.utterances
    )
    return metadata, rows


def _write_parquet(path: pathlib.Path, rows: Sequence[UnitRow], *, dtype: str, collapse: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    columns: dict[str, Any] = {
        name: pa.array([getattr(r.utterance, name) for r in rows], pa.string()) for name in TEXTS
    }
    columns["seconds"] = pa.array([row.utterance.seconds for row in rows], pa.float64())
    columns["frames"] = pa.array([len(row.units) for row in rows], pa.int64())
    columns["units"] = _lists([row.units.ravel() for row in rows], dtype)
    if collapse:
        columns["durations"] = _lists([row.durations for row in rows if row.durations is not None], "int32")
    with whole_file(path) as partial:
        pyarrow.parquet.write_table(pa.table(columns), partial)


def _lists(arrays: Sequence[np.ndarray], dtype: str) -> Any:
    import pyarrow as pa

    ends, numbers = np.cumsum([0, *map(len, arrays)]), np.concatenate([*arrays, []]).astype(dtype)
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(numbers))
