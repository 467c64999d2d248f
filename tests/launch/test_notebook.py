"""The notebook runs from top to bottom, as a person would run it on a CPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from commands import ROOT, environment

NOTEBOOK = ROOT / "launch" / "colab.ipynb"

RUNNER = """
import subprocess, sys, types


def shell(command):
    subprocess.run(command.replace("python ", f"{sys.executable} ", 1), shell=True, check=True)


shown = []
display = types.SimpleNamespace(Image=lambda path: shown.append(open(path, "rb").read(8)), display=lambda image: None)
sys.modules["IPython"], sys.modules["IPython.display"] = types.ModuleType("IPython"), display
"""


def cells() -> list[str]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def plain(cell: str) -> str:
    """A cell without IPython: "!command {variable}" is a call with a formatted string."""
    return re.sub(r"^(\s*)!(.*)$", lambda line: f"{line[1]}shell(f{line[2]!r})", cell, flags=re.MULTILINE)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = tmp_path / "notebook.py"
    script.write_text(RUNNER + "\n\n".join(map(plain, cells())) + "\nassert shown == [b'\\x89PNG\\r\\n\\x1a\\n']\n")
    env = environment(haste=False, W2V_VARIANT="tiny", JAX_PLATFORMS="cpu")
    result = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "training on: cpu" in result.stdout and "skipped: choose a GPU" in result.stdout
    assert len(re.findall(r"^ *[0-9.]+ s  \([0-9]+, 32\)", result.stdout, flags=re.MULTILINE)) == 3


def test_the_notebook_keeps_no_output():
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert found["nbformat"] == 4
    for cell in found["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_without_the_package_the_notebook_asks_for_the_repository(tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text("import importlib.util\nimportlib.util.find_spec = lambda name: None\n" + plain(cells()[0]))
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "Set REPOSITORY" in result.stderr
