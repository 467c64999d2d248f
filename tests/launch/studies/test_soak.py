"""`launch/studies/soak.py`: that it ends lives and loses nothing, and that it would notice a loss."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from commands import ROOT, environment


def soak(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch" / "studies" / "soak.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


def compared(path: pathlib.Path, whole: pathlib.Path) -> str:
    """What `soak.compared` finds, in a process that has not started JAX."""
    script = "import pathlib, soak, sys; print('found:', soak.compared(*map(pathlib.Path, sys.argv[1:])))"
    command = [sys.executable, "-W", "ignore", "-c", script, str(path), str(whole)]
    done = subprocess.run(command, env=environment(), cwd=ROOT / "launch" / "studies", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("found: ")[2].strip()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_six_lives_end_at_random_and_nothing_is_lost_and_a_loss_would_be_seen(tmp_path):
    done = soak("--kills", 6, "--seed", 3, "--steps", 12, "--out", tmp_path / "soak")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = [int(row.split()[-1]) for row in done.stdout.splitlines() if re.match("SIG|disk", row)]
    assert sum(counts) == 6 and "no checkpoint lost" in done.stdout
    whole, copy = tmp_path / "soak" / "whole", tmp_path / "copy"
    shutil.copytree(whole, copy)
    assert compared(copy, whole) == ""
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    changed = [*rows[:5], rows[5] | {"loss": rows[5]["loss"] + 1e-7}, *rows[6:]]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert compared(copy, whole) == f"metrics.jsonl differs from step {rows[5]['step']} on"
    shutil.copy(whole / "metrics.jsonl", copy / "metrics.jsonl")
    shutil.rmtree(copy / "checkpoints" / "12")
    assert compared(copy, whole) == "the final state differs"


def test_mistakes_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    for arguments in (("--kills", 0, "--out", tmp_path / "new"), ("--out", tmp_path)):
        done = soak(*arguments)
        assert done.returncode == 1 and done.stderr.startswith("error: --"), done.stderr
    assert "--kills" in soak("--help").stdout
