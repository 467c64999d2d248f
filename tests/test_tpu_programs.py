"""What holds of the programs that XLA's TPU compiler makes, where libtpu is installed. No TPU is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from commands import environment

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs XLA's TPU compiler: pip install libtpu"
    ),
]


def compiled(name: str) -> Any:
    """What `tpu_programs.py NAME` finds, in a process of its own: the compiler belongs to one at a time."""
    command = [sys.executable, str(pathlib.Path(__file__).with_name("tpu_programs.py")), name]
    env = environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_attention_keeps_no_scores():
    """On a mesh of four; of each device, 16 rows of twelve heads, whose scores do not fit on the chip."""
    found, scores = compiled("scores"), 16 * 12 * 781 * 781 * 2
    assert found["auto"][0] < scores < found["xla"][0] and found["auto"][1] and not found["xla"][1]


def test_the_first_convolution_is_written_in_bfloat16_alone():
    """Its norm, GELU and their gradients read bfloat16 too: float32 would double the traffic and the memory."""
    assert compiled("feature_encoder") == []
