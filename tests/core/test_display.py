"""Records that hold arrays are one short line, and so is everything that holds such a record."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from typing import Any, NamedTuple

import numpy as np
import pytest

import w2v_jax
from w2v_jax.core.display import LONGEST, brief, short_repr


class Inner(NamedTuple):
    array: np.ndarray
    name: str

    __repr__ = short_repr


@dataclasses.dataclass
class Outer:
    inner: Inner
    params: Any
    ids: list[str]
    note: str = ""
    hidden: Any = dataclasses.field(default=0, repr=False)

    __repr__ = short_repr


class Plain:
    __repr__ = short_repr

    def __init__(self):
        self.rows, self._private = np.zeros(3), 1


def test_arrays_are_their_types_and_shapes():
    inner = Inner(np.zeros((2, 300)), "a")
    assert repr(inner) == "Inner(array=float64[2, 300], name='a')"
    params = {"encoder": {"kernel": np.zeros((4, 5)), "bias": [np.zeros(5)]}, "extra": {}}
    shown = repr(Outer(inner, params, [f"id {n}" for n in range(1000)]))
    assert shown == f"Outer(inner={inner!r}, params=2 arrays of 25 numbers, ids=1,000 items, note='')"
    assert repr(Plain()) == "Plain(rows=float64[3])"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        (3.5, "3.5"),
        ((1, 2), "(1, 2)"),
        ({}, "{}"),
        ("x" * (LONGEST - 2), repr("x" * (LONGEST - 2))),
        ("x" * LONGEST, "str"),
        ({n: (0.0, 1.0) for n in range(1000)}, "1,000 items"),
        (["long" * LONGEST], "1 items"),
        (np.float32(1), "float32[]"),
    ],
)
def test_other_values_are_shown_as_far_as_they_are_short(value, shown):
    assert brief(value) == shown


def records() -> dict[str, type]:
    """The dataclasses and NamedTuples of the package with a field that may hold arrays, by name."""
    arrays = re.compile(r"ndarray|jax\.Array|PyTree|\bRun\b|Source|Alphabet|NGram|\bState\b")
    found = {}
    for module in pkgutil.walk_packages(w2v_jax.__path__, "w2v_jax."):
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            is_record = dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")
            if kind.__module__ == module.name and is_record and not hasattr(kind, "apply"):  # no Linen modules
                if any(arrays.search(str(text)) for text in kind.__annotations__.values()):
                    found[f"{module.name}.{name}"] = kind
    return found


def test_every_record_that_holds_arrays_is_short():
    found = records()
    assert {"w2v_jax.inference.model.Model", "w2v_jax.core.types.State", "w2v_jax.data.index.Index"} <= found.keys()
    long = [name for name, kind in found.items() if kind.__repr__ is not short_repr]
    assert not long, f"give them __repr__ = short_repr: {long}"
