"""Addresses: where the bytes of a recording are, which may be a part of another file.

An address stands in the column `paths` of an index and in manifests:

    talk.flac                               a file
    shard-00.tar#1536+34816:talk.flac       34,816 bytes from byte 1,536 on; what follows the colon is for people
    train-00.parquet#17                     row 17 of a Parquet file, counted from 0
    train-00.array_record#17                record 17 of an ArrayRecord file, counted from 0
    call.sph#channel1                       the second channel alone; also after any of the above

The path may be the URL of an object in a store. A file on a disk whose own name looks like an address is that file.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, cast

from w2v_jax.core import stores
from w2v_jax.core.files import FileState
from w2v_jax.core.stores import is_remote
from w2v_jax.data.archives import array_record, parquet_rows
from w2v_jax.data.index import ReadError, disk_errors
from w2v_jax.data.io.containers import Part, PartFile

READ_AT_ONCE = 1 << 20
"""Bytes up to which a recording within a file is read whole. Longer ones are read where a crop needs them."""

PARQUET, ARRAY_RECORD = r"\.parquet", r"\.array_record(?:-\d+-of-\d+)?"
"""Endings of files whose recordings have numbers, as regular expressions."""

READ_AHEAD = 1 << 16
"""Bytes that are read at once of those."""

_CHANNEL = re.compile(r"(.+)#channel(\d+)", re.S)
_RANGE = re.compile(r"(.+)#(\d+)\+(\d+)(:[^#]*)?", re.S)
_NUMBER = re.compile(rf"(.+(?:({PARQUET})|{ARRAY_RECORD}))#(\d+)", re.S)


class Opened(NamedTuple):
    """The path of a file or an open file of the bytes of one recording, and the channel to take (None: their mean)."""

    file: str | BinaryIO
    channel: int | None = None


def in_file(path: str, start: int, size: int, *, name: str = "") -> str:
    """The address of `size` bytes from byte `start` of a file. The last part of `name` says what they are."""
    return f"{path}#{start}+{size}:{os.path.basename(name).replace('#', '_')}".rstrip(":")


def numbered(path: str, number: int) -> str:
    """The address of the recording with a number in a file of an ending above."""
    return f"{path}#{number}"


def channel_of(address: str, channel: int) -> str:
    """The address of one channel, counted from 0, of the recording at an address."""
    return f"{address}#channel{channel}"


def file_of(address: str) -> str:
    """The path of the file that holds the recording at an address."""
    if _is_plain(address):
        return address
    if match := _CHANNEL.fullmatch(address):
        address = match[1]
    match = _NUMBER.fullmatch(address) or _RANGE.fullmatch(address)
    return match[1] if match else address


def _is_plain(address: str) -> bool:
    """Whether an address is the path of a file, and of all that is in it."""
    return "#" not in address or (not is_remote(address) and os.path.exists(address))


@contextlib.contextmanager
def opened(address: str, state: FileState = None, *, is_decoded: bool = False) -> Iterator[Opened]:
    """The content at an address. Raises ReadError where the file that holds it cannot be read or is too short.

    state: that of an object in a store, where it is known. is_decoded: more than the header will be read of it.
    """
    channel, number, part = None, None, None
    if not _is_plain(address):
        if "\0" in address:  # which no file can have in its name
            raise ReadError("file does not exist")
        if match := _CHANNEL.fullmatch(address):
            address, channel = match[1], int(match[2])
        number, part = _NUMBER.fullmatch(address), _RANGE.fullmatch(address)
    if number:
        read = parquet_rows.row_content if number[2] else array_record.record_content
        yield Opened(io.BytesIO(read(number[1], int(number[3]))), channel)
    elif part:
        with _range(part[1], state, start=int(part[2]), size=int(part[3])) as file:
            yield Opened(file, channel)
    elif is_remote(address):
        with disk_errors():
            file = (stores.open_recording if is_decoded else stores.open_object)(address, state)
        yield Opened(cast(BinaryIO, file), channel)
    else:
        yield Opened(address, channel)


@contextlib.contextmanager
def _range(path: str, state: FileState, *, start: int, size: int) -> Iterator[BinaryIO]:
    """An open file of `size` bytes from byte `start` of a file."""
    with disk_errors():
        file = cast(BinaryIO, stores.open_object(path, state)) if is_remote(path) else open(path, "rb")
    with file:
        left = max(0, file.seek(0, os.SEEK_END) - start)
        if left < size:
            raise ReadError(f"truncated: {left:,} of {size:,} bytes are left in the file that holds it")
        if size > READ_AT_ONCE:
            yield io.BufferedReader(PartFile(file, Part(start, start + size)), READ_AHEAD)
        else:
            file.seek(start)
            yield io.BytesIO(file.read(size))
