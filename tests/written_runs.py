"""Folders of runs as training leaves them, written by hand: no model, no data, in no time."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from commands import ROOT

from w2v_jax.core import config as configs
from w2v_jax.core.config import run_json


def curve(count: int, *, start: float = 2.4, end: float = 1.2, every: int = 5, **values: Any) -> list[dict[str, Any]]:
    """Rows of a run whose loss falls in a line, with an evaluation each `every` updates."""
    rows = []
    for step in range(1, count + 1):
        loss = start + (end - start) * step / count
        row = {"step": step, "loss": loss, "accuracy": 0.1 + 0.5 * step / count}
        seen = {"grad_norm": 1.0, "learning_rate": 1e-3, "code_perplexity": 20.0, "step_seconds": 0.5}
        rows.append({**row, "split": "train", **seen, "skipped_updates": 0.0, **values})
        if step % every == 0:
            rows.append({**row, "split": "eval", "loss": loss + 0.1, "code_perplexity": 20.0})
    return rows


def write_run(
    folder: pathlib.Path,
    rows: Sequence[dict[str, Any]] = (),
    *,
    config: str = "w2v2_base.py:tiny",
    done: bool = True,
    usage: Sequence[dict[str, Any]] = (),
    tail: str = "",
    **changes: Any,
) -> pathlib.Path:
    """A folder with config.json and, of rows, metrics.jsonl. tail: what a kill left at the end of metrics.jsonl."""
    folder.mkdir(parents=True)
    overrides = [(key.replace("__", "."), str(value)) for key, value in changes.items()]
    loaded = configs.load(str(ROOT / "configs" / config), overrides)
    (folder / "config.json").write_text(run_json(loaded))
    if rows:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    if usage:
        (folder / "usage.jsonl").write_text("".join(json.dumps(row) + "\n" for row in usage))
    if done and rows:
        summary = {"step": rows[-1]["step"], "best": None, "ended_early": "", "on_plateau": False}
        (folder / "done.json").write_text(json.dumps(summary))
    return folder
