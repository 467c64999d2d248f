"""Reads the centres of a k-means that others fitted, without running anything in the file.

It reads what joblib writes of scikit-learn's KMeans and MiniBatchKMeans (such as the `.bin` files beside released
HuBERTs), indices of faiss (`faiss_file.py`), and arrays in .npy. A file of joblib is a pickle, between whose
instructions the numbers of arrays lie. As in `torch_file.py`, its names stand for `Inert` objects, and nothing is
called. Compressed files are not read.
"""

from __future__ import annotations

import math
import pathlib
import pickle
import re
from typing import Any, BinaryIO

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.interop.faiss_file import MAGIC, read_index
from w2v_jax.interop.torch_file import Inert, opened_pickle, refuse_code

ATTRIBUTE = "cluster_centers_"
WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
TYPES = re.compile(r"<[fiu][248]|\|[iub]1")
"""Numbers that stand in a file as they are."""


def read_centers(path: pathlib.Path) -> np.ndarray:
    """The centres [K D] float32. Raises UserError for a file that is damaged, holds none, or contains code."""
    with opened_pickle(path, "joblib, faiss or NumPy") as file:
        begin = file.read(6)
        file.seek(0)
        if begin == b"\x93NUMPY":
            found = np.load(file, allow_pickle=False)
        elif MAGIC.match(begin):
            found = read_index(file)
        else:
            found = _attribute(_Unpickler(file).load())
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f" or not found.size:
        raise UserError(f"{path}: its centres are not an array of [clusters, numbers of a frame]")
    if not np.isfinite(found).all():
        raise UserError(f"{path}: its centres are not finite")
    return found.astype(np.float32)


def _attribute(content: Any) -> Any:
    state = content.state if isinstance(content, Inert) else content
    if not isinstance(state, dict) or ATTRIBUTE not in state:
        what = content.name if isinstance(content, Inert) else type(content).__name__
        raise UserError(f"it holds {what} without {ATTRIBUTE}, and no fitted k-means of scikit-learn")
    return state[ATTRIBUTE]


class _Type(Inert):
    """A NumPy type in a pickle: its name, and its byte order as set later."""

    def resolve(self) -> np.dtype:
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "<"
        name = f"{order if order in ('<', '|') else '?'}{str(self.args[0]).lstrip('<|=')}"
        if not TYPES.fullmatch(name):
            raise UserError(f"it contains an array of the type {name}, which centres never have")
        return np.dtype(name)


class _Unpickler(pickle._Unpickler):  # type: ignore  # the one in Python: arrays are read between instructions
    """Calls nothing, and reads the numbers after each wrapper that joblib leaves in their place."""

    dispatch = dict(pickle._Unpickler.dispatch)  # type: ignore

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="latin1")
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        refuse_code(module, name)
        base = _Type if (module, name) == ("numpy", "dtype") else Inert
        return type(name.rpartition(".")[-1] or "Inert", (base,), {"name": f"{module}.{name}"})

    def load_build(self) -> None:
        super().load_build()  # type: ignore
        if isinstance(self.stack[-1], Inert) and self.stack[-1].name == WRAPPER:  # type: ignore
            self.stack[-1] = _array(self.stack[-1].state, self.file)  # type: ignore

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore


def _array(about: dict[str, Any], file: BinaryIO) -> np.ndarray:
    """The array whose numbers come next in the file; `about` is the state of its wrapper."""
    dtype, shape = about["dtype"].resolve(), tuple(map(int, about["shape"]))
    if about.get("numpy_array_alignment_bytes") is not None:
        file.read(file.read(1)[0])
    size = math.prod(shape) * dtype.itemsize
    raw = file.read(size) if min((*shape, 0)) >= 0 else b""
    if len(raw) < size:
        raise UserError("the file is truncated")
    array = np.frombuffer(raw, dtype)
    return array.reshape(shape[::-1]).T if about["order"] == "F" else array.reshape(shape)
