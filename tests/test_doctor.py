"""`doctor`: what it looks at, what it says where something is missing, and that it really trains."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from commands import ROOT

from w2v_jax import doctor


def test_every_optional_part_of_the_package_is_looked_for():
    declared = set(re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE))
    assert doctor.EXTRAS.keys() == declared - {"gpu", "gpu12", "tpu", "test", "stores", "dev", "docs"}


def test_what_is_installed_is_named_with_its_version(capsys):
    assert doctor.main(["--no-training"]) == 0
    said = capsys.readouterr().out
    assert f"jax {importlib.metadata.version('jax')}" in said
    assert re.search(r"^(ok|note) +devices +\d+ x cpu", said, re.MULTILINE)
    assert said.splitlines()[-1].startswith("ready to train")
    assert "training" not in said


def test_a_missing_part_is_a_note_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: name != "h5py")
    check = doctor.optional("features", ("pyarrow", "h5py"), "tables")
    assert doctor.line(check).startswith("note") and "without h5py: pip install 'w2v-jax[features]'" in check.advice
    assert doctor.line(doctor.optional("convert", ("safetensors",), "checkpoints")).startswith("ok")


def test_an_accelerator_that_jax_does_not_see_is_named(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "w2v-jax[gpu]" in doctor.devices().advice


@pytest.mark.parametrize(
    ("text", "extra"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n", "gpu12"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "gpu"),
        ("NVRM version: unlike any other\n", "gpu"),
    ],
)
def test_an_old_driver_gets_the_cuda_that_it_runs(text, extra, tmp_path, monkeypatch):
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path / "version")
    assert f"w2v-jax[{extra}]" in doctor.devices().advice


def test_two_tensorflows_in_one_folder_are_named(monkeypatch):
    versions = {"Python": "3.12.1", "tensorflow": "2.19.0", "tensorflow-cpu": "2.21.0"}
    monkeypatch.setattr(doctor.environment, "installed_versions", lambda packages=(): versions)
    advice = doctor.tensorflow().advice
    assert "tensorflow 2.19.0 and tensorflow-cpu 2.21.0" in advice and "pip uninstall" in advice
    monkeypatch.setitem(versions, "tensorflow", "2.21.0")
    assert not doctor.tensorflow().advice


def test_a_folder_that_cannot_be_written_to_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: path != tmp_path)
    check = doctor.disk(str(tmp_path / "runs" / "base"))
    assert check.fails and f"{tmp_path} cannot be written to" in check.advice


def test_little_memory_is_noted(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 2000000 kB\nMemAvailable: 1000000 kB\n")
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "meminfo")
    assert doctor.memory().value == "2 GB, 1 GB of it free" and "do not fit" in doctor.memory().advice
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "nothing")
    assert doctor.memory().value == "not known on this system"


@pytest.mark.slow
def test_the_training_is_made_and_a_failure_shows_its_last_lines(monkeypatch):
    check = doctor.trained()
    assert not check.fails and f"{doctor.STEPS} updates" in check.value
    monkeypatch.setattr(doctor, "STEPS", 2)  # fewer than the config warms up
    check = doctor.trained()
    assert check.fails and "exit code 1" in check.value and "optim.warmup" in check.advice
