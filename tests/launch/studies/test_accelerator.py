"""`launch/studies/accelerator.py`: limits, failures, what it prints, and a dry run without TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from commands import ROOT, environment, script

ABSENT = "tensorflow tensorflow_datasets librosa jiwer av pyarrow h5py flashlight xdist".split()
"""Packages that a bare machine lacks, and one that the row of tests needs."""


@pytest.fixture(scope="module")
def accelerator():
    return script("accelerator")


def of(accelerator, *words, **fields):
    return accelerator.Row("row", words, **({"read": accelerator.read_bench} | fields))


def test_a_row_that_fails_is_told_with_its_last_words(accelerator, tmp_path):
    found = accelerator.measured(of(accelerator, "no_such_module"), tmp_path, environment(), limit=60)
    assert found["status"] == "failed" and "No module named no_such_module" in found["error"]
    found = accelerator.measured(of(accelerator, "this"), tmp_path, environment(), limit=60)
    assert found["status"] == "failed" and "JSONDecodeError" in found["error"], "no JSON"


def test_a_row_ends_at_its_limit_and_what_it_had_printed_counts(accelerator, tmp_path):
    serve = "http.server", "0", "--bind", "127.0.0.1"
    found = accelerator.measured(of(accelerator, *serve), tmp_path, environment(), limit=2)
    assert found["status"] == "out of time" and "stopped after 2 s" in found["error"] and found["seconds"] < 30
    row = of(accelerator, *serve, read=lambda *_: {"updates": 7}, ends_by_limit=True)
    assert accelerator.measured(row, tmp_path, environment(), limit=2) | {"seconds": 0} == {
        "name": "row", "command": "python -m http.server 0 --bind 127.0.0.1", "seconds": 0, "status": "ok", "updates": 7
    }  # fmt: skip


def test_a_training_is_read_after_its_first_records(accelerator, tmp_path):
    names = ("step_seconds", "audio_hours_per_hour", "data_wait_share", "padding_share")
    rows = [{"step": i, "split": "train", "loss": 1.0, **dict.fromkeys(names, float(i < 3))} for i in range(6)]
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 5, "split": "eval"}]))
    assert accelerator.read_training("", tmp_path) == {"updates": 5, "loss": 1.0, **dict.fromkeys(names, 0.0)}


def test_tests_that_did_not_pass_are_no_result(accelerator, tmp_path):
    assert accelerator.read_tests("...\n16 passed in 42.71s\n", tmp_path) == {"tests": "16 passed in 42.71s"}
    assert accelerator.read_tests("== 3 passed, 1 skipped in 2s ==\n", tmp_path) == {
        "tests": "3 passed, 1 skipped in 2s"
    }
    with pytest.raises(IndexError):
        accelerator.read_tests("no tests ran in 10.28s\n", tmp_path)


RESULT = {
    "dry": False,
    "date": "2026-01-02",
    "device": "NVIDIA X",
    "cores": 16,
    "python": "3.12",
    "jax": "0.11",
    "torch": None,
    "rows": [
        dict(
            name="base", status="ok", seconds=60.0, shapes=dict(batch=16, samples=249_600), ours_seconds=0.05,
            audio_hours_per_hour=4992.0, product_share=0.3, peak_share=0.25, ratio=1.5, compile_seconds=20.0,
            device_peak_memory_bytes=9.8e9, plan_bytes=11e9, part_flops={"attention": 2e12}, trace_error=None,
            stages={"attention": {"forward": 0.004, "backward": 0.006}},
        ),
        dict(
            name="train", status="ok", seconds=60.0, updates=500, loss=3.0, step_seconds=0.1, data_wait_share=0.01,
            audio_hours_per_hour=2000.0, padding_share=0.1,
        ),
        dict(name="golden", status="ok", seconds=30.0, tests="16 passed in 20s"),
        dict(name="large", status="failed", seconds=3.0, error="out of memory\nat last"),
    ],
    "not_started": ["cpc", "parity"],
}  # fmt: skip


def test_the_page_has_a_table_and_names_what_is_missing(accelerator, tmp_path):
    accelerator.write(RESULT, tmp_path)
    page = (tmp_path / "accelerator.md").read_text()
    assert page.startswith("NVIDIA X, 16 cores, 2026-01-02; Python 3.12, jax 0.11.\n")
    assert "| base | 16 x 15.6 s | 50.0 | 4,992 | 30% | 25% | 1.50 | 9.8, 11.0 | 20 |" in page
    assert "| attention | 4.00 | 6.00 | 200 |" in page
    assert "- train: 500 updates of 100.0 ms, 2,000 hours of audio per hour, waited for data 1.0% of the time" in page
    assert "- golden on the device: 16 passed in 20s" in page
    assert "- large: failed: `'out of memory\\nat last'`" in page
    assert "- no time was left for cpc, parity" in page
    assert json.loads((tmp_path / "accelerator.json").read_text()) == RESULT


def test_rows_have_different_names_and_commands_that_are_there(accelerator):
    for dry in (True, False):
        rows = accelerator.all_rows(dry=dry)
        assert len({row.name for row in rows}) == len(rows) == len({(row.words, row.env) for row in rows})
        assert all(importlib.util.find_spec(row.words[0]) for row in rows)


@pytest.mark.slow
def test_a_dry_run_needs_no_tensorflow_and_goes_on_after_a_row_that_fails(tmp_path):
    for name in ABSENT:
        (tmp_path / "absent").mkdir(exist_ok=True)
        (tmp_path / "absent" / f"{name}.py").write_text(f"raise ImportError('{name} is not here')\n")
    command = [sys.executable, str(ROOT / "launch" / "studies" / "accelerator.py"), "--dry", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--only", "base-published|train|golden", "--minutes", "8"],
        env=environment() | {"PYTHONPATH": str(tmp_path / "absent")},
        capture_output=True,
        text=True,
    )
    found = {row["name"]: row["status"] for row in json.loads((tmp_path / "accelerator.json").read_text())["rows"]}
    assert found == {"base-published": "ok", "train": "ok", "golden": "failed"}, done.stdout
    assert done.returncode == 1 and "DRY RUN, no figure counts." in done.stdout
