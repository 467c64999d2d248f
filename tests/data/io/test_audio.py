"""Laws of reading: a crop is what the whole would give there, and a file that cannot be read says why."""

import os

import numpy as np
import pytest
import soundfile
import soxr
from recordings import encoded, tone, without_mp3_header

from w2v_jax.data.index import ReadError, Row, make_index
from w2v_jax.data.io import decoders
from w2v_jax.data.io.audio import AudioFiles, average_channels, check_channels, probe, read_frames


def source_of(path, offset=0, frames=None):
    header = probe(str(path))
    frames = header.frames - offset if frames is None else frames
    return AudioFiles(make_index([Row("a", str(path), offset, frames, header.rate)]))


KINDS = [
    ("a.wav", {}),
    ("a.flac", {}),
    ("a.ogg", {"format": "OGG", "subtype": "VORBIS"}),
    ("a.opus", {"format": "OGG", "subtype": "OPUS"}),  # a seek starts the decoder anew: not to the last bit
    ("a.mp3", {"format": "MP3"}),
]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_crop_by_seek_equals_the_crop_of_the_whole_in_every_format(tmp_path, audio, name, kind):
    audio(tmp_path / name, 6.0, **kind)
    whole = soundfile.read(tmp_path / name, dtype="float32")[0]
    source = source_of(tmp_path / name)
    for start, length in [(0, 16000), (1, 999), (12345, 16000), (29000, 16000), (94000, 16000), (95999, 1)]:
        crop = source.read(0, start, length)
        assert crop.dtype == np.float32
        np.testing.assert_allclose(crop, whole[start : start + length], atol=5e-3 if name == "a.opus" else 1e-5)


@pytest.mark.parametrize("rate", [2000, 8000, 11025, 22050, 32000, 44100, 48000, 96000])
def test_crop_of_a_resampled_file_equals_the_crop_of_the_whole(tmp_path, audio, rate):
    wave = audio(tmp_path / "a.wav", 4.0, rate, subtype="FLOAT")
    whole = soxr.resample(wave, rate, 16000, quality="HQ")
    source = source_of(tmp_path / "a.wav")
    assert source.index.num_samples[0] == 64000
    for start, length in [(0, 64000), (0, 8000), (1, 8000), (31234, 16000), (63000, 16000), (63999, 1)]:
        crop = source.read(0, start, length)
        assert len(crop) == min(length, 64000 - start)
        np.testing.assert_allclose(crop, whole[start : start + length], atol=1e-3 * np.abs(whole).max())


def test_stereo_is_averaged(tmp_path, audio):
    wave = audio(tmp_path / "a.wav", channels=2, subtype="FLOAT")
    np.testing.assert_allclose(source_of(tmp_path / "a.wav").read(0, 0, 16000), wave.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("rate", [16000, 8000])
def test_segment_of_a_long_file_never_shows_its_neighbours(tmp_path, audio, rate):
    wave = np.concatenate([np.ones(rate), np.zeros(rate), np.ones(rate)]).astype(np.float32)
    audio(tmp_path / "a.wav", rate=rate, wave=wave, subtype="FLOAT")
    source = source_of(tmp_path / "a.wav", offset=rate, frames=rate)
    read = source.read(0, 0, 10**6)
    assert len(read) == 16000
    assert np.abs(read).max() < 1e-6


def test_reading_outside_a_row_gives_what_there_is(tmp_path, audio):
    audio(tmp_path / "a.wav")
    source = source_of(tmp_path / "a.wav")
    assert len(source.read(0, 15000, 5000)) == 1000
    assert len(source.read(0, 16000, 5000)) == 0


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("truncated", "truncated: "), ("zero bytes", "empty file"), ("text", "not audio: |corrupt audio: ")],
)
def test_damaged_files_are_known_from_a_look_at_header_and_end(tmp_path, audio, name, kind, reason):
    audio(tmp_path / name, 4.0)
    whole = (tmp_path / name).read_bytes()
    contents = {"truncated": whole[: len(whole) // 2], "zero bytes": b"", "text": b"this is not audio\n" * 100}
    (tmp_path / name).write_bytes(contents[kind])
    with pytest.raises(ReadError, match=f"^({reason})"):
        probe(str(tmp_path / name))


def test_fault_in_the_middle_is_found_when_that_part_is_read(tmp_path, audio):
    path = tmp_path / "a.flac"
    audio(path, 4.0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    source = source_of(path)
    assert len(source.read(0, 0, 16000)) == 16000
    with pytest.raises(ReadError, match="corrupt audio|truncated"):
        source.read(0, 0, 64000)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path, audio, bad):
    wave = np.zeros(16000, np.float32)
    wave[9000] = bad
    audio(tmp_path / "a.wav", wave=wave, subtype="FLOAT")
    source = source_of(tmp_path / "a.wav")
    assert len(source.read(0, 0, 8000)) == 8000
    with pytest.raises(ReadError, match="NaN or infinite"):
        source.read(0, 0, 16000)


def test_a_file_that_changed_after_listing_is_refused(tmp_path, audio):
    path = tmp_path / "a.wav"
    audio(path, 2.0)
    source = source_of(path)
    audio(path, 1.0)
    with pytest.raises(ReadError, match="truncated: ends 16000 of 32000 samples early"):
        source.read(0, 0, 32000)
    audio(path, 2.0, rate=8000)
    with pytest.raises(ReadError, match="changed after listing: 8000 Hz"):
        source.read(0, 0, 32000)
    path.unlink()
    with pytest.raises(ReadError):
        source.read(0, 0, 32000)


def test_wav_that_was_written_to_a_pipe_is_read(tmp_path, audio):
    path = tmp_path / "a.wav"
    audio(path, 2.0)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert probe(str(path)).frames == 32000


def test_pipes_and_missing_files_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(ReadError, match="not a regular file"):
        probe(str(tmp_path / "a.wav"))
    with pytest.raises(ReadError, match="does not exist"):
        probe(str(tmp_path / "b.wav"))
    with pytest.raises(ReadError, match="not a regular file"):
        probe(str(tmp_path))


def test_errors_of_reading_leave_out_the_path(tmp_path):
    (tmp_path / "a.wav").write_text("text")
    with pytest.raises(ReadError) as caught:
        read_frames(str(tmp_path / "a.wav"), 0, 1, rate=16000)
    assert str(tmp_path) not in str(caught.value)


def test_floats_on_the_scale_of_integers_are_refused(tmp_path, audio):
    wave = audio(tmp_path / "a.wav", subtype="FLOAT", wave=np.linspace(-3e4, 3e4, 16000, dtype=np.float32))
    with pytest.raises(ReadError, match=r"on the scale of integers: they reach 30000 and must lie between -1 and 1"):
        source_of(tmp_path / "a.wav").read(0, 0, 16000)
    audio(tmp_path / "b.wav", subtype="FLOAT", wave=wave / 1e4)
    assert len(source_of(tmp_path / "b.wav").read(0, 0, 16000)) == 16000, "a little too loud is no error"


@pytest.mark.parametrize("kind", [{}, {"subtype": "FLOAT"}, {"format": "MP3"}])
@pytest.mark.parametrize("gain", [1.0, 0.99])
def test_a_recording_whose_channels_cancel_is_refused(tmp_path, audio, gain, kind):
    wave = audio(tmp_path / "a.wav", 1.0)
    audio(tmp_path / "b.wav", wave=np.stack([wave, -gain * wave], axis=1), **kind)
    with pytest.raises(ReadError, match="channels cancel when they are averaged: write one of them"):
        probe(str(tmp_path / "b.wav"))


def test_crops_do_not_decide_whether_channels_cancel(tmp_path, audio):
    """A recording passes or not, whatever is read of it."""
    wave = audio(tmp_path / "a.wav", 3.0)
    other = np.where(np.arange(len(wave)) // 16000 == 1, -wave, wave)
    audio(tmp_path / "b.wav", wave=np.stack([wave, other], axis=1), subtype="FLOAT")
    read = source_of(tmp_path / "b.wav").read(0, 18000, 9000)
    assert len(read) == 9000 and not read.any()


@pytest.mark.parametrize("channels", [[1, 0], [0, 0], [1, -0.5], [1, 1, -1]])
def test_channels_that_differ_or_are_silent_do_not_cancel(channels):
    wave = np.random.default_rng(0).standard_normal((1000, 1)).astype(np.float32) * np.array(channels, np.float32)
    check_channels(wave)
    check_channels(wave[:, :1] * 1e-6 + np.array([0.3, -0.3], np.float32))  # two constants, and noise nobody hears
    np.testing.assert_allclose(average_channels(wave), wave.mean(axis=1), atol=1e-6)


def test_a_file_is_measured_once_until_it_changes(tmp_path, monkeypatch):
    path, measured = tmp_path / "a.mp3", []
    path.write_bytes(without_mp3_header(encoded(tone(1), "mp3")))
    length = decoders._Mp3.length
    monkeypatch.setattr(decoders._Mp3, "length", lambda decoder: measured.append(1) or length(decoder))
    first = [probe(str(path)) for _ in range(3)]
    assert len(measured) == 1 and len(set(first)) == 1
    path.write_bytes(without_mp3_header(encoded(tone(2), "mp3")))
    assert probe(str(path)).frames > first[0].frames + 15_000
    assert len(measured) == 2
