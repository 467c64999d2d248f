"""Laws that hold for all formats: the same recordings are the same rows, and what cannot be read is named alike."""

import numpy as np
import pytest
from formats import WRITERS, Item, content, write_librispeech

from w2v_jax.core.cli import UserError
from w2v_jax.core.files import write_whole
from w2v_jax.data import open_source
from w2v_jax.data.index import ReadError
from w2v_jax.prepare import main, manifest_lines

ITEMS = [Item(f"9-1-{i:04d}", content(0.4 + 0.1 * i, seed=i), f"text ä {i}", "9") for i in range(5)]
ITEMS += [Item("9-1-0005", content(0.5, rate=44100, channels=2, kind="WAV"), "of another rate", "9")]


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_recordings_are_the_same_rows_in_every_format(tmp_path, name):
    expected = open_source("folder", write_librispeech(tmp_path / "folder", ITEMS))
    source = open_source(name, WRITERS[name](tmp_path / name, ITEMS), workers=2)
    assert source.index.skipped == [] and source.index.ids.tolist() == [item.id for item in ITEMS]
    assert source.index.fingerprint() == expected.index.fingerprint()
    assert source.index.transcripts.tolist() == expected.index.transcripts.tolist()
    assert source.index.speakers.tolist() == expected.index.speakers.tolist()
    for row in range(len(ITEMS)):
        np.testing.assert_array_equal(source.read(row, 0, 10**6), expected.read(row, 0, 10**6))


@pytest.mark.parametrize("name", WRITERS)
def test_crops_in_any_order_are_slices_of_the_whole(tmp_path, name):
    source = open_source(name, WRITERS[name](tmp_path, ITEMS[:5]), workers=2)
    whole = [source.read(row, 0, 10**6) for row in range(5)]
    draw = np.random.default_rng(0)
    for row, start, length in zip(draw.integers(0, 5, 30), draw.integers(0, 9000, 30), draw.integers(1, 4000, 30)):
        np.testing.assert_array_equal(
            source.read(int(row), int(start), int(length)), whole[row][start : start + length]
        )


@pytest.mark.parametrize("name", WRITERS)
def test_a_manifest_of_prepare_leads_into_the_files_of_any_format(tmp_path, name):
    source = open_source(name, WRITERS[name](tmp_path / "data", ITEMS))
    write_whole(tmp_path / "m.jsonl", manifest_lines(source, tmp_path / "m.jsonl"))
    again = open_source("jsonl", tmp_path / "m.jsonl")
    assert again.index.fingerprint() == source.index.fingerprint()
    assert again.index.transcripts.tolist() == source.index.transcripts.tolist()
    for row in range(len(ITEMS)):
        np.testing.assert_array_equal(again.read(row, 2000, 3000), source.read(row, 2000, 3000))


@pytest.mark.parametrize("name", WRITERS)
def test_recordings_that_cannot_be_read_are_named_with_the_same_reason(tmp_path, name):
    whole = ITEMS[0].content
    bad = [whole[: len(whole) // 2], b"", b"this is no audio", ITEMS[5].content[:1000]]
    items = [ITEMS[0], *(Item(f"bad-{i}", data) for i, data in enumerate(bad)), ITEMS[1]]
    index = open_source(name, WRITERS[name](tmp_path, items)).index
    assert index.ids.tolist() == [ITEMS[0].id, ITEMS[1].id]
    assert [skip.kind for skip in index.skipped] == ["truncated", "empty file", "not audio", "truncated"]
    assert all(skip.path.startswith(str(tmp_path)) for skip in index.skipped)


@pytest.mark.parametrize("name", WRITERS)
def test_repeated_ids_stay_under_new_ones(tmp_path, name):
    items = [ITEMS[0], ITEMS[1]._replace(id=ITEMS[0].id)]
    source = open_source(name, WRITERS[name](tmp_path, items))
    assert source.index.ids.tolist() == [ITEMS[0].id, f"{ITEMS[0].id}#2"]
    assert len(source.read(1, 0, 10**6)) == 8000


@pytest.mark.parametrize("name", WRITERS)
def test_files_that_vanish_or_shrink_after_listing_are_named_when_they_are_read(tmp_path, name):
    source = open_source(name, WRITERS[name](tmp_path, ITEMS[:3]))
    held = [path for path in tmp_path.rglob("*") if path.suffix in (".flac", ".parquet", ".tar", ".array_record")]
    for path in held:
        path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ReadError):
        source.read(1, 0, 10**6)
    for path in held:
        path.unlink()
    with pytest.raises(ReadError, match="file does not exist"):
        source.read(1, 0, 10**6)


@pytest.mark.parametrize("name", ["parquet", "webdataset", "arrayrecord"])
def test_prepare_reads_all_of_every_shard_and_ends_with_an_error_above_a_share(tmp_path, name):
    items = [Item(f"u{i}", content(2.0, seed=i)) for i in range(4)]
    root = WRITERS[name](tmp_path / "data", items)
    path = max((tmp_path / "data").iterdir())
    data = bytearray(path.read_bytes())
    data[data.index(items[3].content[20_000:20_100])] ^= 1
    path.write_bytes(data)
    arguments = ["--source", name, "--root", str(root), "--skipped", str(tmp_path / "skipped.jsonl")]
    assert main([*arguments, "--max-skipped-share", "0.25"]) == 0
    with pytest.raises(UserError, match=r"1 of 4 recordings \(25\.0%\) cannot be used"):
        main([*arguments, "--max-skipped-share", "0.2"])
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert str(path) in line and "corrupt" in line


@pytest.mark.parametrize("name", [*WRITERS, "common_voice", "mls"])
def test_a_root_that_is_missing_or_empty_is_a_clear_error(tmp_path, name):
    with pytest.raises(UserError, match="does not exist"):
        open_source(name, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.root is empty"):
        open_source(name, ())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.root: .*empty"):
        open_source(name, tmp_path / "empty")
