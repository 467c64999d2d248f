"""`python -m w2v_jax.recipe --audio DIR --labels DIR --budget 3h`: from a folder of recordings to a recogniser.

Looks at the recordings and the machine, chooses method, size, batch and updates for the time there is, prints the plan
with its reasons and the commands that it is made of, and runs them. Every choice is a row of
w2v_jax/profiling/recipes/rules.py, with the measurement that it rests on.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from w2v_jax.core.cli import command_parser, duration, expand_home, path_argument, run_command, table
from w2v_jax.profiling.recipes import budget, look, rules, speed, start_model, steps
from w2v_jax.training.workdir import locked

UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
ON_PLATEAU = 3
EXAMPLES = """examples:
  See what would be done, and why:
    python -m w2v_jax.recipe --audio recordings --labels transcribed --budget 3h --dry-run
  Do it, and score recordings that nothing has heard:
    python -m w2v_jax.recipe --audio recordings --labels transcribed --test unheard --budget 3h --out runs/mine --yes
  Start from a model that you downloaded:
    python -m w2v_jax.recipe --audio recordings --labels transcribed --budget 2d --from DOWNLOADED/wav2vec2-base

--audio are recordings without transcripts, or with some; --labels are those with transcripts beside them (*.trans.txt),
and may be the same folder. The same command goes on after a stop. exit codes: 0 done, or only planned; 1 a mistake or a
step that failed; 2 wrong usage; 3 done, and the recogniser writes next to nothing; 130 stopped by Ctrl-C."""


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    asked = {"audio": args.audio, "labels": args.labels, "test": args.test, "from": args.source, "budget": args.budget}
    state = steps.RecipeState.read(args.out)
    recordings = None
    if state is None:
        state, recordings = planned(args, asked)
    else:
        state.check_asked(asked, args.out)
    print(state.content["text"])
    if args.dry_run:
        return 0
    if not args.yes and not agreed():
        return 0
    with locked(args.out, "recipe", "--out"):
        if recordings is not None:
            recordings.write(args.out / "lists")
            state.save()
        try:
            steps.run_steps(state, lambda text: print(text, flush=True))
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            raise
    return ending(state, args)


def agreed() -> bool:
    """Asks a person at a terminal. Elsewhere nothing is run without --yes."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("nothing is run: give --yes to run this plan")
        return False
    return input("run this plan? [y/N] ").strip().lower() in ("y", "yes")


def planned(args: argparse.Namespace, asked: dict[str, Any]) -> tuple[steps.RecipeState, look.Recordings]:
    """The state of a new plan, and the recordings whose lists it needs. Raises UserError."""
    recordings = look.look_at_data(args.audio, args.labels, args.test)
    print(table(look.data_rows(recordings.facts), "recordings"), flush=True)
    init = start_model.described(args.source, recordings.facts.train_minutes / 60) if args.source else None
    print("\nmeasuring this machine, half a minute where it is idle ...", flush=True)
    found = speed.measured_speeds(rules.candidates(recordings.facts, init))
    facts = rules.Facts(
        recordings.facts,
        look.look_at_machine(args.out, found.devices),
        budget=args.budget,
        start=found.start,
        timings=found.timings,
        init=init,
    )
    plan = budget.make_plan(facts, str(args.out), args.test)
    budget.check_disk(plan, facts.machine.disk, args.out)
    text = recipe_text(facts, plan)
    about = {"text": text, "facts": by_name(facts), "recogniser": plan.recogniser}
    return steps.RecipeState.first(args.out, asked, plan, about=about), recordings


def by_name(value: Any) -> Any:
    """Records within records as dicts, for JSON."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    return {key: by_name(each) for key, each in value.items()} if isinstance(value, dict) else value


def recipe_text(facts: rules.Facts, plan: budget.Recipe) -> str:
    """The plan for people: machine, choices with reasons, commands with minutes."""
    timed = {
        name: f"{timing.update:.3g} s per update, {timing.parameters / 1e6:.3g} M parameters"
        for name, timing in facts.timings.items()
    }
    measured = "\n".join(f"{name}: {text}" for name, text in timed.items())
    choices = {
        rule.about: "\n".join([f"{rule.value}:", *textwrap.wrap(f"{rule.because} ({rule.rests_on})", 100)])
        for rule in plan.choices
    }
    lines = ["", table(look.machine_rows(facts.machine) | {"measured": measured}, "machine"), ""]
    lines += [table(choices, "choices"), ""]
    whole = f"plan: {len(plan.steps)} steps, about {duration(plan.seconds)} of the {duration(facts.budget)} given"
    lines += [whole, "-" * len(whole)]
    for number, step in enumerate(plan.steps, 1):
        lines += [f"  {number}. {step.name}, about {duration(step.seconds)}", f"     {steps.shown(step.command)}"]
    return "\n".join(lines)


def ending(state: steps.RecipeState, args: argparse.Namespace) -> int:
    """Error rates, times, the report and the command that transcribes; the exit code."""
    run = pathlib.Path(state.content["recogniser"])
    rows = {}
    for part in ("dev", "test"):
        file = args.out / "scores" / part / "scores.json"
        if file.is_file():
            scores = json.loads(file.read_text(encoding="utf-8"))
            rows[part] = (
                f"{scores['cer']:.1%} of characters wrong, {scores['wer']:.1%} of words; {scores['recordings']:,} "
                f"recordings, checkpoint {scores['step']:,}"
            )
    took, predicted = (sum(step[key] for step in state.steps) for key in ("took", "predicted"))
    rows["time"] = f"{duration(took)}, {duration(predicted)} predicted"
    rows["report"] = str(args.out / "report.html")
    rows["transcribe"] = steps.shown(("w2v_jax.transcribe", "--run", str(run), "FILE"))
    print("\n" + table(rows, "done"))
    done = json.loads((run / "done.json").read_text(encoding="utf-8"))
    if done.get("on_plateau"):
        print(
            "the recogniser is on the plateau of CTC: it writes next to nothing; docs/ten_minutes.md says what to try"
        )
        return ON_PLATEAU
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    description = "Plans and runs the way from recordings to a recogniser within a time."
    parser = command_parser("recipe", description, EXAMPLES)
    add = parser.add_argument
    add("--audio", type=expand_home, required=True, metavar="DIR", help="recordings, with or without transcripts")
    add("--labels", type=expand_home, required=True, metavar="DIR", help="recordings with transcripts beside them")
    add("--test", type=expand_home, default="", metavar="DIR", help="transcribed recordings that are only scored")
    add("--budget", type=seconds_of, required=True, metavar="TIME", help="time for all of it: 30m, 3h, 1h30m, 2d")
    start = "a run to start from, or a downloaded model of transformers or fairseq"
    add("--from", dest="source", type=expand_home, default="", metavar="RUN", help=start)
    out = "runs and results (default: runs/recipe)"
    add("--out", type=path_argument, default="runs/recipe", metavar="DIR", help=out)
    add("--dry-run", action="store_true", help="print the plan, write nothing and end")
    add("--yes", action="store_true", help="run the plan without asking")
    return parser.parse_args(argv)


def seconds_of(text: str) -> float:
    """Seconds of a time such as 30m, 3h, 1h30m or 2d."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(s|min|m|h|d)", text)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give 30m, 3h, 1h30m or 2d")
    return seconds


if __name__ == "__main__":
    run_command(main)
