"""What a run leaves for people: console lines, metrics.jsonl, TensorBoard, curves.png and done.json.

A row of metrics is a flat dict with `step`, `split` ("train", "eval" or "probe") and numbers; nothing here knows a
method. `levels` are the numbers that tell a healthy run from a dead one, each optional: loss_chance (ln(K + 1)),
accuracy_chance, perplexity_floor (all frames on one code per group), perplexity_max; and a row's `unigram_loss` is
what a model of a code stream reaches that only counts, as `label_entropy` is for a model that predicts given labels.
Imports no jax: the loop says which process is `active` (process 0), and the reports of the others do nothing.
"""

from __future__ import annotations

import collections
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from w2v_jax.core.cli import UserError, duration, warn
from w2v_jax.core.files import append_lines, whole_file, write_whole
from w2v_jax.core.text import json_object
from w2v_jax.core.types import Levels, MetricsRow
from w2v_jax.training.curves import PROBE, draw_curves
from w2v_jax.training.trackers import Tracker
from w2v_jax.training.trackers.tensorboard import open_board

COLUMNS = (
    ("loss", "loss", ".3f", 6),
    ("unigram_loss", "unigram", ".3f", 6),
    ("label_entropy", "entropy", ".3f", 6),
    ("blank_share", "blank", ".2f", 4),
    ("token_error", "err", ".3f", 5),
    ("loss_gap", "gap", ".2f", 5),
    ("accuracy", "acc", ".3f", 5),
)
"""(metric, its label on the console, its format, its width)."""
SHARES = (("data_wait_share", "wait"), ("padding_share", "pad"))
PERPLEXITY_LEVELS = (("perplexity_floor", "collapse"), ("perplexity_max", "maximum"))


class Report:
    """The outputs of one run in its workdir; call `log` with each row, then `finish` (or `close`) once."""

    def __init__(
        self,
        workdir,
        total_steps: int,
        *,
        start_step: int = 0,
        levels: Levels | None = None,
        active: bool = True,
        tensorboard: bool = True,
        tracker: Tracker | None = None,
    ):
        """start_step: the step the run resumes from; rows of later steps, which it will repeat, are dropped.

        tracker: one more that gets the rows, beside TensorBoard's file.
        """
        self.workdir, self.total_steps = pathlib.Path(workdir), total_steps
        self.levels, self.active = levels or {}, active
        self._seconds: collections.deque[float] = collections.deque(maxlen=20)
        self._legend_shown = False
        self._unwritten: list[str] = []
        self._trackers: list[Tracker] = []
        if active:
            self.workdir.mkdir(parents=True, exist_ok=True)
            trim_steps(self.workdir / "metrics.jsonl", start_step)
            (self.workdir / "done.json").unlink(missing_ok=True)
            board = open_board(self.workdir / "tensorboard", start_step) if tensorboard else None
            self._trackers += [each for each in (board, tracker) if each is not None]

    def log(self, row: MetricsRow) -> None:
        """Writes one row everywhere. Where the disk refuses, a warning says so; the row is kept and written later."""
        if not self.active:
            return
        row = {name: _plain(value) for name, value in row.items()}
        self._unwritten.append(json.dumps(row))
        self._write()
        for tracker in self._trackers:
            tracker.add(row)
        if row["split"] == "train":
            if not self._legend_shown:
                self.say(legend(self.levels))
                self._legend_shown = True
            if row.get("step_seconds"):
                self._seconds.append(row["step_seconds"])
        self.say(progress_line(row, self.total_steps, self._rate()))

    def say(self, text: str) -> None:
        """A line for the person at the console."""
        if self.active:
            print(text, flush=True)

    def draw(self) -> None:
        """Draws curves.png anew from metrics.jsonl; where the disk refuses, it warns and keeps the old ones."""
        if not self.active:
            return
        try:
            draw_curves(read_metrics(self.workdir / "metrics.jsonl"), self.workdir / "curves.png", self.levels)
        except OSError as error:
            warn(f"curves.png cannot be written ({error}); it is drawn again at the next evaluation")

    def finish(self, **fields: Any) -> None:
        """Draws the curves and writes done.json: the last row of each split under `metrics`, and the given fields.

        Raises UserError where the disk refuses done.json.
        """
        if self.active:
            last = {row["split"]: row for row in read_metrics(self.workdir / "metrics.jsonl")}
            step = max((row["step"] for row in last.values()), default=0)
            done = {"step": step, "metrics": last} | {name: _plain(value) for name, value in fields.items()}
            self.draw()
            self.close()
            try:
                write_whole(self.workdir / "done.json", json.dumps(done, indent=2) + "\n")
            except OSError as error:
                raise UserError(
                    f"{self.workdir / 'done.json'} cannot be written: {error}. The run is complete and its checkpoint "
                    "whole; free some space, and the same command writes the summary"
                ) from None

    def close(self) -> None:
        """Flushes and closes what is open; a second call does nothing."""
        for tracker in self._trackers:
            tracker.close()
        self._trackers.clear()

    def _rate(self) -> float | None:
        """Steps per second over the last rows; compilation, evaluation and saving do not count."""
        return len(self._seconds) / sum(self._seconds) if self._seconds else None

    def _write(self) -> None:
        try:
            append_lines(self.workdir / "metrics.jsonl", self._unwritten)
            self._unwritten.clear()
        except OSError as error:
            warn(f"metrics.jsonl cannot be written ({error}); {len(self._unwritten)} rows are kept for the next try")


# metrics.jsonl


def read_metrics(path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a line that a kill left half-written is left out. Empty if there is no file."""
    if not pathlib.Path(path).exists():
        return []
    with open(path, "rb") as file:
        return [row for row in map(_parse, file) if row is not None]


def trim_steps(path, step: int) -> int:
    """Drops the lines after `step` of a JSONL file (a run resumed there writes them again); how many there were.

    For metrics.jsonl and every other file whose lines have a `step`. Half-written lines go too.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return 0
    dropped = 0
    with whole_file(path) as partial, open(path, "rb") as old, open(partial, "wb") as new:
        for line in old:
            row = _parse(line)
            if row is not None and row["step"] <= step:
                new.write(line.rstrip(b"\n") + b"\n")
            else:
                dropped += 1
    return dropped


def _parse(line: bytes) -> dict[str, Any] | None:
    row = json_object(line)
    return row if row is not None and isinstance(row.get("step"), int) else None


def _plain(value: Any) -> Any:
    """A value as JSON has it: numbers of NumPy and jax become Python's; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, pathlib.PurePath):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


# The console


def legend(levels: Levels) -> str:
    """What the columns of `progress_line` mean, with the levels to compare them with."""
    parts = ["loss in nats" + (f" (chance {levels['loss_chance']:.3f})" if "loss_chance" in levels else "")]
    if "error_silent" in levels:
        parts.append(f"err: token error rate (saying nothing {levels['error_silent']:.3f}); blank: share of frames")
        parts.append("gap: held-out loss less training loss")
    else:
        parts.append("acc" + (f" (chance {levels['accuracy_chance']:.3f})" if "accuracy_chance" in levels else ""))
    known = [f"{word} {levels[key]:g}" for key, word in PERPLEXITY_LEVELS if key in levels]
    if known:
        parts.append(f"ppl: perplexity of codes/probabilities ({', '.join(known)})")
    return "; ".join([*parts, "h/h: hours of audio per hour", "wait: for data", "pad: padding"])


def progress_line(row: MetricsRow, total_steps: int, steps_per_second: float | None = None) -> str:
    """One line per logged row, its columns under those of the line before; what was not measured is left out."""
    parts = [f"{row['split']:<5} {row['step']:>{len(str(total_steps))}}/{total_steps}"]
    parts.append(f"{row['step'] / max(total_steps, 1):>6.1%}")
    parts += [f"{label} {_number(row[name], form):>{width}}" for name, label, form, width in COLUMNS if name in row]
    if "code_perplexity" in row:
        prob = f"/{_number(row['prob_perplexity'], '.1f'):<5}" if "prob_perplexity" in row else ""
        parts.append(f"ppl {_number(row['code_perplexity'], '.1f'):>5}{prob}")
    parts += [f"{name[len(PROBE) :]} {_number(row[name], '.3f'):>5}" for name in row if name.startswith(PROBE)]
    if row["split"] == "train":
        parts += _speed(row, total_steps, steps_per_second)
    return "  ".join(parts).rstrip()


def _speed(row: MetricsRow, total_steps: int, steps_per_second: float | None) -> list[str]:
    parts = []
    if steps_per_second:
        digits = 2 if steps_per_second < 10 else 1 if steps_per_second < 100 else 0
        parts.append(f"{steps_per_second:>5.{digits}f} steps/s")
    if row.get("audio_hours_per_hour") is not None:
        parts.append(f"{row['audio_hours_per_hour']:>5.0f} h/h")
    parts += [f"{label} {row[name]:>3.0%}" for name, label in SHARES if row.get(name) is not None]
    if row.get("skipped_updates"):
        parts.append(f"{row['skipped_updates']:.0f} updates skipped")
    if steps_per_second and row["step"] < total_steps:
        parts.append(f"left {duration((total_steps - row['step']) / steps_per_second)}")
    return parts


def _number(value: Any, form: str) -> str:
    return "nan" if value is None or value != value else format(value, form)
