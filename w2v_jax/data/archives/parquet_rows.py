"""Parquet files with the bytes of audio files in a column: a recording by the number of its row.

The column is a struct of `bytes` and `path`, as the package `datasets` of Hugging Face writes it, or bytes, or a list
of 8-bit integers, as omnilingual ASR writes it. Parquet has no access to one value: a whole row group is read for it.
The groups that were read last are kept. Where the column is stored without compression, `places` finds each value in
the file, so that later reads take its bytes alone.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import mmap
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

from w2v_jax.core.cli import needing
from w2v_jax.core.files import open_binary
from w2v_jax.core.stores import is_remote
from w2v_jax.data.index import ReadError, file_state

BYTES_KEPT = 512 << 20
"""Bytes of the row groups that are kept. The last one read is always kept."""

READ_TOGETHER = 4
"""Row groups that are read at the same time, each of which takes memory, too."""

FILES_KEPT = 1 << 12
"""Files whose metadata is remembered."""

AUDIO = ("audio", "audio_bytes", "bytes", "wav", "flac", "mp3")
"""The columns of bytes that can be audio, and which of several structs is taken. The first one that exists is used."""


class Table(NamedTuple):
    """What the end of a Parquet file says: its columns, the one with audio, and the first row of each row group.

    `state` is the file's size and when it was changed.
    """

    path: str
    state: tuple[int, int]
    metadata: Any
    schema: Any
    audio: str
    firsts: tuple[int, ...]

    def rows(self, group: int) -> range:
        """The numbers of the rows in a row group."""
        return range(self.firsts[group], self.firsts[group] + self.metadata.row_group(group).num_rows)


def open_table(path: str) -> Table:
    """The table of a file. Raises ReadError where it is damaged or has no audio, UserError where pyarrow is missing."""
    return _open(path, *file_state(path)[:2])


def _source(path: str) -> Any:
    """What pyarrow opens: a path or, of an object in a store, an open file."""
    return open_binary(path) if is_remote(path) else path


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Errors of pyarrow and of the disk as ReadError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).split("\n")[0]
        raise ReadError(f"corrupt Parquet file: {reason}") from None


@functools.lru_cache(FILES_KEPT)
def _open(path: str, size: int, changed: int) -> Table:
    with needing('Parquet files need a package that is missing: pip install "w2v-jax[features]"'):
        import pyarrow.parquet
    with _reasons(), pyarrow.parquet.ParquetFile(_source(path)) as file:
        metadata, schema = file.metadata, file.schema_arrow
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    firsts = tuple(itertools.accumulate(counts, initial=0))[:-1]
    return Table(path, (size, changed), metadata, schema=schema, audio=_audio_column(schema), firsts=firsts)


def _audio_column(schema: Any) -> str:
    """The name of the column with audio. Raises ReadError for none, and for several without a name of AUDIO."""
    import pyarrow.types as types

    is_byte = lambda kind: types.is_binary(kind) or types.is_large_binary(kind)
    is_any_list = lambda kind: types.is_list(kind) or types.is_large_list(kind)
    is_list = lambda kind: is_any_list(kind) and (types.is_int8(kind.value_type) or types.is_uint8(kind.value_type))
    structs, others = [], []
    for field in schema:
        if types.is_struct(field.type) and (index := field.type.get_field_index("bytes")) >= 0:
            if is_byte(field.type.field(index).type):
                structs.append(field.name)
        elif is_byte(field.type) or is_list(field.type):
            others.append(field.name)
    named = [name for name in AUDIO if name in (*structs, *others)]
    if named or len(structs) == 1:
        return (named or structs)[0]
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
    if structs:
        raise ReadError(f"several columns can be audio ({', '.join(structs)}): name one of them audio")
    raise ReadError(f"no column of audio bytes: the columns are {columns}")


class Cells(NamedTuple):
    """The column of audio of a row group: bytes or lists of bytes, and the paths beside them (None: it has none)."""

    contents: Any
    paths: Any | None

    @property
    def nbytes(self) -> int:
        return self.contents.nbytes

    def content(self, i: int) -> Any:
        """The bytes in a cell, as a buffer; None where there are none. Raises ReadError."""
        cell = self.contents[i]
        if not cell.is_valid:
            return None
        if hasattr(cell, "as_buffer"):
            return memoryview(cell.as_buffer()).cast("B")
        if cell.values.null_count:
            raise ReadError("corrupt audio: the list of its bytes has gaps")
        return cell.values.to_numpy().tobytes()

    def path(self, i: int) -> str:
        """The path in a cell; "" where there is none."""
        return "" if self.paths is None else (self.paths[i].as_py() or b"").decode("utf-8", "replace")


def row_content(path: str, row: int) -> bytes:
    """The bytes of the audio file in a row. Raises ReadError."""
    table = open_table(path)
    if not 0 <= row < table.metadata.num_rows:
        raise ReadError(f"no row {row:,}: the file has {table.metadata.num_rows:,}")
    group = bisect.bisect_right(table.firsts, row) - 1
    content = audio_cells(table, group).content(row - table.firsts[group])
    if content is None:
        raise ReadError("no audio: the cell is empty")
    return bytes(content)


def read_columns(table: Table, group: int, names: list[str]) -> Any:
    """The columns `names` of a row group, as a table of Arrow. Raises ReadError."""
    import pyarrow.parquet

    with _reasons():
        with pyarrow.parquet.ParquetFile(
            _source(table.path), metadata=table.metadata, page_checksum_verification=True
        ) as file:
            found = file.read_row_group(group, columns=names, use_threads=False)
    rows = len(table.rows(group))
    if lengths := [len(column) for column in found.columns if len(column) != rows]:
        raise ReadError(f"corrupt Parquet file: a column has {lengths[0]:,} values for {rows:,} rows")
    return found


def audio_cells(table: Table, group: int) -> Cells:
    """The cells of a row group, from those that were read last where they are among them. Raises ReadError."""
    return _recent.get((table.path, table.state, group), lambda: _load(table, group))


def _load(table: Table, group: int) -> Cells:
    import pyarrow.types as types

    column = read_columns(table, group, [table.audio])[table.audio]
    if not types.is_struct(column.type):
        return Cells(column, None)
    fields = {column.type.field(i).name: values for i, values in enumerate(column.flatten())}
    return Cells(fields["bytes"], as_bytes(fields["path"]) if "path" in fields else None)


def as_bytes(column: Any) -> Any:
    """A column of text as one of bytes, which need not be UTF-8; other columns as they are."""
    import pyarrow as pa

    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return column.cast(pa.large_binary()) if is_text else column


class Chunk(NamedTuple):
    """How the audio of a row group is stored: in the bytes start .. stop of the file, as bytes or as integers."""

    start: int
    stop: int
    is_compressed: bool
    is_bytes: bool


def audio_chunk(table: Table, group: int) -> Chunk:
    """The chunk of a row group. Raises ReadError."""
    with _reasons():
        row_group = table.metadata.row_group(group)
        columns = [row_group.column(number) for number in range(row_group.num_columns)]
        is_audio = re.compile(rf"{re.escape(table.audio)}(\.bytes|\.list\..*)?")
        column = next((c for c in columns if is_audio.fullmatch(c.path_in_schema)), None)
        if column is None:
            raise ReadError("corrupt Parquet file: a row group lacks the column of audio")
        start = min(offset for offset in (column.dictionary_page_offset, column.data_page_offset) if offset)
        stop, is_compressed = start + column.total_compressed_size, column.compression != "UNCOMPRESSED"
        return Chunk(start, stop, is_compressed, is_bytes=column.physical_type == "BYTE_ARRAY")


def places(table: Table, group: int) -> list[tuple[int, int] | None]:
    """(first byte in the file, size) of each value in the column of audio of a row group, None where it is not known.

    A value stands in the file as it is where it is stored without compression, wherever its page begins. So it is
    searched for, from the end of the one before: what is found equals the value in all of its bytes. Raises ReadError.
    """
    cells, count, found = audio_cells(table, group), len(table.rows(group)), []
    start, stop, is_compressed, is_bytes = audio_chunk(table, group)
    if is_compressed or not is_bytes:
        return [None] * count
    with _reasons(), _mapped(table.path, start, stop) as (content, first):
        start, stop = start - first, stop - first
        position = start
        for i in range(count):
            value = cells.content(i)
            if not value:
                found.append(None)
                continue
            at = _find(content, value, start=position, stop=stop)
            at = at if at >= 0 or position == start else _find(content, value, start=start, stop=stop)
            if at < 0:  # another encoding: no other value will be found, either
                return [*found, *[None] * (count - len(found))]
            found.append((first + at, len(value)))
            position = at + len(value)
    return found


@contextlib.contextmanager
def _mapped(path: str, start: int, stop: int) -> Iterator[tuple[mmap.mmap | bytes, int]]:
    """The bytes start .. stop of a file, perhaps among others, and the number of the first of them."""
    with open_binary(path) as file:
        if is_remote(path):
            file.seek(start)
            yield file.read(stop - start), start
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                yield content, 0


def _find(content: mmap.mmap | bytes, value: memoryview | bytes, *, start: int, stop: int) -> int:
    """The first byte of `value` in the bytes start .. stop; -1 where it is not there."""
    head = bytes(value[:64])  # a search for millions of bytes would prepare for each of them
    at = content.find(head, start, stop)
    while at >= 0 and content[at : at + len(value)] != value:
        at = content.find(head, at + 1, stop)
    return at


class _Recent:
    """Values that were loaded last, up to BYTES_KEPT. Threads that want the same one wait for the first of them."""

    def __init__(self):
        self._lock, self._readers = threading.Lock(), threading.Semaphore(READ_TOGETHER)
        self._values: OrderedDict[Hashable, Future] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], Any]) -> Any:
        with self._lock:
            future = self._values.get(key)
            is_loaded = future is not None
            if future is None:
                future = self._values[key] = Future()
            self._values.move_to_end(key)
        if not is_loaded:
            try:
                with self._readers:
                    future.set_result(load())
            except BaseException as error:
                future.set_exception(error)
                with self._lock:
                    self._values.pop(key, None)
            self._forget(key)
        return future.result()

    def _forget(self, newest: Hashable) -> None:
        """Drops the values that were used longest ago."""
        with self._lock:
            done = {k: v.result().nbytes for k, v in self._values.items() if v.done() and not v.exception()}
            excess = sum(done.values()) - BYTES_KEPT
            for key, size in done.items():
                if excess > 0 and key != newest:
                    del self._values[key]
                    excess -= size


_recent = _Recent()
