"""Laws of `w2v_jax.load`: a recording in memory gives what its file gives, alone or in a batch; mistakes are named."""

from __future__ import annotations

import doctest
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from commands import environment

import w2v_jax
from w2v_jax import inference, runs, transcribe
from w2v_jax.acoustic import places
from w2v_jax.config import UserError
from w2v_jax.data import arrays, open_source
from w2v_jax.frontend import num_frames

LOGMEL = "acoustic_logmel.py:tiny"


@pytest.fixture(scope="module")
def model(random_run):
    return w2v_jax.load(random_run(data__normalize=True))


def test_a_run_that_is_open_is_taken_as_it_is(random_run):
    run = runs.open_run(random_run(data__normalize=True))
    assert w2v_jax.load(run).run is run
    with pytest.raises(UserError, match="step=3: an open run is that of step 0"):
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
    ((_, expected),) = runs.encode(model.run, open_source("folder", tmp_path))
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


@pytest.mark.parametrize(("dtype", "subtype"), [("int16", "PCM_16"), ("int32", "PCM_32"), ("uint8", "PCM_U8")])
def test_integers_become_floats_as_in_a_file(tmp_path, dtype, subtype):
    info = np.iinfo(dtype)
    wave = np.random.default_rng(1).integers(info.min, info.max, (500, 2), dtype=dtype, endpoint=True)
    source = wave if dtype != "uint8" else (wave.astype(np.int16) - 128) << 8
    soundfile.write(tmp_path / "a.wav", source, 16000, subtype=subtype)
    read = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)[0]
    np.testing.assert_array_equal(arrays.mono(wave), read.mean(axis=1, dtype=np.float32))
    np.testing.assert_array_equal(arrays.mono(wave[:, :1]), read[:, 0])


GOOD = np.zeros(16000)


@pytest.mark.parametrize(
    ("wave", "rate", "message"),
    [
        (np.zeros(0), 16000, r"wave is empty \(shape \[0\]\)"),
        (np.zeros(399), 16000, "wave: too short for one frame: 399 samples of 400"),
        ([GOOD, np.zeros(500)], 44100, r"wave\[1\]: too short for one frame: 181 samples of 400"),
        (
            np.where(np.arange(1000) == 7, np.nan, 0.0),
            16000,
            r"1 samples that are NaN or infinite, the first at \(7,\)",
        ),
        (np.zeros((2, 16000)), 16000, r"wave has shape \[2x16000\].*wave\.T, or list\(wave\) for a batch of 2"),
        (np.zeros((16000, 100)), 16000, "would be 100 channels"),
        (np.zeros((2, 8000, 2)), 16000, "a recording is .samples. or .samples, channels., a batch is a list"),
        ([0.1, 0.2], 16000, r"wave\[0\] has shape \[\]"),
        (np.zeros(16000, np.int64), 16000, "wave is int64: needs floats from -1 to 1, or uint8, int16, int32"),
        (np.zeros(16000, bool), 16000, "wave is bool"),
        (np.array(["a"]), 16000, "wave is <U1"),
        (np.full(16000, 12000.0), 16000, "reaches 12000; floats go from -1 to 1: divide"),
        (GOOD, 16, r"rate=16: needs whole Hz from 1000 .*not kHz"),
        (GOOD, 22050.5, "rate=22050.5: needs whole Hz"),
        (GOOD, None, "rate=None: needs the sampling rate"),
        (GOOD, float("nan"), "rate=nan: needs whole Hz"),
    ],
)
def test_what_is_no_recording_is_refused_with_the_way_out(model, wave, rate, message):
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


def test_frames_of_an_acoustic_model_lie_in_the_middle_of_those_that_it_joins():
    class Law(dict):
        __getattr__ = dict.__getitem__

    frames = np.arange(3)
    assert places(Law(kind="linear"), frames).tolist() == [0, 1, 2]
    assert places(Law(kind="conv", conv_layers=((8, 5, 2), (8, 3, 2))), frames).tolist() == [0, 4, 8]
    assert places(Law(kind="transformer", stride=2), frames).tolist() == [0.5, 2.5, 4.5]


def test_a_model_of_codes_asks_for_the_one_that_makes_them(random_run, tmp_path):
    path = shutil.copytree(random_run(), tmp_path / "run")
    form = {"name": "codes", "dtype": "int32", "hop": 160, "made_by": "x", "width": 0}
    (path / "data.json").write_text(json.dumps({"form": form}))
    with pytest.raises(UserError, match=r"reads codes, not audio: .*load\(path, quantizer=RUN\)"):
        w2v_jax.load(path)
    with pytest.raises(UserError, match="does not exist"):
        w2v_jax.load(tmp_path / "nowhere")
