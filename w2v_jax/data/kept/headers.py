"""The lengths of files that were read before: a listing that was killed, or is made anew, opens none of them again.

A file of blocks, to which a listing adds one for each thousand files: the number of records and their CRC-32C, and the
records. Before them stands a mark of what measured them: lengths of another one are not used. What follows a damaged
block, as the end of one that a kill cut, is read again.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import google_crc32c
import numpy as np

from w2v_jax.data.index import hash_ids

_RECORD = np.dtype([("hash", "<u8"), ("size", "<i8"), ("modified", "<i8"), ("frames", "<i8"), ("rate", "<i8")])


class Measured(NamedTuple):
    """The length of the recording at an address in samples, its rate, and size and time of change of the file then."""

    path: str
    size: int
    modified: int
    frames: int
    rate: int


class Headers:
    """What a `file` with this `mark` says of recordings that were measured before; without one, nothing.

    An address is known by its hash (64 bits). That another one has the same hash, size and time will not happen.
    """

    def __init__(self, file: pathlib.Path | None = None, *, mark: bytes = b""):
        content = file.read_bytes() if file is not None and file.exists() else b""
        content = content if content.startswith(mark) else b""
        self.file, self._mark, self._end = file, mark, len(mark) if content else 0
        blocks = []
        while (block := _block(content, self._end)) is not None:
            blocks.append(block)
            self._end += 8 + block.nbytes
        records = np.concatenate(blocks) if blocks else np.zeros(0, _RECORD)
        order = np.argsort(records["hash"], kind="stable")
        self._hashes, self._records = records["hash"][order], records[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, path: str, size: int, modified: int) -> Measured | None:
        """What is known of the recording at an address, if its file has this size and time of change."""
        if not len(self):
            return None
        wanted = hash_ids([path])[0]
        place = self._hashes.searchsorted(wanted, side="right") - 1  # the last one written
        hash, *numbers = self._records[place].item()
        return Measured(path, *numbers) if hash == wanted and numbers[:2] == [size, modified] else None

    def add(self, file: pathlib.Path, measured: Sequence[Measured]) -> None:
        """Writes what was measured to the end of the file. Raises OSError."""
        if not measured:
            return
        if file != self.file:
            self.file, self._end = file, 0
        hashes = hash_ids(one.path for one in measured)
        records = np.array([(hash, *one[1:]) for hash, one in zip(hashes.tolist(), measured, strict=True)], _RECORD)
        content = records.tobytes()
        head = np.array([len(records), google_crc32c.value(content)], "<u4").tobytes()
        head = head if self._end else self._mark + head
        with open(file, "r+b" if file.exists() else "wb") as opened:
            opened.seek(self._end)
            opened.write(head + content)
            opened.truncate()
        self._end += len(head) + len(content)


def _block(content: bytes, start: int) -> np.ndarray | None:
    """The records of a block that begins at `start`; None where it is none, or damaged."""
    head = np.frombuffer(content[start : start + 8], "<u4") if len(content) >= start + 8 else (0, 0)
    size = int(head[0]) * _RECORD.itemsize
    records = content[start + 8 : start + 8 + size]
    if not size or len(records) < size or google_crc32c.value(records) != int(head[1]):
        return None
    return np.frombuffer(records, _RECORD)
