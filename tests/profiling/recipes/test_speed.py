"""Timing: updates are really made, and what cannot be measured is told."""

import json
import time

import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.profiling.recipes import speed
from w2v_jax.profiling.recipes.speed import TimedConfig, Timing


def test_updates_of_each_candidate_are_timed_and_those_of_accelerators_are_left_out(monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    tiny = TimedConfig("acoustic_logmel.py:tiny", {"data.unit_seconds": 4.0, "data.bucket_seconds": [2.0]}, 2, 2.0)
    asked = {"tiny": tiny._asdict(), "half": tiny._replace(parts=32.0)._asdict()}
    asked["large"] = tiny._replace(on_accelerator=True)._asdict()
    found = json.loads(speed.times([json.dumps({"spawned": time.time(), "candidates": asked})]))
    assert found["timings"].keys() == {"tiny", "half"} and found["start"] >= 0
    timing = Timing(**found["timings"]["tiny"])
    assert timing.update > 0 and timing.compile > 0 and timing.parameters > 1000
    assert found["devices"]["platform"] == "cpu" and found["devices"]["memory"] > 1e8
    assert found["timings"]["half"]["update"] > timing.update  # four parts for each of eight devices


def test_what_cannot_be_measured_is_told():
    with pytest.raises(UserError, match="this machine cannot be measured(.|\n)*no_such.py(.|\n)*w2v_jax.doctor"):
        speed.measured_speeds({"x": TimedConfig("no_such.py", {}, 1, 1.0)})
