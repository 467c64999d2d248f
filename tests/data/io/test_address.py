"""Laws of addresses: they lead to the bytes of one recording, and whatever lacks them is named."""

import numpy as np
import pytest
import soundfile
from formats import Item, content, write_arrayrecord, write_parquet

from w2v_jax.data.index import ReadError
from w2v_jax.data.io import address
from w2v_jax.data.io.address import channel_of, in_file, numbered, opened
from w2v_jax.data.io.audio import probe, read_frames

FLAC = content(0.5)


def bytes_at(place):
    with opened(place) as (file, channel):
        return file if isinstance(file, str) else file.read(), channel


@pytest.mark.parametrize("limit", [1 << 20, 100])
def test_a_range_is_its_bytes_whether_it_is_read_at_once_or_where_it_is_needed(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(address, "READ_AT_ONCE", limit)
    path = str(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(b"x" * 700 + FLAC + b"y" * 300)
    place = in_file(path, 700, len(FLAC), name="deep/er:1#2+3.flac")
    assert place == f"{path}#700+{len(FLAC)}:er:1_2+3.flac" and bytes_at(place) == (FLAC, None)
    assert bytes_at(in_file(path, 700, len(FLAC))) == (FLAC, None)
    assert probe(place).frames == 8000
    with opened(place) as (file, _):
        crop = read_frames(file, 5000, 1000, rate=16000)
    with opened(place) as (file, _):
        np.testing.assert_array_equal(crop, read_frames(file, 0, 8000, rate=16000)[5000:6000])


def test_numbers_are_rows_of_parquet_and_records_of_array_record(tmp_path):
    items = [Item("a", b"one"), Item("b", b"two"), Item("c", b"three")]
    parquet, records = write_parquet(tmp_path, items), write_arrayrecord(tmp_path, items) / "a.array_record"
    sharded = records.rename(tmp_path / "a.array_record-00000-of-00001")
    for path in (parquet, sharded):
        assert [bytes_at(numbered(str(path), number))[0] for number in (2, 0)] == [b"three", b"one"]
        with pytest.raises(ReadError, match=r"no (row|record) 3: the file has 3"):
            bytes_at(numbered(str(path), 3))


def test_a_channel_is_that_channel_alone_and_a_missing_one_is_named(tmp_path):
    wave = 0.1 * np.random.default_rng(0).standard_normal((1000, 2)).astype(np.float32)
    wave[:, 1] = -wave[:, 0]  # whose mean would be silent
    path = str(tmp_path / "a.wav")
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    with pytest.raises(ReadError, match="channels cancel"):
        probe(path)
    for channel in (0, 1):
        assert probe(channel_of(path, channel)).frames == 1000
        with opened(channel_of(path, channel)) as (file, number):
            np.testing.assert_array_equal(read_frames(file, 0, 1000, rate=16000, channel=number), wave[:, channel])
    with pytest.raises(ReadError, match="no channel 2: the file has 2, counted from 0"):
        probe(channel_of(path, 2))


def test_a_file_whose_name_looks_like_an_address_is_that_file(tmp_path):
    for name in ("a.tar#1+2", "a#channel1", "b.parquet#3", "c#d.flac"):
        (tmp_path / name).write_bytes(FLAC)
        assert bytes_at(str(tmp_path / name)) == (str(tmp_path / name), None)
        assert probe(str(tmp_path / name)).frames == 8000


def test_folders_may_have_names_like_addresses(tmp_path):
    folder = tmp_path / "x#1+2:y" / "b.parquet#3"
    folder.mkdir(parents=True)
    (folder / "a.tar").write_bytes(b"x" + FLAC)
    assert bytes_at(in_file(str(folder / "a.tar"), 1, len(FLAC), name="#channel1")) == (FLAC, None)


@pytest.mark.parametrize(
    "name", ["a.tar#0+10", "a.parquet#0", "a.array_record#0", "a.wav#channel1", "a#b.flac", "\0.tar#1+2"]
)
def test_a_missing_file_is_named_as_missing(tmp_path, name):
    with pytest.raises(ReadError, match="file does not exist"):
        probe(str(tmp_path / name))


def test_a_range_beyond_the_end_of_its_file_is_truncated(tmp_path):
    (tmp_path / "a.tar").write_bytes(FLAC)
    for start, left in ((1, f"{len(FLAC) - 1:,}"), (10**9, "0")):
        with pytest.raises(ReadError, match=f"truncated: {left} of {len(FLAC):,} bytes are left"):
            probe(in_file(str(tmp_path / "a.tar"), start, len(FLAC)))
