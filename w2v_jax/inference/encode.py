"""Recordings of any length to features, which are the same alone as in a batch.

run = open_run("runs/vq")
for row, arrays in encode(run, open_source("folder", "/data/speech")):
    arrays["codes"]  # [F G]; also local, context and hidden
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from w2v_jax.core.cli import UserError, out_of_memory, warn
from w2v_jax.core.units import CODE_PAD, SAMPLE_RATE
from w2v_jax.data.batch_plan import FILLER, eval_plan
from w2v_jax.data.code_vocabulary import VOCABULARY_FILE, Vocabulary
from w2v_jax.data.index import WAVE, Form, Index, Source
from w2v_jax.data.kept.columns import Column
from w2v_jax.data.pipeline import batches, normalized
from w2v_jax.inference.run import LOGITS, Layer, Run
from w2v_jax.nn.acoustic_model import stride

MAX_SECONDS = 80.0
BATCH_SECONDS = 160.0
SHORTEST_SECONDS = 1.25
TOO_SHORT = "too short for one frame"
BATCH_FLAG, LENGTH_FLAG = "--batch-seconds", "--max-seconds"
OTHER_DEVICE = "take a device with more memory, or the processor with JAX_PLATFORMS=cpu"

EncodedArrays = dict[str, np.ndarray]


# Encoding


def encode(
    run: Run,
    source: Source,
    rows: Sequence[int] | np.ndarray | None = None,
    *,
    keys: Sequence[str] | None = None,
    layer: Layer = None,
    quantizer: Run | None = None,
    max_seconds: float = MAX_SECONDS,
    batch_seconds: float = BATCH_SECONDS,
    margin_seconds: float = 0.0,
    workers: int = 0,
    overlap: bool = True,
    then: Callable[[dict[str, jax.Array]], dict[str, jax.Array]] | None = None,
    on_skip: Callable[[int, str], None] | None = None,
    flags: Sequence[str] = (BATCH_FLAG, LENGTH_FLAG),
) -> Iterator[tuple[int, EncodedArrays]]:
    """(row number, {key: array}) of each row of the source, in no particular order. Arrays hold valid frames only.

    keys: which of local [F C], context [F D], hidden [L F D] (or [F D] of one `layer`) and codes [F G] to compute, all
    by default. Arrays are float32, codes int32. ("logits",) [F' A] stands alone, because F' may differ from F.
    quantizer: the vq-wav2vec whose codes `run` reads; then the source holds audio, which it encodes first.

    Rows are padded to a few fixed lengths, in batches of `batch_seconds`, which the devices of `run.mesh` share, at
    least a row each. None of it changes a feature beyond rounding. A recording longer than max_seconds, or than the
    positions that the model has learnt, is cut into equal pieces. They overlap by the samples of a frame, so that no
    frame is lost. Context, and norms over time, end with the piece, or `margin_seconds` beyond it on either side.
    Without `overlap`, pieces of max_seconds follow each other, and frames over a cut are lost.

    then: a function on the device of the arrays of a batch, padding included; what it returns takes their place.
    flags: which of the two that lower batch_seconds and max_seconds the caller has, for the error about memory.

    A row that cannot be read or has no frame goes to `on_skip` with the reason (default: a line on stderr). Raises
    UserError if source, run and quantizer do not fit, for keys that the method lacks, for a layer out of range, and
    where the device has no memory for a batch.
    """
    keys = check_keys(run, keys, layer)
    first = quantizer or run
    predict = run.predictor(keys, layer)
    if quantizer is not None:
        predict = _predict_from_audio(quantizer, run, predict)
    if then is not None:
        predict = _followed_by(then, predict)
    check_form(first, source)
    rows = np.arange(len(source.index)) if rows is None else np.asarray(rows, np.int64)
    if first.config.data.normalize and source.form == WAVE:
        source = normalized(source)
    field, hop = first.geometry
    hop *= stride(run.config.acoustic) if keys == LOGITS else 1
    max_samples = max(int(max_seconds * SAMPLE_RATE), field)
    if run.most_frames:
        max_samples = min(max_samples, (run.most_frames - 2) * hop + field)  # a last piece may be a hop longer
    num_samples = source.index.num_samples[rows]
    on_skip = on_skip or functools.partial(_warn_skipped, source.index)
    for row, length in zip(rows[num_samples < field], num_samples[num_samples < field]):
        on_skip(int(row), f"{TOO_SHORT}: {length} samples of {field}")
    rows = rows[num_samples >= field]
    if not len(rows):
        return iter(())
    margin = int(margin_seconds * SAMPLE_RATE)
    pieces = Pieces(source, rows, field=field, hop=hop, max_samples=max_samples, margin=margin, overlap=overlap)
    plan = eval_plan(
        pieces.index.num_samples,
        bucket_samples=_bucket_lengths(pieces.max_samples),
        units=first.devices,
        unit_seconds=batch_seconds / first.devices,
        max_hours=0,
    )
    results = _results(batches(pieces, plan, loader="threads", workers=workers), plan, predict)
    longest = pieces.max_samples / SAMPLE_RATE
    results = _within_memory(results, batch_seconds, longest, devices=first.devices, flags=flags)
    return _joined(pieces, results, on_skip)


def check_keys(run: Run, keys: Sequence[str] | None, layer: Layer) -> tuple[str, ...]:
    """The keys that `encode` computes. Raises UserError for a key that the method lacks, or a layer out of range."""
    keys = tuple(key for key in run.outputs if key != "logits") if keys is None else tuple(keys)
    for key in keys:
        if key not in run.outputs:
            raise UserError(f"{run.path} ({run.config.method}) has no {key}; it gives {', '.join(run.outputs)}")
    if layer is not None and "hidden" in keys:
        layers = run.outputs["hidden"][0]
        if isinstance(layer, tuple):
            if len(layer) != layers:
                raise UserError(f"{len(layer)} weights: {run.path} has {layers} hidden states, and each needs a weight")
        elif not 0 <= layer < layers:
            raise UserError(f"layer {layer}: {run.path} has {layers} hidden states, 0 to {layers - 1}")
    return keys


def check_form(run: Run, source: Source) -> None:
    """Raises UserError unless the run reads what the source holds."""
    if source.form == run.form:
        return
    name = f"{run.path} ({run.config.method})"
    if run.form == WAVE:
        raise UserError(f"{name} reads audio, but the source holds {source.form.name}; give a source of audio")
    if source.form == WAVE:
        raise UserError(
            f"{name} reads {run.form.name}, but the source holds audio: name the run that makes its codes as the "
            "quantizer (--quantizer RUN), or give a folder of codes (--source codes)"
        )
    raise UserError(
        f"the source's {source.form.name} were not made by the model and vocabulary that {run.path} was trained on "
        f"({source.form.made_by}, one per {source.form.hop} samples; trained on {run.form.made_by}, {run.form.hop})"
    )


def vocabulary_of(run: Run) -> Vocabulary:
    """The vocabulary in the folder of the run. Raises UserError if there is none, or if it is of another step."""
    file = run.path / VOCABULARY_FILE
    if not file.exists():
        raise UserError(
            f"{run.path} has no vocabulary yet. Build it by coding the data of its training:\n  {_extract_command(run)}"
        )
    vocabulary = Vocabulary.load(file)
    if vocabulary.model != run.digest:
        raise UserError(
            f"{file} belongs to other parameters (step {vocabulary.step}, {vocabulary.model}) than those of step "
            f"{run.step} ({run.digest}): choose step {vocabulary.step}, or move the vocabulary away and build one for "
            f"step {run.step}:\n  {_extract_command(run)}"
        )
    return vocabulary


def _extract_command(run: Run) -> str:
    """The command that builds the vocabulary of the run from its training data."""
    data = run.config.data
    roots = data.root if isinstance(data.root, str) else " ".join(data.root)
    split = f" --split '{data.split}'" if data.name == "tfds" else ""
    return (
        f"python -m w2v_jax.extract --run {run.path} --step {run.step} --what codes --source {data.name} "
        f"--root {roots}{split} --out DIR --build-vocabulary"
    )


def _predict_from_audio(quantizer: Run, run: Run, predict: Any) -> Any:
    """`predict`, which reads ids of the vocabulary, as a function of audio: `quantizer` makes the codes."""
    check_keys(quantizer, ("codes",), None)
    vocabulary = vocabulary_of(quantizer)
    hop = quantizer.geometry[1]
    if Form("codes", "int32", hop=hop, made_by=vocabulary.digest) != run.form:
        raise UserError(
            f"{run.path} was not trained on codes of {quantizer.path} (step {quantizer.step}); name the run, and the "
            "step, that made them"
        )
    quantize = quantizer.predictor(("codes",), None)

    def from_audio(batch: dict[str, Any]) -> dict[str, jax.Array]:
        quantized = jax.device_get(quantize(batch))
        ids, num_frames = vocabulary.encode(quantized["codes"]), quantized["num_frames"]
        ids[np.arange(ids.shape[1]) >= num_frames[:, None]] = CODE_PAD
        num_samples = (num_frames * hop).astype(np.int32)
        return predict({"codes": ids, "num_samples": num_samples, "weight": batch["weight"], "row": batch["row"]})

    return from_audio


def _followed_by(then: Any, predict: Any) -> Any:
    """`predict`, with the arrays that `then` makes of its own."""

    def both(batch: dict[str, Any]) -> dict[str, jax.Array]:
        arrays = dict(predict(batch))
        num_frames = arrays.pop("num_frames")
        return then(arrays) | {"num_frames": num_frames}

    return both


def _joined(
    pieces: Pieces, results: Iterator[tuple[int, EncodedArrays | str]], on_skip: Callable[[int, str], None]
) -> Iterator[tuple[int, EncodedArrays]]:
    """(row, its arrays) of the rows all of whose pieces could be read, from the results of the pieces."""
    finished: dict[int, dict[int, EncodedArrays]] = {}
    failed: set[int] = set()
    for piece, result in results:
        row = int(pieces.rows[piece])
        if isinstance(result, str):
            if row not in failed:
                on_skip(row, result)
            failed.add(row)
            finished.pop(row, None)
        elif row not in failed:
            of_row = finished.setdefault(row, {})
            inside = slice(pieces.leads[piece], pieces.leads[piece] + pieces.sizes[piece])
            of_row[piece] = {key: array[..., inside, :] for key, array in result.items()}
            if len(of_row) == pieces.counts[row]:
                parts = [of_row[number] for number in sorted(finished.pop(row))]
                yield row, {key: np.concatenate([part[key] for part in parts], axis=-2) for key in parts[0]}


def _within_memory(
    results: Iterator[Any], batch_seconds: float, longest: float, *, devices: int, flags: Sequence[str]
) -> Iterator[Any]:
    """`results`. Raises UserError where the device has no memory for a batch: the flag with half of what is too much.

    longest: seconds of the longest piece, of which each device holds at least one.
    """
    try:
        yield from results
    except jax.errors.JaxRuntimeError as error:
        if not (reason := out_of_memory(error)):
            raise
        of_device = batch_seconds / devices
        flag, seconds = (BATCH_FLAG, batch_seconds) if of_device > longest else (LENGTH_FLAG, longest)
        advice = f"lower it with {flag}={seconds / 2:.3g}" if flag in flags else OTHER_DEVICE
        what = f"{max(of_device, longest):.3g} s of audio at once"
        raise UserError(f"the device has no memory for {what} ({reason}): {advice}") from None


def _results(stream: Any, plan: Any, predict: Any) -> Iterator[tuple[int, EncodedArrays | str]]:
    """(piece, its arrays or why it could not be read). The device computes a batch while the host cuts the last one."""
    pending = None
    for batch, info in stream:
        reasons = {id: reason for id, _, reason in info.failed}
        submitted = (predict(batch), plan.step(info.step).rows, [reasons.get(id, "") for id in info.ids])
        if pending is not None:
            yield from _split_batch(*pending)
        pending = submitted
    if pending is not None:
        yield from _split_batch(*pending)


def _split_batch(outputs: Any, rows: np.ndarray, reasons: list[str]) -> Iterator[tuple[int, EncodedArrays | str]]:
    outputs = jax.device_get(outputs)
    frames = outputs.pop("num_frames")
    for i, (row, reason) in enumerate(zip(rows, reasons, strict=True)):
        if row != FILLER:
            of_row = {key: (x[:, i] if x.ndim == 4 else x[i])[..., : frames[i], :] for key, x in outputs.items()}
            yield int(row), reason or {key: x.copy() for key, x in of_row.items()}


def _bucket_lengths(longest: int) -> list[int]:
    """The lengths of batches: the longest, then 3/4, 1/2, 3/8, ... of it, down to about a second."""
    lengths = [longest]
    while lengths[-1] // 2 >= SHORTEST_SECONDS * SAMPLE_RATE:
        lengths += [3 * lengths[-1] // 4, lengths[-1] // 2]
    return lengths


class Pieces:
    """The source whose rows are equal pieces of the rows of another, at most `max_samples` long.

    A piece holds whole frames: `field` samples each, one every `hop`. Pieces overlap by field - hop samples, so that
    they have all frames of the row. They have up to `margin` more samples on either side, whose frames are dropped.
    `rows` is the row of each piece and `counts` {row: number of pieces}. A piece gives its frames leads ..
    leads + sizes. Without `overlap` pieces have max_samples, but for the last one, and share none.
    """

    def __init__(
        self,
        source: Source,
        rows: np.ndarray,
        *,
        field: int,
        hop: int,
        max_samples: int,
        margin: int = 0,
        overlap: bool = True,
    ):
        num_samples = source.index.num_samples[rows]
        frames, capacity = (num_samples - field) // hop + 1, (max_samples - field) // hop + 1
        margin = min(-(-margin // hop), (capacity - 1) // 2)  # frames
        if overlap:
            counts = np.where(frames <= capacity, 1, -(-frames // (capacity - 2 * margin)))
        else:  # each piece is as a recording of its own
            counts = (num_samples - field) // max_samples + 1
        number = np.concatenate([np.arange(count) for count in counts])
        ends = np.repeat(num_samples, counts)  # of the row of each piece
        if overlap:
            size = np.repeat(-(-frames // counts), counts)  # frames of a piece
            first, total = number * size, np.repeat(frames, counts)
            begin, end = np.maximum(first - margin, 0), np.minimum(first + size + margin, total)
            self.starts = begin * hop
            self.leads = first - begin
            self.sizes = np.minimum(size, total - first)
            lengths = np.where(end == total, ends - self.starts, (end - begin - 1) * hop + field)
            self.max_samples = max_samples + hop  # the last piece ends with samples that make no whole frame
        else:
            self.starts = number * max_samples
            lengths = np.minimum(ends - self.starts, max_samples)
            self.leads = np.zeros_like(lengths)
            self.sizes = (lengths - field) // hop + 1
            self.max_samples = max_samples
        self.source, self.form = source, source.form
        self.rows = np.repeat(rows, counts)
        self.counts = dict(zip(rows.tolist(), counts.tolist(), strict=True))
        ids = Column.of(map(str, range(len(self.rows))))
        index = source.index.select(self.rows)
        self.index: Index = dataclasses.replace(index, ids=ids, hashes=None, num_samples=lengths)

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        length = min(length, int(self.index.num_samples[row]) - start)
        return self.source.read(int(self.rows[row]), int(self.starts[row]) + start, length)


def _warn_skipped(index: Index, row: int, reason: str) -> None:
    warn(f"skipped {index.paths[row]}: {reason}")
