"""What the watchdog's rules say of a whole run, in words. The rules stand in `training/watchdog.py`."""

from __future__ import annotations

from typing import NamedTuple

from w2v_jax.core.cli import duration
from w2v_jax.reporting.run_folder import RunFolder
from w2v_jax.training.watchdog import Finding, Watchdog, best_evaluation, check, settings_for

NOTHING, EARLY, HEALTHY, HURT, DEAD = "nothing logged", "too early to say", "healthy", "needs attention", "dead"


class Verdict(NamedTuple):
    """word: one of the five above. now: what is wrong at the end. past: (step, what) was wrong on the way and went."""

    word: str
    sentences: list[str]
    now: list[Finding]
    past: list[tuple[int, Finding]]


def judge(run: RunFolder) -> Verdict:
    """The watchdog's findings over all rows of the run, and how far it is."""
    if not run.rows:
        return Verdict(NOTHING, [progress(run)], now=[], past=[])
    settings = settings_for(run.config)
    watch = Watchdog(run.levels, settings)
    found = [(row["step"], finding) for row in run.rows for finding in watch.see(row)]
    now = check(run.rows, run.levels, settings)
    names = {finding.name for finding in now}
    past = [(step, finding) for step, finding in found if finding.name not in names]
    count = len(run.of_split("train"))
    if any(finding.dead for finding in now):
        word = DEAD
    elif now:
        word = HURT
    elif run.step <= settings.grace_steps or count < settings.patience:
        word = EARLY
    else:
        word = HEALTHY
    sentences = [progress(run), *_standing(run)]
    if word == EARLY:
        sentences.append(
            f"No rule has found anything, but the rules about chance and collapse begin after {settings.grace_steps:,} "
            f"updates and {settings.patience} logged rows."
        )
    return Verdict(word, sentences, now=now, past=past)


def progress(run: RunFolder) -> str:
    """How far the run is, and whether it is complete."""
    if not run.rows:
        return "No metrics yet: the run was made or converted, but no update of it was logged."
    if run.done is None:
        return f"Not complete: update {run.step:,} of {run.steps:,}; the last row was written at {run.written}."
    early = f" It ended early: {run.done['ended_early']}." if run.done.get("ended_early") else ""
    return f"Complete: {run.done.get('step', run.step):,} of {run.steps:,} updates.{early}"


def _standing(run: RunFolder) -> list[str]:
    """What was reached, beside what a useless model reaches."""
    said = []
    if best := best_evaluation(run.rows, run.config.train.best):
        chance = run.levels.get("loss_chance") if best.metric == "loss" else None
        beside = "" if chance is None else f"; chance is {chance:.3f}"
        said.append(f"The best evaluation is that of {best}{beside}.")
    train = run.of_split("train")
    if train and train[-1].get("loss") is not None:
        said.append(f"The training loss was {train[-1]['loss']:.3f} at update {train[-1]['step']:,}.")
    speeds = [row["step_seconds"] for row in train if row.get("step_seconds")]
    if speeds and run.done is None and run.step < run.steps:
        left = (run.steps - run.step) * sum(speeds[-20:]) / len(speeds[-20:])
        said.append(f"At the speed of its last rows the rest takes {duration(left)}.")
    if train and (skipped := train[-1].get("skipped_updates")):
        said.append(f"{skipped:.0f} updates were skipped, as their loss or gradient was not finite.")
    return said
