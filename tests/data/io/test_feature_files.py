"""Laws of extracted parts: what is read is what was written, and what is damaged or unfinished is named."""

import os

import numpy as np
import pytest
from code_folders import HOP, cut, edit, write_codes

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.index import ReadError
from w2v_jax.data.io.feature_files import layout_of, read_metadata, read_parts


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "codes"


def test_tensorflow_reads_a_part_as_it_is(folder):
    tf = pytest.importorskip("tensorflow")
    written = write_codes(folder)
    for part, codes_of_part in zip(read_parts(folder, read_metadata(folder)), (written[:2], written[2:]), strict=True):
        rows = tf.data.FixedLengthRecordDataset(str(part.path), part.array[0].nbytes, layout_of(part)[0])
        read = np.stack([tf.io.decode_raw(row, tf.uint16).numpy() for row in rows])
        np.testing.assert_array_equal(read, np.concatenate(codes_of_part))
        np.testing.assert_array_equal(read, np.load(part.path))


DAMAGES = {
    "a truncated array": (lambda d: cut(d / "part-00001.npy"), r"part-00001\.npy is truncated"),
    "a truncated header": (lambda d: os.truncate(d / "part-00000.npy", 20), r"part-00000\.npy is truncated"),
    "an empty array": (lambda d: os.truncate(d / "part-00000.npy", 0), r"part-00000\.npy holds 0 frames"),
    "a lost array": (lambda d: (d / "part-00001.npy").unlink(), r"part-00001\.npy is missing"),
    "lost lines": (lambda d: (d / "part-00001.jsonl").unlink(), r"part-00001\.jsonl is not readable"),
    "truncated lines": (lambda d: cut(d / "part-00001.jsonl", 40), r"part-00001\.jsonl is not readable"),
    "a line too few": (
        lambda d: (d / "part-00001.jsonl").write_text((d / "part-00001.jsonl").read_text().split("\n", 1)[1]),
        "holds 217 frames, its .jsonl 97",
    ),
    "features": (lambda d: edit(d / "extract.json", what="hidden"), r"holds features \(hidden\)"),
    "an unfinished extraction": (lambda d: edit(d / "extract.json", complete=False), "is not finished"),
    "no extraction": (lambda d: (d / "extract.json").unlink(), r"extract\.json is missing"),
    "unreadable settings": (lambda d: (d / "extract.json").write_text("{"), "not readable"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_or_foreign_folders_are_clear_errors(folder, damage, message):
    write_codes(folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        open_source("codes", folder)


def test_a_file_that_is_cut_after_the_start_fails_only_its_rows(folder):
    write_codes(folder)
    source = open_source("codes", folder)
    cut(folder / "part-00001.npy", 100)
    assert len(source.read(2, 0, 10**9)) == 120
    with pytest.raises(ReadError, match="truncated: 39 of 64 frames"):
        source.read(4, 0, 10**9)
    (folder / "part-00001.npy").unlink()
    with pytest.raises(ReadError, match="unreadable file"):
        source.read(2, 0, HOP)
