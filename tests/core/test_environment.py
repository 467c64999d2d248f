"""Versions: those of what is installed. Libraries: they find a folder for what they keep."""

import importlib.metadata
import os
import platform

import pytest

from w2v_jax.core import environment
from w2v_jax.core.environment import installed_versions


def test_versions_are_those_of_the_installed_packages():
    found = installed_versions(("numpy", "no-such-package"))
    assert found == {"Python": platform.python_version(), "numpy": importlib.metadata.version("numpy")}
    assert {"jax", "jaxlib", "flax"} <= installed_versions().keys()


@pytest.mark.parametrize("home", ["/proc/nobody", "~"], ids=["a home that is not there", "a user without a home"])
def test_libraries_get_a_folder_where_there_is_no_home(home, tmp_path, monkeypatch):
    removed = []
    monkeypatch.setattr(environment.os.path, "expanduser", lambda path: path.replace("~", home))
    monkeypatch.setattr(environment.os, "access", lambda path, mode: str(path) != "/proc")  # also where root may do all
    monkeypatch.setattr(environment.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(environment.atexit, "register", lambda *work, **how: removed.append(work))
    known = {"MPLCONFIGDIR": "given"}
    monkeypatch.setattr(environment.os, "environ", known)
    environment.prepare_libraries()
    assert os.path.isdir(known["NUMBA_CACHE_DIR"]) and known["MPLCONFIGDIR"] == "given"
    assert [str(folder) for _, folder in removed] == [known["NUMBA_CACHE_DIR"]]


def test_a_home_that_can_be_written_to_is_used(tmp_path, monkeypatch):
    known = {"XDG_CACHE_HOME": str(tmp_path / "not" / "yet")}
    monkeypatch.setattr(environment.os, "environ", known)
    environment.prepare_libraries()
    assert known.keys() == {"XDG_CACHE_HOME"}
