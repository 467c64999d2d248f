"""What the log of a run says, and what it carries over a stop."""

from __future__ import annotations

import pytest
from commands import ROOT
from test_watchdog import DEATHS, LEVELS, dying

from w2v_jax.core import config as configs
from w2v_jax.data.pipeline import Info
from w2v_jax.training import run_log
from w2v_jax.training.run_log import RunLog, rows_before
from w2v_jax.training.throughput import Meter


@pytest.mark.parametrize("kept", [7, 15])
def test_a_run_that_is_stopped_every_few_rows_is_named_when_it_is_dead(tmp_path, kept, capsys):
    """Preemption after each `kept` logged rows, fewer than a finding needs."""
    config = configs.load(
        f"{ROOT / 'configs' / 'w2v2_base.py'}:tiny", [("train.watchdog", "stop"), ("train.steps", "20000")]
    )
    rows, named = dying(40, **DEATHS["no gradient"]), []
    for start in range(0, len(rows), kept):
        first = rows[start - 1]["step"] if start else 0
        before = rows_before(tmp_path, first)
        log = RunLog(config, tmp_path, Meter(), levels=LEVELS, rows=before, first=first, epoch=0.0)
        for row in rows[start : start + kept]:
            log._log(row)
        log.report.close()
        named += [log.dead] if log.dead else []
    assert named == ["no gradient"]
    assert capsys.readouterr().err.count("no gradient at step") == 1


def test_silent_recordings_are_named_once_and_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_log, "SILENT_NAMED", 2)
    config = configs.load(f"{ROOT / 'configs' / 'w2v2_base.py'}:tiny", [])
    log = RunLog(config, tmp_path, Meter(), levels=LEVELS, rows=[], first=0, epoch=0.0)
    for step, silent in enumerate((["a.wav", "a.wav"], ["a.wav", "b.wav"], ["c.wav"]), 1):
        log._count_failures(step, Info(step, 0.0, 16000, [], [], [], silent), {"skipped": 0.0})
    log.report.close()
    assert log.meter.row()["silent_rows"] == 5
    said = [line for line in capsys.readouterr().err.splitlines() if "silent where it was read" in line]
    assert ["a.wav" in line for line in said] == [True, False] and "b.wav" in said[1]
