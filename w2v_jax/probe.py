"""`python -m w2v_jax.probe`: measures how well a linear classifier recognises labels in frozen features.

For keywords and speakers, the features of each recording are pooled over time: mean and standard deviation of the
recording, and of each of four equal stretches (`--segments`). Letters are classified frame by frame. The same model
before training and log-mel features are measured in the same way. The classifier is that of `probing/ridge.py`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax.core.cli import command_parser, count_argument, expand_home, positive, run_command, table
from w2v_jax.core.files import write_whole
from w2v_jax.core.storage import output_folder
from w2v_jax.core.stores import place_argument
from w2v_jax.data import source_names
from w2v_jax.data.index import WAVE
from w2v_jax.inference.encode import BATCH_SECONDS, MAX_SECONDS, check_keys
from w2v_jax.inference.run import Run, open_run
from w2v_jax.probing.inputs import Input, log_mel_input
from w2v_jax.probing.labels import LABELS, LabelledPart, RecordingLabels, open_parts
from w2v_jax.probing.measure import chance_levels, code_information, measure
from w2v_jax.training.workdir import locked

EXAMPLES = """example:
  Keywords of speakers outside the training part, for every layer of two runs:
    python -m w2v_jax.probe --run runs/cpc --run runs/base --layer all --train /data/train --test /data/dev --out probe
  BERT over codes reads the codes of a vq-wav2vec: --run runs/bert --quantizer runs/vq
  Speakers: --label speaker, without --test. Then a fifth of the recordings becomes the test part.

exit codes: 0 done, 1 a mistake, 2 wrong usage."""
UNTRAINED = ", untrained"
"""What follows the name of a run in the results of the model before training."""
LINE_COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b7791f")
TITLES = {0: "frame by frame", 1: "statistics of the recording"}


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    with output_folder(args.out, last=["probe.json"]) as args.out, locked(args.out, "probe", "--out"):
        return compare_inputs(args)


def compare_inputs(args: argparse.Namespace) -> int:
    """Measures all inputs. Writes numbers and plot into the existing folder args.out. Raises UserError."""
    train, test = open_parts(
        args.source, args.train, args.test, what=args.label, hours=args.hours, workers=args.workers
    )
    inputs = make_inputs(args)
    print(f"probing for {args.label}: {_describe(train, test)}", flush=True)
    results = []
    for features in inputs:
        for result in measure(features, train, test, segments=args.segments):
            results.append(result)
            print(f"  {_result_line(result)}", flush=True)
    codes = []
    for features in {id(features.run): features for features in inputs if "codes" in features.run.outputs}.values():
        run, shares = features.run, code_information(features, test)
        name = f"{run.path.name}{'' if run.step else UNTRAINED}"
        codes.append({"name": name, "groups": shares})
        groups = ", ".join(f"{share:.1%}" for share in shares)
        print(f"  the codes of {name} carry {groups} of the information in the label (per group of codes, over frames)")
    levels = chance_levels(train, test)
    summary = dict(label=args.label, classes=len(train.names), **levels, results=results, codes=codes)
    write_whole(args.out / "probe.json", json.dumps(summary, indent=2) + "\n")
    draw_results(results, args.out / "probe.png", label=args.label, best_guess=max(levels.values()))
    rows = {"chance": f"{levels['chance']:.1%}; the most frequent label: {levels['majority']:.1%}"}
    rows |= {"numbers": args.out / "probe.json", "plot": args.out / "probe.png"}
    print(table(rows, "done"), flush=True)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    description = "Measures how well a linear classifier recognises words, speakers or letters in frozen features."
    parser = command_parser("probe", description, EXAMPLES)
    add = parser.add_argument
    run = "the --workdir of a training; may be repeated"
    add("--run", action="append", required=True, type=expand_home, metavar="RUN", help=run)
    add("--quantizer", type=expand_home, metavar="RUN", help="the vq-wav2vec that makes the codes for runs of BERT")
    add("--layer", default="context", metavar="N|all|local|context", help="which features (default: context)")
    labels = "the transcript of a recording (a keyword), its speaker, or the letter of each frame (default: transcript)"
    add("--label", choices=LABELS, default="transcript", help=labels)
    add("--source", default="folder", metavar="NAME", help=f"one of {', '.join(source_names())} (default: folder)")
    add("--train", nargs="+", required=True, type=expand_home, metavar="PATH", help="recordings to learn from")
    test = "recordings to score (default: a fifth of those in --train)"
    add("--test", nargs="+", type=expand_home, metavar="PATH", help=test)
    segments = "pool each recording over N equal stretches; may list several (default: 1 4)"
    add("--segments", type=int, nargs="+", default=[1, 4], metavar="N", help=segments)
    add("--hours", type=float, default=0.0, metavar="H", help="use at most H hours of each part (default: all)")
    add("--no-random", action="store_true", help="leave out the models before training")
    add("--out", required=True, type=place_argument, metavar="DIR", help="folder for probe.json and probe.png")
    add("--max-seconds", type=positive, default=MAX_SECONDS, metavar="S", help="cut longer recordings (default: 80)")
    add("--batch-seconds", type=positive, default=BATCH_SECONDS, metavar="S", help="audio at once (default: 160)")
    add("--workers", type=count_argument, default=0, metavar="N", help="threads that read (default: one per core)")
    args = parser.parse_args(argv)
    if min(args.segments) < 1:
        parser.error("--segments must be at least 1")
    if args.layer not in ("all", "local", "context") and not args.layer.isdigit():
        parser.error(f"--layer {args.layer} must be a number, 'all', 'local' or 'context'")
    return args


# Inputs


def make_inputs(args: argparse.Namespace) -> list[Input]:
    """Log-mel features, then the layers of every run, each run followed by the same model before training."""
    lengths = dict(batch_seconds=args.batch_seconds, max_seconds=args.max_seconds)
    inputs = [log_mel_input()._replace(**lengths)]
    quantizer = open_run(args.quantizer) if args.quantizer else None
    for path in args.run:
        for suffix in ("",) if args.no_random else ("", UNTRAINED):
            run = open_run(path, random=bool(suffix))
            for what, layer in layers_of(run, args.layer):
                name = f"{pathlib.Path(path).name} {what if layer is None else f'layer {layer}'}{suffix}"
                coder = quantizer if run.form != WAVE else None
                inputs.append(Input(name, run, what=what, layer=layer, quantizer=coder, **lengths))
    return inputs


def layers_of(run: Run, layer: str) -> list[tuple[str, int | None]]:
    """(key of the features, number of the hidden state or None) of each input that --layer asks for."""
    if layer in ("local", "context"):
        return [(layer, None)]
    if layer == "all":
        return [("local", None), *(("hidden", i) for i in range(run.outputs["hidden"][0]))]
    check_keys(run, ("hidden",), int(layer))
    return [("hidden", int(layer))]


# Output


def _result_line(result: dict[str, Any]) -> str:
    unread = f", {result['unread']} recordings could not be read" if result["unread"] else ""
    spread = f"({result['low']:.1%} to {result['high']:.1%})"
    pooled = f"{result['segments']} segment(s)  " if result["segments"] else ""
    return f"{result['accuracy']:>6.1%} {spread:<18} {pooled}{result['name']}{unread}"


def _describe(train: LabelledPart, test: LabelledPart) -> str:
    shared = set(train.source.index.speakers.tolist()) & set(test.source.index.speakers.tolist()) - {""}
    overlap = f"; {len(shared)} speakers are in both parts" if shared else ""
    unit = "recordings" if isinstance(train, RecordingLabels) else "frames of 10 ms"
    counts = f"{len(train.all_labels):,} {unit} to train on, {len(test.all_labels):,} to test"
    return f"{len(train.names)} labels, {counts}{overlap}"


def draw_results(results: Sequence[dict[str, Any]], path: pathlib.Path, *, label: str, best_guess: float) -> None:
    """Draws one panel per number of segments: a line over the layers of each model, or a bar per input.

    best_guess: the best accuracy without features, drawn as a dashed line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[int, list[dict[str, Any]]] = {}
    for result in sorted(results, key=lambda result: result["segments"]):
        panels.setdefault(result["segments"], []).append(result)
    has_layers = len({result["layer"] for result in results} - {None}) > 1
    height = 4.5 if has_layers else 1.7 + 0.36 * max(map(len, panels.values()))
    figure = Figure(figsize=(4 + 5 * len(panels), height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Accuracy of a linear classifier: {label}", fontsize=13)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (segments, rows) in zip(axes, panels.items(), strict=True):
        (_draw_lines if has_layers else _draw_bars)(ax, rows, best_guess)
        ax.set_title(TITLES.get(segments, f"statistics of {segments} stretches"), loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def _draw_bars(ax: Any, rows: Sequence[dict[str, Any]], best_guess: float) -> None:
    y = np.arange(len(rows))[::-1]
    values = np.array([row["accuracy"] for row in rows])
    spread = np.array([(row["accuracy"] - row["low"], row["high"] - row["accuracy"]) for row in rows]).T
    colors = [_color(row["name"]) for row in rows]
    ax.barh(y, values, xerr=np.maximum(spread, 0), color=colors, ecolor="#1a202c", capsize=2.5, height=0.7)
    ax.set_yticks(y, [row["name"] for row in rows])
    ax.axvline(best_guess, color="#718096", linestyle=(0, (4, 3)), linewidth=1.2)
    ax.set_xlabel("accuracy; 95 % over speakers; dashed: best guess")
    ax.set_xlim(0, 1)


def _draw_lines(ax: Any, rows: Sequence[dict[str, Any]], best_guess: float) -> None:
    """Local features are at x = -1, before layer 0, which is the input of the first layer."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["name"] != "log-mel":
            model = row["name"].replace(f" layer {row['layer']}", "").replace(" local", "")
            lines.setdefault(model, []).append(row)
    models = list(dict.fromkeys(name.removesuffix(UNTRAINED) for name in lines))
    position = lambda row: -1 if row["layer"] is None else row["layer"]
    for name, points in lines.items():
        color = LINE_COLORS[models.index(name.removesuffix(UNTRAINED)) % len(LINE_COLORS)]
        x = [position(row) for row in points]
        values, low, high = ([row[key] for row in points] for key in ("accuracy", "low", "high"))
        style = "--" if name.endswith(UNTRAINED) else "-"
        ax.plot(x, values, style, color=color, marker="o", markersize=4, label=name)
        ax.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
    for row in rows:
        if row["name"] == "log-mel":
            ax.axhline(row["accuracy"], color="#1a202c", linewidth=1.2, label="log-mel")
    ax.axhline(best_guess, color="#718096", linestyle=(0, (4, 3)), linewidth=1.2, label="best guess")
    last = max(position(row) for points in lines.values() for row in points)
    ax.set_xticks(range(-1, last + 1), ["local", *map(str, range(last + 1))])
    ax.set_xlabel("layer; shaded: 95 % over speakers")
    ax.set_ylabel("accuracy")
    ax.set_ylim(0, 1)
    ax.legend(frameon=False, fontsize=9)


def _color(name: str) -> str:
    return "#a0aec0" if name.endswith(UNTRAINED) else "#c05621" if name == "log-mel" else "#2b6cb0"


if __name__ == "__main__":
    run_command(main)
