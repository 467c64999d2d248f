"""Where a compiled program's time goes: a profiler's trace, read by the part of the model that each operation is for.

XLA writes for every operation the path of modules and named scopes that it comes from; a trace tells when each ran.
What was fused over the border of two parts counts for that of its last operation.

On CPU the span of an operation ends when its work has been handed to the threads. Time in which no span is open belongs
to the operation that the next one waited for: of those whose results it reads, the one that started last.
"""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jax.profiler import ProfileData

from w2v_jax.flops import PARTS, part_of

NAMELESS = "copies and zeros"
"""Operations that XLA added on its own."""


class Span(NamedTuple):
    """An operation that ran on one thread or stream, in nanoseconds, in one of the program's runs."""

    start: float
    end: float
    name: str
    run: int = 0


class Operation(NamedTuple):
    """The path of modules that an operation comes from, or None; the operations whose results it reads."""

    path: str | None
    reads: tuple[str, ...]


def seconds_by_part(folder: pathlib.Path, program: str) -> dict[str, dict[str, float]]:
    """{part of the model: {"forward": seconds, "backward": seconds}} of a program in all of a trace.

    program: its text as `Compiled.as_text` gives it. Where several operations run at once each has its share of that
    time. Empty where the trace names no operations of the program.
    """
    found = collections.defaultdict(lambda: {"forward": 0.0, "backward": 0.0})
    module = re.match(r"HloModule ([\w.-]+)", program)
    known = operations(program)
    lines, on_host = spans(folder, module[1] if module else "")
    for name, seconds in shared(lines, known if on_host else {}).items():
        path = known[name].path if name in known else None
        part = NAMELESS if path is None else part_of(path)
        found[part]["backward" if path and "transpose(" in path else "forward"] += seconds
    order = [*(part for _, part in PARTS), NAMELESS]
    return {part: found[part] for part in sorted(found, key=order.index)}


def operations(program: str) -> dict[str, Operation]:
    """The operations of a program's text; a fusion without a path has that of the last operation inside."""
    paths, inside, calls, reads, computation = {}, {}, {}, {}, ""
    for line in program.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            computation = opened[1]
        operation = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = ", line)
        if not operation:
            continue
        reads[operation[1]] = tuple(re.findall(r"(?<![=\w])%([\w.-]+)", line[operation.end() :]))
        if path := re.search(r'op_name="([^"]+)"', line):
            paths[operation[1]] = inside[computation] = path[1]
        elif called := re.search(r"calls=%?([\w.-]+)", line):
            calls[operation[1]] = called[1]
    return {name: Operation(paths.get(name) or inside.get(calls.get(name)), read) for name, read in reads.items()}


def spans(folder: pathlib.Path, module: str) -> tuple[list[list[Span]], bool]:
    """(the operations of `module` in the newest trace of a folder, line by line; whether they are the host's).

    A line is a thread or a stream. Those on devices where there are any, else those on the host: a CPU's.
    """
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    found: dict[bool, list[list[Span]]] = {True: [], False: []}
    for plane in ProfileData.from_file(str(newest)).planes:
        for line in plane.lines:
            if ran := [span for event in line.events if (span := _span(event, module))]:
                found[plane.name.startswith("/device:")].append(ran)
    return found[True] or found[False], not found[True]


def _span(event: object, module: str) -> Span | None:
    stats = {name: value for name, value in event.stats if name in ("hlo_op", "hlo_module", "run_id")}  # pyright: ignore
    if stats.get("hlo_module") != module or "hlo_op" not in stats:
        return None
    start, seconds = event.start_ns, event.duration_ns  # pyright: ignore
    return Span(start, start + seconds, stats["hlo_op"], stats.get("run_id", 0))


def shared(lines: Iterable[list[Span]], known: Mapping[str, Operation]) -> dict[str, float]:
    """Seconds of each operation; those that run at once on several lines share the time among them.

    The time within a run in which none does belongs to what the next one reads, if `known` tells; else to none.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    edges = []
    for line in lines:
        for span in innermost(line):
            edges += [(span.start, 1, span), (span.end, -1, span)]
    running, started, before = collections.Counter(), {}, Span(0, 0, "", -1)
    moment = 0.0
    for now, change, span in sorted(edges):
        for each, times in running.items():
            seconds[each] += times * (now - moment) / running.total() * 1e-9
        if not running and span.run == before.run and known:
            seconds[awaited(span.name, known, started) or before.name] += (now - moment) * 1e-9
        running[span.name] += change
        running += collections.Counter()  # without those that ended
        if change == 1:
            started[span.name] = now
        moment, before = now, span
    return dict(seconds)


def awaited(name: str, known: Mapping[str, Operation], started: Mapping[str, float]) -> str | None:
    """Of the operations that ran and whose results `name` reads, the one that started last; None without any."""
    found, seen, left = [], set(), [*known[name].reads] if name in known else []
    while left:
        each = left.pop()
        if each in started:
            found.append(each)
        elif each in known and each not in seen:  # what takes no time, such as another view of an array
            seen.add(each)
            left += known[each].reads
    return max(found, key=lambda each: started[each], default=None)


def innermost(line: Sequence[Span]) -> Iterator[Span]:
    """The spans of one line without the times of those inside them."""
    open_spans: list[Span] = []
    at = 0.0

    def close(until: float) -> Iterator[Span]:
        nonlocal at
        while open_spans and open_spans[-1].end <= until:
            last = open_spans.pop()
            if last.end > at:
                yield last._replace(start=at)
            at = max(at, last.end)

    for span in sorted(line, key=lambda span: (span.start, -span.end)):
        yield from close(span.start)
        if open_spans and span.start > at:
            yield open_spans[-1]._replace(start=at, end=span.start)
        at = span.start
        open_spans.append(span)
    yield from close(float("inf"))
