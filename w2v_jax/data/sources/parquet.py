"""Parquet files with audio bytes in a column, as Hugging Face's `datasets` and omnilingual ASR store them.

The column of audio is a struct of `bytes` and `path`, or bytes, or a list of 8-bit integers; what is in it is the
content of an audio file (`archives/parquet.py`). Where a cell has a path alone, the file lies beside the Parquet file.
Columns of `archives/texts.py` give ids, transcripts and speakers. `data.root` names files or folders of them.

A folder `split=NAME` above a file, or a name such as train-00000-of-00004.parquet, says its split. data.split chooses
one ("": all), and PATH@SPLIT names the split of a root. Other partitions (`corpus=`, `language=`) are part of the id
where there is no column of ids; a folder of one language can be a root.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

from w2v_jax.core.cli import UserError
from w2v_jax.data.archives.parquet_rows import (
    Table,
    as_bytes,
    audio_cells,
    audio_chunk,
    open_table,
    places,
    read_columns,
)
from w2v_jax.data.archives.shards import Archive, archives, named_split, read_ahead
from w2v_jax.data.archives.texts import ROLES, as_text, role_names
from w2v_jax.data.index import ReadError, Skip, root_entries, roots
from w2v_jax.data.io.address import PARQUET, in_file, numbered
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.io.listing import Candidate, list_parts
from w2v_jax.data.kept.listings import FileStates

LARGE_GROUP = 32 << 20
"""Bytes of a compressed row group, all of which are read for one recording, from which on a person is told."""


SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval", "evaluation")
"""Names of files and folders that are those of splits."""
DEFAULT = "train"
"""The split of configs, of which files are taken to be that name none."""


def make(data, root) -> AudioFiles:
    """The source of all rows of the split. Uses data.split, data.min_seconds, data.workers. Raises UserError."""
    skipped: list[Skip] = []
    large: list[str] = []
    entries = root_entries(root) or map(str, roots(root))  # which raises
    places = [named_split(entry, data.split) for entry in entries]
    states: FileStates = {}
    files = [file for path, split in places for file in _files(path, split, skipped=skipped, states=states)]
    return list_parts(
        data,
        [read_ahead(files, lambda file, skips: _candidates(file, skips, large), skipped, workers=data.workers)],
        kind="parquet",
        where=[path for path, _ in places],
        skipped=skipped,
        states=states,
        notes=_notes(large),
        options=json.dumps([split for _, split in places]),
    )


def _notes(large: list[str]) -> Iterator[str]:
    if large:
        yield (
            f"{len(large):,} row groups are compressed and hold over {LARGE_GROUP >> 20} MB, all of which are read for "
            f"one recording: write them with compression='none', or with row_group_size=100; first: {min(large)}"
        )


def _files(path: str, split: str, *, skipped: list[Skip], states: FileStates) -> list[Archive]:
    """The files of a root that belong to the split. Raises UserError where none does."""
    files = archives(path, PARQUET, skipped, what=".parquet", states=states)
    splits = [_split(file) for file in files]
    if not any(splits) and split in ("", DEFAULT):
        return files
    chosen = [
        file for file, name in zip(files, splits, strict=True) if f"{name}.".startswith(f"{split}." * bool(split))
    ]
    if files and not chosen:
        known = ", ".join(sorted({name or "no name" for name in splits}))
        raise UserError(f"data.root: {path!r} has no split {split!r}; choose with --config.data.split from {known}")
    if split and "" in splits:
        unnamed = files[splits.index("")].path
        raise UserError(
            f"data.root: {unnamed} does not say its split, and others below {path!r} do: name the files, "
            "or take all splits by --config.data.split="
        )
    return chosen


def _split(file: Archive) -> str:
    """The split that a path says, in one of the forms of Hugging Face, "" where it says none."""
    folder, _, name = file.name.rpartition("/")
    match = re.search(r"(?:^|/)split=([^/]+)/", file.path) or re.search(r"^(.+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?$", name)
    plain = next((word for word in (name, folder.rpartition("/")[2]) if word in SPLITS), "")
    return match[1] if match else plain


def _candidates(file: Archive, skipped: list[Skip], large: list[str]) -> Iterator[Candidate]:
    try:
        table = open_table(file.path)
    except ReadError as error:
        skipped.append(Skip(file.path, str(error)))
        return
    if not table.metadata.num_rows:
        skipped.append(Skip(file.path, "empty file"))
    for group in range(len(table.firsts)):
        rows = table.rows(group)
        try:
            yield from _rows(file, table, group)
            chunk = audio_chunk(table, group)
        except ReadError as error:
            skipped.append(Skip(f"{file.path}: rows {rows.start:,} to {rows.stop - 1:,}", str(error)))
            continue
        size = chunk.stop - chunk.start
        if chunk.is_compressed and size > LARGE_GROUP:
            large.append(f"{file.path}: rows {rows.start:,} to {rows.stop - 1:,}, {size >> 20:,} MB")


def _rows(file: Archive, table: Table, group: int) -> Iterator[Candidate]:
    """The recordings of a row group. Raises ReadError before the first of them."""
    names, cells = role_names(set(table.schema.names) - {table.audio}), audio_cells(table, group)
    columns = read_columns(table, group, [*names.values()])
    texts = {role: [""] * len(table.rows(group)) for role in ROLES}
    texts |= {role: [as_text(value) for value in as_bytes(columns[name]).to_pylist()] for role, name in names.items()}
    for i, place in enumerate(places(table, group)):
        number, beside = table.rows(group)[i], cells.path(i)
        path = numbered(table.path, number)
        if place:
            path = in_file(table.path, *place, name=str(number))
        elif beside and not cells.contents[i].is_valid:
            path = os.path.join(os.path.dirname(table.path), beside)
        id = texts["id"][i] or os.path.splitext(beside)[0] or f"{file.name}:{number}"
        yield Candidate(id, path, speaker=texts["speaker"][i], transcript=texts["transcript"][i])
