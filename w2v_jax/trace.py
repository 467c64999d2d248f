"""Where a compiled program's time goes: a profiler's trace, read by the part of the model that each operation is for.

XLA writes for every operation the path of modules and named scopes that it comes from; a trace tells when each ran.
What was fused over the border of two parts counts for that of its last operation.
"""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from w2v_jax.flops import PARTS, part_of

NAMELESS = "copies and zeros"
"""Operations that XLA added on its own."""


class Span(NamedTuple):
    """An operation that ran, from its start to its end in nanoseconds."""

    start: float
    end: float
    name: str


def seconds_by_part(folder: pathlib.Path, program: str) -> dict[str, dict[str, float]]:
    """{part of the model: {"forward": seconds, "backward": seconds}} of a program in all of a folder's newest trace.

    program: its text as `Compiled.as_text` gives it. Where several operations run at once each has its share of that
    time, so that the sum is the time in which any ran. Empty where the trace names no operations of the program.
    """
    found = collections.defaultdict(lambda: {"forward": 0.0, "backward": 0.0})
    paths, holders = operations(program)
    module = re.match(r"HloModule ([\w.-]+)", program)
    ran = spans(newest(folder), module[1]) if module else []
    for name, seconds in shared(span for span in ran if span.name not in holders).items():
        path = paths.get(name)
        part = NAMELESS if path is None else part_of(path)
        found[part]["backward" if path and "transpose(" in path else "forward"] += seconds
    order = [*(part for _, part in PARTS), NAMELESS]
    return {part: found[part] for part in sorted(found, key=order.index)}


def operations(program: str) -> tuple[dict[str, str], set[str]]:
    """({operation: its path of modules}, loops and branches, whose time is that of the operations inside them).

    A fusion without a path has that of the last operation inside.
    """
    paths, inside, calls, holders, computation = {}, {}, {}, set(), ""
    for line in program.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            computation = opened[1]
        operation = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = ", line)
        if not operation:
            continue
        if re.search(r"[\])}] (while|conditional|call)\(", line):
            holders.add(operation[1])
        if path := re.search(r'op_name="([^"]+)"', line):
            paths[operation[1]] = inside[computation] = path[1]
        elif called := re.search(r"calls=%?([\w.-]+)", line):
            calls[operation[1]] = called[1]
    return {name: inside[called] for name, called in calls.items() if called in inside} | paths, holders


def newest(folder: pathlib.Path) -> Any:
    """The `ProfileData` that was written last into a folder. Raises FileNotFoundError where there is none."""
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"the profiler wrote no trace into {folder}")
    return ProfileData.from_file(str(files[-1]))


def spans(trace: Any, module: str) -> list[Span]:
    """The operations of `module` that ran: those on devices where there are any, else those on the host, a CPU's.

    On a device with streams only these count, and not the lines that tools derive from them. On CPU an event ends when
    its work has been handed to the threads, and one called "end: ..." with the same number tells when that was done.
    """
    streams, devices, host, ends = [], [], [], {}
    for plane in trace.planes:
        for line in plane.lines:
            for event in line.events:
                stats: dict[str, Any] = dict(event.stats)
                if event.name.startswith("end: "):
                    ends[stats.get("_c")] = event.start_ns
                if stats.get("hlo_module") != module or "hlo_op" not in stats:
                    continue
                span = Span(event.start_ns, event.start_ns + event.duration_ns, stats["hlo_op"])
                if plane.name.startswith("/device:"):
                    (streams if line.name.startswith("Stream") else devices).append(span)
                else:
                    host.append((span, stats.get("_p")))
    return streams or devices or [span._replace(end=ends.get(number, span.end)) for span, number in host]


def shared(ran: Iterable[Span]) -> dict[str, float]:
    """Seconds of each operation; those that run at once share the time among them."""
    seconds: dict[str, float] = collections.defaultdict(float)
    running, before = collections.Counter(), 0.0
    edges = [edge for span in ran for edge in ((span.start, 1, span.name), (span.end, -1, span.name))]
    for now, change, name in sorted(edges):
        for each, times in running.items():
            seconds[each] += times * (now - before) / running.total() * 1e-9
        running[name] += change
        running = +running  # without those that ended
        before = now
    return dict(seconds)
