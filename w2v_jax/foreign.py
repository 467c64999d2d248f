"""Checkpoints of other packages: where each tensor stands here, and imported ones as runs.

A format (`huggingface.py`) lists a `Place` for every parameter; from the list follow the import, the export, and the
account of every tensor: mapped, missing, unexpected. Nothing is skipped in silence. What is imported becomes the
folder of a run, which every command takes: extract, probe, evaluate, transcribe, and training from it (`init.run`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax import checkpoint, runs, sharding
from w2v_jax import config as configs
from w2v_jax.api import PyTree, State
from w2v_jax.config import UserError
from w2v_jax.data.labels import FILE as ALPHABET
from w2v_jax.data.labels import Alphabet
from w2v_jax.report import write_whole

SHOWN = 12


class Place(NamedTuple):
    """A tensor on both sides: the path here ("/" between), its name there, one of LAYOUTS, its Transformer layer."""

    ours: str
    theirs: str
    layout: str = "same"
    layer: int | None = None


LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "same": (lambda x, shape: x, lambda x: x),
    "transposed": (lambda x, shape: x.transpose(), lambda x: x.transpose()),
    "per tap": (lambda x, shape: x.reshape(-1), lambda x: x.reshape(1, 1, -1)),
    "codebook": (lambda x, shape: _fitted(x, shape), lambda x: x.reshape(1, -1, x.shape[-1])),
    "entries": (lambda x, shape: x.transpose(1, 0, 2), lambda x: x.transpose(1, 0, 2)),
    "grouped": (
        lambda x, shape: _fitted(x[..., 0], (shape[0], shape[2], shape[1])).swapaxes(1, 2),
        lambda x: x.swapaxes(1, 2).reshape(-1, x.shape[1])[..., None],
    ),
    "steps": (lambda x, shape: x[:, :, 0].transpose(2, 0, 1), lambda x: x.transpose(1, 2, 0)[:, :, None]),
}
"""(there -> here for a shape, here -> there). transposed: convolutions [out in kernel] and linear layers [out in];
codebook: [1 G*V E] -> [G V E]; entries: [V G E] -> [G V E]; grouped: a grouped convolution of width 1 [G*O I 1] ->
[G I O]; steps: a transposed convolution [D C 1 S] -> [S D C]."""


def _fitted(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x.reshape(shape) if x.size == np.prod(shape) else x


@dataclasses.dataclass(frozen=True)
class Imported:
    """A checkpoint of another package in the form of this one.

    params are nested dicts of float32 arrays; config has the sections that the method reads; notes say what a person
    should know; table has a row (their name, here, shape, dtype) for every tensor.
    """

    config: Any
    params: PyTree
    alphabet: Alphabet | None
    notes: list[str]
    table: list[tuple[str, str, tuple[int, ...], str]]


def take_over(
    tensors: Mapping[str, np.ndarray], places: Sequence[Place], shapes: Mapping[str, tuple[int, ...]], where: str
) -> tuple[PyTree, list[tuple[str, str, tuple[int, ...], str]]]:
    """(params, table) from their tensors; shapes {path: shape} are those that the method needs for the config.

    Raises UserError that names every missing, unexpected, misshapen or not finite tensor.
    """
    known = {place.theirs for place in places}
    problems = _listed("missing", [p.theirs for p in places if p.theirs not in tensors])
    problems += _listed("unexpected", sorted(tensors.keys() - known))
    flat: dict[str, Any] = {}
    wrong, broken, table = [], [], []
    for place in places:
        if place.theirs not in tensors:
            continue
        found = tensors[place.theirs]
        table.append((place.theirs, place.ours, found.shape, str(found.dtype)))
        shape = shapes.get(place.ours, ())
        shape = shape if place.layer is None else shape[1:]
        array = LAYOUTS[place.layout][0](np.asarray(found, np.float32), shape)
        if array.shape != shape:
            expected = "nothing" if place.ours not in shapes else LAYOUTS[place.layout][1](np.empty(shape)).shape
            wrong.append(f"{place.theirs} is {found.shape}, the settings say {expected}")
        elif not np.isfinite(array).all():
            broken.append(place.theirs)
        elif place.layer is None:
            flat[place.ours] = np.ascontiguousarray(array)
        else:
            flat.setdefault(place.ours, {})[place.layer] = array
    problems += _listed("of another shape", wrong) + _listed("with NaN or infinity", broken)
    if problems:
        raise UserError(f"{where} does not fit, and nothing was written:\n" + "\n".join(problems))
    stacked = {k: np.stack([v[i] for i in sorted(v)]) if isinstance(v, dict) else v for k, v in flat.items()}
    return nest(stacked), table


def give_out(params: PyTree, places: Sequence[Place]) -> dict[str, np.ndarray]:
    """Their tensors, float32 and contiguous, from ours. Raises UserError for a parameter that has no place there."""
    flat = by_path(params)
    if homeless := sorted(flat.keys() - {place.ours for place in places}):
        raise UserError("parameters that the other format has no place for:\n" + "\n".join(_listed("", homeless)))
    tensors = {}
    for place in places:
        array = np.asarray(flat[place.ours], np.float32)
        array = array if place.layer is None else array[place.layer]
        tensors[place.theirs] = np.ascontiguousarray(LAYOUTS[place.layout][1](array))
    return tensors


def parameter_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the parameters that the config's method makes."""
    method, samples = runs.method_module(config.method).make(config), int(config.data.bucket_seconds[0] * 16_000)
    batch = {"wave": np.zeros((1, samples), np.float32), "num_samples": np.full(1, samples, np.int32)}
    batch |= {"weight": np.ones(1, np.float32), "row": np.zeros(1, np.int32)}
    batch |= {"tokens": np.ones((1, 1), np.int32), "num_tokens": np.ones(1, np.int32)}
    params, _ = jax.eval_shape(lambda: method.init(jax.random.key(0), batch))
    return {path: leaf.shape for path, leaf in by_path(sharding.bare(params)).items()}


def by_path(params: PyTree) -> dict[str, Any]:
    """{"a/b": x} of {"a": {"b": x}}."""
    return {name.replace(".", "/"): leaf for name, leaf in configs.flatten(params).items()}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": x}} of {"a/b": x}."""
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return nested


def write_run(folder: pathlib.Path, imported: Imported, about: Mapping[str, Any]) -> None:
    """Writes the folder of a run: config.json, checkpoint 0, the alphabet, imported.json (`about`, the table).

    Whole or not at all: it is written beside and renamed. Raises UserError where the folder exists.
    """
    with new_folder(folder) as partial:
        write_whole(partial / "config.json", configs.to_json(imported.config) + "\n")
        if imported.alphabet is not None:
            imported.alphabet.save(partial / ALPHABET, {}, {})
        manager = checkpoint.open_checkpoints(partial / "checkpoints", keep_latest=1, keep_best=0)
        try:
            checkpoint.save(manager, 0, State(jnp.zeros((), jnp.int32), imported.params, {}, {}))
            checkpoint.wait(manager)
        finally:
            checkpoint.close(manager)
        names = ("theirs", "ours", "shape", "dtype")
        told = dict(about) | {"notes": imported.notes, "tensors": [dict(zip(names, row)) for row in imported.table]}
        write_whole(partial / "imported.json", json.dumps(told, indent=1) + "\n")


class new_folder:
    """A context that gives a folder beside `path`, which becomes `path` at the end, or vanishes with an error."""

    def __init__(self, path: pathlib.Path):
        if not path.name:
            raise UserError(f"--to {path} names no new folder")
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")

    def __enter__(self) -> pathlib.Path:
        try:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise UserError(f"{self.path} exists already; choose another --to, or remove it")
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"--to {self.path} cannot be written: {error}") from None
        return self.partial

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        if self.path.exists():
            self.path.rmdir()
        os.replace(self.partial, self.path)


def file_digest(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = [f"    and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ([f"  {what} ({len(names)}):"] if what else []) + [f"    {name}" for name in names[:SHOWN]] + more
