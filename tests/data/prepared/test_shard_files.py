"""Laws of shards: they hold what is readable, name what is not, and are known to be damaged when they are."""

import errno
import json
import resource
import signal

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data.archives.array_record import open_records, parsed
from w2v_jax.data.index import Row
from w2v_jax.data.prepared import shard_files
from w2v_jax.data.prepared.shard_files import CONTENTS, JOB, ROWS, SHARD, is_finished, row_line, verify, write_shard

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("array_record")


@pytest.fixture
def job(tmp_path):
    """A folder with the list of one shard: two recordings, one of which does not exist."""
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(64000), 16000)
    rows = [Row("ä", str(tmp_path / "a.wav"), 0, 64000, 16000, "ann", "ein satz"), Row("b", "b.wav", 0, 9, 8000)]
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / ROWS.format(0)).write_text("".join(row_line(row, "de") + "\n" for row in rows), encoding="utf-8")
    (folder / JOB).write_text(json.dumps({"options": {"rate": 0, "cut": None, "decode": True}}))
    return folder


def test_a_shard_has_the_features_of_each_recording_and_names_what_is_unreadable(job):
    summary = write_shard(job, 0)
    records = open_records(str(job / SHARD.format(0)))
    example = parsed(records[0])
    assert len(records) == summary["records"] == 1
    assert {key: value for key, value in example.items() if key != "audio"} == {
        "id": ["ä".encode()],
        "language": [b"de"],
        "sampling_rate": [16000],
        "speaker": [b"ann"],
        "text": [b"ein satz"],
    }
    assert summary["skipped"] == [{"path": "b.wav", "reason": "file does not exist"}]
    assert summary["languages"] == {"de": 4.0} and is_finished(job, 0)


def test_a_shard_is_a_function_of_its_list(job):
    first = write_shard(job, 0)["sha256"]
    assert write_shard(job, 0)["sha256"] == first


def test_a_disk_that_takes_no_more_leaves_nothing_half_written(job):
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
        with pytest.raises(OSError) as stopped:
            write_shard(job, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert stopped.value.errno == errno.ENOSPC
    assert not is_finished(job, 0) and sorted(p.name for p in job.iterdir()) == [JOB, ROWS.format(0)]


def test_a_stop_between_two_recordings_leaves_nothing(job):
    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_shard(job, 0, check=stop)
    assert sorted(p.name for p in job.iterdir()) == [JOB, ROWS.format(0)]


def test_without_the_package_the_error_says_what_to_install(job, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "array_record.python.array_record_module", None)
    with pytest.raises(UserError, match="pip install array_record"):
        write_shard(job, 0)


def test_shards_that_were_cut_flipped_or_lost_are_named(job):
    about = write_shard(job, 0)
    path, content = job / SHARD.format(0), (job / SHARD.format(0)).read_bytes()
    (job / CONTENTS).write_text(json.dumps({"shards": [{"file": path.name, **about}]}))
    reason = lambda: [skip.reason for skip in verify(job, 1)]
    assert reason() == []
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes(flipped)
    assert reason() == ["shard has another SHA-256 than when it was written"]
    path.write_bytes(content[:-1])
    assert "another size" in reason()[0]
    path.unlink()
    assert reason() == ["shard does not exist"]
    with pytest.raises(UserError, match="no corpus of `prepare --shards`"):
        verify(job / "nowhere", 1)


def test_records_are_stored_one_by_one_and_uncompressed():
    assert shard_files.WRITING == "group_size:1,uncompressed"
