"""What devices say to each other in a compiled program, read from its text."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from w2v_jax.profiling.hlo import COLLECTIVES, Program
from w2v_jax.profiling.hlo_text import Array

STARTED = {f"{kind}-start" for kind in COLLECTIVES}


class Collective(NamedTuple):
    """One collective: its kind, the mesh axes it goes over, what each device gets, how often it runs, and where from.

    arrays: (type, shape) of each result. times: turns of the loops around it. source: the path of modules.
    """

    kind: str
    axes: frozenset[str]
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    times: int
    source: str

    @property
    def bytes(self) -> int:
        """What it gives each device, in all turns of its loop."""
        return self.times * sum(Array(dtype, shape, layout="").size for dtype, shape in self.arrays)


def collectives(text: str, shape: dict[str, int]) -> list[Collective]:
    """Those of a compiled program for a mesh {axis: size} whose devices are numbered in order."""
    program, found = Program(text), []
    turns = program.turns()
    for name, computation in program.computations.items():
        for x in computation.values():
            assert x.kind not in STARTED, f"an asynchronous collective, which this does not read: {x}"
            if x.kind in COLLECTIVES:
                arrays = tuple((array.dtype, array.shape) for array in x.arrays)
                axes = _axes(_groups(x.attributes, math.prod(shape.values())), shape)
                found.append(Collective(x.kind, axes, arrays, turns[name], x.path))
    return found


def _groups(line: str, devices: int) -> list[list[int]]:
    """The devices that a collective joins; none where all of them."""
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", line)
    listed = pairs or re.search(r"replica_groups=\{(\{.*?\})\}", line)
    if listed:
        return [list(_numbers(group)) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if tiled:
        order = _iota(tiled[3], tiled[4])
        return order.reshape(int(tiled[1]), int(tiled[2])).tolist()
    named = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}", line
    )
    if named:
        names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", named[1]))
        grid = (_iota(named[2], named[3]) if named[2] else np.arange(devices)).reshape([int(size) for size in sizes])
        joined = [names.index(name) for name in re.findall(r"'(\w+)'", named[4])]
        assert ":" not in named[4], f"a part of a mesh axis: {named[0]}"
        return (
            np.moveaxis(grid, joined, range(len(joined)))
            .reshape(math.prod(grid.shape[i] for i in joined), -1)
            .T.tolist()
        )
    assert "replica_groups={}" in line, line[:300]
    return [list(range(devices))]


def _iota(shape: str, order: str | None) -> np.ndarray:
    grid = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return grid.transpose(_numbers(order) if order else None)


def _axes(groups: list[list[int]], shape: dict[str, int]) -> frozenset[str]:
    """The mesh axes along which devices of one group differ."""
    places = [np.unravel_index(group, tuple(shape.values())) for group in groups]
    differ = [{name for name, place in zip(shape, places) if len(set(place.tolist())) > 1} for places in places]
    return frozenset().union(*differ)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
