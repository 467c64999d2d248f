"""Checkpoints of other packages: how their tensors map to parameters here, and how an import becomes a run.

A format (`huggingface.py`, `fairseq.py`) lists a `TensorPair` for every parameter. The import, the export and the
report on every tensor (mapped, missing, unexpected) follow from that list. No tensor is skipped silently. An import
becomes the folder of a run, which every command accepts: extract, probe, evaluate, transcribe, and training that
starts from it (`init.run`).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax import methods
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import whole_folder, write_whole
from w2v_jax.core.tree import by_path, nest
from w2v_jax.core.types import PyTree, State
from w2v_jax.core.units import SAMPLE_RATE, whole_batch
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet
from w2v_jax.training import checkpoint, sharding

NAMES_SHOWN = 12


class TensorPair(NamedTuple):
    """One tensor on both sides: our path ("/" between), their name, one of LAYOUTS, and the Transformer layer if any.

    We stack the parameters of all Transformer layers; they have a tensor for each layer.
    """

    ours: str
    theirs: str
    layout: str = "same"
    layer: int | None = None


def dense_pairs(ours: str, theirs: str, layer: int | None = None, *, bias: bool = True) -> list[TensorPair]:
    """The kernel of a linear layer or a convolution, and its bias."""
    kernel = TensorPair(f"{ours}/kernel", f"{theirs}.weight", layout="transposed", layer=layer)
    return [kernel, TensorPair(f"{ours}/bias", f"{theirs}.bias", layout="same", layer=layer)] if bias else [kernel]


def norm_pairs(ours: str, theirs: str, layer: int | None = None) -> list[TensorPair]:
    """The scale and the bias of a normalisation."""
    return [
        TensorPair(f"{ours}/scale", f"{theirs}.weight", layout="same", layer=layer),
        TensorPair(f"{ours}/bias", f"{theirs}.bias", layout="same", layer=layer),
    ]


LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "same": (lambda x, shape: x, lambda x: x),
    "transposed": (lambda x, shape: x.transpose(), lambda x: x.transpose()),
    "per tap": (lambda x, shape: x.reshape(-1), lambda x: x.reshape(1, 1, -1)),
    "per head": (lambda x, shape: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1)),
    "codebook": (lambda x, shape: _reshaped(x, shape), lambda x: x.reshape(1, -1, x.shape[-1])),
    "entries": (lambda x, shape: x.transpose(1, 0, 2), lambda x: x.transpose(1, 0, 2)),
    "grouped": (
        lambda x, shape: _reshaped(x[..., 0], (shape[0], shape[2], shape[1])).swapaxes(1, 2),
        lambda x: x.swapaxes(1, 2).reshape(-1, x.shape[1])[..., None],
    ),
    "steps": (lambda x, shape: x[:, :, 0].transpose(2, 0, 1), lambda x: x.transpose(1, 2, 0)[:, :, None]),
}
"""(from their layout to ours of a given shape, from ours to theirs). transposed: convolutions [out in kernel] and
linear layers [out in]; codebook: [1 G*V E] -> [G V E]; entries: [V G E] -> [G V E]; grouped: a grouped convolution of
width 1 [G*O I 1] -> [G I O]; steps: a transposed convolution [D C 1 S] -> [S D C]."""


def _reshaped(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array in this shape; unchanged where the sizes differ, so that the import reports its shape."""
    return x.reshape(shape) if x.size == np.prod(shape) else x


@dataclasses.dataclass(frozen=True)
class Imported:
    """A checkpoint of another package, converted to the parameters of this one.

    params are nested dicts of float32 arrays. config has the sections that the method reads. notes are remarks for the
    user. table has a row (their name, our path, shape, dtype) for every tensor.
    """

    config: Config
    params: PyTree
    alphabet: Alphabet | None
    notes: list[str]
    table: list[tuple[str, str, tuple[int, ...], str]]

    __repr__ = short_repr


def import_tensors(
    tensors: Mapping[str, np.ndarray], pairs: Sequence[TensorPair], config: Config, *, source: str
) -> tuple[PyTree, list[tuple[str, str, tuple[int, ...], str]]]:
    """(params, table) of `Imported`, from their tensors, with the shapes that the config's method needs.

    Raises UserError, which starts with `source` and names every tensor that is missing, unexpected, of another shape
    or not finite.
    """
    shapes = parameter_shapes(config)
    flat: dict[str, Any] = {}
    misshapen, not_finite, table = [], [], []
    for pair in pairs:
        if pair.theirs not in tensors:
            continue
        tensor = tensors[pair.theirs]
        table.append((pair.theirs, pair.ours, tensor.shape, str(tensor.dtype)))
        shape = shapes.get(pair.ours, ())
        shape = shape if pair.layer is None else shape[1:]
        to_ours, to_theirs = LAYOUTS[pair.layout]
        array = to_ours(np.asarray(tensor, np.float32), shape)
        if array.shape != shape:
            expected = to_theirs(np.empty(shape)).shape if pair.ours in shapes else "no such tensor"
            misshapen.append(f"{pair.theirs} has shape {tensor.shape}, but the settings require {expected}")
        elif not np.isfinite(array).all():
            not_finite.append(pair.theirs)
        elif pair.layer is None:
            flat[pair.ours] = np.ascontiguousarray(array)
        else:
            flat.setdefault(pair.ours, {})[pair.layer] = array
    problems = _listed("missing", [pair.theirs for pair in pairs if pair.theirs not in tensors])
    problems += _listed("unexpected", sorted(tensors.keys() - {pair.theirs for pair in pairs}))
    problems += _listed("of another shape", misshapen) + _listed("with NaN or infinity", not_finite)
    if problems:
        raise UserError(f"{source} does not match the model; nothing was written:\n" + "\n".join(problems))
    stacked = {k: np.stack([v[i] for i in sorted(v)]) if isinstance(v, dict) else v for k, v in flat.items()}
    return nest(stacked), table


def export_tensors(params: PyTree, pairs: Sequence[TensorPair]) -> dict[str, np.ndarray]:
    """Their tensors, float32 and contiguous, from our parameters. Raises UserError for a parameter without a pair."""
    flat = by_path(params)
    if unmapped := sorted(flat.keys() - {pair.ours for pair in pairs}):
        raise UserError("the other format has no tensor for these parameters:\n" + "\n".join(_listed("", unmapped)))
    tensors = {}
    for pair in pairs:
        array = np.asarray(flat[pair.ours], np.float32)
        array = array if pair.layer is None else array[pair.layer]
        tensors[pair.theirs] = np.ascontiguousarray(LAYOUTS[pair.layout][1](array))
    return tensors


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the parameters that the config's method creates."""
    method, samples = methods.load(config), int(config.data.bucket_seconds[0] * SAMPLE_RATE)
    batch = whole_batch("wave", np.zeros((1, samples), np.float32), np.full(1, samples))
    batch |= {"tokens": np.ones((1, 1), np.int32), "num_tokens": np.ones(1, np.int32)}
    params, _ = jax.eval_shape(lambda: method.init(jax.random.key(0), batch))
    return {path: leaf.shape for path, leaf in by_path(sharding.bare(params)).items()}


def write_run(folder: pathlib.Path, imported: Imported, origin: Mapping[str, Any]) -> None:
    """Writes the folder of a run: config.json, checkpoint 0, the alphabet, imported.json (`origin` and the table).

    The folder is written beside its final path and renamed at the end. Raises UserError where the folder exists.
    """
    with whole_folder(folder) as partial:
        write_whole(partial / "config.json", configs.run_json(imported.config))
        if imported.alphabet is not None:
            imported.alphabet.save(partial / ALPHABET_FILE, {}, {})
        manager = checkpoint.open_checkpoints(partial / "checkpoints", keep_latest=1, keep_best=0)
        try:
            checkpoint.save(manager, 0, State(jnp.zeros((), jnp.int32), imported.params, {}, opt={}))
            checkpoint.wait(manager)
        finally:
            checkpoint.close(manager)
        columns = ("theirs", "ours", "shape", "dtype")
        tensors = [dict(zip(columns, row)) for row in imported.table]
        content = dict(origin) | {"notes": imported.notes, "tensors": tensors}
        write_whole(partial / "imported.json", json.dumps(content, indent=1) + "\n")


def _listed(problem: str, names: Sequence[str]) -> list[str]:
    """Lines with the problem as their title and the first NAMES_SHOWN names; empty without names."""
    if not names:
        return []
    more = [f"    and {len(names) - NAMES_SHOWN} more"] if len(names) > NAMES_SHOWN else []
    title = [f"  {problem} ({len(names)}):"] if problem else []
    return title + [f"    {name}" for name in names[:NAMES_SHOWN]] + more
