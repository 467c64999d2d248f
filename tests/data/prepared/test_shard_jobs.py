"""Laws of corpora of shards: the same rows in the same order, the same bytes after any kill, nothing half-written."""

import errno
import multiprocessing
import os
import random
import shutil
import time
import types

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.prepared import shard_jobs
from w2v_jax.data.prepared.cuts import Cut
from w2v_jax.data.prepared.records import Options
from w2v_jax.data.prepared.shard_files import is_finished, write_shard
from w2v_jax.data.prepared.shard_jobs import ShardJob, in_processes, make_shards, shard_starts

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("array_record")


AS_THEY_ARE = Options()


def in_turn(folder, numbers):
    """Makes shards in this process."""
    return ((number, write_shard(folder, number)) for number in numbers)


def slowly(folder, numbers):
    for number in numbers:
        time.sleep(0.02)
        yield number, write_shard(folder, number)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Forty recordings of several kinds and two broken files, and a transcript."""
    folder = tmp_path_factory.mktemp("recordings")
    draw = np.random.default_rng(0)
    for number in range(40):
        rate = (16000, 8000, 22050)[number % 3]
        name = f"{number:02d}.{('flac', 'wav')[number % 2]}"
        soundfile.write(folder / name, 0.1 * draw.standard_normal(rate // 4 + 100 * number), rate)
    (folder / "broken.wav").write_bytes(b"RIFF")
    content = (folder / "06.flac").read_bytes()
    (folder / "middle.flac").write_bytes(content[:4000] + bytes(2000) + content[6000:])
    (folder / "a.trans.txt").write_text("00 HELLO WORLD\n")
    return folder


def job_of(folder, options=AS_THEY_ARE, shard_bytes=60_000, **about):
    return ShardJob(folder, options, shard_bytes, language="", about={"source": "folder", **about})


def make(recordings, folder, run=in_turn, **how):
    return make_shards(job_of(folder, **how), lambda kept: open_source("folder", recordings, kept=kept), run)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(recordings, tmp_path_factory):
    """The corpus that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    make(recordings, folder)
    return folder


def make_in_child(recordings, folder):
    make(recordings, folder, slowly)


def test_a_corpus_that_was_killed_again_and_again_ends_with_the_same_bytes(recordings, whole, tmp_path):
    folder, draw = tmp_path / "corpus", random.Random(7)
    partial, spawned = tmp_path / ".corpus.partial", multiprocessing.get_context("spawn")
    for wanted in (1, 4, 8):
        child = spawned.Process(target=make_in_child, args=(recordings, folder))
        child.start()
        while child.is_alive() and not is_finished(partial, wanted):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        assert child.is_alive() and not folder.exists(), "it is killed in the middle"
        child.kill()
        child.join()
    make(recordings, folder)
    assert contents(folder) == contents(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]


def test_the_rows_are_those_of_the_folder_in_its_order(recordings, whole):
    was, now = open_source("folder", recordings), open_source("arrayrecord", whole)
    middle = was.index.ids.tolist().index("middle")
    assert [id for id in was.index.ids.tolist() if id != "middle"] == now.index.ids.tolist()
    assert now.index.transcripts.tolist()[0] == "HELLO WORLD" and not now.index.skipped
    for row in (0, 1, 2, 5, 39):
        other = row + (row >= middle)
        np.testing.assert_array_equal(now.read(row, 100, 3000), was.read(other, 100, 3000))


def test_every_bad_file_is_reported_and_nothing_else(recordings, whole):
    report = make(recordings, whole)  # it is there already
    assert {os.path.basename(skip["path"]) for skip in report["skipped"]} == {"broken.wav", "middle.flac"}
    assert all(skip["reason"] for skip in report["skipped"])
    assert report["lost"] == 2 and report["recordings"] == report["records"] == 40
    assert report["kept_as_they_were"] == 20


def test_tensorflow_datasets_opens_it(whole):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder_from_directory(str(whole))
    source = builder.as_data_source("train", decoders={"audio": tfds.decode.SkipDecoding()})
    first = source[0]
    assert len(source) == 40 and set(first) == {"id", "audio", "sampling_rate", "text", "speaker", "language"}
    assert (first["id"], first["text"], first["sampling_rate"]) == (b"00", b"HELLO WORLD", 16000)
    section = types.SimpleNamespace(split="", min_seconds=0.0, workers=1)
    from w2v_jax.data.sources import tfds as tfds_source

    assert tfds_source.make(section, whole).index.ids.tolist() == open_source("arrayrecord", whole).index.ids.tolist()


def test_shards_are_no_larger_than_asked_for(whole):
    sizes = [path.stat().st_size for path in whole.glob("*.array_record-*")]
    assert len(sizes) > 8 and max(sizes) <= 60_000 + (1 << 17), "ArrayRecord fills up 64 KiB at both ends"


def test_a_shard_ends_before_the_row_that_would_be_too_much():
    assert shard_starts(np.array([3, 3, 3, 9, 1, 1]), 7) == [0, 2, 3, 4]
    assert shard_starts(np.array([100.0]), 7) == [0]


def test_files_that_vanish_or_change_during_the_run_are_named(recordings, tmp_path):
    copy = shutil.copytree(recordings, tmp_path / "copy")

    def vanishing(folder, numbers):
        (copy / "07.wav").unlink()
        (copy / "08.flac").write_bytes((copy / "10.flac").read_bytes())
        return in_turn(folder, numbers)

    report = make(copy, tmp_path / "corpus", vanishing)
    reasons = {os.path.basename(skip["path"]): skip["reason"] for skip in report["skipped"]}
    assert "none now" in reasons["07.wav"] and reasons["08.flac"].startswith("changed after listing")
    assert report["records"] == 38


def test_long_recordings_are_cut_and_resampled(recordings, tmp_path):
    options = Options(16000, Cut(0.2, "length"))
    report = make(recordings, tmp_path / "corpus", options=options, shard_bytes=10**6)
    index = open_source("arrayrecord", tmp_path / "corpus").index
    assert set(index.rates.tolist()) == {16000} and index.durations.max() <= 0.2
    assert report["records"] == len(index) > 80 and any("have none" in note for note in report["notes"])


def test_other_settings_and_other_content_are_refused(recordings, whole, tmp_path):
    with pytest.raises(UserError, match=r"(?s)other settings.*rate: 0 -> 16000"):
        make(recordings, whole, options=Options(16000))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        make(recordings, tmp_path / "notes")
    with pytest.raises(UserError, match="is a file"):
        make(recordings, tmp_path / "notes" / "a.txt")


def test_a_disk_without_room_is_told_before_and_a_full_one_in_the_middle(recordings, tmp_path, monkeypatch):
    full = types.SimpleNamespace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shard_jobs.shutil, "disk_usage", lambda path: full)
        with pytest.raises(UserError, match="needs about .* GB left"):
            make(recordings, tmp_path / "corpus")

    def until_full(folder, numbers):
        yield from in_turn(folder, numbers[:3])
        raise OSError(28, "No space left on device", str(folder))

    with pytest.raises(UserError, match="takes no more.*same command"):
        make(recordings, tmp_path / "corpus", until_full)
    assert not (tmp_path / "corpus").exists() and is_finished(tmp_path / ".corpus.partial", 2)
    assert make(recordings, tmp_path / "corpus")["records"] == 40


def test_a_corpus_without_one_usable_recording_is_an_error(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.ones(800) / 2, 16000)

    def gone(partial, numbers):
        (folder / "a.wav").unlink()
        return in_turn(partial, numbers)

    with pytest.raises(UserError, match="no recording could be stored"):
        make(folder, tmp_path / "corpus", gone)


def test_processes_make_the_same_shards(recordings, whole, tmp_path):
    make(recordings, tmp_path / "corpus", in_processes(2))
    assert contents(tmp_path / "corpus") == contents(whole)


def test_without_shared_memory_one_process_makes_them(recordings, whole, tmp_path, monkeypatch, capsys):
    def event():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))  # of sem_open, without /dev/shm

    monkeypatch.setattr(multiprocessing, "get_context", lambda how: types.SimpleNamespace(Event=event))
    make(recordings, tmp_path / "corpus", in_processes(2))
    assert contents(tmp_path / "corpus") == contents(whole)
    assert "this process makes all shards alone" in capsys.readouterr().err
