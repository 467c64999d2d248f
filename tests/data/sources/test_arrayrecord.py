"""Laws of ArrayRecord sources: records are rows, and damage is named with file and number."""

import os

import pytest
from formats import Item, content, example, write_arrayrecord

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.index import TooFew

ITEMS = [Item(f"u{i}", content(0.2, seed=i), f"text {i}", f"s{i}") for i in range(4)]


def write(path, *records):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def test_records_of_several_files_are_rows_in_order_and_ids_are_counted_where_there_are_none(tmp_path):
    write(tmp_path / "b.array_record", example(speech=ITEMS[0].content, sentence="s"))
    write_arrayrecord(tmp_path, ITEMS, name="a.array_record-00000-of-00001")
    index = open_source("arrayrecord", tmp_path).index
    assert index.ids.tolist() == ["u0", "u1", "u2", "u3", "b:0"]
    assert index.transcripts.tolist() == ["text 0", "text 1", "text 2", "text 3", "s"]


def test_records_of_any_group_size_are_read(tmp_path):
    for options in ("group_size:1,uncompressed", "group_size:100", ""):
        source = open_source("arrayrecord", write_arrayrecord(tmp_path, ITEMS, options))
        assert source.index.ids.tolist() == [item.id for item in ITEMS] and len(source.read(3, 0, 10**6)) == 3200


def test_damaged_records_and_files_are_named_and_the_rest_is_read(tmp_path):
    path = write_arrayrecord(tmp_path, ITEMS) / "a.array_record"
    whole = path.read_bytes()
    data = bytearray(whole)
    data[data.index(ITEMS[1].content) + 100] ^= 1
    path.write_bytes(data)
    (tmp_path / "b.array_record").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.array_record").write_bytes(b"")
    write(tmp_path / "d.array_record")
    write(tmp_path / "e.array_record", b"no example", example(text="no audio"), example(audio=b""))
    index = open_source("arrayrecord", tmp_path).index
    assert index.ids.tolist() == ["u0", "u2", "u3"]
    assert [(os.path.basename(skip.path), skip.kind) for skip in index.skipped] == [
        ("a.array_record#1", "corrupt record"),
        ("b.array_record", "not an ArrayRecord file, or one that was cut"),
        ("c.array_record", "not an ArrayRecord file, or one that was cut"),
        ("d.array_record", "empty file"),
        ("e.array_record#0", "corrupt record"),
        ("e.array_record#1", "no feature audio, speech, audio_bytes"),
        ("e.array_record#2", "empty file"),
    ]


def test_folders_and_files_without_records_are_clear_errors(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(b"")
    with pytest.raises(UserError, match=r"does not end in \.array_record"):
        open_source("arrayrecord", tmp_path / "a.tfrecord")
    with pytest.raises(UserError, match=r"holds no \.array_record file"):
        open_source("arrayrecord", tmp_path)
    with pytest.raises(TooFew, match="1 x empty file"):
        open_source("arrayrecord", write(tmp_path / "a.array_record"))
