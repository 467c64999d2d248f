"""Files of torch.save without torch: the same arrays, old form and new; and nothing in them is ever run."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.interop import torch_file


class Storage:
    def __init__(self, key, kind, count):
        self.pid = ("storage", kind, key, "cpu", count)


class Call:
    """Pickles as a call of `module.name` with arguments, without that module being there."""

    def __init__(self, module, name, *args, state=None):
        self.what, self.args, self.state = (module, name), args, state


class Writer(pickle._Pickler):
    """A pickler that writes calls and classes by name, and storages as persistent ids."""

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        kind, dtype, *rest = obj.pid
        return (kind, Global("torch", dtype), *rest)

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(Global(*obj.what))
            self.save(obj.args)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


class Global:
    def __init__(self, module, name):
        self.module, self.name = module, name


def pickled(obj) -> bytes:
    buffer = io.BytesIO()
    Writer(buffer, 2).dump(obj)
    return buffer.getvalue()


def tensor(key, kind, count, offset, shape, strides):
    return Call("torch._utils", "_rebuild_tensor_v2", Storage(key, kind, count), offset, shape, strides, False, {})


def write_zip(path, obj, storages: dict[str, bytes]) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(obj))
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def write_stream(path, obj, storages: dict[str, tuple[int, bytes]]) -> pathlib.Path:
    parts = [pickle.dumps(x, 2) for x in (torch_file.MAGIC, 1001, {"little_endian": True})]
    parts += [pickled(obj), pickle.dumps(list(storages), 2)]
    parts += [struct.pack("<q", count) + data for count, data in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


DATA = np.arange(12, dtype=np.float32)
MODEL = {"model": {"a": tensor("0", "FloatStorage", 12, 0, (3, 4), (4, 1))}, "step": 3}


def test_zip_and_stream_give_the_same_arrays(tmp_path):
    for found in (
        torch_file.read_torch(write_zip(tmp_path / "new.pt", MODEL, {"0": DATA.tobytes()})),
        torch_file.read_torch(write_stream(tmp_path / "old.pt", MODEL, {"0": (12, DATA.tobytes())})),
    ):
        np.testing.assert_array_equal(found["model"]["a"], DATA.reshape(3, 4))
        assert found["step"] == 3


def test_views_of_a_shared_storage_are_told_apart(tmp_path):
    views = [
        tensor("0", "FloatStorage", 12, 0, (4, 3), (1, 4)),  # transposed
        tensor("0", "FloatStorage", 12, 5, (2,), (3,)),
        tensor("0", "FloatStorage", 12, 11, (), ()),
        tensor("0", "FloatStorage", 12, 0, (0, 7), (7, 1)),
        Call("torch._utils", "_rebuild_parameter", tensor("0", "FloatStorage", 12, 0, (12,), (1,)), True, {}),
    ]
    found = torch_file.read_torch(write_zip(tmp_path / "x.pt", views, {"0": DATA.tobytes()}))
    for array, expected in zip(
        found, (DATA.reshape(3, 4).T, DATA[[5, 8]], DATA[11], np.zeros((0, 7)), DATA), strict=True
    ):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("name", torch_file.STORAGES)
def test_every_kind_of_number_is_read(tmp_path, name):
    data = np.arange(6).astype(torch_file.STORAGES[name])
    path = write_zip(tmp_path / "x.pt", [tensor("0", name, 6, 0, (2, 3), (3, 1))], {"0": data.tobytes()})
    (found,) = torch_file.read_torch(path)
    assert found.dtype == data.dtype
    np.testing.assert_array_equal(found, data.reshape(2, 3))


def test_settings_of_classes_that_are_not_here_become_plain_dictionaries(tmp_path):
    leaf = lambda value: Call("omegaconf.nodes", "AnyNode", state={"_val": value, "_metadata": None})
    inner = Call("omegaconf.dictconfig", "DictConfig", state={"_content": {"layers": leaf(12), "name": leaf("x")}})
    cfg = Call("omegaconf.dictconfig", "DictConfig", state={"_content": {"model": inner}, "_parent": None})
    args = Call("argparse", "Namespace", state={"arch": "wav2vec2", "heads": 8})
    mode = Call("fairseq.dataclass.constants", "Mode", "layer_norm")
    found = torch_file.read_torch(write_zip(tmp_path / "x.pt", {"cfg": cfg, "args": args, "mode": mode}, {}))
    assert torch_file.plain(found["cfg"]) == {"model": {"layers": 12, "name": "x"}}
    assert torch_file.plain(found["args"]) == {"arch": "wav2vec2", "heads": 8}
    assert torch_file.plain(found["mode"]) == "layer_norm" and isinstance(found["args"], torch_file.Inert)


def attacks(mark: pathlib.Path) -> dict[str, bytes]:
    """Pickles that would make the file `mark` where pickle.load read them."""
    command, code = f"touch {mark}", f"open({str(mark)!r}, 'w').close()"
    crafted = {
        "os.system": Call("os", "system", command),
        "posix.system": Call("posix", "system", command),
        "eval": Call("builtins", "eval", code),
        "exec in a state": Call("argparse", "Namespace", state={"x": Call("builtins", "exec", code)}),
        "nested": Call("builtins", "getattr", Call("builtins", "__import__", "os"), "system"),
        "as an argument of a tensor": Call("torch._utils", "_rebuild_parameter", Call("os", "system", command)),
        "partial": Call("functools", "partial", Call("os", "system", command)),
    }
    found = {name: pickled(obj) for name, obj in crafted.items()}
    shell, text = b"cos\nsystem\n", lambda x: b"X" + struct.pack("<I", len(x)) + x.encode()
    found["newobj"] = b"\x80\x02" + shell + text(command) + b"\x85\x81."
    found["setstate"] = (
        b"\x80\x02cargparse\nNamespace\n)\x81}" + text("__setstate__") + shell + b"sb" + text(command) + b"b."
    )
    found["slots"] = (
        b"\x80\x02cargparse\nNamespace\n)\x81N}" + text("__class__") + shell + b"s\x86b" + text(command) + b"b."
    )
    found["inst"] = f"(S'{command}'\nios\nsystem\n.".encode()
    found["obj"] = b"(cos\nsystem\n" + f"S'{command}'\no.".encode()
    found["dotted"] = b"\x80\x04\x8c\x02os\x8c\x06system\x93" + pickle.dumps(command, 4)[2:-1] + b"\x85R."
    return found


ATTACKS = list(attacks(pathlib.Path("x")))


@pytest.mark.parametrize("form", ["zip", "stream"])
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("known", [True, False], ids=["refused", "inert"])
def test_nothing_that_a_file_names_is_called(tmp_path, name, form, known, monkeypatch):
    """A file with code is refused by what it names; with names that the list does not have, they stay inert."""
    mark = tmp_path / "called"
    data = attacks(mark)[name]
    pickle.loads(data) if name == "os.system" else None
    assert mark.exists() == (name == "os.system"), "the attack is real"
    mark.unlink(missing_ok=True)
    path = tmp_path / "x.pt"
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
    else:
        head = [pickle.dumps(x, 2) for x in (torch_file.MAGIC, 1001, {})]
        path.write_bytes(b"".join([*head, data, pickle.dumps([], 2)]))
    if known:
        with pytest.raises(UserError, match="x.pt: the file contains code that uses (os|posix|builtins)[.]"):
            torch_file.read_torch(path)
    else:
        monkeypatch.setattr(torch_file, "CODE_MODULES", ())
        monkeypatch.setattr(torch_file, "CODE_BUILTINS", ())
        assert isinstance(torch_file.read_torch(path), torch_file.Inert)
    assert not mark.exists()


def test_functions_of_the_reader_cannot_be_changed_by_a_file(tmp_path):
    data = b"\x80\x02ctorch._utils\n_rebuild_parameter\n}X\x05\x00\x00\x00_callK\x01sb."
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    with pytest.raises(UserError):
        torch_file.read_torch(path)
    test_zip_and_stream_give_the_same_arrays(tmp_path)


def test_damaged_files_are_named(tmp_path):
    whole = write_zip(tmp_path / "zip.pt", MODEL, {"0": DATA.tobytes()}).read_bytes()
    old = write_stream(tmp_path / "old.pt", MODEL, {"0": (12, DATA.tobytes())}).read_bytes()
    for name, data in (
        ("half.pt", whole[: len(whole) // 2]),
        ("old-half.pt", old[:-20]),
        ("text.pt", b"not a checkpoint"),
        ("empty.pt", b""),
        ("short.pt", write_zip(tmp_path / "s.pt", MODEL, {"0": DATA[:3].tobytes()}).read_bytes()),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            torch_file.read_torch(tmp_path / name)
    outside = {"x": tensor("0", "FloatStorage", 12, 8, (3, 4), (4, 1))}
    with pytest.raises(UserError, match="outside its data"):
        torch_file.read_torch(write_zip(tmp_path / "outside.pt", outside, {"0": DATA.tobytes()}))
    with pytest.raises(UserError, match="cannot be read"):
        torch_file.read_torch(tmp_path / "nowhere.pt")


@pytest.mark.parity
@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
def test_files_of_torch_itself_are_read(tmp_path, new):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
    weights = {"a": torch.randn(3, 5).t(), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.arange(5)[1:4]}
    weights |= {"d": torch.nn.Parameter(torch.randn(2, 2)), "e": torch.tensor(3.5).half()}
    saved = {"model": collections.OrderedDict(weights), "args": argparse.Namespace(heads=4), "sizes": torch.Size([2])}
    torch.save(saved, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    found = torch_file.read_torch(tmp_path / "x.pt")
    for name, tensor_ in weights.items():
        np.testing.assert_array_equal(found["model"][name].astype(np.float64), tensor_.detach().double().numpy(), name)
    assert torch_file.plain(found["args"]) == {"heads": 4} and tuple(found["sizes"]) == (2,)
    assert os.path.getsize(tmp_path / "x.pt") > 0
