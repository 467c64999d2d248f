"""ArrayRecord files whose records are serialized tf.train.Example: a recording and its texts by number.

`array_record` checks the checksum of each record, and reads one without the others where the file was written with
group_size:1. The examples are parsed here, so that reading needs no TensorFlow. It reads files of a disk alone: of
files in a store there are whole copies in W2V_JAX_CACHE/shards, up to a limit that all of them together must keep.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from w2v_jax.core.cli import UserError, needing
from w2v_jax.core.files import is_file, state_of
from w2v_jax.core.storage import cache_folder, fetched, make_room
from w2v_jax.core.stores import is_remote
from w2v_jax.data.index import ReadError, file_state

AUDIO = ("audio", "speech", "audio_bytes")
"""The features that can hold the bytes of an audio file. The first one that exists is used."""

OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
"""Of readers, for random access."""

FILES_OPEN = 256

COPIES = "W2V_JAX_SHARDS"
"""The variable of the environment that says how many GB of copies there may be."""
DEFAULT_COPIES = 50

Example = dict[str, list[bytes] | list[int] | None]
"""The features of a tf.train.Example: bytes or integers. A feature of floats is None."""


class ArrayRecords:
    """An open ArrayRecord file. Raises ReadError for a file that is damaged or was cut."""

    def __init__(self, path: str):
        with needing("ArrayRecord files need a package that is missing: pip install array_record"):
            from array_record.python.array_record_module import ArrayRecordReader
        if not is_file(path):
            raise ReadError("file does not exist")
        path = str(fetched(path, kind="shards")) if is_remote(path) else path
        self._lock = threading.Lock()
        self._reader: Any = ArrayRecordReader(path, OPTIONS)
        if not self._reader.ok():
            raise ReadError(
                "not an ArrayRecord file, or one that was cut: its end, which lists the records, is missing"
            )

    def __len__(self) -> int:
        return self._reader.num_records()

    def __getitem__(self, number: int) -> bytes:
        """Raises ReadError for a damaged record."""
        if number >= len(self):
            raise ReadError(f"no record {number:,}: the file has {len(self):,}")
        try:
            with self._lock:
                return self._reader.read([number])[0]
        except RuntimeError as error:
            reason = str(error).split(";")[0]
            raise ReadError(f"corrupt record: {reason}") from None


def open_records(path: str) -> ArrayRecords:
    """The records of a file; of the files opened last, the same object. Raises ReadError."""
    return _open(path, *file_state(path)[:2])


@functools.lru_cache(FILES_OPEN)
def _open(path: str, size: int, changed: int) -> ArrayRecords:
    return ArrayRecords(path)


def check_copies(paths: Sequence[str]) -> None:
    """Makes room for copies of the files in stores, and tells how much. Raises UserError where they are too large."""
    remote = {path: state for path in paths if is_remote(path) and (state := state_of(path))}
    if not remote:
        return
    text, size = os.environ.get(COPIES) or str(DEFAULT_COPIES), sum(state[0] for state in remote.values())
    if not text.isdecimal():
        raise UserError(f"{COPIES}={text!r}: needs a whole number of GB")
    limit = int(text) * 10**9
    what = f"{len(remote):,} ArrayRecord files of {size / 1e9:,.1f} GB in a store"
    if size > limit:
        raise UserError(
            f"{what}, {next(iter(remote))} for example: their reader needs whole copies on this disk, and there may be "
            f"{text} GB of them. Give it more by {COPIES}=GB, or store the recordings as WebDataset or Parquet, which "
            "are read where they lie"
        )
    print(f"{what} are copied whole to {cache_folder() / 'shards'}, which holds at most {text} GB", file=sys.stderr)
    make_room(list(remote), size, limit)


def record_content(path: str, number: int) -> bytes:
    """The bytes of the audio file in a record. Raises ReadError."""
    return audio_of(parsed(open_records(path)[number]))


def audio_of(example: Example) -> bytes:
    """The bytes of the audio file in an example. Raises ReadError where there are none."""
    name = next((name for name in AUDIO if name in example), None)
    if name is None:
        raise ReadError(f"no feature {', '.join(AUDIO)}: the record has {', '.join(sorted(example)) or 'none'}")
    values = example[name] or [b""]
    if len(values) != 1 or not isinstance(values[0], bytes):
        raise ReadError(f"the feature {name} is not the bytes of an audio file")
    return values[0]


# Protocol Buffers: https://protobuf.dev/programming-guides/encoding


def parsed(record: bytes) -> Example:
    """The features of a serialized tf.train.Example. Raises ReadError where the record is something else."""
    example: Example = {}
    try:
        for entry in (e for features in _fields(record, 1) for e in _fields(features, 1)):
            name = bytes(next(_fields(entry, 1))).decode()
            feature = next(_fields(entry, 2), b"")
            example[name] = _values(feature)
    except (ValueError, IndexError, StopIteration):
        raise ReadError("corrupt record: not a tf.train.Example") from None
    return example


def serialized(features: Mapping[str, bytes | str | int]) -> bytes:
    """A tf.train.Example of features of one value each, in the order of their names. Text is UTF-8."""
    entries = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, _feature(value))) for name, value in sorted(features.items())
    )
    return _field(1, entries)


def _feature(value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        return _field(3, _field(1, _as_varint(value)))
    return _field(1, _field(1, value.encode() if isinstance(value, str) else value))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _as_varint(len(content)) + content


def _as_varint(value: int) -> bytes:
    """An integer of at least 0."""
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _values(feature: Any) -> list[bytes] | list[int] | None:
    for values in _fields(feature, 1):
        return [bytes(value) for value in _fields(values, 1)]
    for values in _fields(feature, 3):
        return [number for packed in _fields(values, 1) for number in _varints(packed)]
    return None


def _fields(message: Any, wanted: int) -> Iterator[Any]:
    """The fields of the number `wanted`: views of bytes, and bytes of a varint. Raises ValueError, IndexError."""
    view, position = memoryview(message), 0
    while position < len(view):
        key, position = _varint(view, position)
        number, kind = key >> 3, key & 7
        if kind == 2:
            size, start = _varint(view, position)
            position = start + size
        elif kind == 0:
            start, position = position, _varint(view, position)[1]
        else:
            raise ValueError("a field that an Example does not have")
        if position > len(view):
            raise ValueError("a field that ends after the record")
        if number == wanted:
            yield view[start:position]


def _varints(view: Any) -> Iterator[int]:
    position = 0
    while position < len(view):
        value, position = _varint(view, position)
        yield value - (1 << 64) if value >> 63 else value


def _varint(view: Any, position: int) -> tuple[int, int]:
    """(an integer, the position after it). Raises IndexError at the end of the bytes."""
    value = shift = 0
    while True:
        byte = view[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return value, position
        if shift > 63:
            raise ValueError("an integer that is too long")
