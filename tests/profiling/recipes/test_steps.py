"""Running a plan: what is done stays done, a failure shows its last lines, and stops leave a state to go on from."""

import json
import signal
import subprocess
import sys
import time

import pytest
from commands import ROOT, environment

from w2v_jax.core.cli import UserError
from w2v_jax.profiling.recipes import steps
from w2v_jax.profiling.recipes.budget import PlannedCommand, Recipe
from w2v_jax.profiling.recipes.steps import RecipeState, run_steps, shown

ASKED = {"audio": "a", "labels": "a", "budget": 60.0}


def state_of(out, *commands):
    plan = Recipe(
        [], [PlannedCommand(f"step {n}", command, 1.0) for n, command in enumerate(commands)], f"{out}/run", disk=0.0
    )
    out.mkdir(exist_ok=True)
    return RecipeState.first(out, ASKED, plan, about={"text": "the plan"})


def test_commands_are_shown_as_one_types_them():
    assert shown(("w2v_jax.train", "--config.data.bucket_seconds=(1.0,2.0)")) == (
        "python -m w2v_jax.train '--config.data.bucket_seconds=(1.0,2.0)'"
    )


def test_steps_run_in_order_once_and_their_output_is_kept(tmp_path, capfd):
    out = tmp_path / "out"
    state = state_of(out, ("platform", "--terse"), ("this",))
    run_steps(state)
    assert [step["done"] for step in state.steps] == [True, True]
    assert "Beautiful is better than ugly." in (out / "logs" / "step-1.log").read_text()
    assert "Beautiful is better than ugly." in capfd.readouterr().out
    again = RecipeState.read(out)
    assert again is not None and again.steps == state.steps
    run_steps(again)
    said = capfd.readouterr().out
    assert "Beautiful" not in said and said.count("done before") == 2


def test_a_failing_step_shows_command_last_lines_and_what_to_do(tmp_path):
    state = state_of(tmp_path / "out", ("w2v_jax.evaluate", "--run", "nowhere", "--root", "x", "--out", "y"), ("this",))
    with pytest.raises(UserError) as failed:
        run_steps(state)
    text = str(failed.value)
    assert "'step 0' ended with exit code 1" in text and "python -m w2v_jax.evaluate --run nowhere" in text
    assert "nowhere does not exist" in text and "the same command goes on with this step" in text
    assert [step["done"] for step in RecipeState.read(tmp_path / "out").steps] == [False, False]


def test_another_recipe_in_the_folder_and_a_damaged_state_are_refused(tmp_path):
    state = state_of(tmp_path / "out", ("this",))
    state.save()
    state.check_asked(ASKED, tmp_path / "out")
    with pytest.raises(UserError, match=r"--labels a then, b now\nname another --out"):
        state.check_asked(ASKED | {"labels": "b"}, tmp_path / "out")
    (tmp_path / "out" / steps.STATE).write_text("{")
    with pytest.raises(UserError, match="is not a plan of this version"):
        RecipeState.read(tmp_path / "out")
    assert RecipeState.read(tmp_path) is None


WAITS = """import sys
from w2v_jax.profiling.recipes.steps import RecipeState, run_steps
import pathlib
run_steps(RecipeState.read(pathlib.Path(sys.argv[1])))
"""


def started(out):
    """A process that runs the state of a folder, once its first step has said something."""
    process = subprocess.Popen([sys.executable, "-c", WAITS, str(out)], env=environment(), cwd=ROOT)
    log, until = out / "logs" / "step-0.log", time.monotonic() + 60
    while not (log.exists() and log.read_text()):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stop_ends_the_step_and_keeps_its_time(tmp_path, number):
    """After SIGKILL the step ends by itself, when nobody reads what it says."""
    state = state_of(tmp_path / "out", ("http.server", "0"))
    state.save()
    process = started(tmp_path / "out")
    pid = json.loads((tmp_path / "out" / steps.STATE).read_text())["pid"]
    process.send_signal(number)
    process.wait(timeout=30)
    left = RecipeState.read(tmp_path / "out")
    assert not left.steps[0]["done"]
    if number == signal.SIGTERM:
        assert left.content["pid"] == 0 and left.steps[0]["took"] > 0
        assert not pathlib_alive(pid)
    else:
        assert left.content["pid"] == pid
        subprocess.run(["kill", str(pid)], check=False)


def pathlib_alive(pid):
    return subprocess.run(["kill", "-0", str(pid)], capture_output=True).returncode == 0


def test_the_step_of_a_killed_recipe_is_waited_for(tmp_path, monkeypatch):
    out = tmp_path / "out"
    state = state_of(out, ("this",))
    words = [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()", "w2v_jax.", str(out)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()  # from here on the system tells its command
    state.content["pid"] = process.pid
    said = []
    monkeypatch.setattr(time, "sleep", lambda seconds: process.communicate())
    steps.wait_for_leftover(state, said.append)
    assert len(said) == 1 and process.returncode == 0
    steps.wait_for_leftover(state, said.append)
    assert len(said) == 1
