"""`launch/studies/input_storage.py`: every form holds the same recordings, and one is measured. No time is judged."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from commands import ROOT, environment, script, varied
from waves import coloured

from w2v_jax.data import open_source

storage = script("input_storage")
EXACT = ("flac", "wav", "arrayrecord", "parquet", "webdataset")


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    for i in range(3):
        soundfile.write(folder / f"{i}.flac", coloured(rng, 16_000 + 800 * i), 16_000)
    return folder


@pytest.mark.parametrize("name", varied(list(storage.STORAGES), "flac", "opus", "parquet"))
def test_a_form_holds_the_recordings(audio, tmp_path, name):
    form = storage.STORAGES[name]
    form.write(storage.recordings(str(audio), 1.0), tmp_path)
    given, stored = open_source("folder", (str(audio),)), open_source(form.source, (str(tmp_path),), split="train")
    lengths = sorted(stored.index.num_samples.tolist())
    assert np.allclose(lengths, sorted(given.index.num_samples.tolist()), atol=2000 if name == "mp3" else 2)
    if name in EXACT:
        read = lambda source: {len(w): w for w in (source.read(i, 0, 99_999) for i in range(3))}
        before, after = read(given), read(stored)
        assert all(np.allclose(after[length], before[length], atol=1e-4) for length in before)


def test_only_so_many_hours_are_stored(audio):
    assert len(list(storage.recordings(str(audio), 1.5 / 3600))) == 2


@pytest.mark.slow
def test_a_form_is_measured_and_the_table_has_it(audio, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for copy in range(180):
        soundfile.write(many / f"{copy}.wav", np.random.default_rng(copy).normal(0, 0.1, 40_000), 16_000)
    command = [sys.executable, str(ROOT / "launch" / "studies" / "input_storage.py"), "--audio", str(many)]
    command += ["--out", str(tmp_path / "out"), "--runs", "1", "--only", "wav", "--hours", "1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| wav |" in done.stdout and "decode" in done.stdout
    result = json.loads((tmp_path / "out" / "wav.json").read_text())
    assert result["hours_stored"] == pytest.approx(180 * 2.5 / 3600) and result["bytes_stored"] > 2 * 180 * 40_000
