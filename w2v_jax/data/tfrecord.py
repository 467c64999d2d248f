"""The framing of TFRecord files, for reading any record without those before it. Knows nothing of what records hold."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

_HEAD, _TAIL = struct.Struct("<QI"), 4  # a record of a TFRecord file: length, checksum, content, checksum


class TFRecords(Sequence):
    """Random access to the records of one TFRecord file, by the place of each; what follows a cut is left out."""

    def __init__(self, path: str):
        self.path = path
        places, place = [], 0
        with _open(path) as file:
            size = file.seek(0, os.SEEK_END) or file.tell()
            while place + _HEAD.size + _TAIL <= size:
                file.seek(place)
                length, checksum = _HEAD.unpack(file.read(_HEAD.size))
                end = place + _HEAD.size + length + _TAIL
                if end > size or checksum != masked_crc(length.to_bytes(8, "little")):
                    break
                places.append((place + _HEAD.size, length))
                place = end
        self.places = np.array(places, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number):
        place, length = self.places[number].tolist()
        with _open(self.path) as file:
            file.seek(place)
            return file.read(length)


def masked_crc(content: bytes) -> int:
    """The checksum of TFRecord files: CRC-32C, rotated and shifted."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _open(path: str) -> Any:
    if "://" not in path:
        return open(path, "rb")
    import tensorflow as tf

    return tf.io.gfile.GFile(path, "rb")
