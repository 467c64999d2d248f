"""Parts of an extraction as Parquet and HDF5: one file holds the frames and what is known of each utterance.

    DIR/part-00000.parquet  a row per utterance: id, speaker, transcript, seconds, frames, and `features`, the F * D
                            numbers frame by frame (a flat list, which every reader turns into one array)
    DIR/part-00000.h5       `features` [frames of all utterances, D]; and per utterance first (its first row), frames,
                            seconds, id, speaker, transcript

A file is renamed last: one that exists is whole. Same content, same bytes. Nothing here knows a model.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax.config import UserError

GROUP_BYTES = 64 << 20
"""Features per row group of Parquet, so that a reader need not hold a part."""
TEXTS = ("id", "speaker", "transcript")


def check_installed(form: str) -> None:
    """Raises UserError when the package that writes `form` is missing."""
    try:
        if form == "parquet":
            import pyarrow.parquet  # noqa: F401
        elif form == "hdf5":
            import h5py  # noqa: F401
    except ImportError:
        raise UserError(f'--format {form} needs a package that is missing: pip install "w2v-jax[features]"') from None


def write_parquet(path: pathlib.Path, found: Sequence[tuple[np.ndarray, Any]], *, dtype: str) -> None:
    """Writes (frames [F D], utterance) pairs as a Parquet file that appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet

    number = pa.from_numpy_dtype(np.dtype(dtype))
    fields: list[Any] = [(name, pa.string()) for name in TEXTS]
    fields += [("seconds", pa.float64()), ("frames", pa.int64()), ("features", pa.large_list(number))]
    schema, partial = pa.schema(fields), path.with_name(f"{path.name}.partial")
    with pyarrow.parquet.ParquetWriter(partial, schema) as writer:
        for group in _groups(found):
            columns: list[Any] = [[getattr(u, name) for _, u in group] for name in TEXTS]
            columns += [[u.seconds for _, u in group], [len(frames) for frames, _ in group]]
            ends = np.cumsum([0, *(frames.size for frames, _ in group)])
            values = np.concatenate([frames.astype(dtype).ravel() for frames, _ in group])
            features = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(values, number))
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema)]
            writer.write_table(pa.table([*arrays, features], schema=schema))
    os.replace(partial, path)


def _groups(found: Sequence[tuple[np.ndarray, Any]]) -> list[list[tuple[np.ndarray, Any]]]:
    groups: list[list[tuple[np.ndarray, Any]]] = []
    held = GROUP_BYTES
    for frames, utterance in found:
        if held >= GROUP_BYTES:
            groups.append([])
            held = 0
        groups[-1].append((frames, utterance))
        held += frames.nbytes
    return groups


def write_hdf5(path: pathlib.Path, found: Sequence[tuple[np.ndarray, Any]], *, width: int, dtype: str) -> None:
    """Writes (frames [F width], utterance) pairs as an HDF5 file that appears whole or not at all."""
    import h5py

    counts = np.array([len(frames) for frames, _ in found], np.int64)
    firsts = np.cumsum(counts) - counts
    partial = path.with_name(f"{path.name}.partial")
    with h5py.File(partial, "w") as file:
        features = file.create_dataset("features", (int(counts.sum()), width), dtype)
        for first, (frames, _) in zip(firsts, found):
            features[first : first + len(frames)] = frames
        file["first"], file["frames"] = firsts, counts
        file["seconds"] = np.array([u.seconds for _, u in found], np.float64)
        for name in TEXTS:
            texts = [getattr(u, name) for _, u in found]
            file.create_dataset(name, (len(texts),), h5py.string_dtype(), data=texts)
    os.replace(partial, path)


def count(path: pathlib.Path) -> tuple[int, int]:
    """(utterances, frames) of a part that was written here. Raises UserError for one that is missing or damaged."""
    again = f"delete {path.name} and give the command of the extraction again"
    if not path.exists():
        raise UserError(f"{path} is missing; give the command of the extraction again")
    try:
        frames = _frames_of(path)
    except Exception as error:  # what a damaged file raises, neither package says
        raise UserError(f"{path} is truncated or not what its name says ({error}); {again}") from None
    return len(frames), int(frames.sum())


def _frames_of(path: pathlib.Path) -> np.ndarray:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path, columns=["frames"])["frames"].to_numpy()
    import h5py

    with h5py.File(path) as file:
        return np.asarray(file["frames"])
