"""What the loop has to say and to keep: rows of metrics, what was read, what went wrong, when it was saved."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from w2v_jax.core.cli import UserError, duration, table, warn
from w2v_jax.core.config import Config
from w2v_jax.core.distributed import broadcast_from_first
from w2v_jax.core.files import append_lines
from w2v_jax.core.types import Levels, MetricsRow
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.training import checkpoint, console, watchdog
from w2v_jax.training.throughput import Meter
from w2v_jax.training.trackers import open_tracker
from w2v_jax.training.watchdog import best_evaluation, ended_early, outcome

HISTORY = 500
"""Rows of training that the watchdog of a resumed run is given, more than it needs. It gets all evaluations."""

SILENT_NAMED = 20
"""Silent recordings that are named on the console. All are counted in the metric silent_rows."""


class RunLog:
    """Reports each step when the next one has been started, so that the device never waits for the host.

    `dead` is the reason to end the run, empty as long as there is none. `ended` is why it is complete before its last
    step. All processes call it alike; only process 0 writes.
    """

    def __init__(
        self,
        config: Config,
        path: pathlib.Path,
        meter: Meter,
        *,
        levels: Levels,
        rows: Sequence[MetricsRow],
        first: int,
        epoch: float,
        heard: Callable[..., Mapping[str, Mapping[str, float]]],
        track: str = "",
    ):
        """rows: what `rows_before` gives. first: the step the run resumes from. heard: `dataset.heard` of the run.

        track: a file of `trackers/` that gets all rows, too.
        """
        self.config, self.path, self.meter, self.levels = config, path, meter, levels
        self.heard = heard
        self.active = jax.process_index() == 0
        tracker = open_tracker(track, path, config) if self.active else None
        self.report = console.Report(
            path, config.train.steps, start_step=first, levels=levels, active=self.active, tracker=tracker
        )
        self._pending: tuple[int, dict[str, Any], Any, dict[str, Any]] | None = None
        self.dead = self.ended = ""
        self._evaluations = [row for row in rows if row["split"] == "eval"]
        self._losses: list[float] = []  # of the logged updates since the last evaluation
        for row in rows:
            self._keep_loss(row)
        self._silent: set[str] = set()
        self._no_noise: set[str] = set()
        for name in ("rows", "bad_steps", "unread", "usage"):
            console.trim_steps(self._file(name), first)
        self.watch = watchdog.Watchdog(levels, watchdog.settings_for(config), history=rows)
        self.report.say(f"resumed from step {first}, epoch {epoch:.2f}" if first else "starting at step 0")

    def started(self, n: int, batch: dict[str, Any], *, info: Any, metrics: dict[str, Any]) -> None:
        """Reports the step before, and keeps what step n, which the device now works on, will need."""
        self.finish_pending()
        self._pending = n, batch, info, metrics

    def finish_pending(self) -> None:
        """Waits for the metrics of the step that was started last, and reports them."""
        if self._pending is None:
            return
        n, batch, info, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._say_compiled(batch, info, self.meter.count(batch, info))
        if self.config.train.log_rows:
            changes = {"changes": info.changes} if info.changes else {}
            self._append("rows", {"step": n, "ids": info.ids, "starts": info.starts, **changes})
        self._count_failures(n, info, values)
        if n % self.config.train.log_every == 0 or n == self.config.train.steps:
            values.pop("skipped")
            row = {"step": n, "split": "train", "epoch": info.epoch, **values, **self.meter.row()}
            self._log(row | _of_corpora(self.heard(n)))

    def _count_failures(self, n: int, info: Any, values: dict[str, float]) -> None:
        for failed in info.failed:
            self.meter.unread_rows += 1
            self._append("unread", {"step": n, **failed._asdict()})
            self._warn(f"step {n}: {failed.path} could not be read and was left out: {failed.reason}")
        self.meter.silent_rows += len(info.silent)
        for path in sorted(set(info.silent) - self._silent)[: SILENT_NAMED - len(self._silent)]:
            self._silent.add(path)
            self._warn(f"step {n}: {path} is silent where it was read; it is used all the same")
        for unread in info.no_noise:
            if unread.path not in self._no_noise:
                self._no_noise.add(unread.path)
                self._append("unread", {"step": n, **unread._asdict()})
                self._warn(f"step {n}: {unread.path} could not be read and was not used: {unread.reason}")
        if values["skipped"]:
            self.meter.skipped_updates += 1
            self._append("bad_steps", {"step": n, "loss": str(values["loss"]), "ids": info.ids})
            self._warn(f"step {n}: loss or gradient is not finite; update skipped, its ids are in bad_steps.jsonl")

    def _log(self, row: dict[str, Any]) -> None:
        self.report.log(row)
        self._keep_loss(row)
        if self.config.train.watchdog == "off":
            return
        for finding in self.watch.see(row):
            self._warn(f"{finding.name} at step {row['step']}: {finding.message}")
            if self.config.train.watchdog == "stop" and finding.dead:
                self.dead = finding.name

    def _keep_loss(self, row: MetricsRow) -> None:
        loss = row.get("loss")
        if row["split"] == "eval":
            self._losses.clear()
        elif row["split"] == "train" and loss is not None and math.isfinite(loss):
            self._losses.append(loss)

    def _say_compiled(self, batch: dict[str, Any], info: Any, seconds: float | None) -> None:
        if seconds is not None:
            rows = len(batch["row"]) * self.meter.processes
            what = f"{rows} rows of {info.length / SAMPLE_RATE:g} s"
            self.report.say(f"compiled and ran the first step of {what} ({duration(seconds)})")

    def evaluation(self, n: int, means: Mapping[str, Any]) -> dict[str, float]:
        """Reports the metrics of the held-out rows and draws the curves. Returns those that are numbers.

        Metrics that are arrays, how often each code is used, go to usage.jsonl alone. `loss_gap` is the held-out loss
        less the mean of the training losses that were logged since the last evaluation.
        """
        metrics = {name: float(value) for name, value in means.items() if not np.ndim(value)}
        usage = {name: _shares(value) for name, value in means.items() if np.ndim(value)}
        if usage and self.active:
            self._append("usage", {"step": n, **usage})
        if metrics:
            row = {"step": n, "split": "eval", **metrics}
            if self._losses and "error_silent" in self.levels:
                row["loss_gap"] = metrics["loss"] - sum(self._losses) / len(self._losses)
            if self.config.train.best not in metrics and not self._evaluations:
                there = ", ".join(sorted(metrics))
                self._warn(
                    f"train.best={self.config.train.best!r} is no metric of the held-out data, which are {there}"
                )
            self._evaluations.append(row)
            self._log(row)
            self.ended = ended_early(self._evaluations, self.config, self.levels)
        if n < self.config.train.steps and not self.ended:  # the end of a run draws them
            self.report.draw()
        return metrics

    def probed(self, n: int, metrics: dict[str, float]) -> None:
        """Reports the scores of linear probes."""
        self.report.log({"step": n, "split": "probe", **metrics})

    def save(self, manager: Any, n: int, state: Any, *, metrics: dict[str, float]) -> None:
        """Starts a checkpoint. A failed save is reported, and the next one tries again: the run goes on."""
        try:
            checkpoint.save(manager, n, state, metrics=metrics)
        except checkpoint.SaveError as error:
            self._warn(str(error))

    def close(self, manager: Any, n: int, stopped: str) -> None:
        """Waits for the last checkpoint, writes done.json after a whole run, and says where everything is."""
        saved = checkpoint.close(manager)
        if saved != n:
            raise UserError(f"the checkpoint of step {n} could not be saved; the newest is of step {saved}")
        if stopped:
            self.report.draw()
            self.report.close()
            self.report.say(f"stopped at step {n:,} ({stopped}), checkpoint saved; the same command goes on from there")
            return
        result = outcome(self._evaluations, self.config, self.levels, corpora=self.heard(n, languages=True))
        self.report.finish(step=n, **result)
        self.report.say(self._farewell(n))
        if result["on_plateau"]:
            self._warn(watchdog.PLATEAU_AT_THE_END)

    def _farewell(self, n: int) -> str:
        best = best_evaluation(self._evaluations, self.config.train.best)
        rows = {
            "ended early": self.ended,
            "best": str(best) if best else "",
            "heard": "\n".join(
                f"{name}: {about['hours']:,.3g} h, {about['epochs']:,.3g} epochs"
                for name, about in self.heard(n).items()
            ),
            "checkpoint": self.path / "checkpoints",
            "metrics": self.path / "metrics.jsonl",
            "plots": f"{self.path / 'curves.png'}, and tensorboard --logdir={self.path / 'tensorboard'}",
            "summary": self.path / "done.json",
            "try next": "your recordings: the config without its variant, --config.data.root=FOLDER, another --workdir",
        }
        return table({name: text for name, text in rows.items() if text}, "done")

    def _file(self, name: str) -> pathlib.Path:
        """Each process keeps its own rows; those of process 0 have the plain name."""
        number = jax.process_index()
        return self.path / (f"{name}-{number}.jsonl" if number else f"{name}.jsonl")

    def _append(self, name: str, record: dict[str, Any]) -> None:
        try:
            append_lines(self._file(name), [json.dumps(record)])
        except OSError as error:
            self._warn(f"{self._file(name).name} cannot be written: {error}")

    def _warn(self, text: str) -> None:
        if self.active:
            warn(text)


def _of_corpora(heard: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """hours/CORPUS and epochs/CORPUS of each corpus."""
    return {f"{what}/{name}": about[what] for name, about in heard.items() for what in ("hours", "epochs")}


def _shares(counts: np.ndarray) -> list[list[float]]:
    """[G V] with four digits, which keeps usage.jsonl small."""
    return [[float(f"{share:.4g}") for share in group] for group in counts]


def rows_before(path: pathlib.Path, first: int) -> Sequence[MetricsRow]:
    """Rows up to step `first` of metrics.jsonl: the newest, and all evaluations.

    They are the same on all processes: those that process 0 reads.
    """
    if not first:
        return []

    def read() -> list[Any]:
        rows = [row for row in console.read_metrics(path / "metrics.jsonl") if row["step"] <= first]
        return [row for row in rows[:-HISTORY] if row["split"] == "eval"] + rows[-HISTORY:]

    return broadcast_from_first(read)
