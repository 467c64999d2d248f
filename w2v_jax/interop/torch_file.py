"""Reads the files that `torch.save` writes, without torch and without running anything in them.

A pickle is a program that may call any function of any package. Here it can call nothing. A name in it stands either
for one of a few known types (dictionaries, tensors), or for an `Inert` object, which records the name, arguments and
state. A file with names that only an attack needs is refused, with a warning to the user.
Both formats are supported: the zip archive of torch 1.6 and later, and the older stream of pickles.
"""

from __future__ import annotations

import collections
import contextlib
import io
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from w2v_jax.core.cli import UserError, cannot_read
from w2v_jax.core.text import wrong_content

MAGIC = 0x1950A86A20F9469CFC6C
"""The number with which the older format begins."""
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
"""Modules and built-in functions that no file of weights needs. A file that names them contains a program."""


class Inert:
    """Stands for the object of an unknown class or function, which was not called: its name, arguments and state."""

    name = ""
    args: Any
    state: Any
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any):
        inert = super().__new__(cls)
        inert.args, inert.state, inert.items = args, kwargs, []
        return inert

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.items.append(value)

    def extend(self, values: Any) -> None:
        self.items.extend(values)

    def __repr__(self) -> str:
        return f"<{self.name}, not created>"


class _Known:
    """A function that a pickle may call. It refuses new attributes, so that nothing in a pickle can change it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable):
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the file tries to set the attribute {name} of a function")


class _Tensor:
    """A view of a storage that may not have been read yet; strides and offset count elements."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
        self.storage, self.offset = storage, offset
        self.shape, self.strides = tuple(shape), tuple(strides)


def read_torch(path: pathlib.Path) -> Any:
    """The content of the file: dicts, lists, NumPy arrays for tensors (bfloat16 by ml_dtypes), `Inert` for the rest.

    Raises UserError for a file that is truncated, is of another format, or has tensors outside its data.
    """
    with opened_pickle(path, "torch.save") as file:
        is_zip = zipfile.is_zipfile(file)
        file.seek(0)
        return _from_zip(file) if is_zip else _from_stream(file)


@contextlib.contextmanager
def opened_pickle(path: pathlib.Path, writers: str) -> Iterator[BinaryIO]:
    """An open file that `writers` write. Whatever fails while it is read is a UserError that names the file."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise cannot_read(path, error) from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged or hostile pickle may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise wrong_content(path, f"is damaged, or was not written by {writers} ({reason})") from None


def plain(value: Any) -> Any:
    """The value without `Inert` objects: omegaconf nodes, argparse namespaces and enums become dicts and values."""
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if not isinstance(value, Inert):
        return value
    state = value.state if isinstance(value.state, dict) else {}
    for key in ("_content", "_val", "_value_"):
        if key in state:
            return plain(state[key])
    if state:
        return plain(state)
    return plain(value.args[0]) if len(value.args) == 1 else None


class _Unpickler(pickle.Unpickler):
    """Knows only the classes below. Collects the storages of tensors: {key: (dtype, number of elements)}."""

    def __init__(self, file: Any, storages: dict[str, tuple[Any, int]]):
        super().__init__(file, encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        refuse_code(module, name)
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
            raise UserError(f"it contains a tensor of an unknown type ({kind}, {name})")
        self.storages[str(key)] = (np.dtype(STORAGES[name]), int(count))
        return str(key)


def refuse_code(module: str, name: str) -> None:
    """Raises UserError for a name in a pickle that only an attack needs."""
    builtin = module in ("builtins", "__builtin__") and name in CODE_BUILTINS
    if builtin or module.partition(".")[0] in CODE_MODULES:
        raise UserError(
            f"the file contains code that uses {module}.{name}, which weights do not need. None of it was run. "
            "Do not open the file with other programs, and ask whoever gave it to you"
        )


def _from_zip(file: Any) -> Any:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError("this zip file was not written by torch.save")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise UserError("its numbers are big-endian, which is not supported")
        storages: dict[str, tuple[Any, int]] = {}
        content = _Unpickler(io.BytesIO(archive.read(pickles[0])), storages).load()
        data = {key: _elements(archive.read(f"{root}data/{key}"), *storages[key]) for key in storages}
    return _resolve(content, data, {})


def _from_stream(file: Any) -> Any:
    storages: dict[str, tuple[Any, int]] = {}
    load = lambda: _Unpickler(file, storages).load()
    if load() != MAGIC:
        raise UserError("the file was not written by torch.save")
    _protocol, _system, content, keys = load(), load(), load(), load()
    data = {}
    for key in keys:
        dtype, _ = storages[str(key)]
        (count,) = struct.unpack("<q", file.read(8))
        data[str(key)] = _elements(file.read(count * dtype.itemsize), dtype, count)
    return _resolve(content, data, {})


def _elements(raw: bytes, dtype: np.dtype, count: int) -> np.ndarray:
    if len(raw) < count * dtype.itemsize:
        raise UserError("the file is truncated")
    return np.frombuffer(raw, dtype, count)


def _resolve(value: Any, data: dict[str, np.ndarray], seen: dict[int, Any]) -> Any:
    """The value with arrays in place of tensors. An object that contains itself still does in the result.

    seen {id of a container: its result} is filled on the way.
    """
    if isinstance(value, _Tensor):
        return _view(value, data)
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, Inert):
        seen[id(value)] = value
        for name in ("args", "state", "items"):
            setattr(value, name, _resolve(getattr(value, name), data, seen))
        return value
    if isinstance(value, dict):
        resolved = seen[id(value)] = {}
        resolved.update((key, _resolve(item, data, seen)) for key, item in value.items())
        return resolved
    if isinstance(value, list):
        items = seen[id(value)] = []
        items.extend(_resolve(item, data, seen) for item in value)
        return items
    return tuple(_resolve(item, data, seen) for item in value) if isinstance(value, tuple) else value


def _view(tensor: _Tensor, data: dict[str, np.ndarray]) -> np.ndarray:
    """A copy of the elements of the tensor."""
    storage, shape, strides = data[tensor.storage], tensor.shape, tensor.strides
    if len(shape) != len(strides) or min((*shape, *strides, tensor.offset), default=0) < 0:
        raise UserError("a tensor has an impossible shape")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    if tensor.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) >= len(storage):
        raise UserError("a tensor lies outside its data")
    steps = tuple(step * storage.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], shape, steps).copy()
