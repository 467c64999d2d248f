"""Reads the files that `torch.save` writes, old and new, without torch and without running anything in them.

A pickle is a program that may call any function of any package. Here it can call nothing: what it names is either one
of a few known things (dictionaries, tensors) or becomes an `Inert` object that remembers its name, arguments and state.
A file that names what only an attack has a use for is refused, and the person told.
Both forms are read: the zip archive of torch 1.6 and later, and the older stream of pickles.
"""

from __future__ import annotations

import collections
import io
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from w2v_jax.config import UserError

MAGIC = 0x1950A86A20F9469CFC6C
"""The number that the older form begins with."""
STORAGES = dict(
    FloatStorage=np.float32,
    DoubleStorage=np.float64,
    HalfStorage=np.float16,
    BFloat16Storage=ml_dtypes.bfloat16,
    LongStorage=np.int64,
    IntStorage=np.int32,
    ShortStorage=np.int16,
    CharStorage=np.int8,
    ByteStorage=np.uint8,
    BoolStorage=np.bool_,
)
CODE_MODULES = ("os", "posix", "nt", "subprocess", "sys", "importlib", "runpy", "shutil", "socket", "ctypes", "pty")
CODE_BUILTINS = ("eval", "exec", "execfile", "compile", "open", "input", "__import__", "breakpoint")
"""Modules and built-in functions that no weights of a model need: a file that names them holds a program."""


class Inert:
    """What a pickle made of a class or function that is not known: name, arguments, state. Nothing was called."""

    name = ""

    def __init__(self, *args: Any, **kwargs: Any):
        self.args, self.state, self.items = args, kwargs, []

    def __new__(cls, *args: Any, **kwargs: Any):
        made = super().__new__(cls)
        made.args, made.state, made.items = args, kwargs, []
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.items.append(value)

    def extend(self, values: Any) -> None:
        self.items.extend(values)

    def __repr__(self) -> str:
        return f"<{self.name}, not made>"


class _Known:
    """A function that a pickle may call. An object without attributes, so that nothing in a pickle can change it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable):
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the file tries to change {name} of a function")


class _Tensor:
    """A view of a storage that may not have been read yet."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
        self.storage, self.offset = storage, offset
        self.shape, self.strides = tuple(shape), tuple(strides)


def load(path: pathlib.Path) -> Any:
    """What the file holds: dicts, lists, NumPy arrays for tensors (bfloat16 by ml_dtypes), `Inert` for the rest.

    Raises UserError for files that are truncated, of another kind, or whose tensors lie outside their data.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                file.seek(0)
                return _from_zip(file)
            file.seek(0)
            return _from_stream(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # whatever a damaged or hostile pickle may lead to
        raise UserError(
            f"{path} is damaged, or was not written by torch.save ({type(error).__name__}: {error})"
        ) from None


def plain(found: Any) -> Any:
    """Settings without `Inert` objects: omegaconf's nodes, argparse's namespaces and enums become dicts and values."""
    if isinstance(found, dict):
        return {str(plain(key)): plain(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [plain(value) for value in found]
    if not isinstance(found, Inert):
        return found
    state = found.state if isinstance(found.state, dict) else {}
    for key in ("_content", "_val", "_value_"):
        if key in state:
            return plain(state[key])
    if state:
        return plain(state)
    return plain(found.args[0]) if len(found.args) == 1 else None


class _Unpickler(pickle.Unpickler):
    """Knows no class but those below; `storages` {key: (dtype, number of elements)} collects what tensors need."""

    def __init__(self, file: Any, storages: dict[str, tuple[Any, int]]):
        super().__init__(file, encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        _refuse_code(module, name)
        if module == "torch" and name in STORAGES:
            return name
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor"): _Known(_Tensor),
            ("torch._utils", "_rebuild_tensor_v2"): _Known(_Tensor),
            ("torch._utils", "_rebuild_parameter"): _Known(lambda tensor, *_: tensor),
            ("torch", "Size"): tuple,
        }
        for builtins in ("builtins", "__builtin__"):
            known |= {(builtins, "set"): set, (builtins, "dict"): dict, (builtins, "list"): list}
        if (module, name) in known:
            return known[module, name]
        return type(name.rpartition(".")[-1] or "Inert", (Inert,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        kind, name, key, _, count, *_ = pid
        if kind != "storage" or not isinstance(name, str) or name not in STORAGES:
            raise UserError(f"a tensor of an unknown kind is in it ({kind}, {name})")
        self.storages[str(key)] = (np.dtype(STORAGES[name]), int(count))
        return str(key)


def _refuse_code(module: str, name: str) -> None:
    builtin = module in ("builtins", "__builtin__") and name in CODE_BUILTINS
    if builtin or module.partition(".")[0] in CODE_MODULES:
        raise UserError(
            f"it holds code, which names {module}.{name}: weights have no use for it. Nothing of it was run; "
            "do not open the file with other programs, and ask those who gave it to you"
        )


def _from_zip(file: Any) -> Any:
    with zipfile.ZipFile(file) as archive:
        heads = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(heads) != 1:
            raise UserError("it is a zip file, but not one of torch.save")
        root = heads[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise UserError("its numbers are big-endian")
        needed: dict[str, tuple[Any, int]] = {}
        found = _Unpickler(io.BytesIO(archive.read(heads[0])), needed).load()
        data = {}
        for key, (dtype, count) in needed.items():
            data[key] = _elements(archive.read(f"{root}data/{key}"), dtype, count)
    return _resolve(found, data, {})


def _from_stream(file: Any) -> Any:
    needed: dict[str, tuple[Any, int]] = {}
    if _Unpickler(file, needed).load() != MAGIC:
        raise UserError("it was not written by torch.save")
    for _ in ("protocol", "system"):
        _Unpickler(file, needed).load()
    found = _Unpickler(file, needed).load()
    data = {}
    for key in _Unpickler(file, needed).load():
        dtype, count = needed[str(key)]
        (size,) = struct.unpack("<q", file.read(8))
        data[str(key)] = _elements(file.read(size * dtype.itemsize), dtype, size)
    return _resolve(found, data, {})


def _elements(raw: bytes, dtype: np.dtype, count: int) -> np.ndarray:
    if len(raw) < count * dtype.itemsize:
        raise UserError("it is truncated")
    return np.frombuffer(raw, dtype, count)


def _resolve(found: Any, data: dict[str, np.ndarray], seen: dict[int, Any]) -> Any:
    """The object with arrays in the place of tensors; objects that contain themselves stay so."""
    if isinstance(found, _Tensor):
        return _view(found, data)
    if id(found) in seen:
        return seen[id(found)]
    if isinstance(found, Inert):
        seen[id(found)] = found
        for name in ("args", "state", "items"):
            setattr(found, name, _resolve(getattr(found, name), data, seen))
        return found
    if isinstance(found, dict):
        made: dict[Any, Any] = {}
        seen[id(found)] = made
        made.update((key, _resolve(value, data, seen)) for key, value in found.items())
        return made
    if isinstance(found, list):
        values: list[Any] = []
        seen[id(found)] = values
        values.extend(_resolve(value, data, seen) for value in found)
        return values
    return tuple(_resolve(value, data, seen) for value in found) if isinstance(found, tuple) else found


def _view(tensor: _Tensor, data: dict[str, np.ndarray]) -> np.ndarray:
    storage, shape, strides = data[tensor.storage], tensor.shape, tensor.strides
    if len(shape) != len(strides) or min((*shape, *strides, tensor.offset), default=0) < 0:
        raise UserError("a tensor has an impossible shape")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    if tensor.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) >= len(storage):
        raise UserError("a tensor lies outside its data")
    steps = tuple(step * storage.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], shape, steps).copy()
