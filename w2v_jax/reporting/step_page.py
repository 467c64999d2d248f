"""What a model is given at a step of a training: the rows of its batch after all that is done to them, as a page."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError, table
from w2v_jax.core.config import Config, setting
from w2v_jax.core.display import short_repr
from w2v_jax.core.units import SAMPLE_RATE, batch_units
from w2v_jax.data.index import WAVE
from w2v_jax.data.pipeline import Info
from w2v_jax.reporting.sheets import SheetLine, draw_page
from w2v_jax.training.dataset import Data, heard, open_data, training_batches


class PlannedStep(NamedTuple):
    """The whole batch of a step, of all hosts, and where it comes from."""

    batch: dict[str, np.ndarray]
    info: Info
    data: Data
    is_normalized: bool

    __repr__ = short_repr


def planned_step(config: Config, step: int, *, path: pathlib.Path) -> PlannedStep:
    """What a training with the config reads at `step`, from 0. path: the folder of the run, for its alphabet.

    Raises UserError.
    """
    if step < 0:
        raise UserError(f"--step {step}: steps are counted from 0")
    data = open_data(config, batch_units(config.data), 1, path=path)
    stream = training_batches(config, data, start=step, stop=step + 1, loader="threads")  # same bits, starts at once
    with contextlib.closing(stream):
        return PlannedStep(*next(stream), data, config.data.normalize)


def step_text(planned: PlannedStep, config: Config) -> str:
    """The step in words: its bucket, its rows with their crops and changes, and the share of each corpus."""
    info, plan = planned.info, planned.data.train_plan
    shapes = [f"{rows} rows of {length / SAMPLE_RATE:g} s" for rows, length in plan.shapes]
    seconds = planned.batch["num_samples"].sum() / SAMPLE_RATE
    padding = 1 - planned.batch["num_samples"].sum() / (len(info.ids) * info.length)
    rows = len(info.ids)
    about = {
        "step": f"{info.step:,} of {config.train.steps:,}, epoch {info.epoch:.3f}, seed {config.seed}",
        "batch": f"{rows} rows of {info.length / SAMPLE_RATE:g} s, {seconds:.1f} s of audio, {padding:.1%} padding",
        "buckets": "\n".join(shapes),
    }
    lines = [table(about)]
    for row in range(rows):
        changes = _changes(info.changes[row]) if info.changes else ""
        parts = [f"row {planned.batch['row'][row]}", info.ids[row], _crop(planned, row), changes]
        lines.append("  ".join(parts).rstrip())
    for name, failed in (("could not be read", info.failed), ("has noise or a room unread", info.no_noise)):
        lines += [f"{name}: {entry.path} ({entry.reason})" for entry in failed]
    for label, about in heard(planned.data, max(info.step, 1), languages=True).items():
        values = ", ".join(f"{key} {value:.4g}" for key, value in about.items())
        lines.append(f"{label}: {values}")
    return "\n".join(lines)


def draw_step(planned: PlannedStep, config: Config, path: pathlib.Path, *, rows: int) -> None:
    """Writes a PNG of the first `rows` rows of the batch: waveform and log-mel spectrum as the model gets them.

    Raises UserError where the data are no audio, and OSError.
    """
    if planned.data.train.form != WAVE:
        raise UserError(f"--plot: {planned.data.train.form.name} have no waveform; leave --plot out")
    info, shown = planned.info, min(rows, len(planned.info.ids))
    heading = (
        f"{config.method}, step {info.step:,}: {shown} of {len(info.ids)} rows of {info.length / SAMPLE_RATE:g} s, "
        f"epoch {info.epoch:.2f}{', normalised' if planned.is_normalized else ''}"
    )
    draw_page(_panels(planned, config, shown), path, lines=shown, heading=heading)


def _panels(planned: PlannedStep, config: Config, shown: int) -> Iterator[SheetLine]:
    info, reasons = planned.info, {failed.id: failed.reason for failed in planned.info.failed}
    for row in range(shown):
        count = int(planned.batch["num_samples"][row])
        text = "no change" if not info.changes else (_changes(info.changes[row]) or "no change")
        if setting(config, "data.labels") and "num_tokens" in planned.batch:
            text += f", {planned.batch['num_tokens'][row]} tokens"
        yield SheetLine(
            info.ids[row],
            text,
            [_crop(planned, row)],
            wave=planned.batch[WAVE.name][row, :count] if count else None,
            seconds=info.length / SAMPLE_RATE,
            error=f"cannot be read: {reasons.get(info.ids[row], 'no samples')}",
            is_bounded=False,
        )


def _crop(planned: PlannedStep, row: int) -> str:
    """Which seconds of its recording a row holds."""
    start, count = planned.info.starts[row] / SAMPLE_RATE, planned.batch["num_samples"][row] / SAMPLE_RATE
    return f"{start:.2f} to {start + count:.2f} s" if start else f"{count:.2f} s"


def _changes(changes: dict[str, Any]) -> str:
    """What the plan does to a row, in words: "speed 1.1, voices a b, decibels 4"."""
    values = {key: " ".join(value) if isinstance(value, list) else value for key, value in changes.items()}
    return ", ".join(key if value is True else f"{key} {value}" for key, value in values.items())
