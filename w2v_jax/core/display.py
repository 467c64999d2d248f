"""One short line for a record that holds arrays: their types and shapes instead of their numbers.

A class says `__repr__ = short_repr`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST = 60
"""Characters of a value that is shown as it is, and of the items of a list."""


def short_repr(self: Any) -> str:
    """Name(field=value, ...) of a dataclass, a NamedTuple or any other object; Name(text) of one with in_brief()."""
    name = type(self).__name__
    if hasattr(self, "in_brief"):
        return f"{name}({self.in_brief()})"
    if dataclasses.is_dataclass(self):
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.repr}
    else:
        fields = self._asdict() if hasattr(self, "_asdict") else vars(self)
    return f"{name}({', '.join(f'{key}={brief(value)}' for key, value in fields.items() if key[0] != '_')})"


def brief(value: Any) -> str:
    """A value in a few words: an array by dtype and shape, a tree of arrays by their number, long lists by length."""
    if is_array(value):
        return f"{value.dtype}{list(value.shape)}"
    if type(value).__repr__ is short_repr:
        return short_repr(value)
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        items = value.values() if isinstance(value, Mapping) else value
        if any(_sizes(list(itertools.islice(items, LONGEST)))):
            sizes = list(_sizes(value))
            return f"{len(sizes):,} arrays of {sum(sizes):,} numbers"
        if len(value) > LONGEST or len(repr(value)) > LONGEST:
            return f"{len(value):,} items"
    text = repr(value)
    return text if len(text) <= LONGEST and "\n" not in text else type(value).__name__


def is_array(value: Any) -> bool:
    """Whether a value is an array, or the shape of one."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type)


def _sizes(value: Any) -> Iterator[int]:
    """The number of elements of each array in nested dicts, lists and tuples."""
    if is_array(value):
        yield int(value.size)
    elif isinstance(value, (Mapping, list, tuple)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _sizes(each)
