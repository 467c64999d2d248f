"""Laws of `w2v_jax.load`: a recording in memory gives what its file gives, alone or in a batch; mistakes are named."""

from __future__ import annotations

import doctest
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile
from commands import environment

import w2v_jax
from w2v_jax import transcribe
from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.io.arrays import Arrays
from w2v_jax.inference import model as inference
from w2v_jax.inference.encode import encode
from w2v_jax.inference.run import open_run
from w2v_jax.nn.acoustic_model import frame_middles
from w2v_jax.ops.frames import num_frames

LOGMEL = "acoustic_logmel.py:tiny"


@pytest.fixture(scope="module")
def model(random_run):
    return w2v_jax.load(random_run(data__normalize=True))


def test_a_run_that_is_open_is_taken_as_it_is(random_run):
    run = open_run(random_run(data__normalize=True))
    assert w2v_jax.load(run).run is run
    with pytest.raises(UserError, match="step=3: the given run is open at step 0"):
        w2v_jax.load(run, step=3)


def noise(*shape, seed=0):
    return 0.1 * np.random.default_rng(seed).normal(size=shape)


def test_the_example_of_the_docstring_runs(random_run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    os.symlink(random_run(), tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(w2v_jax.load, "load", globs={})
    assert len(example.examples) > 5
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert not failed, "".join(report)


def test_importing_the_package_loads_neither_jax_nor_numpy():
    script = "import sys, w2v_jax; print(w2v_jax.load.__name__, sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "load []\n", result.stderr


def test_a_recording_in_memory_gives_what_its_file_gives(model, tmp_path):
    wave = (noise(30000, 2) * 32768).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", wave, 22050)
    ((_, expected),) = encode(model.run, open_source("folder", tmp_path))
    found = model(wave, 22050)
    for key, array in expected.items():
        np.testing.assert_array_equal(getattr(found, key), array)
    assert found.hidden.shape == (3, *found.context.shape)
    assert found.text is found.log_probs is None
    frames = num_frames(30000 * 16000 // 22050, model.run.config.encoder.conv_layers)
    assert len(found.times) == len(found.context) == frames
    np.testing.assert_allclose(np.diff(found.times), 0.02)


def test_a_batch_gives_what_each_recording_gives_alone(model):
    waves = [noise(n, seed=n) for n in (16000, 9000, 25000)]
    for one, wave in zip(model(waves, 16000), waves):
        alone = model(wave, 16000)
        for key in ("local", "context", "hidden", "times"):
            np.testing.assert_allclose(getattr(one, key), getattr(alone, key), rtol=0, atol=2e-5)
        np.testing.assert_array_equal(one.codes, alone.codes)
    assert model([], 16000) == []
    assert isinstance(model([waves[0]], 16000), list)


def test_only_what_is_asked_for_is_given(model):
    record = model(noise(8000), 16000, keys=("hidden",), layer=(0.0, 1.0, 0.0))
    assert record.context is record.local is record.codes is None
    np.testing.assert_allclose(record.hidden, model(noise(8000), 16000, keys="hidden").hidden[1], rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="has no text; it gives local, context, hidden, codes"):
        model(noise(8000), 16000, keys=("text",))


GOOD = np.zeros(16000)


@pytest.mark.parametrize(
    ("wave", "rate", "message"),
    [
        (np.zeros(399), 16000, "wave: too short for one frame: 399 samples of 400"),
        ([GOOD, np.zeros(500)], 44100, r"wave\[1\]: too short for one frame: 181 samples of 400"),
        ([0.1, 0.2], 16000, r"wave\[0\] has shape \[\]"),
        (GOOD, 16, r"rate=16 must be a whole number of Hz from 1000 .*not kHz"),
    ],
)
def test_recordings_that_cannot_be_read_are_refused_by_their_number(model, wave, rate, message):
    with pytest.raises(UserError, match=message):
        model(wave, rate)


def test_records_that_memory_would_not_hold_are_refused_with_the_way_out(model, monkeypatch):
    second = model(GOOD, 16000)
    monkeypatch.setattr(inference, "MAX_BYTES", 4 * second.context.size + 4 * 64)
    with pytest.raises(UserError, match=r"keys=\(\"context\",\), or layer=N.*python -m w2v_jax\.extract"):
        model(GOOD, 16000)
    assert model(GOOD, 16000, keys=("context",)).context.shape == second.context.shape


def test_long_recordings_are_computed_in_pieces_and_lose_no_frame(random_run):
    model = w2v_jax.load(random_run(LOGMEL))
    wave = noise(200 * 8000).astype(np.float32)
    record = model(wave, 8000, keys=("context",))
    assert len(record.context) == len(record.times) == (200 * 16000 - 512) // 160 + 1
    part = model(wave[: 10 * 8000], 8000, keys=("context",)).context
    np.testing.assert_allclose(record.context[:900], part[:900], rtol=0, atol=1e-3)


def test_a_model_says_in_a_line_what_it_is(random_run):
    """Its weights are not shown, nor are the numbers of a record."""
    path = random_run()
    model = w2v_jax.load(path)
    count = sum(x.size for x in jax.tree.leaves(model.run.params))
    run = f"Run(wav2vec2, {count:,} parameters, step {model.run.step}, 16 kHz, 50 frames/s, {path})"
    assert repr(model.run) == run and repr(model) == f"Model(run={run}, quantizer=None, alphabet=None)"
    record = model(noise(16000), 16000, keys=("context",))
    assert repr(record).startswith("Record(times=float64[49], local=None, context=float32[49, 32], hidden=None")
    logmel = repr(w2v_jax.load(random_run(LOGMEL)))
    assert "alphabet=Alphabet(tokens=" in logmel and "100 frames/s" in logmel and len(logmel) < 400
    source = Arrays([noise(16000)] * 3, 16000)
    assert repr(source) == "Arrays(waves=3 arrays of 48,000 numbers, index=Index(3 recordings, 0.00 h, 0 skipped))"


def test_a_recogniser_writes_what_transcribe_writes(random_run, tmp_path, capsys):
    path = random_run(LOGMEL)
    wave = noise(20000)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    assert transcribe.main(["--run", str(path), str(tmp_path / "a.wav")]) == 0
    written = capsys.readouterr().out.rstrip("\n").split("\t")[1]
    record = w2v_jax.load(path)(wave, 16000)
    assert record.text == written and record.text
    assert record.log_probs.shape == (len(record.log_prob_times), 10)
    np.testing.assert_allclose(np.exp(record.log_probs).sum(axis=1), 1, atol=1e-4)
    assert w2v_jax.load(path)(wave, 16000, keys=("text",)).context is None


def test_a_line_of_transcribe_has_two_columns_whatever_the_name_of_the_file(random_run, tmp_path, capsys):
    name = tmp_path / "a\tb\nc.wav"
    soundfile.write(name, noise(20000), 16000)
    command = ["--run", str(random_run(LOGMEL)), "--out", str(tmp_path / "out.jsonl"), str(name)]
    assert transcribe.main(command) == 0
    (line,) = capsys.readouterr().out.splitlines()
    path, _ = line.split("\t")
    assert path == str(tmp_path / r"a\tb\nc.wav")
    assert json.loads((tmp_path / "out.jsonl").read_text())["path"] == str(name)


def test_frames_of_an_acoustic_model_lie_in_the_middle_of_those_that_it_joins():
    class Law(dict):
        __getattr__ = dict.__getitem__

    frames = np.arange(3)
    assert frame_middles(Law(kind="linear"), frames).tolist() == [0, 1, 2]
    assert frame_middles(Law(kind="conv", conv_layers=((8, 5, 2), (8, 3, 2))), frames).tolist() == [0, 4, 8]
    assert frame_middles(Law(kind="transformer", stride=2), frames).tolist() == [0.5, 2.5, 4.5]


def test_a_model_of_codes_asks_for_the_one_that_makes_them(random_run, tmp_path):
    path = shutil.copytree(random_run(), tmp_path / "run")
    form = {"name": "codes", "dtype": "int32", "hop": 160, "made_by": "x", "width": 0}
    (path / "data.json").write_text(json.dumps({"form": form}))
    with pytest.raises(UserError, match=r"reads codes, not audio: .*load\(path, quantizer=RUN\)"):
        w2v_jax.load(path)
    with pytest.raises(UserError, match="does not exist"):
        w2v_jax.load(tmp_path / "nowhere")
