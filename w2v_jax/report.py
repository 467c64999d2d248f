"""`python -m w2v_jax.report RUN [RUN ...]`: one HTML page about runs, for people.

Curves of all runs with the levels of chance and collapse, codes in use, updates, speed, held-out examples to listen
to, differences of their configs, and what the watchdog's rules say. The page needs no network.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import jax

from w2v_jax.core.cli import UserError, command_parser, count_argument, expand_home, run_command, writing
from w2v_jax.core.files import write_whole
from w2v_jax.core.storage import output_file
from w2v_jax.core.stores import place_argument
from w2v_jax.reporting import page, reference
from w2v_jax.reporting.examples import read_examples
from w2v_jax.reporting.markup import RUNS
from w2v_jax.reporting.run_folder import open_run_folders
from w2v_jax.reporting.verdict import DEAD, judge
from w2v_jax.training.workdir import run_folder

DEAD_OR_ODD = 3
EXAMPLES = """examples:
  python -m w2v_jax.report runs/demo
  python -m w2v_jax.report runs/base runs/lower-rate --examples 5 --out compared.html
  python -m w2v_jax.report runs/demo --against reference

exit codes: 0 the page is written, 1 a mistake, 2 wrong usage, 3 the page is written and a run is dead or, with
--against, not normal."""


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    if len(args.runs) > len(RUNS):
        raise UserError(f"{len(args.runs)} runs are too many for one page; give at most {len(RUNS)}")
    jax.config.update("jax_platforms", "cpu")  # accelerators are for trainings, which may be going on
    runs = open_run_folders([run_folder(name) for name in args.runs])
    comparisons = []
    if args.against:
        known = reference.load_references()
        comparisons = [reference.compare(run, reference.reference_for(run, known)) for run in runs]
    print(f"reading {', '.join(str(run.path) for run in runs)}", flush=True)
    verdicts = [judge(run) for run in runs]
    examples = [read_examples(run, args.examples) if args.examples else ([], "") for run in runs]
    for run, (_, note) in zip(runs, examples):
        if note:
            print(f"note: examples of {run.path}: {note}", flush=True)
    content = page.Contents(
        runs, verdicts=verdicts, examples=examples, comparisons=comparisons, audio=not args.no_audio
    )
    text = page.page_text(content)
    with writing(f"--out {args.out}"), output_file(args.out) as file:
        write_whole(file, text)
    for run, verdict in zip(runs, verdicts):
        print(f"{run.path}: {verdict.word}{''.join(f'; {finding.name}' for finding in verdict.now)}")
    for run, comparison in zip(runs, comparisons):
        print(f"{run.path}: {comparison.word} beside the reference")
    print(f"done: {args.out} ({len(text.encode()) / 1e6:.1f} MB); open it in a browser")
    bad = any(verdict.word == DEAD for verdict in verdicts) or not all(c.normal for c in comparisons)
    return DEAD_OR_ODD if bad else 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    description = "Writes one HTML page about runs: curves, codes, examples to listen to, and a verdict in words."
    parser = command_parser("report", description, EXAMPLES)
    add = parser.add_argument
    add("runs", nargs="+", type=expand_home, metavar="RUN", help="the --workdir of a training, complete or not")
    out = "the page (default: report.html)"
    add("--out", type=place_argument, default=pathlib.Path("report.html"), metavar="FILE", help=out)
    add("--examples", type=count_argument, default=3, metavar="N", help="held-out recordings of each run (default: 3)")
    add("--no-audio", action="store_true", help="leave out what one can listen to: the page is smaller")
    against = "compare each run with committed runs of its demo, and say if it is normal"
    add("--against", choices=("reference",), help=against)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
