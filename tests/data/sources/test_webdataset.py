"""Laws of tar shards: each recording is read at its place; whatever a shard has lost is named with its path."""

import gzip
import json
import os
import tarfile

import numpy as np
import pytest
from formats import Item, add_member, content, write_webdataset

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.index import Skip, TooFew
from w2v_jax.data.io.containers import PartFile
from w2v_jax.data.prepared.read_through import Notes, read_through

ITEMS = [Item(f"u{i}", content(0.2, seed=i), f"text {i}", f"s{i}") for i in range(4)]
FLAC = ITEMS[0].content


def write_tar(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            add_member(tar, name, data)
    return path


def test_members_with_a_key_are_a_sample_and_the_key_is_its_id(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        {
            "x/one.flac": FLAC,
            "x/one.json": json.dumps({"text": "of json", "speaker": 7, "other": {}}).encode(),
            "two.txt": b" of txt\n",
            "two.FLAC": FLAC,
            "two.npy": b"",
            "./y/one.left.flac": FLAC,
            "./y/one.right.flac": FLAC,
        },
    )
    index = open_source("webdataset", path).index
    assert index.ids.tolist() == ["x/one", "two", "y/one", "y/one#2"]
    assert index.transcripts.tolist() == ["of json", "of txt", "", ""]
    assert index.speakers.tolist() == ["7", "", "", ""] and index.skipped == []


@pytest.mark.parametrize("size", [-512, -1024, -100])
def test_an_entry_of_negative_size_ends_the_shard(tmp_path, size):
    path = write_tar(tmp_path / "a.tar", {"a.flac": FLAC, "b.flac": FLAC, "c.flac": FLAC})
    data = bytearray(path.read_bytes())
    start = 512 + -(-len(FLAC) // 512) * 512  # of the header of b
    info = tarfile.TarInfo("b.flac")
    header = bytearray(info.tobuf())
    header[124:136] = (256**12 + size).to_bytes(13, "big")[1:]  # a number to the base of 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    data[start : start + 512] = header[:512]
    path.write_bytes(data)
    index = open_source("webdataset", path).index
    assert index.ids.tolist() == ["a"]
    assert [skip.reason for skip in index.lost] == [
        f"damaged shard: an entry of {size} bytes after b.flac; what follows is lost"
    ]


def test_folders_patterns_and_several_roots_name_shards_in_order(tmp_path):
    write_webdataset(tmp_path / "d", ITEMS)
    pattern = f"{tmp_path}/d/s-{{0..1}}.tar"
    ids = [item.id for item in ITEMS]
    assert open_source("webdataset", tmp_path).index.ids.tolist() == ids
    assert open_source("webdataset", pattern).index.ids.tolist() == ids
    assert open_source("webdataset", [f"{tmp_path}/d/s-1.tar", f"{tmp_path}/d/s-0.tar"]).index.ids.tolist() == [
        *ids[2:],
        *ids[:2],
    ]
    with pytest.raises(UserError, match=r"s-2\.tar' does not exist \(one of 3 paths"):
        open_source("webdataset", f"{tmp_path}/d/s-{{0..2}}.tar")
    with pytest.raises(UserError, match=r"is no directory, and its name does not end in \.tar"):
        open_source("webdataset", __file__)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_and_long_names_are_read(tmp_path, form):
    name = "deep/" * 15 + "ä" * 40 if form != tarfile.USTAR_FORMAT else "deep/" * 15 + "ä" * 20
    path = write_tar(tmp_path / "a.tar", {f"{name}.flac": FLAC, "b.flac": FLAC}, format=form)
    source = open_source("webdataset", path)
    assert source.index.ids.tolist() == [name, "b"] and len(source.read(0, 0, 10**6)) == 3200


def test_samples_without_audio_and_texts_that_are_none_are_named(tmp_path):
    members = {"a.txt": b"text", "a.json": b"{}", "b.flac": FLAC, "b.txt": b"\xff", "c.flac": FLAC, "c.json": b"[1]"}
    members |= {"d.flac": FLAC, "d.json": b"{", "e.flac": FLAC, "e.json": b'{"text": {"a": 1}, "speaker": null}'}
    path = write_tar(tmp_path / "a.tar", members)
    index = open_source("webdataset", path).index
    assert index.ids.tolist() == ["b", "c", "d", "e"] and index.transcripts.tolist() == [""] * 4
    assert [(skip.path, skip.kind) for skip in index.skipped] == [
        (f"{path}#a", "sample without audio"),
        (f"{path}#b.txt", "unreadable transcripts"),
        (f"{path}#c.json", "unreadable transcripts"),
        (f"{path}#d.json", "unreadable transcripts"),
    ]
    assert "it has a.txt, a.json" in index.skipped[0].reason


def test_a_shard_that_was_cut_keeps_what_is_whole_and_says_where_it_ends(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{item.id}.flac": item.content for item in ITEMS})
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2]
    for cut, ids, kinds in (
        (third.offset_data + 1000, ["u0", "u1"], ["truncated", "damaged shard"]),
        (third.offset + 100, ["u0", "u1"], ["damaged shard"]),
        (third.offset, ["u0", "u1"], ["damaged shard"]),
    ):
        path.write_bytes(whole[:cut])
        index = open_source("webdataset", path).index
        assert index.ids.tolist() == ids and sorted(skip.kind for skip in index.skipped) == sorted(kinds)
        assert all(str(path) in skip.path for skip in index.skipped)
        assert any("after u1.flac" in skip.reason or "after u2.flac" in skip.reason for skip in index.skipped)


def test_a_damaged_header_ends_a_shard_and_is_told(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{item.id}.flac": item.content for item in ITEMS})
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2]
    data = bytearray(path.read_bytes())
    data[third.offset + 3] ^= 1
    path.write_bytes(data)
    index = open_source("webdataset", path).index
    assert index.ids.tolist() == ["u0", "u1"]
    reason = f"damaged shard: no header at byte {third.offset:,}, after u1.flac; what follows is lost"
    assert index.skipped == [Skip(str(path), reason)]


def test_a_flipped_byte_in_a_recording_is_named_when_it_is_read(tmp_path):
    long = content(2.0)
    path = write_tar(tmp_path / "a.tar", {"u0.flac": long} | {f"{i.id}.flac": i.content for i in ITEMS[1:]})
    data = bytearray(path.read_bytes())
    data[512 + len(long) // 2] ^= 1
    path.write_bytes(data)
    notes = Notes("webdataset", [str(path)], "")
    index = read_through(open_source("webdataset", path), cut=None, decode=True, workers=2, notes=notes)[0].index
    assert index.ids.tolist() == ["u1", "u2", "u3"]
    (skip,) = index.skipped
    assert skip.path == f"{path}#512+{len(long)}:u0.flac" and "corrupt audio" in skip.reason


def test_shards_that_are_compressed_or_no_tar_files_are_refused_with_the_reason(tmp_path):
    good = write_tar(tmp_path / "good.tar", {"a.flac": FLAC})
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "c.tar").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "d.tar").write_bytes(b"")
    (tmp_path / "e.tar").write_bytes(b"this is no tar file" * 100)
    write_tar(tmp_path / "f.tar", {})
    index = open_source("webdataset", tmp_path).index
    reasons = {os.path.basename(skip.path): skip.reason for skip in index.skipped}
    assert reasons["b.tar.gz"] == reasons["c.tar"] == "not a tar file: compressed by gzip; decompress it with gunzip"
    assert reasons["d.tar"] == reasons["f.tar"] == "empty file" and reasons["e.tar"].startswith("damaged shard: ")
    assert len(index) == 1 and len(reasons) == 5
    with pytest.raises(TooFew, match=r"(?s)no readable audio in .*b\.tar\.gz.*compressed by gzip"):
        open_source("webdataset", tmp_path / "b.tar.gz")


def test_links_folders_and_names_that_are_not_utf_8_are_named_or_passed_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        folder, link = tarfile.TarInfo("x"), tarfile.TarInfo("x/link.flac")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "a.flac"
        tar.addfile(folder)
        tar.addfile(link)
        add_member(tar, "x/\udcff.flac", FLAC)
        add_member(tar, "x/._a.flac", b"")
        add_member(tar, "x/a.flac", FLAC)
    index = open_source("webdataset", path).index
    assert index.ids.tolist() == ["x/a"]
    assert [(skip.path, skip.reason) for skip in index.skipped] == [
        (f"{path}#x/link.flac", "a link, device or sparse file, not a file of its own"),
        (f"{path}#x/\ufffd.flac", "file name is not UTF-8"),
        (f"{path}#x/._a.flac", "Mac resource file"),
    ]


def test_of_a_long_recording_a_crop_reads_a_part(tmp_path, monkeypatch):
    wave = content(60.0, kind="WAV")
    source = open_source("webdataset", write_tar(tmp_path / "a.tar", {"x.flac": FLAC, "long.wav": wave}))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "long.wav").write_bytes(wave)
    sizes, readinto = [], PartFile.readinto
    monkeypatch.setattr(PartFile, "readinto", lambda self, b: sizes.append(readinto(self, b)) or sizes[-1])
    crop = source.read(1, 700_000, 1000)
    np.testing.assert_array_equal(crop, open_source("folder", tmp_path / "alone").read(0, 700_000, 1000))
    assert 0 < sum(sizes) < len(wave) / 2
