"""Laws of TFRecord files: records come back as they were written, up to the first damaged frame."""

import struct

import pytest

from w2v_jax.data.archives.tfrecord import TFRecords, masked_crc


def test_the_checksum_of_a_record_is_the_one_tensorflow_writes():
    """Of the length 0, in a file of one empty record."""
    assert masked_crc(bytes(8)) == 0x07980329


CONTENTS = [b"one", b"", b"three" * 100]


def framed(content):
    """A record as TensorFlow frames it: length, its checksum, content, its checksum."""
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked_crc(length)) + content + struct.pack("<I", masked_crc(content))


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "records"
    file.write_bytes(b"".join(map(framed, CONTENTS)))
    return file


def test_records_are_a_sequence_of_what_was_written(path):
    records = TFRecords(str(path))
    assert len(records) == 3 and list(records) == CONTENTS
    assert records[2] == records[-1] == CONTENTS[2]
    assert records.spans.tolist() == [[12, 3], [31, 0], [47, 500]]


def test_records_end_at_a_cut_or_at_a_damaged_length(path):
    whole = path.read_bytes()
    for content, count in ((whole[:-1], 2), (whole[:40], 2), (whole[:-500], 2), (b"\1" + whole[1:], 0), (b"", 0)):
        path.write_bytes(content)
        assert list(TFRecords(str(path))) == CONTENTS[:count]


def test_damage_inside_a_record_hides_no_other(path):
    """The reader of the content notices it: records are not read when the file is opened."""
    whole = bytearray(path.read_bytes())
    whole[12:15] = b"xxx"
    path.write_bytes(whole)
    assert list(TFRecords(str(path))) == [b"xxx", *CONTENTS[1:]]
