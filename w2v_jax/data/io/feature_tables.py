"""Parts of an extraction as Parquet and HDF5: one file holds the frames and the metadata of each utterance.

    DIR/part-00000.parquet  a row per utterance: id, speaker, transcript, seconds, frames, and `features`, the F * D
                            numbers frame by frame (a flat list, which every reader turns into one array)
    DIR/part-00000.h5       `features` [frames of all utterances, D]; and per utterance first (its first row), frames,
                            seconds, id, speaker, transcript

A file that exists is complete, because it is renamed last. Equal content gives equal bytes. Nothing here depends on a
model.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError, needing
from w2v_jax.core.files import whole_file

GROUP_BYTES = 64 << 20
"""Bytes of features per row group of Parquet, so that a reader need not hold a whole part in memory."""
TEXTS = ("id", "speaker", "transcript")


def check_installed(form: str) -> None:
    """Raises UserError where the package that writes the format `form` is missing."""
    with needing(f'--format {form} needs a package that is missing: pip install "w2v-jax[features]"'):
        if form == "parquet":
            import pyarrow.parquet  # noqa: F401
        elif form == "hdf5":
            import h5py  # noqa: F401


def write_parquet(path: pathlib.Path, utterances: Sequence[tuple[np.ndarray, Any]], *, dtype: str) -> None:
    """Writes (frames [F D], utterance) pairs as a Parquet file that appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet

    number = pa.from_numpy_dtype(np.dtype(dtype))
    fields: list[Any] = [(name, pa.string()) for name in TEXTS]
    fields += [("seconds", pa.float64()), ("frames", pa.int64()), ("features", pa.large_list(number))]
    schema = pa.schema(fields)
    with whole_file(path) as partial, pyarrow.parquet.ParquetWriter(partial, schema) as writer:
        for group in _groups(utterances):
            columns: list[Any] = [[getattr(u, name) for _, u in group] for name in TEXTS]
            columns += [[u.seconds for _, u in group], [len(frames) for frames, _ in group]]
            ends = np.cumsum([0, *(frames.size for frames, _ in group)])
            values = np.concatenate([frames.astype(dtype).ravel() for frames, _ in group])
            features = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(values, number))
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema)]
            writer.write_table(pa.table([*arrays, features], schema=schema))


def _groups(utterances: Sequence[tuple[np.ndarray, Any]]) -> list[list[tuple[np.ndarray, Any]]]:
    """Splits the pairs into row groups of about GROUP_BYTES."""
    groups: list[list[tuple[np.ndarray, Any]]] = []
    size = GROUP_BYTES
    for frames, utterance in utterances:
        if size >= GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append((frames, utterance))
        size += frames.nbytes
    return groups


def write_hdf5(path: pathlib.Path, utterances: Sequence[tuple[np.ndarray, Any]], *, width: int, dtype: str) -> None:
    """Writes (frames [F width], utterance) pairs as an HDF5 file that appears whole or not at all."""
    import h5py

    counts = np.array([len(frames) for frames, _ in utterances], np.int64)
    firsts = np.cumsum(counts) - counts
    with whole_file(path) as partial, h5py.File(partial, "w") as file:
        features = file.create_dataset("features", (int(counts.sum()), width), dtype)
        for first, (frames, _) in zip(firsts, utterances):
            features[first : first + len(frames)] = frames
        file["first"], file["frames"] = firsts, counts
        file["seconds"] = np.array([u.seconds for _, u in utterances], np.float64)
        for name in TEXTS:
            texts = [getattr(u, name) for _, u in utterances]
            file.create_dataset(name, (len(texts),), h5py.string_dtype(), data=texts)


def table_size(path: pathlib.Path) -> tuple[int, int]:
    """(utterances, frames) of a part in Parquet or HDF5. Raises UserError where it is missing or damaged."""
    if not path.exists():
        raise UserError(f"{path} is missing; give the command of the extraction again")
    try:
        frames = _frames_of(path)
    except Exception as error:  # neither package documents what a damaged file raises
        raise UserError(
            f"{path} is truncated or not what its name says ({error}); "
            f"delete {path.name} and give the command of the extraction again"
        ) from None
    return len(frames), int(frames.sum())


def _frames_of(path: pathlib.Path) -> np.ndarray:
    """The number of frames of each utterance in a part."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path, columns=["frames"])["frames"].to_numpy()
    import h5py

    with h5py.File(path) as file:
        return np.asarray(file["frames"])
