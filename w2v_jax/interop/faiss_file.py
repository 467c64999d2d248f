"""Reads the centres of a k-means out of an index of faiss, without faiss.

The centres are the vectors of a flat index of squared distances (IxF2), which faiss.Kmeans makes, or those by which an
inverted file (IwFl, IwPQ, IwPf, IwSq) deals vectors into lists: the vectors of its quantizer, flat or in an HNSW graph
(IHNf). What stands after them, the lists, is not read. A linear transform in front (IxPT of OPQ or a rotation, as in
mHuBERT-147) is taken back: its rows are orthonormal, so that of the centres c the one nearest to A x + b is that of
A^T (c - b) nearest to x. Other indices are refused.

The layout is that of faiss/impl/index_write.cpp. All numbers are little-endian. Differs: an HNSW graph is searched by
faiss for a centre that may not be the nearest; a unit here is always that of the nearest.
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

import numpy as np

from w2v_jax.core.cli import UserError

MAGIC = re.compile(rb"I[xwHN][A-Za-z0-9]{2}")
"""How a file of an index begins."""
SQUARED_DISTANCE = 1
INVERTED_FILES = ("IwFl", "IwPQ", "IwPf", "IwSq")
LINEAR = ("LTra", "rrot")
ORTHONORMAL = 1e-3
"""How far the products of the rows of a transform may be from 0 and 1."""


def read_index(file: BinaryIO) -> np.ndarray:
    """The centres [K D] float32. Raises UserError for an index that is truncated or no k-means."""
    return _Reader(file).index()


class _Reader:
    def __init__(self, file: BinaryIO):
        self.file = file
        self.left = file.seek(0, 2)
        file.seek(0)

    def index(self) -> np.ndarray:
        """The centres of the index that comes next."""
        kind = self._kind()
        width, count = self._header()
        if kind == "IxF2":
            return self._matrix(count, width)
        if kind in INVERTED_FILES:
            lists, _ = self._numbers("QQ")
            return self._checked(self.index(), (lists, width))
        if kind == "IHNf":
            for size in (8, 4, 4, 8, 4):  # of a number of each array of the graph
                self._bytes(size * self._numbers("Q")[0])
            self._numbers("5i")
            return self._checked(self.index(), (count, width))
        if kind == "IxPT":
            (transforms,) = self._numbers("i")
            chain = [self._transform() for _ in range(transforms)]
            centers = self.index()
            for matrix, bias in reversed(chain):
                centers = (self._checked(centers, (len(centers), len(bias))) - bias) @ matrix
            return self._checked(centers, (len(centers), width))
        raise UserError(
            f"it is an index of faiss of the kind {kind}; centres are read from IndexFlatL2 (IxF2) and inverted files "
            f"({', '.join(INVERTED_FILES)}), perhaps after a rotation or OPQ (IxPT)"
        )

    def _header(self) -> tuple[int, int]:
        """(numbers of a vector, vectors) of an index of squared distances."""
        width, count, _, _, is_trained, metric = self._numbers("iqqq?i")
        if metric != SQUARED_DISTANCE:
            raise UserError(
                f"it is an index of faiss whose metric is {metric}; units are those of the nearest centre by squared "
                f"distance ({SQUARED_DISTANCE})"
            )
        if not is_trained or width < 1 or count < 0:
            raise UserError(f"it is an index of faiss of {count} vectors of {width} numbers that was never trained")
        return width, count

    def _transform(self) -> tuple[np.ndarray, np.ndarray]:
        """(matrix [E D] with orthonormal rows, bias [E])."""
        kind = self._kind()
        if kind not in LINEAR:
            raise UserError(f"its vectors are changed by a transform of the kind {kind}, which is not linear")
        has_bias, entries = self._numbers("?Q")
        values = self._floats(entries)
        bias = self._floats(self._numbers("Q")[0])
        wide, narrow, _ = self._numbers("ii?")
        if entries != wide * narrow or narrow < 1 or (has_bias and len(bias) != narrow):
            raise UserError(f"its transform from {wide} to {narrow} numbers has {entries:,}: the file is damaged")
        matrix = values.reshape(narrow, wide)
        if np.abs(matrix @ matrix.T - np.eye(narrow)).max() > ORTHONORMAL:
            raise UserError(
                "its transform is no rotation: the nearest centre cannot be found in the features themselves"
            )
        return matrix, bias if has_bias else np.zeros(narrow, np.float32)

    def _matrix(self, count: int, width: int) -> np.ndarray:
        (size,) = self._numbers("Q")
        if size != count * width:
            raise UserError(f"{count:,} vectors of {width} numbers have {size:,}: the file is damaged")
        return self._floats(size).reshape(count, width)

    def _checked(self, centers: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        if centers.shape != shape:
            raise UserError(f"it has centres {list(centers.shape)} where {list(shape)} are due: the file is damaged")
        return centers

    def _kind(self) -> str:
        kind = self._bytes(4)
        if not kind.isalnum():
            raise UserError("the file is damaged")
        return kind.decode()

    def _numbers(self, form: str) -> tuple:
        form = f"<{form}"
        return struct.unpack(form, self._bytes(struct.calcsize(form)))

    def _floats(self, count: int) -> np.ndarray:
        return np.frombuffer(self._bytes(4 * count), "<f4").astype(np.float32)

    def _bytes(self, count: int) -> bytes:
        """The next bytes. A size that the file does not have takes no memory."""
        self.left -= count
        if self.left < 0:
            raise UserError("the file is truncated")
        return self.file.read(count)
