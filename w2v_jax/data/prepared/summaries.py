"""What is told of a corpus: hours of each rate, language and speaker, lengths, and everything that was left out."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from w2v_jax.core.cli import some_of, table
from w2v_jax.data.index import Index, Skip, skipped_by_kind

LANGUAGE = re.compile(r"(?:^|[/\\])language=([^/\\#]+)[/\\]")
"""A folder above recordings that says their language."""
SILENT_NAMED = 10
SHOWN = 8


def language_of(path: str, language: str) -> str:
    """The language of a recording: that of all, or what a folder above it says, or ""."""
    named = None if language else LANGUAGE.search(path)
    return named[1] if named else language


def merged(summaries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One summary of many shards (`shard_files.py`)."""
    total: dict[str, Any] = {}
    for summary in summaries:
        for key, value in summary.items():
            if isinstance(value, dict):
                total.setdefault(key, Counter()).update(value)
            elif isinstance(value, list):
                total.setdefault(key, []).extend(value)
            elif not isinstance(value, str):
                total[key] = total.get(key, 0) + value
    return total


def shards_report(total: dict[str, Any], skipped: Sequence[Skip], notes: Sequence[str]) -> dict[str, Any]:
    """The report of shards, from the summary of all."""
    notes = list(notes)
    if total["clipped"]:
        notes.append(f"{total['clipped']:,} recordings went beyond full scale, and were clipped there")
    if total["untold"]:
        notes.append(f"{total['untold']:,} recordings with a transcript were cut; their pieces have none")
    if silent := total["silent"]:
        notes.append(f"{len(silent):,} x silent throughout, and used all the same: {some_of(silent, SILENT_NAMED)}")
    about = {key: total[key] for key in ("recordings", "records", "bytes")} | {"kept_as_they_were": total["kept"]}
    return _report(about, {name: total[name] for name in _SIDES}, total["lengths"], skipped=skipped, notes=notes)


def index_report(index: Index, language: str, *, recordings: int) -> dict[str, Any]:
    """The report of the rows of an index, which are pieces of so many recordings or all of them."""
    seconds: dict[str, dict[str, float]] = {name: defaultdict(float) for name in _SIDES}
    lengths: Counter = Counter()
    columns = zip(index.speakers, index.paths, index.rates, index.frames, strict=True)
    for speaker, path, rate, frames in columns:
        duration = int(frames) / int(rate)
        lengths[f"{duration:.1f}"] += 1
        sides = {"speakers": str(speaker), "languages": language_of(str(path), language), "rates": str(rate)}
        for name, value in sides.items():
            seconds[name][value] += duration
    about = {"recordings": recordings, "records": len(index)}
    return _report(about, seconds, lengths, skipped=index.skipped, notes=index.notes)


_SIDES = ("rates", "languages", "speakers")


def _report(
    about: dict[str, Any], seconds: dict[str, Any], lengths: Counter, *, skipped: Sequence[Skip], notes: Sequence[str]
) -> dict[str, Any]:
    return about | {
        "hours": round(sum(seconds["rates"].values()) / 3600, 4),
        "lost": sum(skip.is_recording for skip in skipped),
        "hours_of": {name: _hours(found) for name, found in seconds.items()},
        "lengths": {key: lengths[key] for key in sorted(lengths, key=float)},
        "notes": list(notes),
        "skipped": [skip._asdict() for skip in skipped],
    }


def _hours(seconds: dict[str, float]) -> dict[str, float]:
    """Hours of each, the most first."""
    order = sorted(seconds, key=lambda key: (-seconds[key], key))
    return {key: round(seconds[key] / 3600, 4) for key in order}


def report_text(report: dict[str, Any]) -> str:
    """The report for people; every path stands in the file of the report."""
    hours = report["hours_of"]
    rows = {"records": f"{report['records']:,}, {report['hours']:.2f} h"}
    if "bytes" in report:
        kept = f"{report['kept_as_they_were']:,} kept their bytes"
        rows |= {"recordings": f"{report['recordings']:,}, of which {kept}", "size": f"{report['bytes'] / 1e9:.3f} GB"}
    rows |= {
        "rates": _some(hours["rates"], " Hz"),
        "languages": _some(hours["languages"]),
        "speakers": f"{len(hours['speakers'].keys() - {''}):,}" + (", some unknown" if "" in hours["speakers"] else ""),
    }
    lines = [table(rows), *(f"note: {note}" for note in report["notes"])]
    return "\n".join([*lines, *skipped_by_kind([Skip(**skip) for skip in report["skipped"]])])


def _some(hours: dict[str, float], unit: str = "") -> str:
    shown = [f"{key or 'unknown'}{unit if key else ''} {value:.2f} h" for key, value in hours.items()]
    return some_of(shown, SHOWN)
