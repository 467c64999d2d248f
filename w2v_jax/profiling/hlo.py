"""What a compiled program does, read from the text that XLA prints of it: bytes, FLOP and scope of each operation.

XLA's own cost analysis counts the body of a loop once. Here an operation counts as often as the loops around it turn.
A fusion is one operation: what happens inside it costs no memory traffic. Elementwise arithmetic is not counted. Custom
calls (kernels that XLA does not know) have bytes, and the FLOP that kernels of Pallas say of themselves.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from w2v_jax.profiling.hlo_text import BODIES, Array, Computation, Instruction, computations, numbers

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
VIEWS = ("bitcast", "get-tuple-element", "tuple", "optimization-barrier", "add-dependency")
"""Operations that only rename memory."""
SLICES = ("dynamic-slice", "slice", "gather")
"""Operations that read a part of their first operand."""
MOVES = ("copy", "transpose", "reshape")
"""Operations that change nothing but places in memory."""
NO_WORK = (*VIEWS, "parameter", "constant", "iota", "partition-id", "replica-id", "after-all")
UNMOVED = ("AllocateBuffer", "ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding")
"""Targets of custom calls that move nothing."""


class Window(NamedTuple):
    """A convolution along one axis, by XLA's names; what its text leaves out is as here.

    size: positions of the kernel. stride: how far outputs lie apart. pad: entries of padding before the first one.
    lhs_dilate, rhs_dilate: how far entries, and positions of the kernel, lie apart.
    """

    size: int = 1
    stride: int = 1
    pad: int = 0
    lhs_dilate: int = 1
    rhs_dilate: int = 1


class Operation(NamedTuple):
    """One operation that a program executes.

    times: how often it runs in a call. flops, read and written (bytes of main memory): of one run. float32: of its
    FLOP, those of products of float32 arrays. moves: it only copies, or changes a layout.
    """

    name: str
    kind: str
    path: str
    result: str
    times: int
    flops: float
    float32: float
    read: int
    written: int
    moves: bool

    @property
    def bytes(self) -> int:
        return self.read + self.written


class Collective(NamedTuple):
    """What devices say to each other: its kind, the bytes that each device gets in one run, how often it runs."""

    kind: str
    path: str
    result: str
    times: int
    bytes: int


class Kept(NamedTuple):
    """An array that the forward pass makes and the backward pass reads. path: where it was made."""

    array: str
    bytes: int
    path: str


class Program:
    """A compiled program, read from its text as `jax.stages.Compiled.as_text` returns it."""

    def __init__(self, text: str) -> None:
        """Raises ValueError where the text holds no program."""
        self.computations, self.entry = computations(text)

    def operations(self) -> list[Operation]:
        """All that it executes, loops and branches opened. Of several branches the one with the most work counts."""
        return list(self._executed(self.entry, 1))

    def _executed(self, name: str, times: int) -> Iterator[Operation]:
        computation = self.computations[name]
        for x in computation.values():
            if x.kind == "conditional":
                work = lambda found: sum(each.times * (each.flops + each.bytes) for each in found)
                yield from max((list(self._executed(branch, times)) for branch in x.bodies), key=work)
            elif x.kind in BODIES and x.kind != "fusion":
                for body in x.bodies:
                    yield from self._executed(body, times * self._turns(x))
            elif x.kind not in NO_WORK and not x.kind.endswith(("-done", "-update")):
                flops, float32 = self._flops(x, computation)
                read, written = self._traffic(x, computation)
                yield Operation(
                    x.name,
                    x.kind,
                    path=self.path_of(x),
                    result=", ".join(map(str, x.arrays)),
                    times=times,
                    flops=flops,
                    float32=float32,
                    read=read,
                    written=written,
                    moves=self._moves(x),
                )

    def _turns(self, x: Instruction) -> int:
        return self.trips(x) or 1 if x.kind == "while" else 1

    def trips(self, loop: Instruction) -> int | None:
        """How often a loop turns: as XLA says, or by the limit of a counter from 0; None where data decides."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        named = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        condition = self.computations[named[1]] if named else Computation()
        limits = [condition[name] for name in condition.root.operands if condition[name].kind == "constant"]
        compared = [condition.root, *(x for body in condition.root.bodies for x in self.computations[body].values())]
        if any("direction=LT" in x.attributes for x in compared) and len(limits) == 1:
            return int(limits[0].arguments)
        return None

    def unknown_loops(self) -> list[str]:
        """The paths of loops that count once because data decides how often they turn."""
        loops = [x for computation in self.computations.values() for x in computation.values() if x.kind == "while"]
        return [x.path or x.name for x in loops if self.trips(x) is None]

    def collectives(self) -> list[Collective]:
        """All, of all branches. One that XLA cuts into several operations, by its channel, counts once."""
        found: dict[str, Collective] = {}
        for name, times in self.turns().items():
            for x in self.computations[name].values():
                if (kind := x.kind.removesuffix("-start")) in COLLECTIVES:
                    arrays = x.arrays[-1:] if x.kind != kind else x.arrays
                    size, result = sum(array.size for array in arrays), ", ".join(map(str, arrays))
                    channel = re.search(r"channel_id=\d+", x.attributes)
                    collective = Collective(kind, x.path, result=result, times=times, bytes=size)
                    found.setdefault(channel[0] if channel else x.name, collective)
        return list(found.values())

    def turns(self) -> dict[str, int]:
        """{computation: how often it runs in a call}, with all branches. Each is called in one place."""
        return dict(self._reached(self.entry, 1))

    def _reached(self, name: str, times: int) -> Iterator[tuple[str, int]]:
        yield name, times
        for x in self.computations[name].values():
            for body in x.bodies:
                yield from self._reached(body, times * self._turns(x))

    def kept(self) -> list[Kept]:
        """What the forward pass keeps for the gradient, largest first: the arrays that lie in main memory between them.

        Operations of the backward pass are those with "transpose(" in their path. Parameters of the program, which are
        there anyway, are left out. Of a scan these are the stacks of all turns.
        """
        found: dict[tuple[str, str], Kept] = {}
        fused = {x.bodies[0] for each in self.computations.values() for x in each.values() if x.kind == "fusion"}
        for name, computation in self.computations.items():
            for x in computation.values() if name not in fused else ():
                if "transpose(" not in x.path or x.kind in VIEWS:
                    continue
                for source in {source for operand in x.operands for source in self._sources(computation, operand)}:
                    made, path = computation[source], self._origin(computation[source], computation)
                    if "jvp(" in path and "transpose(" not in path and made.bytes:
                        found[name, source] = Kept(", ".join(map(str, made.arrays)), made.bytes, path)
        return sorted(found.values(), key=lambda each: -each.bytes)

    def _sources(self, computation: Computation, name: str) -> Iterator[str]:
        """The instructions that made a value, behind views and loops that hand it on."""
        x = computation[name]
        if x.kind == "get-tuple-element":
            origin = computation[x.operands[0]]
            if origin.kind == "while" and self._hands_on(origin, x.element):
                origin = computation[origin.operands[0]]
            if origin.kind == "tuple":
                yield from self._sources(computation, origin.operands[x.element])
            elif origin.kind != "parameter":
                yield name
        elif x.kind in VIEWS:
            for operand in x.operands:
                yield from self._sources(computation, operand)
        elif x.kind not in NO_WORK:
            yield name

    def _hands_on(self, loop: Instruction, index: int) -> bool:
        """Whether a loop leaves this element of its tuple as it is."""
        body = self.computations[loop.bodies[0]]
        element = body[body.root.operands[index]] if body.root.kind == "tuple" else body.root
        own = element.kind == "get-tuple-element" and body[element.operands[0]].kind == "parameter"
        return own and element.element == index

    def _origin(self, x: Instruction, computation: Computation) -> str:
        """The path of what made a value; of a stack that a loop fills, that of what it puts there."""
        if x.kind == "get-tuple-element" and computation[x.operands[0]].kind in ("while", "conditional"):
            bodies = [self.computations[name] for name in computation[x.operands[0]].bodies]
            made = [(each[each.root.operands[x.element]], each) for each in bodies if each.root.kind == "tuple"]
            return max((self._origin(*each) for each in made), key=len, default=x.path)
        if x.kind != "fusion":
            return x.path
        inside = self.computations[x.bodies[0]]
        part = inside.root
        while part.kind in ("bitcast", "convert", "reshape", "dynamic-update-slice"):
            part = inside[part.operands[1 if part.kind == "dynamic-update-slice" else 0]]
        made = computation[x.operands[inside.parameters.index(part.name)]] if part.kind == "parameter" else part
        return made.path or self.path_of(x)

    def path_of(self, x: Instruction) -> str:
        """The path of an instruction; of a fusion without one, that of the last instruction inside it that has one."""
        if x.path or x.kind not in ("fusion", "async-start"):
            return x.path
        inside = [y for body in x.bodies for y in self.computations[body].values()]
        return next((y.path for y in reversed(inside) if y.path), "")

    def _moves(self, x: Instruction) -> bool:
        inside = self.computations[x.bodies[0]].values() if x.kind == "fusion" else [x]
        kinds = {y.kind.removesuffix("-start") for y in inside} - set(NO_WORK)
        return bool(kinds) and kinds <= set(MOVES)

    def _flops(self, x: Instruction, computation: Computation) -> tuple[float, float]:
        """(FLOP of the products in an operation, those of them between float32 arrays)."""
        if x.kind == "fusion":
            inside = self.computations[x.bodies[0]]
            each = [self._flops(y, inside) for y in inside.values()]
            return sum(flops for flops, _ in each), sum(float32 for _, float32 in each)
        if x.kind == "custom-call":  # a kernel of Pallas says what it does
            told = re.search(r'"cost_estimate":{"flops":"(\d+)"', x.attributes)
            return float(told.group(1)) if told else 0.0, 0.0
        if x.kind not in ("dot", "convolution"):
            return 0.0, 0.0
        left, right = (computation[name].arrays[0] for name in x.operands[:2])
        flops = _dot_flops(x, left) if x.kind == "dot" else _convolution_flops(x, left, right)
        return flops, flops if left.dtype == right.dtype == "f32" else 0.0

    def _traffic(self, x: Instruction, computation: Computation) -> tuple[int, int]:
        """(bytes read, bytes written) by one run of an operation."""
        if x.kind == "fusion":
            inside = self.computations[x.bodies[0]]
            return sum(self._read(inside, name) for name in inside.parameters), self._written(inside, inside.root)
        if x.kind == "custom-call" and re.search(rf'custom_call_target="({"|".join(UNMOVED)})"', x.attributes):
            return 0, 0
        if x.kind == "dynamic-update-slice":
            part = computation[x.operands[1]]
            return part.bytes, min(part.size, x.bytes)
        if x.kind == "copy-start":  # the result holds both sides
            return x.arrays[1].bytes, x.arrays[0].bytes
        if x.kind.removesuffix("-start") in SLICES:
            result = x.arrays[-2] if x.kind.endswith("-start") else x.arrays[0]
            return min(result.size, computation[x.operands[0]].bytes), result.bytes
        read = sum(computation[name].bytes for name in x.operands)
        return read, read if x.kind.endswith("-start") else x.bytes

    def _read(self, computation: Computation, name: str) -> int:
        """The bytes of a fusion's parameter that the fusion reads: a slice of it, or all."""
        full, total = computation[name].bytes, 0
        for user in computation.users[name] if full else ():
            first = user.operands.index(name) == 0 and user.operands.count(name) == 1
            if user.kind == "bitcast":
                total += self._read(computation, user.name)
            elif user.kind in SLICES and first:
                total += user.size
            elif user.kind == "fusion":
                inside = self.computations[user.bodies[0]]
                total += sum(self._read(inside, p) for p, each in zip(inside.parameters, user.operands) if each == name)
            elif not (user.kind == "dynamic-update-slice" and first):
                return full
        return min(full, total)

    def _written(self, computation: Computation, root: Instruction) -> int:
        """The bytes that a fusion writes: of an array that it updates in place, the part that is new."""
        operands = [computation[name] for name in root.operands]
        if root.kind == "tuple":
            return sum(self._written(computation, each) for each in operands)
        if root.kind == "bitcast":
            return min(root.bytes, self._written(computation, operands[0]))
        if root.kind == "dynamic-update-slice":
            return min(root.bytes, operands[1].size)
        if root.kind == "fusion":
            inside = self.computations[root.bodies[0]]
            return min(root.bytes, self._written(inside, inside.root))
        return root.bytes


def _dot_flops(x: Instruction, left: Array) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", x.attributes)
    axes = numbers(contracted[1]) if contracted else ()
    return 2.0 * math.prod(x.arrays[0].shape) * math.prod(left.shape[axis] for axis in axes)


def _convolution_flops(x: Instruction, left: Array, right: Array) -> float:
    """FLOP of a convolution without those on padding and on zeros between entries.

    XLA writes products of batches as convolutions in which one position of the kernel meets an entry.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.attributes)
    if not labels:
        raise ValueError(f"the convolution {x.name} has no dim_labels: {x.attributes[:100]}")
    inputs, kernel, outputs = (
        dict(zip(text, array.shape)) for text, array in zip(labels.groups(), (left, right, x.arrays[0]))
    )
    work = 2.0 * kernel["i"] * outputs["b"] * outputs["f"]
    for axis in sorted(set(inputs) - {"b", "f"}):
        work *= meetings(inputs[axis], outputs[axis], _window(x.attributes, int(axis)))
    return work


def _window(attributes: str, axis: int) -> Window:
    """The window of a convolution along one of its axes."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    pairs = dict(pair.split("=") for pair in found[1].split()) if found else {}
    by_axis = {key: pairs[key].split("x")[axis] for key in Window._fields if key in pairs}
    return Window()._replace(**{key: int(value.partition("_")[0]) for key, value in by_axis.items()})


@functools.lru_cache(maxsize=4096)
def meetings(entries: int, outputs: int, window: Window) -> int:
    """Along one axis of a convolution, the pairs of an output and a position of the kernel that meet an entry.

    Output o and position k meet what lies at o * stride + k * rhs_dilate - pad; entry e lies at e * lhs_dilate.
    """
    size, stride, pad, spread, dilation = window
    if size > outputs:  # the sum goes over the shorter of both
        outputs, size, stride, dilation = size, outputs, dilation, stride
    count, period = 0, spread // math.gcd(spread, stride)
    for k in range(size):
        start = k * dilation - pad
        first = max(0, -(start // stride))
        last = min(outputs - 1, ((entries - 1) * spread - start) // stride)
        hits = (o for o in range(first, min(first + period, last + 1)) if (start + o * stride) % spread == 0)
        hit = next(hits, None)
        count += 0 if hit is None else (last - hit) // period + 1
    return count
