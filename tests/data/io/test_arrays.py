"""Laws of recordings in memory: they are read as files of them are, and what is no recording is refused."""

import sys

import numpy as np
import pytest
import soundfile

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.io import arrays


@pytest.mark.parametrize(("dtype", "subtype"), [("int16", "PCM_16"), ("int32", "PCM_32"), ("uint8", "PCM_U8")])
def test_integers_become_floats_as_in_a_file(tmp_path, dtype, subtype):
    info = np.iinfo(dtype)
    wave = np.random.default_rng(1).integers(info.min, info.max, (500, 2), dtype=dtype, endpoint=True)
    source = wave if dtype != "uint8" else (wave.astype(np.int16) - 128) << 8
    soundfile.write(tmp_path / "a.wav", source, 16000, subtype=subtype)
    read = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)[0]
    np.testing.assert_array_equal(arrays.mono(wave), read.mean(axis=1, dtype=np.float32))
    np.testing.assert_array_equal(arrays.mono(wave[:, :1]), read[:, 0])


def test_a_crop_of_an_array_is_that_of_its_file(tmp_path):
    wave = np.random.default_rng(0).integers(-9000, 9000, (22050, 2)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", wave, 22050)
    source, file = arrays.Arrays([wave[:500], wave], 22050), open_source("folder", tmp_path)
    assert source.index.ids.tolist() == ["0", "1"] and source.index.num_samples[1] == file.index.num_samples[0]
    for start, length in ((0, 10**6), (7001, 300), (15990, 300)):
        np.testing.assert_array_equal(source.read(1, start, length), file.read(0, start, length))


def test_channels_that_cancel_are_refused_in_memory_as_in_a_file():
    wave = np.random.default_rng(0).integers(-9000, 9000, 8000).astype(np.int16)
    with pytest.raises(UserError, match=r"wave\[0\]: channels cancel"):
        arrays.check_wave(np.stack([wave, -wave], axis=1), "wave[0]")


@pytest.mark.parametrize("rate", [16000, 16000.0, "16000"])
def test_a_rate_may_be_written_in_any_way_that_is_a_whole_number(rate):
    assert arrays.check_rate(rate) == 16000


def test_only_another_rate_needs_soxr(monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    assert arrays.check_rate(16000) == 16000
    with pytest.raises(UserError, match="rate=8000: resampling to 16000 Hz needs soxr .*pip install soxr"):
        arrays.check_rate(8000)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (22050.5, "rate=22050.5 must be a whole number of Hz"),
        (None, "rate=None must be the sampling rate"),
        (float("nan"), "rate=nan must be a whole number of Hz"),
    ],
)
def test_what_is_no_rate_is_refused(rate, message):
    with pytest.raises(UserError, match=message):
        arrays.check_rate(rate)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(0), r"wave is empty \(shape \[0\]\)"),
        (
            np.where(np.arange(1000) == 7, np.nan, 0.0),
            r"1 samples that are NaN or infinite, the first at \(7,\)",
        ),
        (np.zeros((2, 16000)), r"wave has shape \[2x16000\].*wave\.T, or list\(wave\) for a batch of 2"),
        (np.zeros((16000, 100)), "would be 100 channels"),
        (np.zeros((2, 8000, 2)), "a recording is .samples. or .samples, channels., a batch is a list"),
        (np.zeros(16000, np.int64), "wave has type int64; give floats from -1 to 1, or uint8, int16, int32"),
        (np.zeros(16000, bool), "wave has type bool"),
        (np.array(["a"]), "wave has type <U1"),
        (np.full(16000, 12000.0), "reaches 12000; floats must lie between -1 and 1: divide"),
    ],
)
def test_what_is_no_recording_is_refused_with_the_way_out(wave, message):
    with pytest.raises(UserError, match=message):
        arrays.check_wave(wave, "wave")
