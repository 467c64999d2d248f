"""Laws of work in parts: settings are kept, what was skipped stays named, nothing finished is done again."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import Row, Skip, make_index
from w2v_jax.data.io.feature_files import read_metadata
from w2v_jax.data.io.part_jobs import PartJob, changed_settings, cut_into_parts


def job(folder, process=0, processes=1, **settings):
    rows = [Row(f"id-{i}", f"p{i}.wav", 0, SAMPLE_RATE, SAMPLE_RATE, "s", "") for i in range(5)]
    source = types.SimpleNamespace(index=make_index(rows, [Skip("bad.wav", "truncated")]))
    parts = cut_into_parts(source.index.num_samples, 2 / 3600)
    return PartJob(folder, source, parts, settings or {"what": "x"}, "extraction", ".npy", process, processes)  # type: ignore


def write(work: PartJob, done: list[int], skip: tuple[int, ...] = ()):
    """A `write` that skips some rows and lets the part appear."""

    def encode(rows, on_skip):
        for row in reversed(rows.tolist()):
            if row in skip:
                on_skip(row, "no frame")
            else:
                yield row, np.full((row + 1, 1), row)

    def of_part(number, rows):
        pairs = work.encoded(number, rows, encode)
        assert [int(frames[0, 0]) for frames, _ in pairs] == [row for row in rows.tolist() if row not in skip]
        assert [utterance.frames for _, utterance in pairs] == [len(frames) for frames, _ in pairs]
        work.path(number).write_text("")
        done.append(number)

    return of_part


def skipped(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def test_parts_begin_after_every_hour_share_of_audio():
    parts = cut_into_parts(np.array([3, 3, 1, 9, 1]) * SAMPLE_RATE, 4 / 3600)
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert [part.tolist() for part in cut_into_parts(np.array([5, 5]), 1.0)] == [[0, 1]]


def test_work_that_goes_on_does_only_what_is_missing_and_names_each_skip_once(tmp_path):
    work, done = job(tmp_path), []
    work.begin()
    work.write_missing(write(work, done, skip=(1, 4)), work.finished())
    assert done == [0, 1, 2]
    before = skipped(tmp_path)
    assert [skip["path"] for skip in before] == ["bad.wav", "p1.wav", "p4.wav"]
    work.path(1).unlink()
    with (tmp_path / "skipped.jsonl").open("a") as file:
        file.write('{"path": "half')  # as a kill leaves it
    work.begin()
    work.write_missing(write(work, done, skip=(1, 4)), work.finished())
    assert done == [0, 1, 2, 1] and skipped(tmp_path) == before
    assert work.totals(lambda path: (2, 10)) == dict(utterances=6, frames=30, skipped=3)
    assert work.skipped_hint(0) == "" and "3 were skipped" in work.skipped_hint(3)


def test_processes_share_the_parts_and_end_with_the_bytes_of_one(tmp_path):
    """Also where one of them was killed, and another number of them goes on."""
    one, done = job(tmp_path / "one"), []
    (tmp_path / "one").mkdir()
    one.begin()
    one.write_missing(write(one, done, skip=(1, 2, 4)), one.finished())
    folder = tmp_path / "shared"
    folder.mkdir()
    first, second = (job(folder, process, 2) for process in (0, 1))
    first.begin()
    second.write_missing(write(second, done, skip=(1, 2, 4)), second.finished())
    first.write_missing(write(first, done, skip=(1, 2, 4)), first.finished())
    assert done == [0, 1, 2, 1, 0, 2] and (folder / "skipped-1.jsonl").exists()
    first.path(2).unlink()  # as if the first had been killed there
    third = job(folder)
    third.begin()
    third.write_missing(write(third, done, skip=(1, 2, 4)), third.finished())
    assert done[6:] == [2]
    for work in (one, third):
        assert work.totals(lambda path: (1, 1))["skipped"] == 4
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in one.folder.iterdir())
    assert all((folder / name).read_bytes() == (one.folder / name).read_bytes() for name in names)


def test_other_settings_and_other_content_are_refused(tmp_path):
    (tmp_path / "out").mkdir()
    job(tmp_path / "out", dtype="a", hop=1).begin()
    assert not read_metadata(tmp_path / "out", complete=False)["complete"]
    with pytest.raises(UserError, match=r"holds an extraction with other settings:\n  hop: 1 -> 2\nChoose"):
        job(tmp_path / "out", dtype="a", hop=2).begin()
    with pytest.raises(UserError, match="not empty and holds no extraction"):
        job(tmp_path).begin()
    assert changed_settings({"a": 1}, {"a": 1}) == ""


def test_nothing_is_written_where_a_check_fails(tmp_path):
    def refuse():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        job(tmp_path).begin(refuse)
    assert not list(tmp_path.iterdir())


def test_no_recording_at_all_is_an_error(tmp_path):
    work = job(tmp_path)
    work.begin()
    work.write_missing(write(work, [], skip=tuple(range(5))), set())
    with pytest.raises(UserError, match="no recording could be encoded"):
        work.totals(lambda path: (0, 0))
