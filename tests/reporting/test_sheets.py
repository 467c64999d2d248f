"""Laws of pages of recordings: faults of level are seen, and any name, rate and state can be drawn."""

import numpy as np
import pytest

from w2v_jax.data import open_source
from w2v_jax.reporting import sheets

soundfile = pytest.importorskip("soundfile")


def write(path, seconds, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).uniform(-1, 1, int(seconds * rate)), rate)


@pytest.fixture
def corpus(tmp_path):
    write(tmp_path / "1" / "2" / "1-2-0001.flac", 1.0)
    write(tmp_path / "~b.wav", 2.0, rate=44100)
    return tmp_path


def test_rows_are_spread_from_the_shortest_to_the_longest():
    durations = np.array([5.0, 1.0, 3.0, 2.0, 4.0])
    assert durations[sheets.pick_rows(durations, 3)].tolist() == [1, 3, 5]
    assert durations[sheets.pick_rows(durations, 99)].tolist() == [1, 2, 3, 4, 5]
    assert len(sheets.pick_rows(durations, 1)) == 1


def test_the_log_mel_spectrum_has_80_bins_every_10_ms_and_its_tone_at_its_place():
    librosa = pytest.importorskip("librosa")
    mel = sheets.mel_decibels(np.sin(np.arange(16000) * 2 * np.pi * 1000 / 16000).astype(np.float32))
    assert mel.shape == (80, 101)
    centres = librosa.mel_frequencies(82, fmin=0, fmax=8000)[1:-1]
    assert abs(centres[mel[:, 50].argmax()] - 1000) < 60
    assert sheets.mel_decibels(np.zeros(1600, np.float32)).max() <= sheets.FLOOR_DB


@pytest.mark.parametrize(
    ("wave", "fault"),
    [
        (np.clip(3 * np.sin(np.arange(9999)), -1, 1), "at full scale: clipped?"),
        (1e-4 * np.sin(np.arange(9999)), "silent"),
        (0.1 * np.sin(np.arange(9999)) + 0.1, r"offset +0.10"),
        (0.3 * np.sin(np.arange(9999)), None),
    ],
)
def test_faults_of_level_are_seen(wave, fault):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    found = sheets._draw_wave(figure.subplots(), wave.astype(np.float32), 1.0)
    assert not found if fault is None else any(fault in text for text in found)


def test_the_sheet_shows_recordings_of_any_rate_name_and_state(corpus, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    pytest.importorskip("librosa")
    write(corpus / "gone$^$.wav", 0.5)
    write(corpus / "phone.wav", 0.2, rate=8000)
    (corpus / "1" / "2" / "1-2.trans.txt").write_text("1-2-0001 $ 한국어 \U00020000 " + "word " * 90)
    source = open_source("folder", corpus)
    (corpus / "gone$^$.wav").unlink()
    sheets.draw_sheet(source, range(4), tmp_path / "sheet.png")
    pixels = image.imread(tmp_path / "sheet.png")[..., :3]
    assert pixels.shape == (970, 1300, 3)
    red = np.array([0xC0, 0x39, 0x2B]) / 255
    assert (np.abs(pixels - red).max(axis=-1) < 0.02).sum() > 500, "the frame and words of what cannot be read"


def test_lengths_from_milliseconds_to_hours_are_one_histogram(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    sheets.draw_lengths({"0.0": 3, "12.5": 40, "3600.0": 1}, tmp_path / "new" / "h.png")
    pixels = image.imread(tmp_path / "new" / "h.png")[..., :3]
    blue = np.array([0x3B, 0x6E, 0xA5]) / 255
    assert pixels.shape == (360, 800, 3) and (np.abs(pixels - blue).max(axis=-1) < 0.02).sum() > 1000


def test_what_is_not_bounded_has_no_full_scale():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    assert sheets._draw_wave(axes, np.linspace(-4, 4, 9999, dtype=np.float32), 1.0, is_bounded=False) == []
    assert axes.get_ylim() == (-4, 4)
