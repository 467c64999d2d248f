"""What the log of a run says, and what it carries over a stop."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from commands import ROOT
from test_watchdog import DEATHS, LEVELS, dying

from w2v_jax.core import config as configs
from w2v_jax.data.pipeline import Failed, Info
from w2v_jax.training import run_log
from w2v_jax.training.run_log import RunLog, rows_before
from w2v_jax.training.throughput import Meter


def one_corpus(step, *, languages=False):
    """What a run of one corpus has heard of each, where there are several."""
    return {}


def test_a_run_of_several_corpora_logs_and_tells_what_it_heard_of_each(tmp_path, capsys):
    def two(step, *, languages=False):
        about = dict(rows=9, share=0.5, hours=0.25 * step, epochs=2.0 * step)
        return {"a": about, "b/de" if languages else "b": about | dict(hours=1.0)}

    config = configs.load(f"{ROOT / 'configs' / 'w2v2_base.py'}:tiny", [("train.steps", "4")])
    log = RunLog(config, tmp_path, Meter(), levels=LEVELS, rows=[], first=0, epoch=0.0, heard=two)
    info = Info(3, 0.5, 16_000, ids=["a/x"], starts=[0], failed=[], silent=[], no_noise=[], changes=[])
    batch = dict(num_samples=np.array([16_000]), row=np.array([0]))
    log.meter.is_new_shape(batch, info)
    log.started(4, batch, info=info, metrics=dict(loss=np.array(2.0), skipped=np.array(0.0)))
    log.finish_pending()
    (row,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    wanted = {"hours/a": 1.0, "epochs/a": 8.0, "hours/b": 1.0, "epochs/b": 8.0}
    assert {name: row[name] for name in row if "/" in name} == wanted
    nothing = lambda: None
    manager = SimpleNamespace(is_shared=True, latest_step=lambda: 4, wait_until_finished=nothing, close=nothing)
    log.close(manager, 4, "")
    assert list(json.loads((tmp_path / "done.json").read_text())["corpora"]) == ["a", "b/de"]
    assert "heard       a: 1 h, 8 epochs" in capsys.readouterr().out


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
        log = RunLog(config, tmp_path, Meter(), levels=LEVELS, rows=before, first=first, epoch=0.0, heard=one_corpus)
        for row in rows[start : start + kept]:
            log._log(row)
        log.report.close()
        named += [log.dead] if log.dead else []
    assert named == ["no gradient"]
    assert capsys.readouterr().err.count("no gradient at step") == 1


def row_of(step: int, loss: float) -> dict:
    return {"step": step, "split": "train", "loss": loss}


def recogniser_log(path, before, first):
    config = configs.load(f"{ROOT / 'configs' / 'acoustic_logmel.py'}:tiny", [("train.patience", "20")])
    return RunLog(
        config, path, Meter(), levels={"error_silent": 1.0}, rows=before, first=first, epoch=0.0, heard=one_corpus
    )


def test_the_gap_between_held_out_and_training_loss_survives_a_stop(tmp_path):
    """It is that of the logged updates since the last evaluation, also those before the stop."""
    log = recogniser_log(tmp_path, [], 0)
    log._log(row_of(1, 9.0))
    log.evaluation(2, {"loss": 5.0, "token_error": 0.9})
    for step, loss in ((3, 4.0), (4, float("nan"))):
        log._log(row_of(step, loss))
    log.report.close()
    log = recogniser_log(tmp_path, rows_before(tmp_path, 4), 4)
    log._log(row_of(5, 2.0))
    log.evaluation(6, {"loss": 4.5, "token_error": 0.8})
    log.report.close()
    assert [row["loss_gap"] for row in rows_before(tmp_path, 6) if row["split"] == "eval"] == [-4.0, 1.5]


def test_a_run_ends_when_its_patience_does(tmp_path, capsys):
    log = recogniser_log(tmp_path, [], 0)
    for step, error in ((2, 0.6), (12, 0.7), (18, 0.65)):
        log.evaluation(step, {"loss": 1.0, "token_error": error})
        assert not log.ended
    log.report.close()
    log = recogniser_log(tmp_path, rows_before(tmp_path, 18), 18)
    log.config = configs.changed(log.config, {"train.steps": 50})
    log.evaluation(22, {"loss": 1.0, "token_error": 0.6})
    log.report.close()
    assert log.ended == "no held-out token_error below 0.600 of step 2 for 20 updates"
    assert "no metric" not in capsys.readouterr().err


def test_a_metric_that_is_not_there_cannot_choose_the_best(tmp_path, capsys):
    log = recogniser_log(tmp_path, [], 0)
    for step in (2, 4):
        log.evaluation(step, {"loss": 1.0})
    log.report.close()
    assert (
        capsys.readouterr().err.count("train.best='token_error' is no metric of the held-out data, which are loss") == 1
    )


def test_silent_recordings_are_named_once_and_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_log, "SILENT_NAMED", 2)
    config = configs.load(f"{ROOT / 'configs' / 'w2v2_base.py'}:tiny", [])
    log = RunLog(config, tmp_path, Meter(), levels=LEVELS, rows=[], first=0, epoch=0.0, heard=one_corpus)
    for step, silent in enumerate((["a.wav", "a.wav"], ["a.wav", "b.wav"], ["c.wav"]), 1):
        log._count_failures(step, Info(step, 0.0, 16000, [], [], [], silent, [], changes=[]), {"skipped": 0.0})
    log.report.close()
    assert log.meter.row()["silent_rows"] == 5
    said = [line for line in capsys.readouterr().err.splitlines() if "silent where it was read" in line]
    assert ["a.wav" in line for line in said] == [True, False] and "b.wav" in said[1]


def test_noise_that_cannot_be_read_is_named_once(tmp_path, capsys):
    config = configs.load(f"{ROOT / 'configs' / 'w2v2_base.py'}:tiny", [])
    log = RunLog(config, tmp_path, Meter(), levels=LEVELS, rows=[], first=0, epoch=0.0, heard=one_corpus)
    for step, names in enumerate((["a"], ["a", "b"], ["b"]), 1):
        unread = [Failed(name, f"{name}.wav", "truncated") for name in names]
        log._count_failures(step, Info(step, 0.0, 16000, [], [], [], [], unread, changes=[]), {"skipped": 0.0})
    log.report.close()
    said = [line for line in capsys.readouterr().err.splitlines() if "was not used: truncated" in line]
    assert ["step 1: a.wav" in said[0], "step 2: b.wav" in said[1], len(said)] == [True, True, 2]
    assert len((tmp_path / "unread.jsonl").read_text().splitlines()) == 2
    assert log.meter.row()["unread_rows"] == 0, "their rows were read"


def test_how_often_codes_are_used_goes_to_a_file_of_its_own(tmp_path):
    """Metrics are numbers; a resumed run writes no step twice."""
    log = recogniser_log(tmp_path, [], 0)
    usage = np.asarray([[1 / 3, 2 / 3]], np.float32)
    for step in (2, 4):
        loss = {"loss": np.float32(1.0), "token_error": 0.5}
        assert log.evaluation(step, {**loss, "code_usage": usage}) == {"loss": 1.0, "token_error": 0.5}
    log.report.close()
    rows = [json.loads(line) for line in (tmp_path / "usage.jsonl").read_text().splitlines()]
    assert rows == [{"step": step, "code_usage": [[0.3333, 0.6667]]} for step in (2, 4)]
    assert all("code_usage" not in row for row in rows_before(tmp_path, 4))
    recogniser_log(tmp_path, rows_before(tmp_path, 3), 3).report.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "usage.jsonl").read_text().splitlines()] == [2]
