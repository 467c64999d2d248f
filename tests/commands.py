"""What tests of commands share: the repository, a process' environment, a training command, a port, lines, a script."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import sys
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OLD_XLA = importlib.metadata.version("jaxlib").startswith("0.10.")
"""Whether XLA has the flag of fusion emitters. It ends the process, without a word that pytest shows, for others."""
HASTE = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",  # the pieces would cost more than they save on two cores
    "--xla_cpu_use_fusion_emitters=false" if OLD_XLA else "--xla_cpu_opt_preset=FAST_COMPILE",
)
"""Flags of XLA for programs that run a few times only: they compile in an eighth of the time, where OLD_XLA.

The tests' own programs have them (conftest.py), and commands that tests start have them unless told otherwise.
"""
AS_USERS = {"xla_backend_optimization_level": 3} | ({"xla_cpu_use_fusion_emitters": True} if OLD_XLA else {})
"""Compiler options that undo HASTE for one program."""


def environment(devices: int = 1, *, haste: bool = True, **variables: str) -> dict[str, str]:
    """This process' environment for another one, which finds the package and has so many CPU devices.

    Without `haste` its programs are those that users have: for those that run for long.
    """
    given = " ".join((f"--xla_force_host_platform_device_count={devices}", *(HASTE if haste else ())))
    return os.environ | {"XLA_FLAGS": given, "PYTHONPATH": str(ROOT)} | variables


def training(config: str, workdir: pathlib.Path, overrides: Mapping[str, str], *extra: str) -> list[str]:
    """The training command. config: FILE[:VARIANT] in configs/."""
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    path = ROOT / "configs" / config
    return [sys.executable, "-m", "w2v_jax.train", f"--config={path}", f"--workdir={workdir}", *flags, *extra]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a file that has one in each line, as JSON."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def script(name: str) -> ModuleType:
    """A script of launch/studies/ as a module."""
    found = importlib.util.spec_from_file_location(name, ROOT / "launch" / "studies" / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def varied(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """The cases of a test as its parameters. `quick` names those (files by their stem) that are not left to CI."""

    def parameter(case: Any) -> Any:
        is_quick = (case.stem if isinstance(case, pathlib.Path) else case) in quick
        values = case if type(case) is tuple else (case,)
        return pytest.param(*values, marks=() if is_quick else pytest.mark.slow)

    return [parameter(case) for case in cases]


def with_a_damaged_file(recordings: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A copy of a folder of recordings in `folder`, with one that is damaged and a file of another kind."""
    shutil.copytree(recordings, folder)
    (folder / "damaged.wav").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("no audio")
    return folder


def assert_only_the_damaged_is_named(report: str) -> None:
    """Of `with_a_damaged_file`: files of other kinds are no recordings."""
    assert "skipped 1:\n  1 x " in report and "damaged.wav" in report and "notes" not in report
