"""The three claims, each by one command that goes on after a stop: what learned features are worth.

    python launch/studies/claims.py inputs --train DIR --test DIR --out runs/claims

inputs: log-mel against learned features, with the same labels and the same acoustic model; unlabelled: error against
hours of unlabelled audio; labels: error against labelled minutes, pretrained and from scratch.

DIR are folders of transcribed recordings; nothing is tuned on those of --test, and their speakers must not be in
--train unless --same-speakers allows it. Of the labelled minutes a tenth (a minute at least) is held out of a
recogniser's training: it chooses the checkpoint that is scored, and when to stop.
Everything is made of the commands of the package with the `:demo` configs, printed as they run, so that every number
can be had by hand. Results: OUT/CLAIM.json, OUT/CLAIM.png and a table, of this and all earlier calls with this OUT. A
run that stands there and was made with other flags is an error. A recogniser that ended on the plateau of CTC says
nothing about its input: it is left out of the means, and the table marks its row.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import some_of
from w2v_jax.core.config import load
from w2v_jax.data import open_source

ROOT = pathlib.Path(__file__).resolve().parents[2]
INPUTS = ("logmel", "cpc", "wav2vec", "vq", "bert", "w2v2")
PREDICT_UNITS = ("hubert", "hubert_all", "hubert2", "wavlm")  # all: the loss of all frames; 2: the second iteration
CLUSTERS, LAYER = 100, 3  # of k-means; of the four layers of the first HuBERT, the one whose units the second predicts
CONFIGS = {
    "cpc": "cpc.py:demo",
    "wav2vec": "wav2vec_large.py:demo",
    "vq": "vq_wav2vec.py:demo",
    "bert": "bert_codes_small.py:demo",
    "w2v2": "w2v2_base.py:demo",
    "hubert": "hubert_base.py:demo",
    "hubert_all": "hubert_base.py:demo",
    "hubert2": "hubert_base.py:demo",
    "wavlm": "wavlm_base.py:demo",
}


class Plan(NamedTuple):
    """What all claims share."""

    train: str
    test: str
    out: pathlib.Path
    seeds: list[int]
    seconds: tuple[float, ...]
    pretrain_seconds: float
    minutes: list[float]
    hours: list[float]
    inputs: list[str] | None
    acoustic: str
    steps: int
    pretrain_steps: int
    same_speakers: bool
    no_untrained: bool


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("claim", choices=("inputs", "unlabelled", "labels"))
    add("--train", required=True, metavar="DIR", help="recordings to pretrain on; part of their transcripts is used")
    add("--test", required=True, metavar="DIR", help="recordings of other speakers, only scored")
    add("--out", required=True, type=pathlib.Path, metavar="DIR", help="runs, results and plots")
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add("--seconds", nargs="+", type=float, default=[1.0], help="static lengths of labelled recordings (default: 1)")
    add("--pretrain-seconds", type=float, default=1.0, metavar="S", help="length of the crops (default: 1)")
    add("--minutes", nargs="+", type=float, default=[10.0], help="labelled speech; several for `labels` (default: 10)")
    add("--hours", nargs="+", type=float, default=[0.1, 0.5, 0.0], help="for `unlabelled`; 0: all (default: 0.1 0.5 0)")
    add(
        "--inputs",
        nargs="+",
        choices=INPUTS + PREDICT_UNITS,
        help=f"which features (default: {' '.join(INPUTS)}; `unlabelled`: cpc wav2vec; `labels`: w2v2)",
    )
    add(
        "--acoustic",
        choices=("transformer", "conv"),
        default="transformer",
        help="the acoustic model (default: transformer)",
    )
    add("--steps", type=int, default=600, help="updates of a recogniser (default: 600)")
    add("--pretrain-steps", type=int, default=0, help="updates of a pretraining (default: the config's)")
    add("--no-untrained", action="store_true", help="for `inputs`: leave the rows of untrained encoders out")
    add("--same-speakers", action="store_true", help="allow speakers of --test in --train; the rows are marked")
    args = vars(parser.parse_args(argv))
    claim = args.pop("claim")
    args["seconds"] = tuple(args["seconds"])
    plan = Plan(**args)
    if claim == "labels" and set(plan.inputs or ()) - {"cpc", "w2v2"}:
        parser.error("--inputs of `labels` are cpc and w2v2: the others are not fine-tuned here")
    shared = shared_speakers(plan)
    if shared and not plan.same_speakers:
        named = f"{len(shared)} speaker(s) ({some_of(shared)})"
        parser.error(f"--test and --train share {named}: take others, or --same-speakers")
    plan.out.mkdir(parents=True, exist_ok=True)
    path = plan.out / f"{claim}.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    made = {"inputs": inputs, "unlabelled": unlabelled, "labels": labels}[claim](plan)
    rows = merged(rows, [row | {"same_speakers": bool(shared)} for row in made])
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    draw(rows, claim, plan.out / f"{claim}.png")
    print(f"done: {plan.out / claim}.json and .png")
    return 0


def shared_speakers(plan: Plan) -> list[str]:
    """The speakers who are in both folders."""
    train, test = (set(open_source("folder", (root,)).index.speakers.tolist()) for root in (plan.train, plan.test))
    return sorted(train & test)


def merged(before: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier rows and new ones, which take the place of earlier ones of the same row, amount and seed."""
    key = lambda row: (row["row"], row["x"], row["seed"])
    return list(({key(row): row for row in before} | {key(row): row for row in rows}).values())


# The claims


def inputs(plan: Plan) -> list[dict[str, Any]]:
    """(a) The same acoustic model and labels on log-mel, on learned features, and on those of untrained models."""
    rows = []
    for seed in plan.seeds:
        for name in plan.inputs or INPUTS:
            for untrained in (False,) if name == "logmel" or plan.no_untrained else (False, True):
                label = f"{name}, untrained" if untrained else name
                result = recognise(plan, name, seed, minutes=plan.minutes[0], untrained=untrained)
                rows.append({"row": label, "x": label, "seed": seed} | result)
    return rows


def unlabelled(plan: Plan) -> list[dict[str, Any]]:
    """(b) Learned features after pretraining on more and more audio, the same number of updates and labels."""
    rows = []
    for seed in plan.seeds:
        for name in plan.inputs or ("cpc", "wav2vec"):
            for hours in plan.hours:
                result = recognise(plan, name, seed, minutes=plan.minutes[0], hours=hours)
                rows.append({"row": name, "x": hours, "seed": seed} | result)
    return rows


def labels(plan: Plan) -> list[dict[str, Any]]:
    """(c) A pretrained model, fine-tuned, and the same from scratch, with more and more labels."""
    rows = []
    for seed in plan.seeds:
        for name in plan.inputs or ("w2v2",):
            for minutes in plan.minutes:
                for scratch in (False, True):
                    label = f"{name}, {'from scratch' if scratch else 'pretrained'}"
                    result = finetune(plan, name, seed, minutes=minutes, scratch=scratch)
                    rows.append({"row": label, "x": minutes, "seed": seed} | result)
    return rows


# Their parts


def pretrain(plan: Plan, name: str, seed: int, *, hours: float = 0.0) -> pathlib.Path:
    """The workdir of a pretraining; BERT's comes after its vq-wav2vec, those on units after the units."""
    folder = plan.out / f"{name}-{seed}{f'-{hours:g}h' if hours else ''}"
    flags = ["--config.data.name=folder", f"--config.data.root={plan.train}", "--config.data.eval_hours=0.03"]
    flags += ["--config.data.min_seconds=0.5", f"--config.data.train_hours={hours}"]
    if name == "bert":
        codes = plan.out / f"codes-{seed}"
        vq = pretrain(plan, "vq", seed)
        extract(vq, codes, root=plan.train, flags=["--what", "codes", "--build-vocabulary"])
        flags = [f"--config.data.root={codes}"]
    if name in PREDICT_UNITS:
        flags += targets(plan, name, seed)
    flags += [f"--config.data.bucket_seconds={plan.pretrain_seconds}", f"--config.seed={seed}"]
    if plan.pretrain_steps:
        flags += [f"--config.train.steps={plan.pretrain_steps}", f"--config.optim.warmup={plan.pretrain_steps // 10}"]
    train(CONFIGS[name], folder, flags)
    return folder


def targets(plan: Plan, name: str, seed: int) -> list[str]:
    """Flags of a pretraining that predicts units: those of MFCC, or for `hubert2` of a layer of the first HuBERT."""
    if name == "hubert2":
        made, hop = units(plan, f"layer-{seed}", ["--run", str(pretrain(plan, "hubert", seed))]), 320
    else:
        made, hop = units(plan, "mfcc", []), 160
    flags = [
        f"--config.data.targets={made}",
        f"--config.data.targets_hop={hop}",
        f"--config.loss.classes=({CLUSTERS},)",
    ]
    return [*flags, *(["--config.loss.unmasked_weight=1.0"] if name == "hubert_all" else [])]


def units(plan: Plan, name: str, run: Sequence[str]) -> pathlib.Path:
    """The units of all recordings of the training, by k-means of MFCC, or of a layer of the given run."""
    model, out = plan.out / f"units-{name}", plan.out / f"units-{name}-train"
    what = [*run, "--layer", str(LAYER)] if run else ["--features", "mfcc"]
    if not complete(out):
        command("units", "fit", *what, "--root", plan.train, "--clusters", CLUSTERS, "--out", model)
        command("units", "label", "--model", model, *run, "--root", plan.train, "--out", out)
    return out


def extract(run: pathlib.Path, out: pathlib.Path, *, root: str, flags: Sequence[str]) -> None:
    if not complete(out):
        command("extract", "--run", run, "--root", root, "--out", out, *flags)


def complete(out: pathlib.Path) -> bool:
    """Whether a folder of features or units is there as a whole."""
    about = out / "extract.json"
    return about.exists() and json.loads(about.read_text(encoding="utf-8"))["complete"]


def recognise(
    plan: Plan, name: str, seed: int, *, minutes: float, hours: float = 0.0, untrained: bool = False
) -> dict[str, Any]:
    """Scores of the acoustic model on an input."""
    tag = f"{name}-{seed}{f'-{hours:g}h' if hours else ''}{'-untrained' if untrained else ''}"
    folder = plan.out / f"{plan.acoustic}-{tag}-{minutes:g}min"
    flags = labelled(plan, seed, minutes)
    if name == "logmel":
        flags += ["--config.data.name=folder", f"--config.data.root={plan.train}"]
        train("acoustic_logmel.py:demo", folder, [*flags, *acoustic(plan, 160)])
        return evaluate(folder, plan.test, "folder") | {"pretrain_minutes": 0.0}
    run = pretrain(plan, name, seed, hours=hours)
    given = ["--what", "context", "--dtype", "float16", *(["--untrained"] if untrained else [])]
    if name == "bert":
        given += ["--quantizer", str(plan.out / f"vq-{seed}")]
    parts = {part: plan.out / f"features-{tag}-{part}" for part in ("train", "test")}
    for part, root in (("train", plan.train), ("test", plan.test)):
        extract(run, parts[part], root=root, flags=given)
    hop = json.loads((parts["train"] / "extract.json").read_text(encoding="utf-8"))["hop"]
    flags += [f"--config.data.root={parts['train']}", f"--config.encoder.hop={hop}", *acoustic(plan, hop)]
    train("acoustic_frozen.py:features_demo", folder, flags)
    before = [run, plan.out / f"vq-{seed}"] if name == "bert" else [run]
    cost = 0.0 if untrained else sum(minutes_of(each) for each in before)
    return evaluate(folder, str(parts["test"]), "features") | {"pretrain_minutes": cost}


def acoustic(plan: Plan, hop: int) -> list[str]:
    """Flags of the acoustic model of the demo on frames `hop` samples apart. Its own frames are 20 ms apart."""
    stride, demo = 320 // hop, load(str(ROOT / "configs" / "acoustic_logmel.py:demo"))
    layers = tuple((c, k, min(s, stride)) for c, k, s in demo.acoustic.conv_layers)
    flags = {"kind": plan.acoustic, "stride": stride, "conv_layers": layers}
    return [f"--config.acoustic.{key}={value}" for key, value in flags.items()]


def finetune(plan: Plan, name: str, seed: int, *, minutes: float, scratch: bool) -> dict[str, Any]:
    """Scores after fine-tuning: wav2vec 2.0 with a linear layer on it, CPC with the acoustic model of `inputs`.

    From scratch everything is trained from the first update, at one learning rate.
    """
    tag = "ctc" if name == "w2v2" else f"ctc-{name}"
    folder = plan.out / f"{tag}-{seed}-{minutes:g}min{'-scratch' if scratch else ''}"
    run = "" if scratch else pretrain(plan, name, seed)
    flags = [*labelled(plan, seed, minutes), "--config.data.name=folder", f"--config.data.root={plan.train}"]
    flags += [f"--config.init.run={run}"]
    if scratch:
        flags += ["--config.encoder.frozen_steps=0", "--config.optim.rules=()"]
    elif name == "cpc":
        flags += [f"--config.encoder.frozen_steps={plan.steps // 3}"]
        flags += ["--config.optim.rules=((r'^encoder/', 0.3, 0.0),)"]
    if name == "cpc":
        flags += ["--config.encoder.frozen=false", *acoustic(plan, 160)]
    elif scratch:
        flags += ["--config.encoder.conv_grad_scale=1.0"]
    train("finetune.py:demo" if name == "w2v2" else "acoustic_frozen.py:cpc_demo", folder, flags)
    return evaluate(folder, plan.test, "folder") | {"pretrain_minutes": minutes_of(run) if run else 0.0}


def labelled(plan: Plan, seed: int, minutes: float) -> list[str]:
    """Flags of a training with labels: 24 s of speech per update. `minutes` count what is held out."""
    held_out = min(max(minutes / 10, 1.0), minutes / 2)
    seconds = ",".join(f"{s}" for s in plan.seconds) + ","
    flags = {
        "train.steps": plan.steps,
        "seed": seed,
        "data.train_hours": (minutes - held_out) / 60,
        "data.bucket_seconds": f"({seconds})",
    }
    flags |= {"data.batch_hours": 24 / 3600, "data.unit_seconds": 12.0, "data.device_seconds": 24.0, "data.hours": 0.0}
    flags |= {"data.eval_root": "()", "data.eval_share": 0.05, "data.eval_hours": held_out / 60}
    every = max(plan.steps // 20, 1)
    flags |= {"train.eval_every": every, "train.checkpoint_every": every}
    return [f"--config.{key}={value}" for key, value in flags.items()]


def train(config: str, folder: pathlib.Path, flags: Sequence[str]) -> None:
    given, path = [config, *flags], folder / "flags.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(given) + "\n", encoding="utf-8")
    if other := set(json.loads(path.read_text(encoding="utf-8"))) ^ set(given):
        sys.exit(f"error: {folder} was made with other flags ({' '.join(sorted(other))}): name another --out")
    if not (folder / "done.json").exists():
        command("train", f"--config={ROOT / 'configs' / config}", f"--workdir={folder}", *flags)


def evaluate(run: pathlib.Path, root: str, source: str) -> dict[str, Any]:
    """Error rates, and the minutes that the updates of the acoustic model took."""
    out = run / "evaluate"
    if not (out / "scores.json").exists():
        command("evaluate", "--run", run, "--source", source, "--root", root, "--out", out)
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    rates = {"cer": scores["cer"], "wer": scores["wer"], "recordings": scores["recordings"], "step": scores["step"]}
    rates["on_plateau"] = json.loads((run / "done.json").read_text(encoding="utf-8"))["on_plateau"]
    return rates | {"train_minutes": minutes_of(run)}


def minutes_of(run: pathlib.Path) -> float:
    """What the updates of a run took, without start-up, compilation and evaluation, whether it was stopped or not."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [row["step_seconds"] for row in rows if row["split"] == "train" and "step_seconds" in row]
    return float(np.mean(seconds)) * rows[-1]["step"] / 60


def command(name: str, *arguments: Any) -> None:
    """Runs a command of the package; its output goes to OUT's log, a line about it to the screen."""
    words = [sys.executable, "-m", f"w2v_jax.{name}", *map(str, arguments)]
    print(" ".join(["python", *words[1:]]), flush=True)
    start = time.monotonic()
    result = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    if result.returncode:
        sys.exit(f"error: this command failed with exit code {result.returncode}:\n{result.stderr[-2000:]}")
    print(f"  {time.monotonic() - start:.0f} s", flush=True)


# What people see


def summary(rows: Sequence[dict[str, Any]], key: str) -> dict[tuple[str, Any], tuple[float, float, int]]:
    """{(row, x): (mean, half the spread, seeds)} of a rate, without recognisers that ended on the plateau of CTC."""
    found: defaultdict[tuple[str, Any], list[float]] = defaultdict(list)
    for row in rows:
        if not row.get("on_plateau", False):
            found[row["row"], row["x"]].append(row[key])
    return {k: (float(np.mean(v)), float(np.ptp(v) / 2), len(v)) for k, v in found.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per input and amount: means over the seeds, half the distance between the best and the worst, and cost.

    Marked are recognisers that ended on the plateau of CTC, and speakers of training in the test.
    """
    cer, wer, before, after = (summary(rows, key) for key in ("cer", "wer", "pretrain_minutes", "train_minutes"))
    lines = [f"{'input':<20} {'amount':>8} {'CER':>15} {'WER':>15}  seeds  minutes of pretraining, training"]
    for row, x in dict.fromkeys((each["row"], each["x"]) for each in rows):
        these = [each for each in rows if (each["row"], each["x"]) == (row, x)]
        stuck = sum(each.get("on_plateau", False) for each in these)
        line = f"{row:<20} {'' if x == row else 'all' if x == 0 else f'{x:g}':>8}"
        if (row, x) in cer:
            (mean, spread, count), (words, words_spread, _) = cer[row, x], wer[row, x]
            line += f" {mean:>7.1%} ±{spread:>5.1%}  {words:>7.1%} ±{words_spread:>5.1%}  {count:>5}"
            line += f"  {before[row, x][0]:.1f}, {after[row, x][0]:.1f}"
        marks = [f"no result: {stuck} of {len(these)} ended on the plateau"] if stuck else []
        marks += ["same speakers"] if any(each.get("same_speakers") for each in these) else []
        lines.append("  ".join([line, *marks]))
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], claim: str, path: pathlib.Path) -> None:
    """Bars for the inputs; lines over the amount for the others. Bars of error are as long as the seeds lie apart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    ax, found = figure.subplots(), summary(rows, "cer")
    who = "the same speakers" if any(row.get("same_speakers") for row in rows) else "unseen speakers"
    rate = f"character error rate on {who}"
    if claim == "inputs":
        names = [row for row, _ in found][::-1]
        values = [found[name, name] for name in names]
        colors = ["#c05621" if n == "logmel" else "#a0aec0" if "untrained" in n else "#2b6cb0" for n in names]
        ax.barh(names, [v[0] for v in values], xerr=[v[1] for v in values], color=colors)
        ax.set_xlabel(rate)
    else:
        amounts = sorted({x for _, x in found}, key=lambda x: x or np.inf)
        places = {x: x or 2 * max(amounts) or 1.0 for x in amounts}  # 0 is all of it
        for name in dict.fromkeys(row for row, _ in found):
            xs = [x for x in amounts if (name, x) in found]
            means, spreads, _ = zip(*[found[name, x] for x in xs], strict=True)
            ax.errorbar([places[x] for x in xs], means, yerr=spreads, marker="o", label=name)
        ax.set_xscale("log")
        ax.set_xticks(list(places.values()), [f"{x:g}" if x else "all" for x in amounts])
        ax.minorticks_off()
        ax.set_xlabel("hours of unlabelled audio" if claim == "unlabelled" else "labelled minutes")
        ax.set_ylabel(rate)
        ax.set_ylim(bottom=0)
        if found:
            ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
