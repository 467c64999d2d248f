"""A file of named arrays that can be mapped into memory, with a checksum of each.

    the bytes of each array, from a multiple of 64 on
    a JSON object: what the file is about, and of each array dtype, first byte, number of elements and CRC-32C
    24 bytes: size and CRC-32C of that object, and MARK

The end says what is where, so that a file that was cut is known at once.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import google_crc32c
import numpy as np

from w2v_jax.core.files import whole_file

MARK = b"w2vidx01"
_END = struct.Struct("<QQ8s")
_BLOCK, _ALIGN = 1 << 24, 64
MAPPED_FROM = 256_000_000
"""Bytes from which on a file is mapped. A smaller one is read: nobody who cuts it then ends the process."""


class Damaged(Exception):
    """A file that was cut, changed, or is something else. The text is the reason."""


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes a file of arrays [N] and what it is `about`, which must be representable in JSON. It appears whole."""
    entries = {}
    with whole_file(path) as partial, open(partial, "wb") as file:
        for name, array in arrays.items():
            file.write(bytes(-file.tell() % _ALIGN))
            first, crc = file.tell(), 0
            for start in range(0, len(array), _BLOCK // array.itemsize):
                content = array[start : start + _BLOCK // array.itemsize].tobytes()
                crc = google_crc32c.extend(crc, content)
                file.write(content)
            entries[name] = [array.dtype.str, first, len(array), crc]
        content = json.dumps({"about": about, "arrays": entries}).encode()
        file.write(content + _END.pack(len(content), google_crc32c.value(content), MARK))


def read_arrays(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file, read-only and mapped where it is large, and what it is about. Raises Damaged and OSError.

    A process that looks at a mapped file which was cut in place is killed by the system.
    """
    with open(path, "rb") as opened:
        content = opened.read() if os.fstat(opened.fileno()).st_size < MAPPED_FROM else None
        file = opened if content is None else io.BytesIO(content)
        head = _head(file)
        for name, (dtype, first, count, crc) in head["arrays"].items():
            found = 0
            for block in _blocks(file, first, count * np.dtype(dtype).itemsize):
                found = google_crc32c.extend(found, block)
            if found != crc:
                raise Damaged(f"the checksum of {name} is wrong")
        # of the file that was checked, whatever has this name by now
        content = np.memmap(opened, mode="r") if content is None else content
    entries = head["arrays"].items()
    arrays = {name: np.frombuffer(content, dtype, count, first) for name, (dtype, first, count, _) in entries}
    return arrays, head["about"]


def _head(file: BinaryIO) -> dict[str, Any]:
    """The JSON object of a file. Raises Damaged."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size))
    end = file.read()
    if len(end) < _END.size or not end.endswith(MARK):
        raise Damaged("its end is missing")
    length, crc, _ = _END.unpack(end)
    file.seek(max(0, size - _END.size - length))
    content = file.read(length) if length <= size else b""
    if google_crc32c.value(content) != crc:
        raise Damaged("the checksum of its end is wrong")
    return json.loads(content)


def _blocks(file: BinaryIO, first: int, size: int) -> Iterator[bytes]:
    """The bytes of an array. They are read, not mapped, so that they take no memory afterwards."""
    file.seek(first)
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        yield block
        size -= len(block)
