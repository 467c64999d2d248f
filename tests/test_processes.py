"""Runs of several processes, and runs that go on with other devices or processes: the same rows, the same losses."""

from __future__ import annotations

import json
import pathlib
import re
import signal
import subprocess
import threading
import time

import pytest
from commands import environment, free_port, training

from w2v_jax.data.sources import synthetic
from w2v_jax.training import checkpoint
from w2v_jax.training.console import read_metrics

STEPS = 16
TOLERANCE = 1e-5
"""Relative, of the loss: sums in another order. Adam's usual eps would blow rounding of tiny gradients up to more."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Group:
    """The processes of a run: `devices` in each, on one workdir. What each says is read as it comes."""

    def __init__(
        self, shared: dict[str, str], workdir: pathlib.Path, *extra: str, processes: int = 1, devices: int = 1
    ):
        port = free_port()
        self.said = [""] * processes
        self.running = []
        for number in range(processes):
            join = [f"--distributed=127.0.0.1:{port},{processes},{number}"] if processes > 1 else []
            process = subprocess.Popen(
                training("cpc.py:tiny", workdir, shared, *extra, *join),
                env=environment(devices, JAX_PLATFORMS="cpu"),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.running.append(process)
        self.readers = [threading.Thread(target=self._read, args=(number,)) for number in range(processes)]
        for reader in self.readers:
            reader.start()

    def _read(self, number: int) -> None:
        for line in self.running[number].stdout:
            self.said[number] += line

    def at_step(self, step: int) -> Group:
        """Waits until process 0 has reported the step; a line of Gloo's threads may stand before it."""
        while not re.search(rf"\btrain +{step}/", self.said[0]):
            assert self.running[0].poll() is None, self.said
            time.sleep(0.05)
        return self

    def kill(self, number: int, how: signal.Signals) -> Group:
        self.running[number].send_signal(how)
        return self

    def codes(self, seconds: float = 500) -> list[int]:
        """The exit codes of all; none of them may take longer."""
        try:
            codes = [process.wait(seconds) for process in self.running]
        finally:
            for process in self.running:
                process.kill()
        for reader in self.readers:
            reader.join()
        return codes


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("processes")
    return {
        "data.root": str(folder / "corpus"),
        "data.loader": "threads",
        "train.log_rows": "true",
        "optim.eps": "1e-3",
        "train.steps": str(STEPS),
        "train.eval_every": "8",
        "train.checkpoint_every": "100",
    }


@pytest.fixture(scope="module")
def whole(shared, tmp_path_factory) -> pathlib.Path:
    """The uninterrupted run of one device."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    group = Group(shared, workdir)
    assert group.codes() == [0], group.said
    return workdir


def rows_read(workdir: pathlib.Path) -> list[list[str]]:
    """The ids of every step, over all processes."""
    steps: dict[int, list[str]] = {}
    for file in workdir.glob("rows*.jsonl"):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            steps.setdefault(row["step"], []).extend(row["ids"])
    return [sorted(steps[step]) for step in sorted(steps)]


def assert_same_run(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    """Every step once, with the same recordings and, in training and evaluation, the same loss."""
    assert rows_read(workdir) == rows_read(whole) and len(rows_read(whole)) == STEPS
    ours, theirs = (read_metrics(path / "metrics.jsonl") for path in (workdir, whole))
    assert [(row["step"], row["split"]) for row in ours] == [(row["step"], row["split"]) for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=TOLERANCE), f"step {a['step']}"


def newest(workdir: pathlib.Path) -> int:
    return max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def test_one_device_eight_and_four_make_one_run(shared, whole, tmp_path):
    workdir = tmp_path / "run"
    first = Group(shared, workdir).at_step(3).kill(0, signal.SIGTERM)
    assert first.codes() == [143], first.said
    eight = ["--config.sharding.data=4", "--config.sharding.fsdp=2"]
    second = Group(shared, workdir, *eight, devices=8).at_step(newest(workdir) + 3).kill(0, signal.SIGTERM)
    assert second.codes() == [143], second.said
    third = Group(shared, workdir, "--config.sharding.fsdp=4", devices=4)
    assert third.codes() == [0], third.said
    assert "fsdp 4" in third.said[0] and f"resumed from step {3}" not in third.said[0]
    assert_same_run(workdir, whole)


def test_two_processes_one_and_two_make_one_run(shared, whole, tmp_path):
    """SIGTERM to one of two ends both, at the same step, with one whole checkpoint."""
    workdir = tmp_path / "run"
    first = Group(shared, workdir, processes=2).at_step(3).kill(1, signal.SIGTERM)
    assert first.codes() == [143, 143], first.said
    step = newest(workdir)
    assert f"stopped at step {step} (SIGTERM), checkpoint saved" in first.said[0]
    last = [
        json.loads((workdir / name).read_text().splitlines()[-1])["step"] for name in ("rows.jsonl", "rows-1.jsonl")
    ]
    assert last == [step, step], "both ended after the same update"
    second = Group(shared, workdir).at_step(step + 3).kill(0, signal.SIGTERM)
    assert second.codes() == [143] and f"resumed from step {step}" in second.said[0], second.said
    slices = ["--config.sharding.fsdp=2", "--config.sharding.slices=2"]  # each process is a slice, fsdp inside
    third = Group(shared, workdir, *slices, processes=2, devices=2)
    assert third.codes() == [0, 0], third.said
    assert_same_run(workdir, whole)


def test_a_lost_process_is_named_and_ends_the_run_within_a_minute(shared, whole, tmp_path):
    workdir = tmp_path / "run"
    often = shared | {"train.checkpoint_every": "2"}
    group = Group(often, workdir, processes=2).at_step(5)
    group.kill(1, signal.SIGKILL)
    began = time.monotonic()
    codes = group.codes(seconds=60)
    assert time.monotonic() - began < 60 and codes[1] == -signal.SIGKILL and codes[0] not in (0, 2, 3)
    assert "another process was lost" in group.said[0]
    assert re.search(r"(?i)\btask 1\b|unhealthy.*\n.*\b1\b", group.said[0]), group.said[0]
    again = Group(often, workdir, processes=2)
    assert again.codes() == [0, 0], again.said
    assert_same_run(workdir, whole)


def test_a_lost_leader_ends_the_others_within_a_minute(shared, tmp_path):
    group = Group(shared | {"train.steps": "2000"}, tmp_path / "run", processes=2).at_step(3)
    group.kill(0, signal.SIGKILL)
    assert group.running[1].wait(60) not in (0, 2, 3)
    group.codes()
    assert "leader" in group.said[1]


def test_uneven_data_never_stop_two_processes(shared, tmp_path):
    """Bad recordings in one process' half, few rows to score, buckets that end unevenly: as one process does it."""
    corpus = synthetic.write_corpus(tmp_path / "corpus", 0.02)
    files = sorted((corpus / "train").rglob("*.flac"))
    for file in files[:3]:
        content = file.read_bytes()
        third = len(content) // 3
        file.write_bytes(content[:third] + bytes(third) + content[2 * third :])  # begin and end as the listing reads it
    changes = {"data.name": "folder", "data.root": str(corpus / "train"), "data.bucket_seconds": "(1.0,2.0,3.0)"}
    changes |= {"data.eval_share": "0.3", "train.eval_every": "3", "train.steps": str(STEPS)}
    runs = {}
    for processes in (1, 2):
        workdir = tmp_path / f"run{processes}"
        group = Group(shared | changes, workdir, processes=processes)
        assert group.codes() == [0] * processes, group.said
        runs[processes] = workdir
    assert_same_run(runs[2], runs[1])
    unread = [sum(len(f.read_text().splitlines()) for f in run.glob("unread*.jsonl")) for run in runs.values()]
    assert unread[0] == unread[1] > 0


def test_checkpoint_of_two_processes_is_whole_for_tools_of_one(shared, tmp_path):
    workdir = tmp_path / "run"
    group = Group(shared | {"train.steps": "8"}, workdir, "--config.sharding.fsdp=2", processes=2)
    assert group.codes() == [0, 0], group.said
    weights = checkpoint.restore_params(workdir)
    assert weights.step == 8 and "encoder" in weights.params
