"""`python -m w2v_jax.probe`: how much of a label a linear classifier finds in frozen features.

Features of each recording are pooled over time (mean and standard deviation of the whole, and of four equal stretches:
`--segments`), and a ridge regression to the labels, in closed form, is fitted on the training part. Its strength is
chosen on training speakers that are set aside, never on the test part. Beside every run stand the same model as it was
before training and the log-mel features, pooled and classified in the same way. It does not train networks.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np

from w2v_jax import logmel, runs
from w2v_jax.api import Method
from w2v_jax.config import UserError, run_command
from w2v_jax.data import open_source, source_names
from w2v_jax.data.index import WAVE, Index, Source, hash_ids, split_heldout, subset
from w2v_jax.frontend import num_frames, valid_frames
from w2v_jax.metrics import interval
from w2v_jax.report import table, write_whole
from w2v_jax.runs import Run

STRENGTHS = tuple(10.0**power for power in range(-4, 5))
"""Ridge penalties that are tried, in units of the mean variance of a feature times the number of recordings."""
VALIDATION_SHARE = 0.2

EXAMPLES = """example:
  Keywords of speakers that are not in the training part, for two runs and every layer of them:
    python -m w2v_jax.probe --run runs/cpc --run runs/base --layer all --train /data/train --test /data/dev --out probe
  BERT over codes reads the codes of a vq-wav2vec: --run runs/bert --quantizer runs/vq
  Who speaks: --label speaker, without --test: a fifth of the recordings of each speaker is set aside.

exit codes: 0 done, 1 a mistake, 2 wrong usage."""


class Input(NamedTuple):
    """One line of the result: a name, the model, what is taken of it, and the layer (of hidden) or None."""

    name: str
    run: Run
    what: str
    layer: int | None
    quantizer: Run | None


class Labels(NamedTuple):
    """Rows of a source that have a label, and the label of each as a number of `names`."""

    source: Source
    labels: np.ndarray
    names: list[str]


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    train, test = open_parts(args)
    chosen = inputs(args)
    print(f"probing for {args.label}: {_describe(train, test)}", flush=True)
    results = []
    for each in chosen:
        features = [pooled(each, part.source, args.segments) for part in (train, test)]
        for n in args.segments:
            results.append(score(each, n, features[0][n], train, features[1][n], test))
            print(f"  {_line(results[-1])}", flush=True)
    models = {id(each.run): each.run for each in chosen if "codes" in each.run.outputs}.values()
    told = [
        {"name": f"{run.path.name}{'' if run.step else ', untrained'}", "groups": code_information(run, test)}
        for run in models
    ]
    for entry in told:
        groups = ", ".join(f"{share:.1%}" for share in entry["groups"])
        print(f"  the codes of {entry['name']} tell {groups} of the label (per group of codes, frame by frame)")
    levels = reference_levels(train, test)
    args.out.mkdir(parents=True, exist_ok=True)
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
    add("--label", choices=("transcript", "speaker"), default="transcript", help="what is to be found")
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
    add("--no-random", action="store_true", help="leave out the models as they were before training")
    add("--out", required=True, type=pathlib.Path, metavar="DIR", help="folder for probe.json and probe.png")
    add("--workers", type=int, default=0, metavar="N", help="threads that read (default: one per core)")
    args = parser.parse_args(argv)
    if min(args.segments) < 1:
        parser.error("--segments must be at least 1")
    if args.layer not in ("all", "local", "context") and not args.layer.isdigit():
        parser.error(f"--layer {args.layer}: it is a number, 'all', 'local' or 'context'")
    return args


# Data


def open_parts(args: argparse.Namespace) -> tuple[Labels, Labels]:
    """Labelled recordings to learn from and to score. Raises UserError when there is nothing to learn or to score."""
    train = open_source(args.source, tuple(args.train), workers=args.workers)
    if args.test:
        test = open_source(args.source, tuple(args.test), workers=args.workers)
    else:
        kept, aside = split_heldout(train.index, VALIDATION_SHARE)
        train, test = subset(train, kept), subset(train, aside)
    return label(train, test, args.label)


def label(train: Source, test: Source, what: str) -> tuple[Labels, Labels]:
    """The rows that have a label; of the test part those whose label can be learned. What is left out is told."""
    train_text, test_text = (_texts(source.index, what) for source in (train, test))
    names = sorted({text for text in train_text if text})
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise UserError(f"--label {what}: the training part needs recordings with two labels or more; it has {found}")
    number = {name: i for i, name in enumerate(names)}
    unseen = sorted({text for text in test_text if text and text not in number})
    parts = []
    for source, texts, where in ((train, train_text, "training"), (test, test_text, "test")):
        rows = np.array([i for i, text in enumerate(texts) if text in number], np.int64)
        if len(rows) < len(texts):
            names_left = f", among them labels that the training part lacks: {', '.join(unseen[:5])}" if unseen else ""
            print(f"  {len(texts) - len(rows):,} recordings of the {where} part have no label{names_left}", flush=True)
        if not len(rows):
            raise UserError(f"--label {what}: no recording of the {where} part has a label of the training part")
        parts.append(Labels(subset(source, rows), np.array([number[texts[i]] for i in rows]), names))
    return parts[0], parts[1]


def _texts(index: Index, what: str) -> list[str]:
    return (index.transcripts if what == "transcript" else index.speakers).tolist()


def _describe(train: Labels, test: Labels) -> str:
    shared = set(train.source.index.speakers.tolist()) & set(test.source.index.speakers.tolist()) - {""}
    same = f"; {len(shared)} speakers are in both parts" if shared else ""
    counts = f"{len(train.labels):,} recordings to learn from, {len(test.labels):,} to score"
    return f"{len(train.names)} labels, {counts}{same}"


def reference_levels(train: Labels, test: Labels) -> dict[str, float]:
    """What guessing reaches, and what always naming the most frequent label of the training part reaches."""
    frequent = np.bincount(train.labels).argmax()
    return {"chance": 1 / len(train.names), "majority": float((test.labels == frequent).mean())}


# Features


def inputs(args: argparse.Namespace) -> list[Input]:
    """Log-mel features, then every run with the same model untrained beside it, layer by layer."""
    chosen = [Input("log-mel", log_mel_run(), "local", None, None)]
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


def log_mel_run() -> Run:
    """Log-mel features in the form of a run without parameters."""

    def predict(params: Any, extra: Any, batch: Any) -> dict[str, Any]:
        frames = num_frames(jnp.asarray(batch["num_samples"]), logmel.LAYERS)
        features = logmel.log_mel(batch["wave"])
        return {"local": features, "valid": valid_frames(frames, features.shape[1])}

    config = ml_collections.ConfigDict(
        dict(method="logmel", encoder=dict(conv_layers=logmel.LAYERS), data=dict(normalize=False))
    )
    return Run(config, Method(None, None, predict), {}, {}, 0, "", pathlib.Path("log-mel"), WAVE)  # pyright: ignore


def pooled(each: Input, source: Source, segments: Sequence[int]) -> dict[int, np.ndarray]:
    """{segments: features [recordings P]}; NaN where a recording could not be read."""
    law: dict[str, Any] = dict(keys=(each.what,), layer=each.layer, quantizer=each.quantizer)
    found: dict[int, np.ndarray] = {}
    for row, arrays in runs.encode(each.run, source, **law):
        for n in segments:
            vector = pool(arrays[each.what], n)
            if n not in found:
                found[n] = np.full((len(source.index), len(vector)), np.nan, np.float32)
            found[n][row] = vector
    if not found:
        raise UserError(f"{each.name}: no recording has a frame")
    return found


def code_information(run: Run, part: Labels) -> list[float]:
    """Mutual information of code and label over all frames, as a share of the label's entropy, of each group of codes.

    A label is that of the whole recording, so that 100 % cannot be expected.
    """
    counts: dict[tuple[int, int, int], int] = {}
    for row, arrays in runs.encode(run, part.source, keys=("codes",)):
        for group, column in enumerate(arrays["codes"].T):
            for code, count in zip(*np.unique(column, return_counts=True), strict=True):
                key = (group, int(code), int(part.labels[row]))
                counts[key] = counts.get(key, 0) + int(count)
    groups = 1 + max(group for group, _, _ in counts)
    tables = np.zeros((groups, 1 + max(code for _, code, _ in counts), len(part.names)))
    for place, count in counts.items():
        tables[place] = count
    return [mutual_information(table) for table in tables]


def mutual_information(counts: np.ndarray) -> float:
    """I(code; label) / H(label) of joint counts [codes labels]; 0 where there is one label only."""
    joint = counts / counts.sum()
    code, label = joint.sum(axis=1, keepdims=True), joint.sum(axis=0, keepdims=True)
    entropy = -(label[label > 0] * np.log(label[label > 0])).sum()
    seen = joint > 0
    information = (joint[seen] * np.log(joint[seen] / (code * label)[seen])).sum()
    return float(information / entropy) if entropy > 0 else 0.0


def pool(frames: np.ndarray, segments: int) -> np.ndarray:
    """[F D] -> [segments * 2 D]: mean and standard deviation of each of `segments` stretches of about equal length."""
    edges = np.linspace(0, len(frames), segments + 1).round().astype(int)
    starts = np.minimum(edges[:-1], len(frames) - 1)
    pieces = [frames[a : max(b, a + 1)] for a, b in zip(starts, edges[1:], strict=True)]
    return np.concatenate([x for piece in pieces for x in (piece.mean(axis=0), piece.std(axis=0))])


# Classifier


class Ridge(NamedTuple):
    """Scores = (x - mean) / scale @ weights + bias."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The best label [N] of features [N P]."""
        return (((x - self.mean) / self.scale) @ self.weights + self.bias).argmax(axis=1)


def fit(x: np.ndarray, labels: np.ndarray, classes: int, strengths: Sequence[float]) -> Iterator[Ridge]:
    """Ridge regressions of the one-hot labels on standardised features [N P], one per strength, in closed form.

    One eigendecomposition serves all strengths: of the smaller of the Gram matrices [P P] and [N N].
    """
    x = x.astype(np.float64)
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-8)
    x = (x - mean) / scale
    y = np.eye(classes)[labels]
    bias = y.mean(axis=0)
    y = y - bias
    if x.shape[0] >= x.shape[1]:
        values, vectors = np.linalg.eigh(x.T @ x)
        right = vectors.T @ (x.T @ y)
        solve = lambda penalty: vectors @ (right / (values + penalty)[:, None])
    else:
        values, vectors = np.linalg.eigh(x @ x.T)
        right = vectors.T @ y
        solve = lambda penalty: x.T @ (vectors @ (right / (values + penalty)[:, None]))
    for strength in strengths:
        yield Ridge(mean, scale, solve(strength * len(x)), bias)


def score(each: Input, segments: int, x: np.ndarray, train: Labels, x_test: np.ndarray, test: Labels) -> dict[str, Any]:
    """Accuracy on the test part with its 95 % interval, and the strength that the training part chose."""
    real, real_test = (np.flatnonzero(np.isfinite(each).all(axis=1)) for each in (x, x_test))
    classes, labels = len(train.names), train.labels[real]
    aside = set_aside(train.source.index.select(real))
    tried = fit(x[real][~aside], labels[~aside], classes, STRENGTHS)
    right = [float((ridge.predict(x[real][aside]) == labels[aside]).mean()) for ridge in tried]
    strength = STRENGTHS[int(np.argmax(right))]
    ridge = next(fit(x[real], labels, classes, [strength]))
    hits = (ridge.predict(x_test[real_test]) == test.labels[real_test]).astype(float)
    low, high = interval(hits, np.ones(len(hits)), test.source.index.select(real_test).speakers)
    return {
        "name": each.name,
        "what": each.what,
        "layer": each.layer,
        "segments": segments,
        "width": x.shape[1],
        "accuracy": float(hits.mean()),
        "low": low,
        "high": high,
        "validation": max(right),
        "strength": strength,
        "unread": len(x) + len(x_test) - len(real) - len(real_test),
    }


def set_aside(index: Index) -> np.ndarray:
    """[N] bool: about a fifth of the speakers, with all that they said; of the recordings where there are too few."""
    speakers = np.unique(index.speakers)
    if len(speakers) >= 5:
        order = speakers[np.argsort(hash_ids(speakers))]
        return np.isin(index.speakers, order[: max(1, round(VALIDATION_SHARE * len(order)))])
    aside = np.zeros(len(index), bool)
    aside[split_heldout(index, VALIDATION_SHARE)[1]] = True
    return aside


# What people see


def _line(result: dict[str, Any]) -> str:
    unread = f", {result['unread']} recordings could not be read" if result["unread"] else ""
    spread = f"({result['low']:.1%} to {result['high']:.1%})"
    return f"{result['accuracy']:>6.1%} {spread:<18} {result['segments']} segment(s)  {result['name']}{unread}"


def draw(results: Sequence[dict[str, Any]], levels: dict[str, float], label: str, path: pathlib.Path) -> None:
    """A bar for every input with its interval, a panel for every way of pooling, and the level of chance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ways = sorted({result["segments"] for result in results})
    shown = [[result for result in results if result["segments"] == n] for n in ways]
    figure = Figure(figsize=(4 + 5 * len(ways), 1.7 + 0.36 * len(shown[0])), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Accuracy of a linear classifier: {label}", fontsize=13)
    for ax, n, rows in zip(figure.subplots(1, len(ways), sharey=True, squeeze=False)[0], ways, shown, strict=True):
        place = np.arange(len(rows))[::-1]
        values = np.array([row["accuracy"] for row in rows])
        spread = np.array([(row["accuracy"] - row["low"], row["high"] - row["accuracy"]) for row in rows]).T
        colors = [_color(row["name"]) for row in rows]
        ax.barh(place, values, xerr=np.maximum(spread, 0), color=colors, ecolor="#1a202c", capsize=2.5, height=0.7)
        ax.set_yticks(place, [row["name"] for row in rows])
        ax.axvline(levels["chance"], color="#718096", linestyle=(0, (4, 3)), linewidth=1.2)
        ax.set_title("statistics of the whole" if n == 1 else f"statistics of {n} stretches", loc="left")
        ax.set_xlabel("accuracy; 95 % over speakers; dashed: chance")
        ax.set_xlim(0, 1)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def _color(name: str) -> str:
    return "#a0aec0" if name.endswith("untrained") else "#c05621" if name == "log-mel" else "#2b6cb0"


if __name__ == "__main__":
    run_command(main)
