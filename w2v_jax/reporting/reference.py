"""Is a run of a demo normal? Its held-out metrics beside those of runs that were made by the demo's own command.

A reference is a file of `references/`: the config of a demo, and the evaluations of runs of it that differ in their
seed alone. It says nothing about a run of another config or of other data, which is refused.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from w2v_jax.core.cli import UserError, some_of
from w2v_jax.core.config import Config, changed_keys, from_json, run_json
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import write_whole
from w2v_jax.core.types import MetricsRow
from w2v_jax.reporting.run_folder import RunFolder
from w2v_jax.training.workdir import HARDWARE

FOLDER = pathlib.Path(__file__).parent / "references"
FREE = HARDWARE | {"seed"}
"""Keys in which a run may differ from a reference: they do not change what is to be expected."""
WORSE = {"loss": 1, "accuracy": -1, "token_error": 1, "code_perplexity": -1, "prediction_perplexity": -1}
"""The metrics that are compared: 1 where larger is worse, -1 where smaller is."""
WINDOW = 1.25
"""A run may be so much earlier or later: evaluations of the reference from step / WINDOW to step * WINDOW count."""
MARGINS = {"loss": 0.2, "accuracy": 0.2, "token_error": 0.2, "code_perplexity": 0.5, "prediction_perplexity": 0.5}
"""Of the range of a metric in the reference: by so much it may lie beyond what the reference had in the window.

The two seeds of w2v2_base.py:demo end 0.13 of the range of the loss apart, and differ more in how many codes they use.
"""


class Reference(NamedTuple):
    """Runs of one demo. name: "w2v2_base.py:demo". config: without its seed. runs: the evaluations of each seed."""

    name: str
    config: Config
    data: dict[str, Any]
    made_with: str
    runs: dict[int, list[MetricsRow]]

    __repr__ = short_repr


class Compared(NamedTuple):
    """A metric of a run at an evaluation, and what the reference had around that update, with the margin."""

    metric: str
    step: int
    value: float
    low: float
    high: float
    word: str
    normal: bool


class Comparison(NamedTuple):
    """Whether a run is normal, in a word and a sentence, and the metrics at up to four evaluations, newest first."""

    word: str
    sentence: str
    normal: bool
    rows: list[Compared]


def load_references() -> list[Reference]:
    """All committed references."""
    return [_read(file) for file in sorted(FOLDER.glob("*.json"))]


def _read(file: pathlib.Path) -> Reference:
    found = json.loads(file.read_text(encoding="utf-8"))
    return Reference(
        found["name"],
        from_json(json.dumps(found["config"])),
        data=found["data"],
        made_with=found["made_with"],
        runs={run["seed"]: run["evaluations"] for run in found["runs"]},
    )


def reference_for(run: RunFolder, references: Sequence[Reference]) -> Reference:
    """The reference of the run's config and data. Raises UserError where there is none, with what differs."""
    of_method = [reference for reference in references if reference.config.method == run.config.method]
    if not of_method:
        known = ", ".join(sorted({reference.name for reference in references})) or "none"
        raise UserError(f"there is no reference of {run.config.method} ({run.path}); there are {known}")
    differing = {reference.name: differing_keys(run.config, reference.config) for reference in of_method}
    name = min(differing, key=lambda name: len(differing[name]))
    reference = next(reference for reference in of_method if reference.name == name)
    if lines := differing[name]:
        raise UserError(
            f"{run.path} is no run of {name}, and a reference says nothing about other configs: {len(lines)} keys "
            f"differ ({some_of(lines, 3)}). Leave out --against, or give the run of the demo too"
        )
    for key in ("train_fingerprint", "eval_fingerprint"):
        if key in run.data and run.data[key] != reference.data[key]:
            raise UserError(
                f"{run.path} has the config of {name} and other recordings ({key}), about which its reference says "
                "nothing: leave out --against"
            )
    return reference


def differing_keys(config: Config, other: Config) -> list[str]:
    """The keys that change what is to be expected, with both values."""
    return [line for line in changed_keys(other, config) if line.split(":")[0] not in FREE]


def compare(run: RunFolder, reference: Reference) -> Comparison:
    """The newest evaluation and those at three quarters, half and a quarter of the way, beside the reference."""
    evaluations = run.of_split("eval")
    seeds = ", ".join(map(str, sorted(reference.runs)))
    made = f"The reference is {reference.name}, seeds {seeds}, trained with {reference.made_with}."
    if not evaluations:
        return Comparison("nothing to compare", f"There is no evaluation yet. {made}", normal=True, rows=[])
    newest = evaluations[-1]["step"]
    wanted = [min(evaluations, key=lambda row: abs(row["step"] - share * newest)) for share in (1.0, 0.75, 0.5, 0.25)]
    chosen = list({row["step"]: row for row in wanted}.values())
    rows = [one for row in chosen for metric in WORSE for one in _compared(metric, row, reference)]
    judged = [one for one in rows if one.step == newest]
    if not judged:
        text = f"The reference has no evaluation near update {newest:,}. {made}"
        return Comparison("nothing to compare", text, normal=True, rows=rows)
    normal = all(one.normal for one in judged)
    word = "normal" if normal else "not normal"
    return Comparison(word, f"Judged by the evaluation after update {newest:,}. {made}", normal=normal, rows=rows)


def _compared(metric: str, row: MetricsRow, reference: Reference) -> list[Compared]:
    """One comparison; none where row or reference lack the metric, or the reference ends before."""
    known = [(r["step"], r[metric]) for rows in reference.runs.values() for r in rows if r.get(metric) is not None]
    values = [value for _, value in known]
    near = [value for step, value in known if row["step"] / WINDOW <= step <= row["step"] * WINDOW]
    if metric not in row or not values:
        return []
    value, margin = row[metric], MARGINS[metric] * (max(values) - min(values))
    low, high = max(0.0, min(near or values) - margin), max(near or values) + margin
    if value is None or not math.isfinite(value):
        return [Compared(metric, row["step"], float("nan"), low=low, high=high, word="not finite", normal=False)]
    if not near:
        return []
    beyond = (value > high) - (value < low)
    word = {0: "normal", WORSE[metric]: "worse", -WORSE[metric]: "better"}[beyond]
    return [Compared(metric, row["step"], value, low=low, high=high, word=word, normal=word != "worse")]


def write_reference(name: str, runs: Sequence[RunFolder], folder: pathlib.Path = FOLDER) -> None:
    """Makes the reference of a demo ("w2v2_base.py:demo") of complete runs, which differ in their seed.

    Raises UserError for other runs.
    """
    first = runs[0]
    seeds = [run.config.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {seeds}: each run of a reference needs a seed of its own")
    for run in runs:
        if run.done is None or run.done["step"] != run.steps and not run.done["ended_early"]:
            raise UserError(f"{run.path} is not complete; a reference is made of whole runs")
        if lines := differing_keys(run.config, first.config):
            raise UserError(f"{run.path} and {first.path} differ: {some_of(lines)}")
    start = next((run.starts[-1] for run in runs if run.starts), None)
    if start is None:
        raise UserError("no run has an environment.jsonl, which says what it was made with")
    versions = ", ".join(f"{name} {start['versions'][name]}" for name in ("Python", "jax", "flax"))
    content = {
        "name": name,
        "made_with": f"{versions} on {start['devices']}",
        "config": json.loads(run_json(first.config)) | {"seed": 0},
        "data": {key: value for key, value in first.data.items() if "fingerprint" in key},
        "runs": [
            {"seed": run.config.seed, "evaluations": [_kept(row) for row in run.of_split("eval")]} for run in runs
        ],
    }
    write_whole(folder / f"{name.replace('.py:', '-')}.json", json.dumps(content, indent=1) + "\n")


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("step", *WORSE) if name in row}
