"""Laws of the index: nothing is dropped silently, and it means the same wherever and whenever it is made."""

import json

import numpy as np
import pytest

from w2v_jax.config import UserError
from w2v_jax.data.index import (
    WAVE,
    Index,
    Row,
    Skip,
    hash_ids,
    make_index,
    roots,
    some_hours,
    split_heldout,
    subset,
    usable,
)


def rows(ids, seconds=1.0):
    return [Row(id, f"/audio/{id}.flac", 0, int(seconds * 16000), 16000, "s", f"text of {id}") for id in ids]


def test_index_keeps_rows_with_repeated_ids_under_new_ids():
    index = make_index(rows(["a", "b", "a", "a#2", "a", "b"]))
    assert index.ids.tolist() == ["a", "b", "a#3", "a#2", "a#4", "b#2"]
    assert index.paths.tolist() == [f"/audio/{id}.flac" for id in ["a", "b", "a", "a#2", "a", "b"]]
    assert "3 repeated ids" in index.notes[0]


def test_index_lengths_are_at_16_khz_whatever_the_rate_of_the_file():
    index = make_index([Row("a", "a", 0, 8000, 8000), Row("b", "b", 0, 44100, 44100), Row("c", "c", 0, 48001, 48000)])
    assert index.num_samples.tolist() == [16000, 16000, 16000]
    np.testing.assert_array_equal(index.durations, [1.0, 1.0, 1.0])
    assert index.hours == pytest.approx(3 / 3600)


def test_index_survives_saving_with_skipped_files_and_notes(tmp_path):
    index = make_index(rows(["a", "ü", "line\nbreak", "a"]), [Skip("x.wav", "empty file")], ["a note"])
    index.save(tmp_path / "index.jsonl")
    loaded = Index.load(tmp_path / "index.jsonl")
    assert loaded.fingerprint() == index.fingerprint()
    assert (loaded.skipped, loaded.notes) == (index.skipped, index.notes)
    for name in ("ids", "paths", "offsets", "frames", "rates", "num_samples", "speakers", "transcripts"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(index, name))
    assert [p.name for p in tmp_path.iterdir()] == ["index.jsonl"]


def test_index_refuses_a_file_that_is_cut_short_edited_or_missing(tmp_path):
    path = tmp_path / "index.jsonl"
    make_index(rows("abc")).save(path)
    whole = path.read_text()
    for damaged in (whole[:-20], "".join(whole.splitlines(True)[:-1]), whole.replace("16000", "16001", 1), "{}", ""):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"index\.jsonl"):
            Index.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        Index.load(tmp_path / "absent.jsonl")
    path.write_text(json.dumps({"index": 99}))
    with pytest.raises(UserError, match="format 99"):
        Index.load(path)


def test_fingerprint_changes_with_order_lengths_and_ids():
    prints = [make_index(r).fingerprint() for r in (rows("ab"), rows("ba"), rows("ab", 1.5), rows("ac"))]
    assert len(set(prints)) == 4
    assert make_index(rows("ab")).fingerprint() == prints[0]


def test_heldout_rows_are_chosen_by_id_alone():
    ids = [f"utterance-{i}" for i in range(500)]
    index, turned = make_index(rows(ids)), make_index(rows(ids[::-1]))
    train, heldout = split_heldout(index, 0.1)
    assert sorted([*train, *heldout]) == list(range(500))
    assert 25 < len(heldout) < 100
    _, turned_heldout = split_heldout(turned, 0.1)
    assert set(index.ids[heldout]) == set(turned.ids[turned_heldout])
    _, more = split_heldout(index, 0.2)
    assert set(heldout) < set(more)


@pytest.mark.parametrize(
    ("count", "share", "sizes"),
    [(0, 0.1, (0, 0)), (1, 0.5, (1, 0)), (2, 1e-9, (1, 1)), (2, 1.0, (1, 1)), (5, 0, (5, 0))],
)
def test_heldout_leaves_a_row_on_either_side(count, share, sizes):
    train, heldout = split_heldout(make_index(rows([str(i) for i in range(count)])), share)
    assert (len(train), len(heldout)) == sizes


def test_some_hours_are_chosen_by_id_and_lie_within_more_hours():
    index = make_index(rows([f"u{i}" for i in range(1000)], seconds=3.6))
    chosen = {hours: index.ids[some_hours(index, hours)].tolist() for hours in (0.0, 0.1, 0.25, 0.9995, 5.0)}
    assert [len(ids) for ids in chosen.values()] == [1, 100, 250, 999, 1000]
    assert set(chosen[0.1]) < set(chosen[0.25]) and chosen[5.0] == index.ids.tolist()
    back = index.select(np.arange(1000)[::-1])
    assert set(back.ids[some_hours(back, 0.1)].tolist()) == set(chosen[0.1])


def test_hashes_of_ids_never_change():
    assert hash_ids(np.array(["84-121123-0000", ""], np.dtypes.StringDType())).tolist() == HASHES


HASHES = [9493376437392169673, 13020603013274838756]


def test_short_rows_are_moved_to_the_skipped_ones():
    index = make_index([*rows("ab", 3.0), *rows("c", 1.0)], [Skip("d.wav", "empty file")])
    left = usable(index, "/audio", 2.0)
    assert left.ids.tolist() == ["a", "b"]
    assert [s.path for s in left.skipped] == ["d.wav", "/audio/c.flac"]
    assert left.skipped[1].reason == "shorter than data.min_seconds: 1.00 s of 2 s"


def test_a_source_with_nothing_left_says_why():
    with pytest.raises(UserError, match=r"all 2 recordings of /audio are shorter.*longest 1\.00 s.*min_seconds=1\.00"):
        usable(make_index(rows("ab")), "/audio", 2.0)
    with pytest.raises(UserError, match=r"no readable audio in /audio: skipped 1, 1 x empty file; first: d\.wav"):
        usable(make_index([], [Skip("d.wav", "empty file")]), "/audio", 2.0)
    with pytest.raises(UserError, match="holds no audio files"):
        usable(make_index([]), "/audio", 2.0)


def test_report_counts_skipped_files_by_kind_with_their_paths():
    skipped = [Skip(f"{i}.wav", f"not audio: detail {i}") for i in range(5)] + [Skip("e.wav", "empty file")]
    report = make_index([*rows("ab", 3.0), *rows("c", 12.0)], skipped, ["a note"]).report()
    assert "3 recordings, 0.01 h; seconds: shortest 3.00, median 3.00, longest 12.00" in report
    assert "5 x not audio" in report
    assert "0.wav: detail 0" in report
    assert "4.wav" not in report
    assert "1 x empty file" in report
    assert "e.wav" in report
    assert "note: a note" in report
    assert make_index([]).report() == "0 recordings, 0.00 h"


def test_subset_numbers_its_rows_from_zero():
    class Numbers:
        index = make_index(rows("abcd"))
        form = WAVE

        def read(self, row, start, length):
            return np.full(length, row, np.float32)

    part = subset(Numbers(), np.array([3, 1]))
    assert part.index.ids.tolist() == ["d", "b"]
    assert part.read(0, 0, 2).tolist() == [3, 3]
    assert part.form == WAVE


def test_roots_must_be_named_and_exist(tmp_path):
    assert roots(str(tmp_path)) == roots((tmp_path,)) == (tmp_path,)
    for nothing in ((), "", ("",)):
        with pytest.raises(UserError, match=r"data\.root is empty"):
            roots(nothing)
    with pytest.raises(UserError, match="'/nowhere/at/all' does not exist"):
        roots((tmp_path, "/nowhere/at/all"))
    with pytest.raises(UserError, match="data.eval_root"):
        roots((), "data.eval_root")
