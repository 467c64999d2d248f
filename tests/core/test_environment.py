"""Versions: those of what is installed. Libraries: they find a folder for what they keep."""

import importlib.metadata
import os
import platform

from w2v_jax.core import environment
from w2v_jax.core.environment import installed_versions


def test_versions_are_those_of_the_installed_packages():
    found = installed_versions(("numpy", "no-such-package"))
    assert found == {"Python": platform.python_version(), "numpy": importlib.metadata.version("numpy")}
    assert {"jax", "jaxlib", "flax"} <= installed_versions().keys()


def with_home(monkeypatch, folder, **known):
    """The environment of a process whose user has this home, "~" where the system knows none."""
    monkeypatch.setattr(environment.os.path, "expanduser", lambda path: known.get("HOME", folder))
    monkeypatch.setattr(environment.os, "environ", known)
    environment.prepare_libraries()
    return known


def test_libraries_get_a_folder_where_the_home_cannot_be_written_to(tmp_path, monkeypatch):
    removed = []
    monkeypatch.setattr(environment.os, "access", lambda path, mode: str(path) != "/proc")  # also where root may do all
    monkeypatch.setattr(environment.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(environment.atexit, "register", lambda *work, **how: removed.append(work))
    known = with_home(monkeypatch, "/proc/nobody", MPLCONFIGDIR="given")
    assert os.path.isdir(known["NUMBA_CACHE_DIR"]) and known["MPLCONFIGDIR"] == "given"
    assert [str(folder) for _, folder in removed] == [known["NUMBA_CACHE_DIR"]]


def test_a_user_without_a_home_gets_one_among_the_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.tempfile, "tempdir", str(tmp_path))
    known = with_home(monkeypatch, "~")
    assert known.keys() == {"HOME"} and os.path.dirname(known["HOME"]) == str(tmp_path)


def test_a_home_that_can_be_written_to_is_used(tmp_path, monkeypatch):
    assert with_home(monkeypatch, str(tmp_path)) == {"HOME": str(tmp_path)}
    assert "NUMBA_CACHE_DIR" not in with_home(monkeypatch, "/proc/nobody", XDG_CACHE_HOME=str(tmp_path / "not" / "yet"))
