"""What tests of commands share: the repository, a process' environment, a training command, a port, a script."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import socket
import sys
from collections.abc import Mapping
from types import ModuleType

ROOT = pathlib.Path(__file__).parents[1]


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
    """This process' environment for another one, which finds the package and has so many CPU devices."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": str(ROOT)}
    return os.environ | flags | variables


def training(config: str, workdir: pathlib.Path, overrides: Mapping[str, str], *extra: str) -> list[str]:
    """The training command. config: FILE[:VARIANT] in configs/."""
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    path = ROOT / "configs" / config
    return [sys.executable, "-m", "w2v_jax.train", f"--config={path}", f"--workdir={workdir}", *flags, *extra]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def script(name: str) -> ModuleType:
    """A script of launch/ as a module."""
    found = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
