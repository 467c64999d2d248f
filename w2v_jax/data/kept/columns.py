"""Columns of an index: values in memory or in a mapped file, of which a selection is a list of row numbers.

Ten million rows hold a gigabyte of texts. Here they are bytes one after the other, and where each ends: a file of them
is mapped, and only what is read of it takes memory. To select rows, or to join the columns of several corpora, copies
none of them. Plain arrays do this; Arrow would be another package that everybody needs.
"""

from __future__ import annotations

import bisect
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

AT_ONCE = 50_000
"""Rows whose values are made at once."""
_SHOWN = 8  # values in a repr
_TEXT = np.dtypes.StringDType()


class Store(Protocol):
    """Values by number. NumPy's arrays are stores."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: Any, /) -> Any: ...


class Texts:
    """The store of M texts: their bytes in UTF-8, a newline after each, and `ends` [M] where each then ends."""

    def __init__(self, content: np.ndarray, ends: np.ndarray):
        self.content, self.ends = content, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return self.content[start : int(self.ends[row]) - 1].tobytes().decode()

    def many(self, rows: np.ndarray) -> list[str]:
        """The texts of `rows`, in their order."""
        stops = self.ends[rows]
        starts = np.where(rows > 0, self.ends[rows - 1], 0)
        content = self.content.data
        return [str(content[a : b - 1], "utf-8") for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]

    def lines(self, rows: np.ndarray) -> Iterator[memoryview]:
        """The bytes of `rows` in their order, a newline after each: of rows that follow one another at once."""
        content = self.content.data
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        firsts, lasts = rows[np.r_[0, breaks]], rows[np.r_[breaks, len(rows)] - 1]
        starts, stops = np.where(firsts > 0, self.ends[firsts - 1], 0), self.ends[lasts]
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            yield content[start:stop]


class Placed:
    """The store of texts in which a NUL at the beginning stands for a folder."""

    def __init__(self, texts: Texts, folder: str):
        self.texts, self.folder = texts, folder

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> str:
        text = self.texts[row]
        return self.folder + text[1:] if text.startswith("\0") else text


class Joined:
    """The store of the rows of several columns, one column after the other; `prefixes` stand before their texts."""

    def __init__(self, columns: Sequence[Column], prefixes: Sequence[str] = ()):
        self.columns, self.prefixes = columns, prefixes
        self.firsts = [0, *itertools.accumulate(map(len, columns))]

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, row: int) -> Any:
        number = bisect.bisect_right(self.firsts, row) - 1
        value = self.columns[number][row - self.firsts[number]]
        return self.prefixes[number] + value if self.prefixes else value


class Builder:
    """Makes a store of texts or of whole numbers, part by part."""

    def __init__(self, is_text: bool):
        self.content, self.numbers, self.is_text = bytearray(), array("q"), is_text

    def add(self, values: Sequence[Any]) -> None:
        if not self.is_text:
            return self.numbers.extend(values)
        text = "\n".join((*values, ""))
        lengths = map(len, values) if text.isascii() else (len(value.encode()) for value in values)
        ends = np.fromiter(lengths, np.int64, count=len(values))
        self.numbers.frombytes((np.cumsum(ends + 1) + len(self.content)).tobytes())
        self.content += text.encode()

    def store(self) -> Store:
        numbers = np.frombuffer(self.numbers, np.int64) if self.numbers else np.zeros(0, np.int64)
        return Texts(np.frombuffer(self.content, np.uint8), numbers) if self.is_text else numbers


class Column:
    """The values of a store at `rows` [N] (None: at all), much as an array of them.

    A row number gives a value; a slice, row numbers or a mask give a column. NumPy's functions take it for an array of
    texts or of numbers.
    """

    def __init__(self, store: Store, rows: np.ndarray | None = None):
        self.store, self.rows = store, rows

    @classmethod
    def of(cls, texts: Iterable[str]) -> Column:
        """A column of these texts."""
        builder = Builder(is_text=True)
        builder.add(list(texts))
        return cls(builder.store())

    def __len__(self) -> int:
        return len(self.store) if self.rows is None else len(self.rows)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, (int, np.integer)):
            row = range(len(self))[rows]
            return self.store[row if self.rows is None else int(self.rows[row])]
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        return self.select(np.asarray(rows), {})

    def select(self, rows: np.ndarray, shared: dict[int, np.ndarray]) -> Column:
        """The column of `rows`, numbers or a mask. `shared` has the row numbers of columns that had the same before."""
        key = id(self.rows)
        if key not in shared:
            numbers = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64, copy=False)
            numbers = np.where(numbers < 0, numbers + len(self), numbers) if (numbers < 0).any() else numbers
            shared[key] = numbers if self.rows is None else self.rows[numbers]
        return Column(self.store, shared[key])

    def blocks(self) -> Iterator[list[Any]]:
        """All values in lists of at most AT_ONCE."""
        for start in range(0, len(self), AT_ONCE):
            yield self._values(self._numbers(start))

    def lines(self) -> Iterator[Any]:
        """The bytes of all texts, a newline after each."""
        if isinstance(self.store, Texts):
            for start in range(0, len(self), AT_ONCE):
                yield from self.store.lines(self._numbers(start))
        else:
            for block in self.blocks():
                yield "\n".join((*block, "")).encode()

    def _numbers(self, start: int) -> np.ndarray:
        stop = min(start + AT_ONCE, len(self))
        return np.arange(start, stop) if self.rows is None else self.rows[start:stop]

    def _values(self, numbers: np.ndarray) -> list[Any]:
        if isinstance(self.store, Texts):
            return self.store.many(numbers)
        if isinstance(self.store, np.ndarray):
            return self.store[numbers].tolist()
        return [self.store[number] for number in numbers.tolist()]

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(self.blocks())

    def tolist(self) -> list[Any]:
        return list(self)

    @property
    def dtype(self) -> np.dtype:
        """That of an array of the values."""
        if isinstance(self.store, Joined):
            return self.store.columns[0].dtype
        return getattr(self.store, "dtype", _TEXT)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if isinstance(self.store, np.ndarray):
            return np.asarray(self.store if self.rows is None else self.store[self.rows], dtype)
        return np.array(self.tolist(), dtype or self.dtype)

    def __eq__(self, other: Any) -> Any:
        return np.asarray(self) == (np.asarray(other) if isinstance(other, Column) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        first = self[:_SHOWN].tolist()
        return (
            f"Column({first})"
            if len(self) <= _SHOWN
            else f"Column({first[:-1]} and {len(self) - len(first) + 1:,} more)"
        )
