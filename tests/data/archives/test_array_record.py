"""Laws of ArrayRecord files: a record is read alone, as TensorFlow would parse it, and damage costs one record."""

import sys

import pytest
from formats import Item, content, example, write_arrayrecord

from w2v_jax.core.cli import UserError
from w2v_jax.data.archives.array_record import audio_of, open_records, parsed, record_content
from w2v_jax.data.index import ReadError

ITEMS = [Item(f"id{i}", content(0.2, seed=i), f"text {i}") for i in range(5)]


def test_examples_of_tensorflow_are_parsed_to_what_was_put_in():
    """The bytes are those of tf.train.Example(...).SerializeToString(deterministic=True), TensorFlow 2.21."""
    integers = b"\x07" + b"\xff" * 9 + b"\x01" + b"\x80" * 8 + b"@" + b"\x80" * 9 + b"\x01"
    record = b"\n\x96\x02\n\xb0\x01\n\x05audio\x12\xa6\x01\n\xa3\x01\n\xa0\x01" + b"fLaC" * 40
    record += b"\n\x0b\n\x07nothing\x12\x00\n\x10\n\x04rate\x12\x08\x12\x06\n\x04\x00\x00\xc0?"
    record += b'\n0\n\nspeaker_id\x12"\x1a \n\x1e' + integers + b"\n\x10\n\x04text\x12\x08\n\x06\n\x02\xc3\xa4\n\x00"
    assert parsed(record) == {
        "audio": [b"fLaC" * 40],
        "text": ["ä".encode(), b""],
        "speaker_id": [7, -1, 1 << 62, -(1 << 63)],
        "rate": None,
        "nothing": None,
    }
    assert parsed(b"") == {}


def test_a_record_is_its_audio(tmp_path):
    path = str(write_arrayrecord(tmp_path, ITEMS) / "a.array_record")
    assert len(open_records(path)) == 5
    assert [record_content(path, number) for number in (4, 0, 4)] == [ITEMS[number].content for number in (4, 0, 4)]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"no example", "corrupt record: not a tf.train.Example"),
        (example(audio=b"12345")[:-2], "corrupt record: not a tf.train.Example"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "corrupt record: not a tf.train.Example"),
        (b"\x0a\x02\x0a\x00", "corrupt record: not a tf.train.Example"),
        (example(text="a", id="b"), "no feature audio, speech, audio_bytes: the record has id, text"),
        (b"", "the record has none"),
    ],
)
def test_a_record_that_is_something_else_says_so(record, reason):
    with pytest.raises(ReadError, match=reason):
        audio_of(parsed(record))


def test_audio_that_is_no_file_of_bytes_is_named():
    for values in ([1, 2], [b"a", b"b"]):
        with pytest.raises(ReadError, match="the feature audio is not the bytes of an audio file"):
            audio_of({"audio": values})
    assert audio_of({"audio": None}) == b"" and audio_of({"speech": [b"a"]}) == b"a"


def test_a_missing_package_is_a_clear_error(tmp_path, monkeypatch):
    path = write_arrayrecord(tmp_path, ITEMS) / "a.array_record"
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    with pytest.raises(UserError, match="pip install array_record"):
        record_content(str(path), 0)


def test_a_flipped_byte_costs_one_record(tmp_path):
    path = write_arrayrecord(tmp_path, ITEMS) / "a.array_record"
    data = bytearray(path.read_bytes())
    data[data.index(ITEMS[2].content) + 500] ^= 1
    path.write_bytes(data)
    for number, item in enumerate(ITEMS):
        if number == 2:
            with pytest.raises(ReadError, match="corrupt record: .*hash mismatch"):
                record_content(str(path), number)
        else:
            assert record_content(str(path), number) == item.content


def test_a_file_that_was_cut_or_is_something_else_is_named(tmp_path):
    path = write_arrayrecord(tmp_path, ITEMS) / "a.array_record"
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-10], b"", b"something else"):
        path.write_bytes(data)
        with pytest.raises(ReadError, match="not an ArrayRecord file, or one that was cut"):
            record_content(str(path), 0)
    with pytest.raises(ReadError, match="file does not exist"):
        open_records(str(tmp_path))
