"""Runs the steps of a plan one after the other, and remembers in recipe.json which are done.

Each step is a process of its own, with the command as it was printed. Its output goes to the screen and to
OUT/logs/NAME.log. A stop ends the step with SIGTERM, on which a training saves a checkpoint. The same command goes on
with the first step that is not done.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from w2v_jax.core.cli import UserError, cannot_write, duration
from w2v_jax.core.files import write_whole
from w2v_jax.core.text import json_object
from w2v_jax.profiling.recipes.budget import PlannedCommand, Recipe

STATE = "recipe.json"
VERSION = 1
SAVED_EVERY = 5.0
"""Seconds after which the time of a step that is going on is written down, so that a kill loses no more of it."""
LAST_LINES = 12
PATIENCE = 120.0
"""Seconds to wait for the step of a recipe that was killed to notice it, and end."""
TOLD = {"w2v_jax.report": (0, 3)}
"""Exit codes that are no failure, where there are more than 0: 3 of the report says that a run is dead."""


def shown(command: Sequence[str]) -> str:
    """A command as a person types it."""
    return shlex.join(["python", "-m", *command])


class RecipeState:
    """What recipe.json holds: what was asked, the texts and steps of the plan, and how far they are."""

    def __init__(self, path: pathlib.Path, content: dict[str, Any]):
        self.path, self.content = path, content

    @classmethod
    def read(cls, out: pathlib.Path) -> RecipeState | None:
        """The state in a folder, None where there is none. Raises UserError where it is damaged."""
        path = out / STATE
        if not path.exists():
            return None
        content = json_object(path.read_bytes())
        if content is None or content.get("version") != VERSION:
            raise UserError(f"{path} is not a plan of this version of recipe: name another --out, or remove the file")
        return cls(path, content)

    @classmethod
    def first(
        cls, out: pathlib.Path, asked: Mapping[str, Any], plan: Recipe, *, about: Mapping[str, Any]
    ) -> RecipeState:
        """The state of a plan of which nothing is done. about: facts and choices, for whoever reads the file."""
        steps = [
            {"name": s.name, "command": list(s.command), "predicted": round(s.seconds, 1), "took": 0.0, "done": False}
            for s in plan.steps
        ]
        content = {"version": VERSION, "asked": dict(asked), "steps": steps, "pid": 0} | dict(about)
        return cls(out / STATE, content)

    @property
    def steps(self) -> list[dict[str, Any]]:
        return self.content["steps"]

    def planned(self) -> list[PlannedCommand]:
        return [PlannedCommand(s["name"], tuple(s["command"]), s["predicted"]) for s in self.steps]

    def save(self) -> None:
        try:
            write_whole(self.path, json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def check_asked(self, asked: Mapping[str, Any], out: pathlib.Path) -> None:
        """Raises UserError where this folder was planned for something else."""
        before = self.content["asked"]
        if other := [key for key in asked if before.get(key) != asked[key]]:
            was = lambda values, key: values.get(key) or "(none)"
            lines = "".join(f"\n  --{key} {was(before, key)} then, {was(asked, key)} now" for key in other)
            raise UserError(f"--out {out} holds another recipe:{lines}\nname another --out, or give the same as then")


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt here, as Ctrl-C does, so that the running step is ended in order."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_steps(state: RecipeState, say: Callable[[str], None] = print) -> None:
    """Runs what is not done. Raises UserError for a step that fails, and KeyboardInterrupt after a stop."""
    wait_for_leftover(state, say)
    count = len(state.steps)
    with stopped_by_signals():
        for number, step in enumerate(state.steps, 1):
            head = f"[{number}/{count}] {step['name']}"
            if step["done"]:
                say(f"{head}: done before, in {duration(step['took'])}")
                continue
            again = f", {duration(step['took'])} of it before" if step["took"] else ""
            say(f"{head}: about {duration(step['predicted'])}{again}\n  {shown(step['command'])}")
            run_step(state, step)
            say(f"{head}: done in {duration(step['took'])}, {duration(step['predicted'])} predicted")


def run_step(state: RecipeState, step: dict[str, Any]) -> None:
    """One step to its end, with its output on the screen and in its log."""
    log = state.path.parent / "logs" / f"{step['name'].replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command, before, start = [sys.executable, "-m", *step["command"]], step["took"], time.monotonic()
    last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
    saved = start

    def count_time() -> None:
        step["took"] = round(before + time.monotonic() - start, 1)
        state.save()

    with open(log, "a", encoding="utf-8", errors="replace") as kept:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the recipe, which tells the step
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        state.content["pid"] = process.pid
        state.save()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(f"  {line}", end="", flush=True)
                kept.write(line)
                kept.flush()
                last.append(line.rstrip())
                if time.monotonic() - saved > SAVED_EVERY:
                    saved = time.monotonic()
                    count_time()
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            print("  stopping: waiting for the step to save", flush=True)
            process.communicate()
            raise
        finally:
            if process.poll() is None:  # of any other error
                process.kill()
                process.wait()
            state.content["pid"] = 0
            count_time()
    if code not in TOLD.get(step["command"][0], (0,)):
        lines = "\n".join(f"    {line}" for line in last)
        raise UserError(
            f"the step {step['name']!r} ended with exit code {code}:\n  {shown(step['command'])}\n{lines}\n"
            f"All that it wrote is in {log}. When the cause is mended, the same command goes on with this step"
        )
    step["done"] = True
    state.save()


def wait_for_leftover(state: RecipeState, say: Callable[[str], None]) -> None:
    """Waits for the step of a recipe that was killed: it ends when it next writes to the screen that is gone."""
    pid, until = state.content["pid"], time.monotonic() + PATIENCE
    if not pid or not _is_step(pid, state.path.parent):
        return
    say(f"the step that was going on when the recipe was killed still runs (process {pid}): waiting for it to end")
    while _is_step(pid, state.path.parent):
        if time.monotonic() > until:
            raise UserError(f"process {pid} of the recipe before still runs: end it, then give the same command")
        time.sleep(0.5)


def _is_step(pid: int, out: pathlib.Path) -> bool:
    """Whether a process of this number is a step of the recipe in `out`, and no other that has got its number."""
    try:
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"w2v_jax." in words and out.name.encode() in words
