"""The text that XLA prints of a compiled program, as instructions: names, kinds, arrays, operands."""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

BODIES = {
    "while": "body",
    "fusion": "calls",
    "async-start": "calls",
    "call": "to_apply",
    "conditional": "branch_computations|true_computation|false_computation",
}
"""By kind of instruction the attributes that name the computations that it runs."""


class Array(NamedTuple):
    """An array in memory. layout: XLA's text of the order of axes, tiles and memory space."""

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        """What it takes in the device's main memory: 0 where it lies on the chip."""
        return 0 if re.search(r"S\([1-9]", self.layout) else self.size

    @property
    def size(self) -> int:
        """Its bytes with the padding of its tiles."""
        order, _, rest = self.layout.partition(":")
        padded, tile = list(self.shape), re.match(r"T\(([\d,]+)\)", rest)
        for axis, size in zip(numbers(order), reversed(numbers(tile[1]))) if tile else ():
            padded[axis] = -(-padded[axis] // size) * size
        return math.ceil(math.prod(padded) * _bits(self.dtype) / 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Instruction(NamedTuple):
    """One line of a program. arguments: the text between its parentheses, attributes: what follows."""

    name: str
    kind: str
    result: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def path(self) -> str:
        """The path of modules and named scopes that it comes from; "" for what XLA added."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def arrays(self) -> list[Array]:
        found = re.findall(r"(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?", self.result)
        return [Array(dtype, numbers(shape), layout) for dtype, shape, layout in found]

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @property
    def size(self) -> int:
        return sum(array.size for array in self.arrays)

    @property
    def bodies(self) -> list[str]:
        """The computations that a loop (without its condition), branch, call or fusion runs."""
        if self.kind not in BODIES:
            return []
        named = re.findall(rf"\b(?:{BODIES[self.kind]})=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return [name for each in named for name in re.findall(r"[\w.\-]+", each)]

    @property
    def element(self) -> int:
        """Which element of a tuple a "get-tuple-element" takes."""
        return int(re.split(r"\D+", self.attributes.removeprefix("index="), maxsplit=1)[0])


class Computation(dict[str, Instruction]):
    """The instructions of a computation by name, in order, the result last."""

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {name: [] for name in self}
        for instruction in self.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users

    @functools.cached_property
    def parameters(self) -> list[str]:
        """Their names, by number."""
        found = [x for x in self.values() if x.kind == "parameter"]
        return [x.name for x in sorted(found, key=lambda x: int(x.arguments))]

    @property
    def root(self) -> Instruction:
        return next(reversed(self.values()))


def computations(text: str) -> tuple[dict[str, Computation], str]:
    """(the computations of a program by name, the name of the first). Raises ValueError where there is none.

    text: as `jax.stages.Compiled.as_text` returns it.
    """
    found: dict[str, Computation] = {}
    entry, root, current = "", "", Computation()
    for line in text.splitlines():
        if opened := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = found[opened[2]] = Computation()
            entry = opened[2] if opened[1] else entry
        elif line == "}" and current:
            current[root] = current.pop(root)
        elif instruction := instruction_in(line):
            current[instruction.name] = instruction
            root = instruction.name if line.lstrip().startswith("ROOT ") else root
    if not entry:
        raise ValueError("the text is not that of a compiled program: no line of it begins with ENTRY")
    return found, entry


def instruction_in(line: str) -> Instruction | None:
    """The instruction in a line of a program, or None."""
    start = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not start:
        return None
    rest = line[start.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    kind = re.match(r" ([\w\-]+)(?=\()", rest[end:])
    if not kind:
        return None
    rest, result = rest[end + kind.end() :], rest[:end]
    end = _closing(rest)
    arguments, attributes = rest[1 : end - 1], rest[end:].removeprefix(", ")
    return Instruction(name=start[1], kind=kind[1], result=result, arguments=arguments, attributes=attributes)


def _closing(text: str) -> int:
    """The length of the parenthesis with which a text begins."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"a parenthesis is not closed: {text[:100]}")


def numbers(text: str) -> tuple[int, ...]:
    """ "8,128" -> (8, 128)."""
    return tuple(int(number) for number in text.split(",") if number)


def _bits(dtype: str) -> int:
    """Bits of an element: "f32", "bf16", "s4", "f8e4m3fn", "c64"; a "pred" is a byte."""
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8
