"""`launch/studies/scaling.py`: its prediction, its table and plot, and a run at tiny sizes. No time is judged."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from commands import ROOT, environment, script


@pytest.fixture(scope="module")
def scaling():
    return script("scaling")


def point(axis: str, x: float, flops: float, parameters: int, seconds: float) -> dict:
    return dict(
        axis=axis, x=x, flops=flops, ours_parameters=parameters, ours_seconds=seconds, ours_program_bytes=1e9, words=[]
    )


POINTS = [
    point("seconds", 2.0, 100e9, 10_000_000, 1.5),
    point("seconds", 8.0, 400e9, 10_000_000, 4.5),
    point("seconds", 16.0, 900e9, 10_000_000, 9.5),
    point("width", 512.0, 600e9, 40_000_000, 8.8),
]


def test_two_constants_from_the_lengths_predict_the_widths(scaling):
    """A second per 100 GFLOP and half a second per 10 M parameters."""
    found = scaling.predicted(POINTS)
    assert [p["predicted"] for p in found] == pytest.approx([1.5, 4.5, 9.5, 8.0])
    assert [p["fitted"] for p in found] == [True, True, True, False]
    rows = scaling.table(found).splitlines()
    assert len(rows) == 5 and rows[1].endswith("1.00 of it, fitted") and rows[4].endswith("1.10 of it")
    assert "40.0 M" in rows[4]


def run(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch" / "studies" / "scaling.py"), *map(str, words)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_points_are_measured_once_and_plotted(tmp_path, scaling, monkeypatch, capsys):
    words = ["--config=configs/w2v2_base.py:tiny", "--out", tmp_path, "--seconds", 1, 2, "--runs", 1, "--batch", 2]
    first = run(*words, "--widths", 64)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("w2v_jax.bench") == 3 and first.stdout.count("fitted") == 2
    points = json.loads((tmp_path / "scaling.json").read_text())
    shorter, longer, wider = points
    assert longer["flops"] > 1.9 * shorter["flops"] and longer["ours_parameters"] == shorter["ours_parameters"]
    assert wider["ours_parameters"] != shorter["ours_parameters"]
    assert (tmp_path / "scaling.png").stat().st_size > 5000
    measured = []
    monkeypatch.setattr(scaling, "measured", lambda words: measured.append(words) or {"flops": 1e9} | numbers(shorter))
    assert scaling.main([*map(str, words), "--widths", "64"]) == 0 and not measured
    assert scaling.main([*map(str, words), "--config.train.dtype=float32"]) == 0
    assert len(measured) == 2, "other flags are other points"
    assert json.loads((tmp_path / "scaling.json").read_text())[:3] == points


def numbers(point: dict) -> dict:
    """What a measurement adds to a point."""
    return {name: value for name, value in point.items() if name not in ("axis", "x", "words", "counted", "flops")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seconds", 2], "--seconds"),
        (["--widths", 100], "--widths: 100 is not a multiple of 64"),
        (["--wdith", 64], "unknown argument --wdith"),
        (["--config=configs/none.py", "--seconds", 1, 2], "configs/none.py"),
    ],
)
def test_mistakes_are_named(tmp_path, words, said):
    done = run("--out", tmp_path, *words)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
