"""Trained runs as functions: open one by its folder, and encode any recordings with it.

What the commands after training share (extraction, probes). A run here is its parameters and its method's `predict`;
nothing is trained, and no file is written. Padding never enters a feature: `encoder.padding_aware` is switched on.

    run = open_run("runs/vq")
    for row, found in encode(run, open_source("folder", "/data/speech")):
        found["codes"]                                     # [F G], and local, context, hidden
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import hashlib
import importlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax import checkpoint, sharding
from w2v_jax import config as configs
from w2v_jax.acoustic import stride
from w2v_jax.api import Method, PyTree
from w2v_jax.config import CODE_PAD, SAMPLE_RATE, UserError, unit_rows
from w2v_jax.data.index import WAVE, Form, Index, Source
from w2v_jax.data.labels import FILE as ALPHABET
from w2v_jax.data.labels import Alphabet
from w2v_jax.data.pipeline import batches, normalized
from w2v_jax.data.plan import FILLER, eval_plan
from w2v_jax.data.vocabulary import FILE as VOCABULARY
from w2v_jax.data.vocabulary import Vocabulary
from w2v_jax.frontend import receptive_field

FEATURES = ("local", "context", "hidden", "codes")
LOGITS = ("logits",)
MAX_SECONDS = 80.0
BATCH_SECONDS = 160.0
SHORTEST_SECONDS = 1.25
TOO_SHORT = "too short for one frame"
LEARNT = "learnt"

Layer = int | tuple[float, ...] | None
"""Of the hidden states: the number of one, a weight for each in their sum, or None for all."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A method with its parameters. `form` is what it reads; `digest` names the parameters (16 hex digits)."""

    config: Any
    method: Method
    params: PyTree
    extra: PyTree
    step: int
    digest: str
    path: pathlib.Path
    form: Form
    jitted: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def geometry(self) -> tuple[int, int]:
        """(16 kHz samples that one frame sees, samples between two frames)."""
        return receptive_field(self.config.encoder.conv_layers) if self.form == WAVE else (self.form.hop, self.form.hop)

    @property
    def most_frames(self) -> int | None:
        """The longest row that the model can be given, in frames; None where there is no limit."""
        encoder = self.config.encoder
        return encoder.max_frames if "positions" in encoder and encoder.positions == "learned" else None

    @functools.cached_property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what `predict` gives for one row of a second: local [F C], context, hidden [L F D], codes [F G]."""
        batch = _zeros(self.form, 1, SAMPLE_RATE)
        found = jax.eval_shape(self.method.predict, self.params, self.extra, batch)
        shapes = {key: found[key].shape for key in FEATURES + LOGITS if found.get(key) is not None}
        return {key: (s[0], *s[2:]) if key == "hidden" else s[1:] for key, s in shapes.items()}

    def computation(self, keys: tuple[str, ...], layer: Layer) -> Callable[[PyTree, PyTree, Any], dict[str, jax.Array]]:
        """What `predictor` compiles, as a function of (params, extra, batch)."""

        def predict(params: PyTree, extra: PyTree, batch: Any) -> dict[str, jax.Array]:
            found = self.method.predict(params, extra, batch)
            out = {key: found[key] for key in keys}
            if isinstance(layer, tuple) and "hidden" in out:
                out["hidden"] = jnp.einsum("l,lbfd->bfd", jnp.array(layer), out["hidden"].astype(jnp.float32))
            elif layer is not None and "hidden" in out:
                out["hidden"] = out["hidden"][layer]
            out = {
                k: x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32) for k, x in out.items()
            }
            valid = found["logits_valid"] if keys == LOGITS else found["valid"]
            return out | {"num_frames": valid.sum(axis=1)}

        return predict

    def predictor(self, keys: tuple[str, ...], layer: Layer) -> Callable[[dict[str, Any]], dict[str, jax.Array]]:
        """A function of a batch, compiled once per shape: the `keys`, floats as float32, and num_frames [B].

        layer: the one of the hidden states that is wanted, or a weight for each in their sum [B F D]; None: all
        [L B F D].
        """
        if (keys, layer) not in self.jitted:
            self.jitted[keys, layer] = jax.jit(self.computation(keys, layer))
        return functools.partial(self.jitted[keys, layer], self.params, self.extra)


def method_module(name: str) -> Any:
    """The file of `methods/` that the config names."""
    known = sorted(f.stem for f in (pathlib.Path(__file__).parent / "methods").glob("*.py") if f.stem != "__init__")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"config.method={name!r} is not a method.{hint} There are: {', '.join(known)}")
    return importlib.import_module(f"w2v_jax.methods.{name}")


def open_run(path: Any, step: int | str | None = None, random: bool = False) -> Run:
    """The run in the folder that training wrote (--workdir).

    step: a number, "best" (by the evaluations) or None for the newest checkpoint. random: the parameters that the
    run started from, for comparison; needs no checkpoint. Raises UserError.
    """
    path = pathlib.Path(path).expanduser()
    config = read_config(path)
    with config.unlocked():
        config.encoder.padding_aware = True
    if (path / ALPHABET).exists():
        config = configs.with_outputs(config, len(Alphabet.load(path / ALPHABET)))
    form, method = form_of(path), method_module(config.method).make(config)
    if random:
        key, length = jax.random.key(config.seed), int(config.data.bucket_seconds[0] * SAMPLE_RATE + 0.5)
        batch = _zeros(form, unit_rows(config.data.unit_seconds, length), length)
        params, extra = jax.jit(lambda: sharding.bare(method.init(key, batch)))()
        step = 0
    else:
        if not any((path / "checkpoints").glob("[0-9]*")):
            raise UserError(f"{path} has no checkpoint yet: train first, or give the --workdir of another training")
        params, extra, step, _ = checkpoint.restore_params(path, step=step)
    digest = digest_of((params, extra))
    params, extra = jax.device_put((params, extra))
    return Run(config, method, params, extra, int(step), digest, path, form)


def read_config(path: pathlib.Path) -> Any:
    """The config that a run was made with. Raises UserError where the folder is none of a run."""
    if not (path / "config.json").is_file():
        what = "is not the folder of a run: config.json is missing" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}; give the --workdir of a training")
    try:
        config = configs.from_json((path / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path / 'config.json'} is not readable as JSON") from None
    if "model_type" in config:
        raise UserError(
            f"{path} is a model of transformers; make it a run first: "
            f"python -m w2v_jax.convert --from {path} --to runs/imported"
        )
    if "method" not in config or "encoder" not in config:
        raise UserError(f"{path / 'config.json'} is not that of a run; give the --workdir of a training")
    return config


def step_argument(text: str) -> int | str:
    """A checkpoint as a person names it: a number, or "best"."""
    return text if text == "best" else int(text)


def digest_of(tree: PyTree) -> str:
    """16 hex digits of the SHA-256 of the paths and bytes of all leaves: equal for equal parameters."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def form_of(path: pathlib.Path) -> Form:
    """What the run's data were made of, as training wrote it down; audio where it wrote nothing."""
    try:
        return Form(**json.loads((path / "data.json").read_text(encoding="utf-8"))["form"])
    except (OSError, KeyError):
        return WAVE
    except (ValueError, TypeError):
        raise UserError(f"{path / 'data.json'} is not readable; put it right, or train again") from None


def _zeros(form: Form, rows: int, length: int) -> dict[str, np.ndarray]:
    """A batch of silence (or of code 0) of `rows` rows of `length` samples."""
    whole = np.full(rows, length, np.int32)
    elements = np.zeros((rows, *form.shape(length)), form.dtype)
    return {
        form.name: elements,
        "num_samples": whole,
        "weight": np.ones(rows, np.float32),
        "row": np.arange(rows, dtype=np.int32),
    }


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
    on_skip: Callable[[int, str], None] | None = None,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(row number, {key: array}) of each row of the source, in no particular order; valid frames only.

    local [F C], context [F D], hidden [L F D] (or [F D] of one `layer`), codes [F G], as far as the method has them
    and `keys` names them: float32 and int32; or keys=("logits",) [F' A], alone because F' may be another number of
    frames. What is not asked for is not computed. quantizer: the vq-wav2vec whose codes `run` reads, so that audio is
    coded on the way.

    Rows are padded to a few static lengths, `batch_seconds` at once; neither changes a feature beyond rounding. A
    recording longer than max_seconds, or than the positions that the model has learned, is cut into equal pieces
    that share the samples of a frame, so that no frame is lost; the context, and norms over time, end with the piece,
    or `margin_seconds` beyond it on either side.
    A row that cannot be read or has no frame is given to `on_skip` with the reason (None: a line on stderr). Raises
    UserError when source, run and quantizer do not belong together, for keys that the method lacks, and for a layer
    that it does not have.
    """
    wanted = check_keys(run, keys, layer)
    first = run if quantizer is None else quantizer
    predict = run.predictor(wanted, layer)
    if quantizer is not None:
        predict = _chained(quantizer, run, predict)
    check_form(first, source)
    rows = np.arange(len(source.index)) if rows is None else np.asarray(rows, np.int64)
    if first.config.data.normalize and source.form == WAVE:
        source = normalized(source)
    field, hop = first.geometry
    hop *= stride(run.config.acoustic) if wanted == LOGITS else 1
    most = max(int(max_seconds * SAMPLE_RATE), field)
    if run.most_frames:
        most = min(most, (run.most_frames - 2) * hop + field)  # a last piece may be a hop longer
    short = source.index.num_samples[rows] < field
    on_skip = on_skip or _tell(source.index)
    for row in rows[short]:
        on_skip(int(row), f"{TOO_SHORT}: {source.index.num_samples[row]} samples of {field}")
    if short.all():
        return iter(())
    pieces = Pieces(source, rows[~short], field, hop, most, int(margin_seconds * SAMPLE_RATE))
    return _encode(pieces, predict, batch_seconds, workers, on_skip)


def check_keys(run: Run, keys: Sequence[str] | None, layer: Layer) -> tuple[str, ...]:
    """The keys that `encode` gives. Raises UserError for one that the method lacks, or a layer out of range."""
    wanted = tuple(key for key in run.outputs if key != "logits") if keys is None else tuple(keys)
    for key in wanted:
        if key not in run.outputs:
            have = ", ".join(run.outputs)
            raise UserError(f"{run.path} ({run.config.method}) has no {key}; it gives {have}")
    if layer is not None and "hidden" in wanted:
        layers = run.outputs["hidden"][0]
        if isinstance(layer, tuple):
            if len(layer) != layers:
                raise UserError(f"{len(layer)} weights: {run.path} has {layers} hidden states, and each needs one")
        elif not 0 <= layer < layers:
            raise UserError(f"layer {layer}: {run.path} has {layers} hidden states, 0 to {layers - 1}")
    return wanted


def add_layer_arguments(parser: argparse.ArgumentParser) -> None:
    """--layer and --layers of the commands that give hidden states; `layer_of` reads them."""
    parser.add_argument("--layer", type=int, metavar="N", help="of hidden: which one, from 0")
    parser.add_argument(
        "--layers",
        type=_weights,
        metavar="W,W,...|learnt",
        help="of hidden: the sum of all, by a weight for each, or by those that an acoustic model has learnt",
    )


def layer_of(run: Run, args: argparse.Namespace) -> Layer:
    """The layer, or the weights of the layers, that the arguments name. Raises UserError."""
    return learnt_weights(run) if args.layers == LEARNT else args.layers or args.layer


def _weights(text: str) -> Any:
    if text == LEARNT:
        return text
    weights = tuple(float(number) for number in text.split(","))
    if not np.isfinite(weights).all():
        raise argparse.ArgumentTypeError(f"{text}: weights must be finite")
    return weights


def learnt_weights(run: Run) -> tuple[float, ...]:
    """The weight of each hidden state that a run of CTC with acoustic.input="weighted" has learnt; they sum to 1.

    Its acoustic model reads the sum so weighted. Raises UserError for another run.
    """
    if run.config.method != "ctc" or run.config.acoustic.input != "weighted":
        raise UserError(
            f"{run.path} ({run.config.method}) has learnt no weights of its layers: give one weight per layer, or the "
            'run of an acoustic model with acoustic.input="weighted" (configs/acoustic_frozen.py)'
        )
    return tuple(float(w) for w in jax.nn.softmax(jnp.asarray(run.params["layer_weights"], jnp.float32)))


def check_form(run: Run, source: Source) -> None:
    """Raises UserError when the source's rows are not what the run reads."""
    if source.form == run.form:
        return
    if run.form == WAVE:
        raise UserError(f"{run.path} ({run.config.method}) reads audio, and the source holds {source.form.name}")
    if source.form == WAVE:
        raise UserError(
            f"{run.path} ({run.config.method}) reads {run.form.name}, and the source holds audio: name the run that "
            "makes its codes as the quantizer (--quantizer RUN), or give a folder of codes (--source codes)"
        )
    raise UserError(
        f"the source's {source.form.name} were not made by the model and vocabulary that {run.path} was trained on "
        f"({source.form.made_by}, one per {source.form.hop} samples; trained on {run.form.made_by}, {run.form.hop})"
    )


def vocabulary_of(run: Run) -> Vocabulary:
    """The vocabulary that is kept with the run. Raises UserError when there is none, or it is of another step."""
    file = run.path / VOCABULARY
    if not file.exists():
        raise UserError(
            f"{run.path} has no vocabulary yet. Code the data that it was trained on first, which builds it:\n  "
            f"{extract_command(run)} --build-vocabulary"
        )
    vocabulary = Vocabulary.load(file)
    if vocabulary.model != run.digest:
        raise UserError(
            f"{file} belongs to other parameters (step {vocabulary.step}, {vocabulary.model}) than those of step "
            f"{run.step} ({run.digest}): choose step {vocabulary.step}, or move the vocabulary away and build one for "
            f"step {run.step}:\n  {extract_command(run)} --build-vocabulary"
        )
    return vocabulary


def extract_command(run: Run) -> str:
    """The command that codes the data which the run was trained on."""
    data = run.config.data
    given = (data.root,) if isinstance(data.root, str) else data.root
    split = f" --split '{data.split}'" if data.name == "tfds" else ""
    return (
        f"python -m w2v_jax.extract --run {run.path} --step {run.step} --what codes --source {data.name} "
        f"--root {' '.join(given)}{split} --out DIR"
    )


def _chained(quantizer: Run, run: Run, predict: Any) -> Any:
    """`predict` on the vocabulary's ids of the codes of `quantizer`."""
    check_keys(quantizer, ("codes",), None)
    vocabulary = vocabulary_of(quantizer)
    hop = quantizer.geometry[1]
    if Form("codes", "int32", hop, vocabulary.digest) != run.form:
        raise UserError(
            f"{run.path} was not trained on codes of {quantizer.path} (step {quantizer.step}); name the run, and the "
            "step, that made them"
        )
    code = quantizer.predictor(("codes",), None)

    def both(batch: dict[str, Any]) -> dict[str, jax.Array]:
        found = jax.device_get(code(batch))
        ids = vocabulary.encode(found["codes"])
        ids[np.arange(ids.shape[1]) >= found["num_frames"][:, None]] = CODE_PAD
        num_samples = (found["num_frames"] * hop).astype(np.int32)
        return predict({"codes": ids, "num_samples": num_samples, "weight": batch["weight"], "row": batch["row"]})

    return both


def _encode(
    pieces: Pieces, predict: Any, batch_seconds: float, workers: int, on_skip: Callable[[int, str], None]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    law: dict[str, Any] = dict(bucket_samples=_lengths(pieces.most), units=1, unit_seconds=batch_seconds)
    plan = eval_plan(pieces.index.num_samples, max_hours=0, **law)
    waiting: dict[int, list] = {}
    lost: set[int] = set()
    for piece, found in _outcomes(batches(pieces, plan, loader="threads", workers=workers), plan, predict):
        row = int(pieces.rows[piece])
        if isinstance(found, str):
            if row not in lost:
                on_skip(row, found)
            lost.add(row)
            waiting.pop(row, None)
        elif row not in lost:
            parts = waiting.setdefault(row, [])
            kept = slice(pieces.leads[piece], pieces.leads[piece] + pieces.sizes[piece])
            parts.append((piece, {key: array[..., kept, :] for key, array in found.items()}))
            if len(parts) == pieces.counts[row]:
                yield row, _joined(waiting.pop(row))


def _outcomes(stream: Any, plan: Any, predict: Any) -> Iterator[tuple[int, dict[str, np.ndarray] | str]]:
    """(piece, its arrays or the reason why it could not be read); the device works while the host cuts."""
    before = None
    for batch, info in stream:
        reasons = {id: reason for id, _, reason in info.failed}
        after = (predict(batch), plan.step(info.step).rows, [reasons.get(id, "") for id in info.ids])
        if before is not None:
            yield from _cut(*before)
        before = after
    if before is not None:
        yield from _cut(*before)


def _cut(found: Any, rows: np.ndarray, reasons: list[str]) -> Iterator[tuple[int, dict[str, np.ndarray] | str]]:
    found = jax.device_get(found)
    frames = found.pop("num_frames")
    for i, (row, reason) in enumerate(zip(rows, reasons, strict=True)):
        if row == FILLER:
            continue
        cut = {k: (x[:, i] if x.ndim == 4 else x[i])[..., : frames[i], :].copy() for k, x in found.items()}
        yield int(row), reason or cut


def _joined(parts: list[tuple[int, dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The pieces of a row, in their order, joined along the frames."""
    found = [arrays for _, arrays in sorted(parts, key=lambda part: part[0])]
    return found[0] if len(found) == 1 else {k: np.concatenate([f[k] for f in found], axis=-2) for k in found[0]}


def _lengths(most: int) -> list[int]:
    """The static lengths: most, 3/4, 1/2, 3/8, ... of it, down to about a second."""
    lengths, shortest = [most], SHORTEST_SECONDS * SAMPLE_RATE
    while lengths[-1] // 2 >= shortest:
        lengths += [3 * lengths[-1] // 4, lengths[-1] // 2]
    return lengths


class Pieces:
    """The source whose rows are equal pieces of the rows of another, at most `most` samples long.

    A piece holds whole frames (`field` samples each, one every `hop`); pieces share field - hop samples, so that the
    frames of all pieces of a row are the frames of the row; and up to `margin` samples more on either side, whose
    frames are dropped. `rows` is the row of each piece, `counts` {row: pieces}; a piece keeps its frames
    leads .. leads + sizes.
    """

    def __init__(self, source: Source, rows: np.ndarray, field: int, hop: int, most: int, margin: int = 0):
        num_samples = source.index.num_samples[rows]
        frames, capacity = (num_samples - field) // hop + 1, (most - field) // hop + 1
        margin = min(-(-margin // hop), (capacity - 1) // 2)  # frames
        counts = np.where(frames <= capacity, 1, -(-frames // (capacity - 2 * margin)))
        size = np.repeat(-(-frames // counts), counts)  # frames of a piece
        number = np.concatenate([np.arange(count) for count in counts])
        first, total = number * size, np.repeat(frames, counts)
        begin, end = np.maximum(first - margin, 0), np.minimum(first + size + margin, total)
        starts = begin * hop
        lengths = np.where(end == total, np.repeat(num_samples, counts) - starts, (end - begin - 1) * hop + field)
        self.source, self.form = source, source.form
        self.leads, self.sizes = first - begin, np.minimum(size, total - first)
        self.rows, self.starts = np.repeat(rows, counts), starts
        self.counts = dict(zip(rows.tolist(), counts.tolist(), strict=True))
        self.most = most + hop  # the last piece ends with samples that make no whole frame
        self.index: Index = dataclasses.replace(
            source.index.select(self.rows),
            ids=np.arange(len(self.rows)).astype(np.dtypes.StringDType()),
            num_samples=lengths,
        )

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        length = min(length, int(self.index.num_samples[row]) - start)
        return self.source.read(int(self.rows[row]), int(self.starts[row]) + start, length)


def _tell(index: Index) -> Callable[[int, str], None]:
    return lambda row, reason: print(f"warning: {index.paths[row]} was left out: {reason}", file=sys.stderr, flush=True)
