"""Frozen features to labels by a linear classifier: what `probe` measures, and training on its way.

Labels are those of recordings (transcript, speaker: features are pooled over time), or of frames (letters, placed by
`align.py`: features as they are). The classifier is a ridge regression in closed form; its strength is chosen on
training speakers that are set aside, never on the test part. No network is trained.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType

from w2v_jax import align, logmel, runs, sharding
from w2v_jax.api import Method, PyTree
from w2v_jax.config import UserError
from w2v_jax.data import open_source
from w2v_jax.data.index import WAVE, Form, Index, Source, some_hours, split_heldout, subset
from w2v_jax.data.labels import BOUNDARY, build
from w2v_jax.frontend import num_frames, valid_frames
from w2v_jax.linear import STRENGTHS, VALIDATION_SHARE, fit, mutual_information, pool, set_aside
from w2v_jax.metrics import interval
from w2v_jax.runs import Run

FRAMES = 40_000
"""About so many frames of each part are classified."""
LIVE_SEGMENTS = 1
LABELS = ("transcript", "speaker", "letter")


class Input(NamedTuple):
    """One line of a result: a name, the model, what is taken of it, and the layer (of hidden) or None."""

    name: str
    run: Run
    what: str
    layer: int | None
    quantizer: Run | None

    def encode(self, source: Source) -> Iterator[tuple[int, np.ndarray]]:
        """(row, features [F D]) of each recording."""
        law: dict[str, Any] = dict(keys=(self.what,), layer=self.layer, quantizer=self.quantizer)
        for row, arrays in runs.encode(self.run, source, **law):
            yield row, arrays[self.what]


class Part(Protocol):
    """Labelled recordings: `names` of the labels, and the number of the label of each frame (-1: none)."""

    @property
    def source(self) -> Source: ...

    @property
    def names(self) -> list[str]: ...

    @property
    def every(self) -> np.ndarray:
        """The labels that there are."""
        ...

    def of_frames(self, row: int, centres: np.ndarray) -> np.ndarray: ...


class Labels(NamedTuple):
    """Rows of a source that have a label, and the label of each as a number of `names`."""

    source: Source
    labels: np.ndarray
    names: list[str]

    @property
    def every(self) -> np.ndarray:
        return self.labels

    def of_frames(self, row: int, centres: np.ndarray) -> np.ndarray:
        return np.full(len(centres), self.labels[row])


class Letters(NamedTuple):
    """Recordings, the letter of each of their log-mel frames (a number of `names`, -1 in silence), and the names."""

    source: Source
    frames: list[np.ndarray]
    names: list[str]

    @property
    def every(self) -> np.ndarray:
        labels = np.concatenate(self.frames)
        return labels[labels >= 0]

    def of_frames(self, row: int, centres: np.ndarray) -> np.ndarray:
        """The letters at some samples of a recording; none outside of it."""
        place = np.round((centres - logmel.FIELD / 2) / logmel.HOP).astype(int)
        labels = self.frames[row]
        if not len(labels):
            return np.full(len(place), -1)
        return np.where((place >= 0) & (place < len(labels)), labels[np.clip(place, 0, len(labels) - 1)], -1)


# Data


def open_parts(
    name: str, train: Sequence[str], test: Sequence[str], what: str, hours: float = 0.0, workers: int = 0
) -> tuple[Part, Part]:
    """Labelled recordings to learn from and to score; without `test` a fifth of the others.

    hours: above 0, at most so much of each. Raises UserError when there is nothing to learn or to score.
    """
    if what not in LABELS:
        raise UserError(f"the label of a probe is {what!r}; it is one of {', '.join(LABELS)}")
    source = open_source(name, tuple(train), workers=workers)
    if test:
        parts = source, open_source(name, tuple(test), workers=workers)
    else:
        kept, aside = split_heldout(source.index, VALIDATION_SHARE)
        parts = subset(source, kept), subset(source, aside)
    if hours > 0:
        parts = subset(parts[0], some_hours(parts[0].index, hours)), subset(parts[1], some_hours(parts[1].index, hours))
    return letters(*parts) if what == "letter" else label(*parts, what)


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


def letters(train: Source, test: Source) -> tuple[Letters, Letters]:
    """Both parts with their letters placed in time, together and alike. What cannot be placed has no label."""
    if train.form != WAVE:
        raise UserError(f"letters are placed by the sound of recordings, and the source holds {train.form.name}")
    alphabet = build(train.index.transcripts.tolist(), "letters", "keep", "", 1)[0]
    names = [token for token in alphabet.tokens[1:] if token != BOUNDARY]
    if len(names) < 2:
        raise UserError(f"letters: the transcripts of the training part need two letters or more; they have {names}")
    number = {name: 1 + i for i, name in enumerate(names)} | {BOUNDARY: align.SILENCE}
    features, tokens = [], []
    for source in (train, test):
        found: list[np.ndarray] = [np.zeros((0, 1), np.float32)] * len(source.index)
        for row, log_mel in log_mel_input().encode(source):
            found[row] = align.prepared(log_mel)
        features += found
        for text in source.index.transcripts.tolist():
            split = alphabet.split(text)
            tokens.append(np.array([number[c] for c in split] if all(c in number for c in split) else [], np.int32))
    placed = [row - 1 for row in align.align(features, tokens)]
    cut = len(train.index)
    parts = Letters(train, placed[:cut], names), Letters(test, placed[cut:], names)
    for part, where in zip(parts, ("training", "test"), strict=True):
        if not any((row >= 0).any() for row in part.frames):
            raise UserError(f"letters: no recording of the {where} part has a transcript that can be placed in it")
    return parts


def reference_levels(train: Part, test: Part) -> dict[str, float]:
    """What guessing reaches, and what always naming the most frequent label of the training part reaches."""
    frequent = np.bincount(train.every).argmax()
    return {"chance": 1 / len(train.names), "majority": float((test.every == frequent).mean())}


# Features


@functools.cache
def log_mel_input() -> Input:
    """Log-mel features, in the form of a run without parameters."""
    import ml_collections

    def predict(params: Any, extra: Any, batch: Any) -> dict[str, Any]:
        frames = num_frames(jnp.asarray(batch["num_samples"]), logmel.LAYERS)
        features = logmel.log_mel(batch["wave"])
        return {"local": features, "valid": valid_frames(frames, features.shape[1])}

    config = ml_collections.ConfigDict(
        dict(method="logmel", encoder=dict(conv_layers=logmel.LAYERS), data=dict(normalize=False))
    )
    run = Run(config, Method(None, None, predict), {}, {}, 0, "", pathlib.Path("log-mel"), WAVE)  # pyright: ignore
    return Input("log-mel", run, "local", None, None)


def measure(each: Input, train: Part, test: Part, segments: Sequence[int]) -> list[dict[str, Any]]:
    """The scores of an input: one for every way of pooling recordings (`segments`), or one of its frames."""
    if isinstance(train, Labels) and isinstance(test, Labels):
        x, x_test = (pooled(each, part.source, segments) for part in (train, test))
        return [score(each, n, x[n], train, x_test[n], test) for n in segments]
    (x, frames), (x_test, frames_test) = (framed(each, part) for part in (train, test))
    return [score(each, 0, x, frames, x_test, frames_test)]


def pooled(each: Input, source: Source, segments: Sequence[int]) -> dict[int, np.ndarray]:
    """{segments: features [recordings P]}; NaN where a recording could not be read."""
    found: dict[int, np.ndarray] = {}
    for row, features in each.encode(source):
        for n in segments:
            vector = pool(features, n)
            if n not in found:
                found[n] = np.full((len(source.index), len(vector)), np.nan, np.float32)
            found[n][row] = vector
    if not found:
        raise UserError(f"{each.name}: no recording has a frame")
    return found


def framed(each: Input, part: Part) -> tuple[np.ndarray, Labels]:
    """(features [N D], their labels) of labelled frames: about FRAMES, as many of each recording, evenly spaced."""
    most = -(-FRAMES // len(part.source.index))
    first = each.quantizer or each.run
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    for row, features in each.encode(part.source):
        labels = part.of_frames(row, centres_of(first, len(features)))
        known = np.flatnonzero(labels >= 0)
        known = known[np.linspace(0, len(known), min(most, len(known)), endpoint=False).astype(int)]
        found.append((row, features[known], labels[known]))
    found.sort(key=lambda entry: entry[0])
    labels = np.concatenate([labels for *_, labels in found])
    if not len(labels):
        raise UserError(f"{each.name}: no frame has a label")
    rows = np.repeat([row for row, *_ in found], [len(labels) for *_, labels in found])
    return np.concatenate([x for _, x, _ in found]), Labels(subset(part.source, rows), labels, part.names)


def centres_of(run: Run, frames: int) -> np.ndarray:
    """The 16 kHz sample in the middle of what each frame sees."""
    field, hop = run.geometry
    return np.arange(frames) * hop + field / 2


def code_information(run: Run, part: Part) -> list[float]:
    """Mutual information of code and label over all frames, as a share of the label's entropy, of each group of codes.

    Where a label is that of a whole recording, 100 % cannot be expected.
    """
    codes, labels = [], []
    for row, arrays in runs.encode(run, part.source, keys=("codes",)):
        here = part.of_frames(row, centres_of(run, len(arrays["codes"])))
        codes.append(arrays["codes"][here >= 0])
        labels.append(here[here >= 0])
    code, label = np.concatenate(codes), np.concatenate(labels)
    tables = np.zeros((code.shape[1], 1 + code.max(initial=0), len(part.names)))
    for table, column in zip(tables, code.T, strict=True):
        np.add.at(table, (column, label), 1)
    return [mutual_information(table) for table in tables]


# Classifier


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


# On the way of a training


class LiveProbe:
    """Measures the context features of a model in training; labels and the log-mel reference are made once.

    Reads config.probe: root, test_root, label and hours. Every process makes one and calls `measure` at the same steps;
    process 0 works, on one device.
    """

    def __init__(self, config: Any, form: Form):
        law = config.probe
        self.config = config.copy_and_resolve_references()
        with self.config.unlocked():
            self.config.encoder.padding_aware = True
        self.name, self.reference = f"probe_{law.label}", {}
        self.parts: tuple[Part, Part] | None = None
        self.run = Run(
            self.config,
            runs.method_module(config.method).make(self.config),
            {},
            {},
            0,
            "",
            pathlib.Path("the run"),
            form,
        )
        if not law.root:
            raise UserError("probe.every is set, and probe.root names no recordings with labels")
        if jax.process_index() == 0:
            self.parts = open_parts(config.data.name, law.root, law.test_root, law.label, law.hours)
            runs.check_form(self.run, self.parts[0].source)
            if form == WAVE:
                self.reference = {"probe_log-mel": self._accuracy(log_mel_input())}

    def measure(self, params: PyTree, extra: PyTree, step: int) -> dict[str, float]:
        """{"probe_LABEL": accuracy, "probe_log-mel": that of the reference}; nothing but on process 0."""
        if jax.process_count() > 1:
            params, extra = multihost_utils.process_allgather((params, extra), tiled=True)
        if self.parts is None:
            return {}
        params, extra = jax.device_get((params, extra))
        run = dataclasses.replace(self.run, params=params, extra=extra, step=step)  # what was compiled is kept
        return {self.name: self._accuracy(Input("the run", run, "context", None, None))} | self.reference

    def _accuracy(self, each: Input) -> float:
        assert self.parts is not None
        alone = jax.make_mesh((1, 1, 1), sharding.MESH_AXES, (AxisType.Auto,) * 3, devices=jax.local_devices()[:1])
        with jax.set_mesh(alone), nn.logical_axis_rules(()):
            return measure(each, *self.parts, [LIVE_SEGMENTS])[0]["accuracy"]
