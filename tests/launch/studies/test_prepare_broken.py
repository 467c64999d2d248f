"""`launch/studies/prepare_broken.py` with 2,000 files: every kind of broken file once, and each of them reported."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commands import ROOT, environment


@pytest.mark.slow
def test_the_report_lists_exactly_the_broken_files(tmp_path):
    command = [sys.executable, str(ROOT / "launch" / "studies" / "prepare_broken.py"), "--out", str(tmp_path)]
    result = subprocess.run(
        [*command, "--files", "2000", "--workers", "2"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2,000 files, 21 broken, 21 reported, 1,980 stored" in result.stdout
