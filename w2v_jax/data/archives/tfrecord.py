"""Random access to the records of TFRecord files. The content of the records is not interpreted here."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np

from w2v_jax.data.io.tf_import import import_tensorflow

_HEAD, _TAIL = struct.Struct("<QI"), 4  # a record of a TFRecord file: length, checksum, content, checksum


class TFRecords(Sequence):
    """The records of one TFRecord file as a sequence of bytes, up to the first damaged frame.

    `spans` [records 2] int64 has the offset and length of each record's content.
    """

    def __init__(self, path: str):
        self.path = path
        spans, start = [], 0
        with _open(path) as file:
            size = file.seek(0, os.SEEK_END) or file.tell()
            while start + _HEAD.size + _TAIL <= size:
                file.seek(start)
                length, checksum = _HEAD.unpack(file.read(_HEAD.size))
                end = start + _HEAD.size + length + _TAIL
                if end > size or checksum != masked_crc(length.to_bytes(8, "little")):
                    break
                spans.append((start + _HEAD.size, length))
                start = end
        self.spans = np.array(spans, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number):
        offset, length = self.spans[number].tolist()
        with _open(self.path) as file:
            file.seek(offset)
            return file.read(length)


def masked_crc(content: bytes) -> int:
    """The checksum of TFRecord files: CRC-32C, rotated and shifted."""
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _open(path: str) -> Any:
    if "://" not in path:
        return open(path, "rb")
    return import_tensorflow().io.gfile.GFile(path, "rb")
