"""The best evaluation of a run, and whether later ones still improve. Pure: it reads rows of metrics.

The patience counts from the best evaluation, in updates. It does not count while a recogniser is on the plateau of CTC,
where it writes next to nothing: what was best before then says nothing about what comes after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from w2v_jax.core.config import Config
from w2v_jax.core.types import Levels, MetricsRow

PLATEAU = 0.95
"""A token error of this share of `error_silent`, what saying nothing gets, or above, is that of the plateau."""


class Best(NamedTuple):
    """The evaluation with the lowest value of a metric."""

    step: int
    metric: str
    value: float

    def __str__(self) -> str:
        return f"step {self.step:,} (held-out {self.metric} {self.value:.3f})"


def best_evaluation(rows: Sequence[MetricsRow], metric: str) -> Best | None:
    """The evaluation with the lowest finite value; an older one wins a tie. None without any."""
    values = [(row[metric], row["step"]) for row in rows if row.get("split") == "eval" and _is_finite(row.get(metric))]
    return Best(min(values)[1], metric, min(values)[0]) if values else None


def on_plateau(row: MetricsRow, levels: Levels) -> bool:
    """Whether an evaluation is one of a recogniser that writes next to nothing."""
    silent, error = levels.get("error_silent"), row.get("token_error")
    return silent is not None and error is not None and error >= PLATEAU * silent


def ended_early(rows: Sequence[MetricsRow], config: Config, levels: Levels) -> str:
    """Why the run ends at the newest evaluation of the rows, before its last step; "" where it goes on."""
    evaluations = [row for row in rows if row.get("split") == "eval"]
    best, patience = best_evaluation(evaluations, config.train.best), config.train.patience
    if best is None or not patience or on_plateau(evaluations[-1], levels):
        return ""
    step = evaluations[-1]["step"]
    if step - best.step < patience or step >= config.train.steps:
        return ""
    return f"no held-out {best.metric} below {best.value:.3f} of step {best.step:,} for {patience:,} updates"


def outcome(rows: Sequence[MetricsRow], config: Config, levels: Levels) -> dict[str, Any]:
    """What done.json says of a whole run beside its last rows.

    best: {"step", "metric", "value"} of the best evaluation, or None. ended_early: why it ended before its last step,
    or "". on_plateau: whether it ended as a recogniser that writes next to nothing.
    """
    best = best_evaluation(rows, config.train.best)
    evaluations = [row for row in rows if row.get("split") == "eval"]
    return {
        "best": best._asdict() if best else None,
        "ended_early": ended_early(rows, config, levels),
        "on_plateau": bool(evaluations) and on_plateau(evaluations[-1], levels),
    }


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
