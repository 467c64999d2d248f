"""Laws of Parquet sources: rows, splits and partitions as Hugging Face and omnilingual ASR lay them out."""

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import Item, content, write_parquet

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.archives import parquet_rows
from w2v_jax.data.index import Skip
from w2v_jax.data.sources import parquet

ITEMS = [Item(f"u{i}", content(0.2, seed=i), f"text {i}", f"s{i}") for i in range(4)]


def test_every_storage_gives_the_same_rows(tmp_path):
    first = open_source("parquet", write_parquet(tmp_path / "0", ITEMS))
    for form in ("struct", "binary", "list"):
        for compression in ("none", "snappy"):
            path = write_parquet(tmp_path / form / compression, ITEMS, form=form, compression=compression)
            source = open_source("parquet", path)
            assert source.index.fingerprint() == first.index.fingerprint() and not source.index.skipped
            np.testing.assert_array_equal(source.read(2, 1000, 1500), first.read(2, 1000, 1500))


def test_the_layout_of_omnilingual_asr_is_read_by_split_and_language(tmp_path):
    """corpus=/split=/language=/part-0.parquet with text, audio_bytes (a list of int8) and audio_size."""
    for language in ("deu_Latn", "fra_Latn"):
        for split in ("train", "dev"):
            folder = tmp_path / "version=0" / "corpus=mls" / f"split={split}" / f"language={language}"
            folder.mkdir(parents=True)
            audio = pa.array([np.frombuffer(item.content, np.int8) for item in ITEMS[:2]], pa.list_(pa.int8()))
            table = pa.table({"text": [f"{language} {split}"] * 2, "audio_bytes": audio, "audio_size": [3200, 3200]})
            pq.write_table(table, folder / "part-0.parquet", row_group_size=100)
    source = open_source("parquet", tmp_path, split="train")
    assert source.index.transcripts.tolist() == ["deu_Latn train"] * 2 + ["fra_Latn train"] * 2
    assert source.index.ids[3] == "version=0/corpus=mls/split=train/language=fra_Latn/part-0:1"
    assert len(open_source("parquet", tmp_path).index) == 8
    assert set(open_source("parquet", f"{tmp_path}@dev", split="train").index.transcripts) == {
        "deu_Latn dev",
        "fra_Latn dev",
    }
    one = tmp_path / "version=0/corpus=mls/split=dev/language=deu_Latn"
    assert open_source("parquet", (one, f"{tmp_path}@train")).index.transcripts[0] == "deu_Latn dev"
    with pytest.raises(UserError, match=r"no split 'test'; choose with --config.data.split from dev, train"):
        open_source("parquet", tmp_path, split="test")


def test_the_names_of_hugging_face_say_the_split(tmp_path):
    for name in (
        "train-00000-of-00002",
        "train-00001-of-00002",
        "test-00000-of-00001",
        "train.other.500-00000-of-00001",
    ):
        write_parquet(tmp_path / "data", [ITEMS[0]._replace(id=name)], name=f"{name}.parquet")
    (tmp_path / "README.md").write_text("about")
    source = open_source("parquet", tmp_path, split="train")
    assert source.index.ids.tolist() == [
        "train-00000-of-00002",
        "train-00001-of-00002",
        "train.other.500-00000-of-00001",
    ]
    assert [skip.kind for skip in source.index.lost] == []
    assert [(os.path.basename(skip.path), skip.is_recording) for skip in source.index.skipped] == [("README.md", False)]
    assert open_source("parquet", f"{tmp_path}@test").index.ids.tolist() == ["test-00000-of-00001"]
    assert len(open_source("parquet", f"{tmp_path}/data/train-{{00000..00001}}-of-00002.parquet").index) == 2


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"),
        ("default/train/0000", "default/test/0000"),
        ("train-00000-of-00001-b0b9a8", "test-00000-of-00001-0f"),
    ],
)
def test_other_names_of_hugging_face_say_the_split_too(tmp_path, names):
    for name in names:
        write_parquet((tmp_path / name).parent, [ITEMS[0]._replace(id=name)], name=f"{name.rpartition('/')[2]}.parquet")
    assert open_source("parquet", tmp_path, split="train").index.ids.tolist() == [names[0]]
    assert open_source("parquet", f"{tmp_path}@test", split="train").index.ids.tolist() == [names[1]]
    assert len(open_source("parquet", tmp_path).index) == 2


def test_a_split_is_not_guessed_of_files_that_name_none(tmp_path):
    write_parquet(tmp_path / "a", ITEMS, name="part-0.parquet")
    assert len(open_source("parquet", tmp_path, split="train").index) == 4
    with pytest.raises(UserError, match="has no split 'dev'; choose with --config.data.split from no name"):
        open_source("parquet", f"{tmp_path}@dev")
    write_parquet(tmp_path / "a", ITEMS, name="train.parquet")
    with pytest.raises(UserError, match=r"part-0.parquet does not say its split, and others below .* do"):
        open_source("parquet", tmp_path, split="train")


def test_ids_are_those_of_the_column_or_of_the_path_or_counted(tmp_path):
    audio = [{"bytes": item.content, "path": path} for item, path in zip(ITEMS, ["x/a.mp3", None, "b.wav", ""])]
    pq.write_table(pa.table({"audio": audio}), tmp_path / "t.parquet")
    assert open_source("parquet", tmp_path).index.ids.tolist() == ["x/a", "t:1", "b", "t:3"]


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_path_without_bytes_is_a_file_beside_and_a_missing_one_is_named(tmp_path, compression):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.flac").write_bytes(ITEMS[0].content)
    cells = [{"bytes": None, "path": path} for path in ("clips/a.flac", "clips/gone.flac", None)]
    audio = [*cells, {"bytes": ITEMS[1].content, "path": "b"}, None]
    pq.write_table(pa.table({"audio": audio}), tmp_path / "t.parquet", compression=compression, row_group_size=2)
    source = open_source("parquet", tmp_path / "t.parquet")
    assert source.index.ids.tolist() == ["clips/a", "b"] and len(source.read(0, 0, 10**6)) == 3200
    reasons = [(os.path.relpath(skip.path, tmp_path), skip.reason) for skip in source.index.skipped]
    assert reasons == [
        ("clips/gone.flac", "file does not exist"),
        ("t.parquet#2", "no audio: the cell is empty"),
        ("t.parquet#4", "no audio: the cell is empty"),
    ]


def test_texts_of_any_type_are_text_and_what_is_not_utf_8_is_replaced(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"b"]).buffers())
    audio = pa.StructArray.from_arrays([pa.array([ITEMS[0].content] * 2), broken], ["bytes", "path"])
    table = pa.table({"audio": audio, "text": broken, "speaker_id": [7, None]})
    pq.write_table(table, tmp_path / "a.parquet")
    index = open_source("parquet", tmp_path).index
    assert index.transcripts.tolist() == ["\ufffd", "b"] and index.speakers.tolist() == ["7", ""]
    assert index.ids.tolist() == ["\ufffd", "b"]


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_list_of_bytes_with_gaps_costs_its_row_alone(tmp_path, compression):
    values = [np.frombuffer(item.content, np.int8).tolist() for item in ITEMS[:2]]
    table = pa.table({"audio": pa.array([values[0], [1, None], values[1]], pa.list_(pa.int8()))})
    pq.write_table(table, tmp_path / "a.parquet", compression=compression)
    index = open_source("parquet", tmp_path).index
    assert index.ids.tolist() == ["a:0", "a:2"]
    (skip,) = index.skipped
    assert skip == Skip(str(tmp_path / "a.parquet#1"), "corrupt audio: the list of its bytes has gaps")


def test_damaged_files_and_files_of_other_columns_are_named_and_the_rest_is_read(tmp_path):
    whole = write_parquet(tmp_path, ITEMS).read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.parquet").write_bytes(b"")
    pq.write_table(pa.table({"audio": ["path.wav"]}), tmp_path / "d.parquet")
    pq.write_table(pa.table({"audio": pa.array([], pa.binary())}), tmp_path / "e.parquet")
    shutil.copy(tmp_path / "a.parquet", os.fsencode(tmp_path) + b"/\xff.parquet")
    index = open_source("parquet", tmp_path).index
    assert len(index) == 4
    found = {os.path.basename(skip.path): skip.reason for skip in index.skipped}
    assert found["b.parquet"].startswith("corrupt Parquet file") and found["c.parquet"].startswith(
        "corrupt Parquet file"
    )
    assert found["d.parquet"] == "no column of audio bytes: the columns are audio: string"
    assert found["e.parquet"] == "empty file"
    assert "file name is not UTF-8" in found.values()


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path):
    path = write_parquet(tmp_path, ITEMS, compression="snappy", write_page_checksum=True, rows=2)
    table = parquet_rows.open_table(str(path))
    chunk = parquet_rows.audio_chunk(table, 0)
    data = bytearray(path.read_bytes())
    data[(chunk.start + chunk.stop) // 2] ^= 1
    path.write_bytes(data)
    index = open_source("parquet", path).index
    assert index.ids.tolist() == ["u2", "u3"]
    assert [skip.path for skip in index.skipped] == [f"{path}: rows 0 to 1"]
    assert index.skipped[0].reason.startswith("corrupt Parquet file")


def test_large_compressed_row_groups_are_noted_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "LARGE_GROUP", 1000)
    assert not open_source("parquet", write_parquet(tmp_path / "plain", ITEMS)).index.notes
    (note,) = open_source("parquet", write_parquet(tmp_path, ITEMS, compression="snappy")).index.notes
    assert "2 row groups are compressed" in note and "compression='none'" in note and "row_group_size=100" in note


def test_rows_without_compression_are_read_without_their_row_group(tmp_path, monkeypatch):
    source = open_source("parquet", write_parquet(tmp_path, ITEMS, rows=100))
    monkeypatch.setattr(parquet_rows, "read_columns", None)
    assert len(source.read(3, 0, 10**6)) == 3200


def test_a_file_of_another_name_and_a_folder_without_any_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"a\.txt' is no directory, and its name does not end in \.parquet"):
        open_source("parquet", tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"holds no \.parquet file"):
        open_source("parquet", tmp_path)
