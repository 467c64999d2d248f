"""Nested dicts of parameters and their flat form, with paths such as "encoder/projection/kernel"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from w2v_jax.core import config as configs
from w2v_jax.core.types import PyTree

LISTED = 10
"""Differences that are named. The rest are counted."""


def by_path(params: PyTree) -> dict[str, Any]:
    """{"a/b": x} of {"a": {"b": x}}."""
    return {name.replace(".", "/"): leaf for name, leaf in configs.flatten(params).items()}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": x}} of {"a/b": x}."""
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return nested


def differences(first: Mapping[str, Any], second: Mapping[str, Any], form: str) -> str:
    """Indented lines, one for each name whose values differ, LISTED at most; "" where none do.

    form: the text of a line, with {name}, {first} and {second}; a value that is missing reads "nothing".
    """
    values = configs.differing_values(first, second, absent="nothing")
    lines = [form.format(name=name, first=before, second=after) for name, before, after in values]
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "".join(f"\n  {line}" for line in lines[:LISTED] + more)
