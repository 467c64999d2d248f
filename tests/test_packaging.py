"""What an installation contains, and that it needs no clone: the wheel, from another folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from commands import ROOT, environment

import w2v_jax

BUILT_FROM = ("w2v_jax", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The unpacked wheel. pip needs a package index for setuptools."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    for name in BUILT_FROM:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / "dist"), str(source)]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, env=environ, cwd=folder, timeout=250)
    (wheel,) = (folder / "dist").iterdir()
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_changelog_has_the_present_version():
    assert f"\n## {w2v_jax.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_wheel_has_the_configs_inside_the_package_and_nothing_beside_it(installed):
    tops = sorted(path.name for path in installed.iterdir())
    assert len(tops) == 2 and tops[0] == "w2v_jax" and tops[1].endswith(".dist-info")
    names = lambda folder, pattern: sorted(path.relative_to(folder).as_posix() for path in folder.rglob(pattern))
    assert names(installed / "w2v_jax" / "configs", "*.py") == names(ROOT / "configs", "*.py")
    ours = [name for name in names(installed / "w2v_jax", "*.py") if not name.startswith("configs/")]
    assert ours == names(ROOT / "w2v_jax", "*.py")
    assert (installed / "w2v_jax" / "py.typed").is_file()
    for kind in ("*.css", "*.js", "*.json"):  # of the report
        assert names(installed / "w2v_jax", kind) == names(ROOT / "w2v_jax", kind) != []
    assert "w2v-jax = w2v_jax.__main__:script" in (installed / tops[1] / "entry_points.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["w2v2_base.py:tiny", "configs/w2v2_base.py:tiny"])
def test_a_config_is_found_by_its_name_from_any_folder(installed, tmp_path, config):
    command = [sys.executable, "-m", "w2v_jax", "plan", f"--config={config}", "--target=h200-1"]
    environ = environment() | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "h200-1" in done.stdout


def test_images_are_built_from_what_the_wheel_is_built_from():
    """Every file that they copy is there, and let through by .dockerignore; both extras exist."""
    text = (ROOT / "launch" / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()}
    assert copied == {*BUILT_FROM, "requirements"} and all((ROOT / name).exists() for name in copied)
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in copied} == {line for line in ignore if line.startswith("!")}
    for extra in re.findall(r'pip install "\.\[(\w+)\]"', text):
        assert f'"{extra}": [' in (ROOT / "setup.py").read_text(encoding="utf-8")
    if shutil.which("hadolint"):
        found = subprocess.run(["hadolint", str(ROOT / "launch" / "Dockerfile")], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


def test_the_citation_names_the_version_of_the_package():
    assert f"\nversion: {w2v_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_workflow_runs_what_a_merge_requires_within_its_time():
    """GitHub reads it; `.ci/run` is the one list of checks."""
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "- run: .ci/run\n" in text and "3.11" in text and "3.12" in text
