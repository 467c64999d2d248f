"""`launch/studies/index_scale.py` at a tiny size. No time is judged."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from commands import ROOT, environment, script


def test_an_index_is_made_once_opened_and_planned(tmp_path):
    command = [sys.executable, str(ROOT / "launch" / "studies" / "index_scale.py"), "--out", str(tmp_path)]
    run = lambda: subprocess.run(
        [*command, "--rows", "30000", "--listed", "1500"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    first, again = run(), run()
    assert first.returncode == again.returncode == 0, first.stderr
    assert "made the index of 30,000 rows" in first.stdout and "made the index" not in again.stdout
    assert "| opened in all |" in again.stdout and "| step 123,456,789 |" in again.stdout


def test_rows_are_the_same_whenever_they_are_made():
    scale = script("index_scale")
    rows = list(scale.rows(2001, pathlib.Path("audio")))
    assert rows[2000].id == "00002/00002-00002000" and rows[2000].speaker == "2"
    assert rows[2000].path == "audio/00002/00002-00002000.flac"
    assert all(2 * 16_000 <= row.frames < 15 * 16_000 for row in rows)
