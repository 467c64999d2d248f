"""Verdicts: the watchdog's own findings, and how far a run is."""

import pytest
from written_runs import curve, write_run

from w2v_jax.reporting.run_folder import open_run_folders
from w2v_jax.reporting.verdict import DEAD, EARLY, HEALTHY, HURT, NOTHING, judge
from w2v_jax.training.watchdog import check, settings_for


def verdict_of(folder):
    run = open_run_folders([folder])[0]
    return judge(run), run


def test_a_run_that_learns_is_healthy_once_the_rules_apply(tmp_path):
    verdict, _ = verdict_of(write_run(tmp_path / "long", curve(150), train__steps=150))
    assert verdict.word == HEALTHY and verdict.now == [] and verdict.past == []
    assert verdict.sentences[0] == "Complete: 150 of 150 updates."
    assert any("chance is 2.398" in sentence for sentence in verdict.sentences)
    verdict, _ = verdict_of(write_run(tmp_path / "short", curve(20)))
    assert verdict.word == EARLY and "begin after 100 updates" in verdict.sentences[-1]


def test_what_is_wrong_is_what_the_watchdog_says(tmp_path):
    rows = curve(40, grad_norm=0.0)
    verdict, run = verdict_of(write_run(tmp_path / "run", rows))
    assert verdict.word == DEAD and verdict.now == check(rows, run.levels, settings_for(run.config))
    assert [finding.name for finding in verdict.now] == ["no gradient"]


def test_a_finding_that_went_away_is_told_apart(tmp_path):
    rows = curve(150)
    rows[20] |= {"loss": None}
    verdict, _ = verdict_of(write_run(tmp_path / "run", rows, train__steps=150))
    assert verdict.word == HEALTHY
    assert [(step, finding.name) for step, finding in verdict.past] == [(rows[20]["step"], "not finite")]


def test_a_run_that_is_hurt_but_not_dead_needs_attention(tmp_path):
    rows = curve(150)
    rows[-2 if rows[-1]["split"] == "eval" else -1] |= {"grad_norm": None}
    verdict, _ = verdict_of(write_run(tmp_path / "run", rows, train__steps=150))
    assert verdict.word == HURT and [finding.name for finding in verdict.now] == ["not finite"]


def test_a_run_in_progress_says_how_far_it_is_and_for_how_long(tmp_path):
    verdict, run = verdict_of(write_run(tmp_path / "run", curve(10), done=False))
    assert verdict.sentences[0] == f"Not complete: update 10 of 20; the last row was written at {run.written}."
    assert "At the speed of its last rows the rest takes 5 s." in verdict.sentences


@pytest.mark.parametrize("config", ["w2v2_base.py:tiny", "cpc.py:tiny", "acoustic_logmel.py:tiny"])
def test_a_run_without_metrics_has_no_verdict(tmp_path, config):
    verdict, _ = verdict_of(write_run(tmp_path / "run", config=config))
    assert verdict.word == NOTHING and verdict.sentences[0].startswith("No metrics yet")
