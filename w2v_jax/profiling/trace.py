"""Where the time of a compiled program goes, by part of the model, from the trace of a profiler.

XLA records for every operation the path of modules and named scopes that it comes from. A trace records when each
operation ran. A fusion across two parts of the model counts for the part of its last operation.
"""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from w2v_jax.profiling.flops import PARTS, part_of
from w2v_jax.profiling.hlo import Program

NAMELESS = "copies and zeros"
"""Operations that XLA added and that therefore have no path."""


class Span(NamedTuple):
    """One execution of an operation: start and end in nanoseconds."""

    start: float
    end: float
    name: str


def seconds_by_part(folder: pathlib.Path, program: str) -> dict[str, dict[str, float]]:
    """{part of the model: {"forward": seconds, "backward": seconds}} of a program in the newest trace of a folder.

    program: its text, as `Compiled.as_text` returns it. Operations that run at once share that time, so that the sum is
    the time in which any of them ran. Empty where the trace has no operations of the program.
    """
    parts = collections.defaultdict(lambda: {"forward": 0.0, "backward": 0.0})
    paths, containers = operations(program)
    module = re.match(r"HloModule ([\w.-]+)", program)
    executed = spans(newest_trace(folder), module[1]) if module else []
    for name, seconds in shared_seconds(span for span in executed if span.name not in containers).items():
        path = paths.get(name)
        part = NAMELESS if path is None else part_of(path)
        parts[part]["backward" if path and "transpose(" in path else "forward"] += seconds
    order = [*(part for _, part in PARTS), NAMELESS]
    return {part: parts[part] for part in sorted(parts, key=order.index)}


def operations(program: str) -> tuple[dict[str, str], set[str]]:
    """({operation: its path of modules}, loops and branches, whose time is that of the operations inside them).

    A fusion without a path gets the path of the last operation inside it.
    """
    read = Program(program)
    found = [x for computation in read.computations.values() for x in computation.values()]
    containers = {x.name for x in found if x.kind in ("while", "conditional", "call")}
    return {x.name: path for x in found if (path := read.path_of(x))}, containers


def newest_trace(folder: pathlib.Path) -> Any:
    """The newest `ProfileData` in a folder. Raises FileNotFoundError where there is none."""
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"the profiler wrote no trace into {folder}")
    return ProfileData.from_file(str(files[-1]))


def spans(trace: Any, module: str) -> list[Span]:
    """The executed operations of `module`: those on devices, or on the host (a CPU) where no device has any.

    On a device with streams only the streams count, not the lines that tools derive from them. On a CPU an event ends
    when its work has been handed to the threads. An event "end: ..." with the same number marks the end of the work.
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


def shared_seconds(executed: Iterable[Span]) -> dict[str, float]:
    """Seconds of each operation. Operations that run at once share the time equally."""
    seconds: dict[str, float] = collections.defaultdict(float)
    running, before = collections.Counter(), 0.0
    edges = [edge for span in executed for edge in ((span.start, 1, span.name), (span.end, -1, span.name))]
    for now, change, name in sorted(edges):
        for active, times in running.items():
            seconds[active] += times * (now - before) / running.total() * 1e-9
        running[name] += change
        running = +running  # drops the operations that ended
        before = now
    return dict(seconds)
