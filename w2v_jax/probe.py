"""`python -m w2v_jax.probe`: how much of a label a linear classifier finds in frozen features.

For keywords and speakers, features of each recording are pooled over time (mean and standard deviation of the whole,
and of four equal stretches: `--segments`); letters are found frame by frame. Beside every run stand the same model as
it was before training and the log-mel features, treated in the same way. The classifier is that of `linear.py`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax import probing, runs
from w2v_jax.config import run_command
from w2v_jax.data import source_names
from w2v_jax.data.index import WAVE
from w2v_jax.probing import Input, Labels, Part
from w2v_jax.report import table, write_whole
from w2v_jax.runs import Run
from w2v_jax.workdir import locked

EXAMPLES = """example:
  Keywords of speakers that are not in the training part, for two runs and every layer of them:
    python -m w2v_jax.probe --run runs/cpc --run runs/base --layer all --train /data/train --test /data/dev --out probe
  BERT over codes reads the codes of a vq-wav2vec: --run runs/bert --quantizer runs/vq
  Who speaks: --label speaker, without --test: a fifth of the recordings of each speaker is set aside.

exit codes: 0 done, 1 a mistake, 2 wrong usage."""


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    with locked(args.out, "probe", "--out"):
        return measure(args)


def measure(args: argparse.Namespace) -> int:
    """Measures all inputs and writes numbers and plot into args.out, which is there. Raises UserError."""
    train, test = probing.open_parts(args.source, args.train, args.test, args.label, args.hours, args.workers)
    chosen = inputs(args)
    print(f"probing for {args.label}: {_describe(train, test)}", flush=True)
    results = []
    for each in chosen:
        for result in probing.measure(each, train, test, args.segments):
            results.append(result)
            print(f"  {_line(result)}", flush=True)
    models = {id(each.run): each.run for each in chosen if "codes" in each.run.outputs}.values()
    told = [
        {"name": f"{run.path.name}{'' if run.step else ', untrained'}", "groups": probing.code_information(run, test)}
        for run in models
    ]
    for entry in told:
        groups = ", ".join(f"{share:.1%}" for share in entry["groups"])
        print(f"  the codes of {entry['name']} tell {groups} of the label (per group of codes, frame by frame)")
    levels = probing.reference_levels(train, test)
    about = dict(label=args.label, classes=len(train.names), **levels)
    write_whole(args.out / "probe.json", json.dumps(about | {"results": results, "codes": told}, indent=2) + "\n")
    draw(results, levels, args.label, args.out / "probe.png")
    rows = {"chance": f"{levels['chance']:.1%}, always the most frequent: {levels['majority']:.1%}"}
    rows |= {"numbers": args.out / "probe.json", "plot": args.out / "probe.png"}
    print(table(rows, "done"), flush=True)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.probe",
        description="Measures what a linear classifier finds in frozen features: keywords or speakers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", action="append", required=True, metavar="RUN", help="the --workdir of a training; may be repeated")
    add("--quantizer", metavar="RUN", help="the vq-wav2vec that makes the codes for runs of BERT")
    add("--layer", default="context", metavar="N|all|local|context", help="which features (default: context)")
    add(
        "--label",
        choices=probing.LABELS,
        default="transcript",
        help="what is to be found: the transcript of a recording as a whole (keywords), its speaker, or the letter "
        "that is spoken in each frame (default: transcript)",
    )
    add("--source", default="folder", metavar="NAME", help=f"one of {', '.join(source_names())} (default: folder)")
    add("--train", nargs="+", required=True, metavar="PATH", help="where the recordings to learn from are")
    add("--test", nargs="+", metavar="PATH", help="where those to score are (default: a fifth of the others)")
    add(
        "--segments",
        type=int,
        nargs="+",
        default=[1, 4],
        metavar="N",
        help="stretches of time that are pooled apart (default: 1, the statistics of the whole, and 4)",
    )
    add("--hours", type=float, default=0.0, metavar="H", help="at most so much of each part (default: all)")
    add("--no-random", action="store_true", help="leave out the models as they were before training")
    add("--out", required=True, type=pathlib.Path, metavar="DIR", help="folder for probe.json and probe.png")
    add("--workers", type=int, default=0, metavar="N", help="threads that read (default: one per core)")
    args = parser.parse_args(argv)
    if min(args.segments) < 1:
        parser.error("--segments must be at least 1")
    if args.layer not in ("all", "local", "context") and not args.layer.isdigit():
        parser.error(f"--layer {args.layer}: it is a number, 'all', 'local' or 'context'")
    return args


# Inputs


def inputs(args: argparse.Namespace) -> list[Input]:
    """Log-mel features, then every run with the same model untrained beside it, layer by layer."""
    chosen = [probing.log_mel_input()]
    quantizer = runs.open_run(args.quantizer) if args.quantizer else None
    for path in args.run:
        both = [("", runs.open_run(path))]
        if not args.no_random:
            both.append((", untrained", runs.open_run(path, random=True)))
        for suffix, run in both:
            via = None if run.form == WAVE else quantizer
            for what, layer in wanted(run, args.layer):
                place = what if layer is None else f"layer {layer}"
                chosen.append(Input(f"{pathlib.Path(path).name} {place}{suffix}", run, what, layer, via))
    return chosen


def wanted(run: Run, layer: str) -> list[tuple[str, int | None]]:
    """(what, number of the hidden state or None) of a --layer."""
    if layer in ("local", "context"):
        return [(layer, None)]
    count = run.outputs["hidden"][0]
    if layer == "all":
        return [("local", None), *(("hidden", i) for i in range(count))]
    runs.check_keys(run, ("hidden",), int(layer))
    return [("hidden", int(layer))]


# What people see


def _line(result: dict[str, Any]) -> str:
    unread = f", {result['unread']} recordings could not be read" if result["unread"] else ""
    spread = f"({result['low']:.1%} to {result['high']:.1%})"
    pooled = f"{result['segments']} segment(s)  " if result["segments"] else ""
    return f"{result['accuracy']:>6.1%} {spread:<18} {pooled}{result['name']}{unread}"


def _describe(train: Part, test: Part) -> str:
    shared = set(train.source.index.speakers.tolist()) & set(test.source.index.speakers.tolist()) - {""}
    same = f"; {len(shared)} speakers are in both parts" if shared else ""
    counts = " to learn from, ".join(f"{len(part.every):,}" for part in (train, test))
    what = "recordings" if isinstance(train, Labels) else "frames of 10 ms"
    return f"{len(train.names)} labels, {counts} {what} to score{same}"


def draw(results: Sequence[dict[str, Any]], levels: dict[str, float], label: str, path: pathlib.Path) -> None:
    """A panel for every way of pooling: a line per model over its layers where there are some, else a bar per input.

    levels: what guessing reaches, by way of guessing; the best is drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ways = sorted({result["segments"] for result in results})
    shown = [[result for result in results if result["segments"] == n] for n in ways]
    layers = {result["layer"] for result in results} - {None}
    height = 4.5 if len(layers) > 1 else 1.7 + 0.36 * len(shown[0])
    figure = Figure(figsize=(4 + 5 * len(ways), height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Accuracy of a linear classifier: {label}", fontsize=13)
    for ax, n, rows in zip(figure.subplots(1, len(ways), sharey=True, squeeze=False)[0], ways, shown, strict=True):
        (_draw_lines if len(layers) > 1 else _draw_bars)(ax, rows, max(levels.values()))
        ax.set_title(POOLED.get(n, f"statistics of {n} stretches"), loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


POOLED = {0: "frame by frame", 1: "statistics of the whole"}


def _draw_bars(ax: Any, rows: Sequence[dict[str, Any]], guess: float) -> None:
    place = np.arange(len(rows))[::-1]
    values = np.array([row["accuracy"] for row in rows])
    spread = np.array([(row["accuracy"] - row["low"], row["high"] - row["accuracy"]) for row in rows]).T
    colors = [_color(row["name"]) for row in rows]
    ax.barh(place, values, xerr=np.maximum(spread, 0), color=colors, ecolor="#1a202c", capsize=2.5, height=0.7)
    ax.set_yticks(place, [row["name"] for row in rows])
    ax.axvline(guess, color="#718096", linestyle=(0, (4, 3)), linewidth=1.2)
    ax.set_xlabel("accuracy; 95 % over speakers; dashed: best guess")
    ax.set_xlim(0, 1)


def _draw_lines(ax: Any, rows: Sequence[dict[str, Any]], guess: float) -> None:
    """Layer 0 is what the first layer reads; the local features stand before it."""
    lines: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for row in rows:
        if row["name"] != "log-mel":
            model = row["name"].replace(f" layer {row['layer']}", "").replace(" local", "")
            lines.setdefault(model, []).append((-1 if row["layer"] is None else row["layer"], row))
    models = list(dict.fromkeys(name.removesuffix(", untrained") for name in lines))
    for name, points in lines.items():
        color = LINES[models.index(name.removesuffix(", untrained")) % len(LINES)]
        x, values = [place for place, _ in points], [row["accuracy"] for _, row in points]
        style = "--" if name.endswith("untrained") else "-"
        ax.plot(x, values, style, color=color, marker="o", markersize=4, label=name)
        low, high = ([row[side] for _, row in points] for side in ("low", "high"))
        ax.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
    for row in rows:
        if row["name"] == "log-mel":
            ax.axhline(row["accuracy"], color="#1a202c", linewidth=1.2, label="log-mel")
    ax.axhline(guess, color="#718096", linestyle=(0, (4, 3)), linewidth=1.2, label="best guess")
    most = max(x for points in lines.values() for x, _ in points)
    ax.set_xticks(range(-1, most + 1), ["local", *map(str, range(most + 1))])
    ax.set_xlabel("layer; shaded: 95 % over speakers")
    ax.set_ylabel("accuracy")
    ax.set_ylim(0, 1)
    ax.legend(frameon=False, fontsize=9)


LINES = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b7791f")


def _color(name: str) -> str:
    return "#a0aec0" if name.endswith("untrained") else "#c05621" if name == "log-mel" else "#2b6cb0"


if __name__ == "__main__":
    run_command(main)
