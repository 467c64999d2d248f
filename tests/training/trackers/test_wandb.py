"""Weights & Biases: rows arrive, a training that goes on is one run there, and no failure ends or slows a training."""

import json
import struct
import threading
import time

import pytest

from w2v_jax import train
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.training import console, trackers
from w2v_jax.training.trackers import wandb as tracker

ROW = {"step": 3, "split": "train", "loss": 1.5, "said": "word", "lost": None}


class Kept:
    """A run that keeps what it is given."""

    def __init__(self):
        self.rows, self.finished = [], False

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished = True


def test_the_numbers_of_each_row_arrive():
    kept = Kept()
    run = tracker.WandbRun(lambda: kept)
    run.add(ROW)
    run.add(ROW | {"split": "eval"})
    run.close()
    run.close()
    assert kept.rows == [{"update": 3, "loss/train": 1.5}, {"update": 3, "loss/eval": 1.5}] and kept.finished


def fails(*_):
    raise RuntimeError("no route\nto host")


@pytest.mark.parametrize("what", ["start", "log", "finish"])
def test_a_failure_is_one_warning(what, capsys):
    kept = Kept()
    if what != "start":
        setattr(kept, what, fails)
    run = tracker.WandbRun(fails if what == "start" else lambda: kept)
    for _ in range(3):
        run.add(ROW)
    run.close()
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1 and "(no route to host); the training goes on" in warnings[0]


def test_a_network_that_hangs_makes_nobody_wait(monkeypatch, capsys):
    monkeypatch.setattr(tracker, "LAST_SECONDS", 0.05)
    monkeypatch.setattr(tracker, "WAITING", 4)
    hangs = threading.Event()
    run = tracker.WandbRun(hangs.wait)
    begin = time.monotonic()
    for _ in range(100):
        run.add(ROW)
    run.close()
    assert time.monotonic() - begin < 5
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2 and "4 rows behind" in warnings[0] and "wandb sync" in warnings[1]
    hangs.set()


def test_a_tracker_that_is_not_installed_is_named_before_anything_begins(monkeypatch, tmp_path):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    trackers.check_tracker("")
    with pytest.raises(UserError, match=r"--track wandb needs the package wandb: pip install 'w2v-jax\[wandb\]'"):
        train.main(["--config=w2v2_base.py:tiny", f"--workdir={tmp_path / 'run'}", "--track", "wandb"])
    assert not (tmp_path / "run").exists()


# With the library itself, offline


@pytest.mark.slow
def test_a_training_that_goes_on_is_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = configs.load("w2v2_base.py:tiny")
    for steps in ((1, 2), (2, 3)):  # the second start repeats update 2, which came after the last checkpoint
        report = console.Report(tmp_path, 3, tracker=trackers.open_tracker("wandb", tmp_path, config))
        for step in steps:
            report.log(ROW | {"step": step})
        report.finish()
        time.sleep(1.1)  # runs of one second would share a folder
    name = (tmp_path / tracker.RUN_ID).read_text().strip()
    runs = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert len(runs) == 2 and all(run.name.endswith(name) for run in runs)
    sent = [row for run in runs for row in rows_of(run / f"run-{name}.wandb")]
    assert [(row["update"], row["loss/train"]) for row in sent] == [(1, 1.5), (2, 1.5), (2, 1.5), (3, 1.5)]


def rows_of(path):
    """What was logged, as it lies in the library's file: a log of LevelDB behind seven bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:  # the rest of a block is too short for a head
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind not in (1, 4):  # of a record in several pieces, one before the last
            continue
        record, whole = Record.FromString(whole), b""
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            yield {key: value for key, value in items.items() if not key.startswith("_")}
