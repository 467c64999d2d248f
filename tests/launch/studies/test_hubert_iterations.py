"""`launch/studies/hubert_iterations.sh`: both iterations at the smallest size, each on the units of the one before."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from commands import ROOT, environment

SCRIPT = ROOT / "launch" / "studies" / "hubert_iterations.sh"


@pytest.mark.slow
def test_the_second_iteration_learns_units_of_the_first(tiny_corpus, tmp_path):
    small = {"CONFIG": f"{ROOT}/configs/hubert_base.py:tiny", "CLUSTERS": "6,8", "LAYER": "1", "STEPS": "3,2"}
    env = environment(PYTHON=sys.executable, SHARE="1", **small)
    out = tmp_path / "two words"
    words = [
        str(SCRIPT),
        str(tiny_corpus / "train"),
        str(out),
        "--config.data.loader=threads",
        "--config.optim.warmup=1",
    ]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, steps, clusters, hop in (("first", 3, 6, 160), ("second", 2, 8, 320)):
        assert json.loads((out / name / "done.json").read_text(encoding="utf-8"))["step"] == steps
        config = json.loads((out / name / "config.json").read_text(encoding="utf-8"))
        assert config["loss"]["classes"] == [clusters] and config["data"]["targets_hop"] == hop
    layer = json.loads((out / "layer-units" / "extract.json").read_text(encoding="utf-8"))
    assert layer["layer"] == 1 and layer["codes"] == 8 and layer["complete"]


def test_without_recordings_it_says_what_it_needs():
    done = subprocess.run([str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2 and "RECORDINGS OUT" in done.stderr
