"""Laws of audio in Parquet files: a row is its bytes, in any form; memory is bounded; damage has a reason."""

import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import Item, content, write_parquet

from w2v_jax.core.cli import UserError
from w2v_jax.data.archives import parquet_rows
from w2v_jax.data.index import ReadError

ITEMS = [Item(str(i), np.random.default_rng(i).bytes(2000 + i)) for i in range(7)]


@pytest.mark.parametrize("form", ["struct", "binary", "list"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_row_is_its_bytes(tmp_path, form, compression, rows):
    path = str(write_parquet(tmp_path, ITEMS, form=form, compression=compression, rows=rows))
    assert [parquet_rows.row_content(path, row) for row in (6, 0, 3)] == [ITEMS[row].content for row in (6, 0, 3)]


@pytest.mark.parametrize("form", ["struct", "binary"])
@pytest.mark.parametrize("more", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"data_page_size": 100}])
def test_places_without_compression_are_the_bytes_in_the_file(tmp_path, form, more):
    items = [*ITEMS, ITEMS[2], Item("empty", b"")]
    path = write_parquet(tmp_path, items, form=form, rows=5, **more)
    table = parquet_rows.open_table(str(path))
    places = [place for group in range(len(table.firsts)) for place in parquet_rows.places(table, group)]
    whole = path.read_bytes()
    assert [place and whole[place[0] : sum(place)] for place in places] == [item.content or None for item in items]


def test_places_do_not_depend_on_the_order_of_the_fields(tmp_path):
    pq.write_table(pa.table({"audio": [{"path": "a", "bytes": b"1234"}]}), tmp_path / "a.parquet", compression="none")
    ((start, size),) = parquet_rows.places(parquet_rows.open_table(str(tmp_path / "a.parquet")), 0)
    assert (tmp_path / "a.parquet").read_bytes()[start : start + size] == b"1234"


def test_places_of_delta_encoded_and_of_repeated_values_are_exact(tmp_path):
    for encoding in ("DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"):
        column = pa.table({"audio": [item.content for item in ITEMS] * 2})
        path = tmp_path / "d.parquet"
        options = dict(compression="none", use_dictionary=False, column_encoding={"audio": encoding})
        pq.write_table(column, path, **options)
        table, whole = parquet_rows.open_table(str(path)), path.read_bytes()
        found = [whole[place[0] : sum(place)] for place in parquet_rows.places(table, 0) if place]
        contents = [item.content for item in ITEMS]
        assert all(data in contents for data in found)
        assert len(found) == 14 or encoding == "DELTA_BYTE_ARRAY"


@pytest.mark.parametrize(("compression", "form"), [("snappy", "struct"), ("none", "list")])
def test_other_storage_has_no_places(tmp_path, compression, form):
    table = parquet_rows.open_table(str(write_parquet(tmp_path, ITEMS, compression=compression, form=form)))
    assert parquet_rows.places(table, 0) == [None, None]
    assert parquet_rows.audio_chunk(table, 0).is_compressed == (compression != "none")


def test_row_groups_that_were_read_last_are_kept_up_to_a_size(tmp_path, monkeypatch):
    path = str(write_parquet(tmp_path, ITEMS, compression="snappy", rows=1))
    loads = []
    load = parquet_rows._load
    monkeypatch.setattr(parquet_rows, "_load", lambda table, group: loads.append(group) or load(table, group))
    monkeypatch.setattr(parquet_rows, "_recent", parquet_rows._Recent())
    monkeypatch.setattr(parquet_rows, "BYTES_KEPT", 7000)  # three groups of 2000 bytes
    for row in (0, 0, 1, 2, 0, 1, 2, 3, 0):
        parquet_rows.row_content(path, row)
    assert loads == [0, 1, 2, 3, 0]
    monkeypatch.setattr(parquet_rows, "BYTES_KEPT", 10)  # less than one: the last one stays
    for row in (5, 5, 6, 6, 5):
        parquet_rows.row_content(path, row)
    assert loads[5:] == [5, 6, 5]


def test_threads_that_want_the_same_row_group_read_it_once(tmp_path, monkeypatch):
    path = str(write_parquet(tmp_path, ITEMS, compression="snappy", rows=100))
    loads, started = [], threading.Barrier(4)
    load = parquet_rows._load
    monkeypatch.setattr(parquet_rows, "_load", lambda table, group: loads.append(group) or load(table, group))
    monkeypatch.setattr(parquet_rows, "_recent", parquet_rows._Recent())
    found = {}

    def work(row):
        started.wait()
        found[row] = parquet_rows.row_content(path, row)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [0] and found == {row: ITEMS[row].content for row in range(4)}


def test_a_group_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    path = str(write_parquet(tmp_path, ITEMS, compression="snappy"))
    monkeypatch.setattr(parquet_rows, "_recent", parquet_rows._Recent())
    with monkeypatch.context() as patch:
        patch.setattr(parquet_rows, "_load", lambda table, group: (_ for _ in ()).throw(ReadError("disk is lost")))
        with pytest.raises(ReadError, match="disk is lost"):
            parquet_rows.row_content(path, 0)
    assert parquet_rows.row_content(path, 0) == ITEMS[0].content


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    path = str(write_parquet(tmp_path, ITEMS, compression="snappy"))
    assert parquet_rows.row_content(path, 0) == ITEMS[0].content
    write_parquet(tmp_path, ITEMS[::-1][:3], compression="snappy")
    assert parquet_rows.row_content(path, 0) == ITEMS[6].content


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"text": ["a"]}, "no column of audio bytes: the columns are text: string"),
        ({"audio": ["a.wav"]}, "no column of audio bytes: the columns are audio: string"),
        ({"audio": [[1.0, 2.0]]}, "no column of audio bytes: the columns are audio: list<"),
        ({"audio": [{"array": [1.0]}]}, "no column of audio bytes"),
        ({"a": [{"bytes": b"1"}], "b": [{"bytes": b"2"}]}, r"several columns can be audio \(a, b\): name one of them"),
        ({"other": [b"1"]}, "no column of audio bytes: the columns are other: binary"),
    ],
)
def test_a_file_without_audio_says_which_columns_it_has(tmp_path, columns, reason):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ReadError, match=reason):
        parquet_rows.row_content(str(tmp_path / "a.parquet"), 0)


def test_one_struct_is_audio_under_any_name_and_of_several_the_one_named_audio(tmp_path):
    pq.write_table(pa.table({"speech": [{"bytes": b"1", "path": None}], "b": [b"2"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": [{"bytes": b"1"}], "audio": [{"bytes": b"2"}]}), tmp_path / "b.parquet")
    assert [parquet_rows.row_content(str(tmp_path / f"{name}.parquet"), 0) for name in "ab"] == [b"1", b"2"]


def test_cells_without_bytes_are_named(tmp_path):
    cells = [{"bytes": b"1", "path": "a"}, {"bytes": None, "path": "b"}, None]
    pq.write_table(pa.table({"audio": cells}), tmp_path / "a.parquet")
    cells = parquet_rows.audio_cells(parquet_rows.open_table(str(tmp_path / "a.parquet")), 0)
    assert [cells.path(i) for i in range(3)] == ["a", "b", ""]
    for row in (1, 2):
        with pytest.raises(ReadError, match="no audio: the cell is empty"):
            parquet_rows.row_content(str(tmp_path / "a.parquet"), row)
    pq.write_table(pa.table({"audio": pa.array([[1, None]], pa.list_(pa.int8()))}), tmp_path / "b.parquet")
    with pytest.raises(ReadError, match="the list of its bytes has gaps"):
        parquet_rows.row_content(str(tmp_path / "b.parquet"), 0)


def test_a_missing_package_is_a_clear_error(tmp_path, monkeypatch):
    path = str(write_parquet(tmp_path, ITEMS))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install \"w2v-jax\[features\]\""):
        parquet_rows.row_content(path, 0)


def test_a_damaged_file_has_a_reason(tmp_path):
    path = write_parquet(tmp_path, [Item("a", content())], write_page_checksum=True, compression="snappy")
    whole = path.read_bytes()
    for data in (b"", whole[:-100], whole[100:], b"no Parquet at all" * 10):
        path.write_bytes(data)
        with pytest.raises(ReadError, match="corrupt Parquet file"):
            parquet_rows.row_content(str(path), 0)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ReadError, match="corrupt Parquet file: .*(CRC|crc|checksum)"):
        parquet_rows.row_content(str(path), 0)
    with pytest.raises(ReadError, match="unreadable file|corrupt Parquet file"):
        parquet_rows.row_content(str(tmp_path), 0)
