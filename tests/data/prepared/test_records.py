"""Laws of what is stored: FLAC keeps its bytes, integers keep their samples, and the rest is what training reads."""

import io
import os

import numpy as np
import pytest

from w2v_jax.data import open_source
from w2v_jax.data.index import ReadError
from w2v_jax.data.prepared import records
from w2v_jax.data.prepared.cuts import Cut
from w2v_jax.data.prepared.records import Options, stored

soundfile = pytest.importorskip("soundfile")

WAVE = np.stack([0.5 * np.sin(np.arange(30000) / 9), 0.3 * np.cos(np.arange(30000) / 31)], axis=1)


def source_of(folder, name, wave=WAVE, rate=16000, **how):
    soundfile.write(folder / name, wave, rate, **how)
    return open_source("folder", folder)


def decoded(record, dtype="int32"):
    wave, rate = soundfile.read(io.BytesIO(record.audio), dtype=dtype, always_2d=True)
    assert rate == record.rate and len(wave) == record.frames
    assert soundfile.info(io.BytesIO(record.audio)).format == "FLAC"
    return wave


def test_flac_keeps_its_bytes_unless_something_is_to_change(tmp_path):
    source = source_of(tmp_path, "a.flac")
    whole = stored(source, 0, Options())
    assert whole.is_kept and whole.records[0].audio == (tmp_path / "a.flac").read_bytes()
    assert stored(source, 0, Options(rate=16000)).is_kept, "it has that rate already"
    parts = stored(source, 0, Options(cut=Cut(0.5, "length")))
    assert not parts.is_kept and [record.id for record in parts.records][0] == "a@0.000"
    joined = np.concatenate([decoded(record) for record in parts.records])
    np.testing.assert_array_equal(joined, soundfile.read(tmp_path / "a.flac", dtype="int32")[0])


@pytest.mark.parametrize(
    ("name", "subtype"), [("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.aiff", "PCM_16"), ("a.wav", "PCM_U8")]
)
def test_integers_keep_every_sample_and_channel(tmp_path, name, subtype):
    source = source_of(tmp_path, name, rate=44100, subtype=subtype)
    (record,) = stored(source, 0, Options()).records
    np.testing.assert_array_equal(decoded(record), soundfile.read(tmp_path / name, dtype="int32")[0])
    assert soundfile.info(io.BytesIO(record.audio)).subtype == ("PCM_S8" if subtype == "PCM_U8" else subtype)


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_what_is_lossy_is_stored_as_training_reads_it_in_16_bits(tmp_path, name):
    source = source_of(tmp_path, name, rate=44100)
    (record,) = stored(source, 0, Options(rate=16000)).records
    direct = source.read(0, 0, 10**6)
    assert np.abs(decoded(record, "float32")[:, 0] - direct).max() <= 0.5001 / 2**15
    (own,) = stored(source, 0, Options()).records
    assert own.rate == 44100 and decoded(own).shape[1] == 1


def test_floats_are_rounded_to_24_bits_and_what_is_beyond_full_scale_is_counted(tmp_path):
    wave = np.append(WAVE[:, 0], [1.5, -1.2, 1.0])
    source = source_of(tmp_path, "a.wav", wave, subtype="FLOAT")
    found = stored(source, 0, Options())
    assert found.clipped == 2
    difference = decoded(found.records[0], "float64")[:-3, 0] - wave[:-3].astype(np.float32)
    assert np.abs(difference).max() <= 0.5001 / 2**23


def test_resampling_in_pieces_is_resampling_the_whole(tmp_path):
    source = source_of(tmp_path, "a.wav", WAVE[:, 0], rate=22050)
    found = stored(source, 0, Options(rate=16000, cut=Cut(0.4, "length"))).records
    together = np.concatenate([decoded(record, "float32")[:, 0] for record in found])
    direct = source.read(0, 0, 10**6)
    assert len(together) == len(direct) and np.abs(together - direct).max() <= 1.001 / 2**15


def test_long_recordings_go_through_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "BLOCK_SECONDS", 1)
    source = source_of(tmp_path, "a.wav", subtype="PCM_24")
    np.testing.assert_array_equal(
        decoded(stored(source, 0, Options()).records[0]), soundfile.read(tmp_path / "a.wav", dtype="int32")[0]
    )


def test_silence_is_noticed(tmp_path):
    assert stored(source_of(tmp_path, "a.flac", np.zeros(8000)), 0, Options()).is_silent
    assert not stored(source_of(tmp_path, "a.flac"), 0, Options()).is_silent


def test_damage_and_what_changed_or_vanished_is_told(tmp_path, monkeypatch):
    source = source_of(tmp_path, "a.flac")
    content = (tmp_path / "a.flac").read_bytes()
    status = os.stat(tmp_path / "a.flac")
    (tmp_path / "a.flac").write_bytes(content[:9000] + bytes(3000) + content[12000:])
    os.utime(tmp_path / "a.flac", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ReadError, match="corrupt audio|truncated"):
        stored(source, 0, Options())
    os.utime(tmp_path / "a.flac", ns=(1, 1))
    with pytest.raises(ReadError, match="changed after listing"):
        stored(source, 0, Options())
    (tmp_path / "a.flac").unlink()
    with pytest.raises(ReadError, match="changed after listing: .* none now"):
        stored(source, 0, Options())
    monkeypatch.setattr(records, "MOST_BYTES", 100)
    with pytest.raises(ReadError, match="too long for a record"):
        stored(source_of(tmp_path, "a.flac"), 0, Options())
