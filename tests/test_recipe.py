"""`recipe`: from folders to a plan that nobody has to write, and to a recogniser, killed and resumed on the way."""

import argparse
import json
import signal
import subprocess
import sys
import time

import pytest
from commands import ROOT, environment
from recipe_facts import SMALL

from w2v_jax import recipe
from w2v_jax.core.cli import UserError
from w2v_jax.data.sources import synthetic
from w2v_jax.profiling.recipes import rules, speed
from w2v_jax.profiling.recipes.speed import Timing
from w2v_jax.profiling.recipes.steps import STATE

DEVICES = {"platform": "cpu", "kind": "cpu", "devices": 1, "memory": 16e9, "slow_bfloat16": False}


@pytest.fixture(scope="module")
def corpus(shared_folder):
    """The folder of a self-made corpus of 0.08 h, with five minutes of labels in train."""
    return shared_folder("recipes", lambda folder: synthetic.write_corpus(folder / "synthetic", 0.08)) / "synthetic"


@pytest.fixture
def measured(monkeypatch):
    """A machine whose speed is known."""
    monkeypatch.setattr(speed, "measured_speeds", lambda candidates: speed.Speeds(DEVICES, 4.0, SMALL))


def arguments(corpus, out, *more, budget="30m"):
    train = str(corpus / "train")
    return ["--audio", train, "--labels", train, "--budget", budget, "--out", str(out), *more]


def test_a_dry_run_prints_reasons_and_commands_and_writes_nothing(corpus, measured, tmp_path, capsys):
    assert recipe.main(arguments(corpus, tmp_path / "out", "--test", str(corpus / "dev"), "--dry-run")) == 0
    said = capsys.readouterr().out
    for word in ("recordings", "machine", "choices", "plan:", "method", "(ten_minutes.md", "1. recogniser, about"):
        assert word in said, word
    assert said.count("python -m w2v_jax.") == 4 and f"--workdir={tmp_path / 'out' / 'recogniser'}" in said
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_that_a_given_model_is_pretrained_further(corpus, random_run, tmp_path, monkeypatch, capsys):
    def measured(candidates):
        wanted = {"given": Timing(0.05, 60.0, 10**8), "continued": Timing(2.5, 60.0, 10**8)}
        return speed.Speeds(DEVICES | {"platform": "gpu"}, 4.0, {name: wanted[name] for name in candidates})

    monkeypatch.setattr(speed, "measured_speeds", measured)
    monkeypatch.setattr(rules, "much_unlabelled", lambda data: True)
    given = ("--from", str(random_run()), "--dry-run")
    assert recipe.main(arguments(corpus, tmp_path / "out", *given, budget="2d")) == 0
    said = capsys.readouterr().out
    assert "the given model, pretrained further:" in said and "get to know the language" in " ".join(said.split())
    assert f"--config.init.run={given[1]}" in said and f"--config.init.run={tmp_path / 'out' / 'pretraining'}" in said
    assert recipe.main(arguments(corpus, tmp_path / "out", *given, budget="5h")) == 0
    said = capsys.readouterr().out
    assert "the given model:" in said and "pretraining" not in said.partition("plan:")[2]


def test_nothing_runs_without_yes_where_nobody_can_be_asked(corpus, measured, tmp_path, capsys):
    assert recipe.main(arguments(corpus, tmp_path / "out")) == 0
    assert "give --yes" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_too_small_a_budget_and_a_full_disk_are_told(corpus, measured, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--budget: 1 min 00 s are too few here"):
        recipe.main(arguments(corpus, tmp_path / "out", budget="1m"))
    usage = recipe.look.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(recipe.look.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="make room"):
        recipe.main(arguments(corpus, tmp_path / "out"))


def test_times_are_read_as_people_write_them():
    assert [recipe.seconds_of(text) for text in ("90s", "30m", "1.5h", "1h30m", "2d")] == [90, 1800, 5400, 5400, 172800]
    for text in ("", "3", "h", "3 h", "1h30", "-1h", "0m"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no time"):
            recipe.seconds_of(text)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_recipe_that_is_killed_twice_goes_on_to_a_recogniser(corpus, tmp_path):
    """Really measured; then in a plan that is cut to a few updates."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "w2v_jax.recipe", *arguments(corpus, out, "--test", str(corpus / "dev"), "--yes")]
    start = lambda: subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    first = start()
    wait_for(lambda: (out / "logs" / "recogniser.log").exists(), first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    state = json.loads((out / STATE).read_text())
    shorten(state)
    (out / STATE).write_text(json.dumps(state))
    second = start()
    wait_for(lambda: "eval" in (out / "logs" / "recogniser.log").read_text(), second)
    second.send_signal(signal.SIGTERM)
    assert second.communicate()[0] and second.returncode == 130
    third = start()
    said = third.communicate()[0]
    assert third.returncode in (0, recipe.ON_PLATEAU), said
    state = json.loads((out / STATE).read_text())
    assert all(step["done"] and step["took"] > 0 for step in state["steps"])
    log = (out / "logs" / "recogniser.log").read_text()
    assert "resumed from step" in log
    for word in ("of characters wrong", "report.html", f"w2v_jax.transcribe --run {out / 'recogniser'}"):
        assert word in said
    assert (out / "report.html").stat().st_size > 10_000
    rates = [json.loads((out / "scores" / part / "scores.json").read_text())["cer"] for part in ("dev", "test")]
    assert all(0 <= rate <= 1.5 for rate in rates)
    assert subprocess.run(command, env=environment(), cwd=ROOT).returncode == third.returncode  # all is done: at once


def shorten(state):
    """Few updates, so that a test ends."""
    changes = {"train.steps": 40, "train.eval_every": 10, "train.checkpoint_every": 10, "train.log_every": 1}
    for step in state["steps"]:
        known = [word for word in step["command"] if word.split("=")[0].removeprefix("--config.") not in changes]
        trains = step["command"][0] == "w2v_jax.train"
        step["command"] = [*known, *(f"--config.{key}={value}" for key, value in changes.items() if trains)]


def wait_for(happened, process, seconds=600):
    until = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.2)
