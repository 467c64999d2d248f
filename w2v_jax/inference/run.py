"""Opens a trained run: its parameters, and the `predict` of its method, compiled once per shape.

It trains nothing and writes no file. It switches `encoder.padding_aware` on, so that padding never enters a feature.
`encode.py` applies a run to recordings.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from w2v_jax import methods
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.display import short_repr
from w2v_jax.core.types import Method, PyTree
from w2v_jax.core.units import SAMPLE_RATE, unit_rows, whole_batch
from w2v_jax.data.index import WAVE, Form
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet
from w2v_jax.training import sharding
from w2v_jax.training.dataset import form_of
from w2v_jax.training.workdir import has_checkpoint, read_config, read_weights, run_folder

FEATURES = ("local", "context", "hidden", "codes")
LOGITS = ("logits",)
LEARNT = "learnt"

Layer = int | tuple[float, ...] | None
"""Which hidden states: the number of one, one weight per state for their weighted sum, or None for all."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A method with its parameters. `form` describes its input, and `digest` (16 hex digits) names the parameters.

    chosen: why they are those of `step`. mesh: the devices that share the rows of a batch; None for one device.
    """

    config: Config
    method: Method
    params: PyTree
    extra: PyTree
    step: int
    digest: str
    path: pathlib.Path
    form: Form
    chosen: str = ""
    mesh: Mesh | None = None

    __repr__ = short_repr

    def in_brief(self) -> str:
        rate = "16 kHz" if self.form == WAVE else self.form.name
        count = sum(x.size for x in jax.tree.leaves(self.params))
        frames = f"{SAMPLE_RATE / self.geometry[1]:g} frames/s"
        return f"{self.config.method}, {count:,} parameters, {self.at_step()}, {rate}, {frames}, {self.path}"

    def at_step(self) -> str:
        """The step, and why this one: "step 1,200 (best held-out token_error)"."""
        return f"step {self.step:,}" + (f" ({self.chosen})" if self.chosen else "")

    @property
    def geometry(self) -> tuple[int, int]:
        """(receptive field of a frame, hop between frames) in 16 kHz samples."""
        return self.method.encoder.geometry

    def times(self, frames: np.ndarray) -> np.ndarray:
        """The middle of frames in seconds. `frames` are frame numbers, perhaps between two frames."""
        field, hop = self.geometry
        return (frames * hop + (field - 1) / 2) / SAMPLE_RATE

    @property
    def most_frames(self) -> int | None:
        """The number of frames of the longest row that the model can read; None without a limit."""
        return self.method.encoder.max_frames

    @functools.cached_property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs for a row of one second: local [F C], context [F D], hidden [L F D], codes [F G]..."""
        batch = silent_batch(self.form, 1, SAMPLE_RATE)
        outputs = jax.eval_shape(self.method.predict, self.params, self.extra, batch)
        shapes = {key: outputs[key].shape for key in FEATURES + LOGITS if outputs.get(key) is not None}
        return {key: (s[0], *s[2:]) if key == "hidden" else s[1:] for key, s in shapes.items()}

    def predictor(self, keys: tuple[str, ...], layer: Layer) -> Callable[[dict[str, Any]], dict[str, jax.Array]]:
        """A function of a batch, compiled once per shape. It gives the `keys` and num_frames [B]; floats are float32.

        layer: of hidden, one state or the weighted sum [B F D]; None: all states [L B F D]. Runs of one config share
        what is compiled.
        """
        predict = functools.partial(_compiled(self.method.predict, keys, layer), self.params, self.extra)
        if (mesh := self.mesh) is None:
            return predict

        def over_devices(batch: dict[str, Any]) -> dict[str, jax.Array]:
            with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
                return predict(sharding.put_rows(batch, mesh))

        return over_devices

    def over(self, mesh: Mesh) -> Run:
        """The run with its parameters on each device of a mesh of this process, which share the rows of a batch."""
        params, extra = sharding.put_whole((self.params, self.extra), mesh)
        return dataclasses.replace(self, params=params, extra=extra, mesh=mesh)

    @property
    def devices(self) -> int:
        """How many devices share the rows of a batch."""
        return 1 if self.mesh is None else self.mesh.size


def computation(
    predict: Callable[..., Any], keys: tuple[str, ...], layer: Layer
) -> Callable[[PyTree, PyTree, Any], dict[str, jax.Array]]:
    """The function of (params, extra, batch) that `Run.predictor` compiles; predict is `Method.predict`."""

    def selected(params: PyTree, extra: PyTree, batch: Any) -> dict[str, jax.Array]:
        outputs = predict(params, extra, batch)
        arrays = {key: outputs[key] for key in keys}
        if isinstance(layer, tuple) and "hidden" in arrays:
            arrays["hidden"] = jnp.einsum("l,lbfd->bfd", jnp.array(layer), arrays["hidden"].astype(jnp.float32))
        elif layer is not None and "hidden" in arrays:
            arrays["hidden"] = arrays["hidden"][layer]
        for key, x in arrays.items():
            arrays[key] = x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32)
        valid = outputs["logits_valid"] if keys == LOGITS else outputs["valid"]
        return arrays | {"num_frames": valid.sum(axis=1)}

    return selected


@functools.lru_cache(maxsize=32)
def _compiled(predict: Callable[..., Any], keys: tuple[str, ...], layer: Layer) -> Callable[..., dict[str, jax.Array]]:
    return jax.jit(computation(predict, keys, layer))


@functools.lru_cache(maxsize=16)
def _method(config_json: str) -> Method:
    """The method of a config. Runs of one config have the same, and so trace and compile once."""
    return methods.load(configs.from_json(config_json))


def open_run(path: Any, step: int | str | None = None, random: bool = False) -> Run:
    """The run in the folder of a training (--workdir).

    step: a number, "best" (by the evaluations), "newest", or None: the best of a recogniser, the newest of others.
    random: use the parameters before training, which needs no checkpoint. Raises UserError.
    """
    path = run_folder(path)
    config = configs.changed(read_config(path), {"encoder.padding_aware": True}, skip_missing=True)
    if (path / ALPHABET_FILE).exists():
        config = configs.with_outputs(config, len(Alphabet.load(path / ALPHABET_FILE)))
    form, method, chosen = form_of(path), _method(configs.to_json(config)), ""
    if random:
        key, length = jax.random.key(config.seed), int(config.data.bucket_seconds[0] * SAMPLE_RATE + 0.5)
        batch = silent_batch(form, unit_rows(config.data.unit_seconds, length), length)
        (params, extra), step = jax.jit(lambda: sharding.bare(method.init(key, batch)))(), 0
    else:
        if not has_checkpoint(path):
            raise UserError(f"{path} has no checkpoint yet: train first, or give the --workdir of another training")
        params, extra, step, _, chosen = read_weights(path, config, step)
    digest = digest_of((params, extra))
    params, extra = jax.device_put((params, extra))
    return Run(
        config, method, params=params, extra=extra, step=int(step), digest=digest, path=path, form=form, chosen=chosen
    )


def fixed_run(name: str, encoder: Any) -> Run:
    """An encoder of audio without parameters, such as log-mel features, as a run. It gives "local" features alone."""

    def predict(params: Any, extra: Any, batch: Any) -> dict[str, Any]:
        return {**encoder.apply({}, batch["wave"], jnp.asarray(batch["num_samples"])).record()}

    def untrained(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{name} features are not trained")

    config = configs.as_config(dict(method=encoder.kind, data=dict(normalize=False)))
    method = Method(untrained, untrained, predict, levels=dict, output_frames=encoder.frames, encoder=encoder)
    return Run(config, method, params={}, extra={}, step=0, digest="", path=pathlib.Path(name), form=WAVE)


def digest_of(tree: PyTree) -> str:
    """16 hex digits of the SHA-256 of the paths and bytes of all leaves, which are equal for equal parameters."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def silent_batch(form: Form, rows: int, length: int) -> dict[str, np.ndarray]:
    """A batch of `rows` rows of `length` samples of silence, or of code 0."""
    return whole_batch(form.name, np.zeros((rows, *form.shape(length)), form.dtype), np.full(rows, length))


def add_layer_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --layer and --layers to the commands that give hidden states; `layer_of` reads them."""
    parser.add_argument("--layer", type=int, metavar="N", help="of hidden: the number of one hidden state, from 0")
    layers = "of hidden: the sum of all states with one weight each, or with the learnt weights of an acoustic model"
    parser.add_argument("--layers", type=_weights, metavar="W,W,...|learnt", help=layers)


def layer_of(run: Run, args: argparse.Namespace) -> Layer:
    """The layer, or the weights of the layers, in the arguments. Raises UserError."""
    return learnt_weights(run) if args.layers == LEARNT else args.layers or args.layer


def _weights(text: str) -> Any:
    if text == LEARNT:
        return text
    weights = tuple(float(number) for number in text.split(","))
    if not np.isfinite(weights).all():
        raise argparse.ArgumentTypeError(f"{text}: weights must be finite numbers")
    return weights


def learnt_weights(run: Run) -> tuple[float, ...]:
    """The weights of the hidden states that a CTC run with acoustic.input="weighted" has learnt. They sum to 1.

    Its acoustic model reads the weighted sum. Raises UserError for another run.
    """
    if "layer_weights" not in run.params:
        raise UserError(
            f"{run.path} ({run.config.method}) has learnt no weights of its layers: give one weight per layer, or the "
            'run of an acoustic model with acoustic.input="weighted" (configs/acoustic_frozen.py)'
        )
    return tuple(float(w) for w in jax.nn.softmax(jnp.asarray(run.params["layer_weights"], jnp.float32)))
