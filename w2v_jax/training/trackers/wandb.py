"""Rows of a run to Weights & Biases, by its own library (extra `wandb`).

A thread does all of it, so that neither login nor network makes the training wait. Whatever fails there is one warning,
and the training goes on without. The library's own variables hold: WANDB_API_KEY, WANDB_PROJECT, WANDB_ENTITY and
WANDB_MODE=offline.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import queue
import secrets
import threading
from typing import Any

from w2v_jax.core import config as configs
from w2v_jax.core.cli import warn
from w2v_jax.core.config import Config
from w2v_jax.core.files import write_whole
from w2v_jax.core.types import MetricsRow
from w2v_jax.training.trackers import scalars

RUN_ID = "wandb_run_id.txt"
"""In the workdir: the id of the run at Weights & Biases, so that a training that goes on is one run there."""
WAITING = 10_000
"""Rows that wait for the network at most. Later ones are left out."""
LAST_SECONDS = 60.0
"""How long the end of a training waits for the rows that are left."""
INIT_SECONDS = 60
PROJECT = "w2v_jax"


class WandbRun:
    """A run at Weights & Biases. `start` is called in the thread; it returns the library's run."""

    def __init__(self, start: Any):
        self._rows: queue.Queue[MetricsRow | None] = queue.Queue(WAITING)
        self._ended = self._is_full = False
        self._thread = threading.Thread(target=self._work, args=(start,), name="wandb", daemon=True)
        self._thread.start()

    def add(self, row: MetricsRow) -> None:
        """Hands the row to the thread."""
        if self._ended:
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            if not self._is_full:
                warn(f"Weights & Biases is {WAITING:,} rows behind: rows are left out; metrics.jsonl has them all")
            self._is_full = True

    def close(self) -> None:
        """Waits until the rows that are left have been sent, a minute at most."""
        if self._ended:
            return
        self._ended = True
        try:
            self._rows.put(None, timeout=LAST_SECONDS)
            self._thread.join(LAST_SECONDS)
        except queue.Full:
            pass
        if self._thread.is_alive():
            warn("Weights & Biases has not taken all rows; `wandb sync` sends the folder wandb of the run")

    def _work(self, start: Any) -> None:
        try:
            run = start()
            while (row := self._rows.get()) is not None:
                run.log({"update": row["step"], **scalars(row)})
            run.finish()
        except Exception as error:  # of any kind: the library's, the network's, the disk's
            self._ended = True
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            warn(f"Weights & Biases has failed ({reason}); the training goes on without, metrics.jsonl has all rows")


def make(workdir: pathlib.Path, config: Config) -> WandbRun:
    """The run of a workdir: a new one, or the one that an earlier start of the training has begun."""

    def start() -> Any:
        wandb: Any = importlib.import_module("wandb")  # for type checkers `import wandb` is this file
        file = workdir / RUN_ID
        if not file.exists():
            write_whole(file, secrets.token_hex(4) + "\n")
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=workdir.name,
            id=file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(workdir),
            config=configs.flatten(config),
            settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS, login_timeout=1),
        )
        run.define_metric("*", step_metric="update")  # updates that a resumed run repeats keep their place
        print(f"Weights & Biases: {run.dir if run.offline else run.url}", flush=True)
        return run

    return WandbRun(start)
