"""Laws of finding files of many recordings: in one order, each once, and what is not one is named."""

import os
import threading

import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data.archives.shards import Archive, archives, named_split, read_ahead
from w2v_jax.data.index import Skip
from w2v_jax.data.io.listing import Candidate


def test_archives_are_found_by_file_folder_and_pattern_in_one_order(tmp_path):
    for name in ("a-08.tar", "b/a-09.tar", "b/a-10.tar", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    skipped: list[Skip] = []
    find = lambda *roots: [archive.name for archive in archives(roots, r"\.tar", skipped, what=".tar", states={})]
    assert find(tmp_path) == ["a-08", "b/a-09", "b/a-10"]
    assert skipped == [Skip(str(tmp_path / "b" / "notes.txt"), "extension .txt is not an audio extension")]
    assert find(tmp_path / "b" / "a-10.tar", f"{tmp_path}/b/a-{{09..10}}.tar") == ["a-10", "a-09", "a-10"]
    os.mkfifo(tmp_path / "b" / "pipe.tar")
    (tmp_path / "b" / "x.tar").symlink_to(tmp_path / "nowhere")
    assert find(tmp_path / "b") == ["a-09", "a-10"]
    assert [skip.reason for skip in skipped[-2:]] == ["not a regular file", "file does not exist"]
    (tmp_path / "c{1..2}.tar").touch()
    path = str(tmp_path / "c{1..2}.tar")
    assert archives(path, r"\.tar", [], what=".tar", states={}) == [Archive(path, "c{1..2}")], (
        "a file of that name is no pattern"
    )
    (tmp_path / "d").mkdir()
    for root, message in (
        (tmp_path / "d", r"d holds no \.tar file"),
        (tmp_path / "b" / "notes.txt", r"notes\.txt' is no directory, and its name does not end in \.tar"),
        (f"{tmp_path}/b/a-{{10..11}}.tar", r"a-11\.tar' does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            archives(root, r"\.tar", [], what=".tar", states={})


def test_the_split_of_a_root_is_what_follows_the_sign_unless_a_file_has_that_name(tmp_path):
    (tmp_path / "a@b").touch()
    assert named_split(f"{tmp_path}/a@b", "train") == (f"{tmp_path}/a@b", "train")
    assert named_split(f"{tmp_path}/a@b@dev", "train") == (f"{tmp_path}/a@b", "dev")
    assert named_split("x@dev", "") == ("x", "dev") and named_split("x", "train") == ("x", "train")


def test_files_are_read_ahead_in_threads_and_come_in_their_order():
    """Also what is skipped; a reader that nobody asks any more reads no further."""
    files, read, may_end = [Archive(f"/{number}.tar", str(number)) for number in range(20)], [], threading.Event()

    def reading(file, skipped):
        read.append(file.name)
        if file.name == "0":
            assert may_end.wait(10), "others are read meanwhile"
        elif file.name == "2":
            may_end.set()
        skipped.append(Skip(file.path, "a"))
        yield Candidate(file.name, file.path)
        skipped.append(Skip(file.path, "b"))

    skipped = []
    found = read_ahead(files, reading, skipped, workers=3)
    assert next(found).id == "0" and skipped == [Skip("/0.tar", "a"), Skip("/0.tar", "b")]
    assert [candidate.id for candidate in found] == [str(number) for number in range(1, 20)]
    assert [skip.path for skip in skipped] == [file.path for file in files for _ in "ab"]
    read.clear()
    found = read_ahead(files[1:], reading, skipped, workers=3)
    next(found)
    found.close()
    assert len(read) <= 6
    assert list(read_ahead([], reading, skipped, workers=0)) == []
