"""Laws of the index: nothing is dropped silently, and it means the same wherever and whenever it is made."""

import json

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data.index import (
    BELOW_MINIMUM,
    WAVE,
    Row,
    Skip,
    TooFew,
    hash_ids,
    make_index,
    roots,
    some_hours,
    split_heldout,
    subset,
    usable,
    write_skipped,
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
    with pytest.raises(UserError, match="holds no audio files"):
        usable(make_index([]), "/audio", 2.0)


DAMAGED = Skip("d.wav", "truncated: 2.00 of 3.00 s")
NO_AUDIO = Skip("e.txt", "extension .txt is not an audio extension")


@pytest.mark.parametrize(
    ("seconds", "skipped", "advice", "kinds"),
    [
        (None, [DAMAGED], "repair or replace the files", {"truncated"}),
        (None, [NO_AUDIO], "holds no audio files (FLAC,", {NO_AUDIO.reason}),
        (None, [NO_AUDIO, DAMAGED], "repair or replace the files", {NO_AUDIO.reason, "truncated"}),
        (
            1.996,
            [DAMAGED],
            "--config.data.min_seconds=1.99 (in prepare: --min-seconds 1.99)",
            {BELOW_MINIMUM, "truncated"},
        ),
    ],
)
def test_where_nothing_is_left_all_reasons_are_told_and_the_advice_fits_them(seconds, skipped, advice, kinds):
    index = make_index(rows("ab", seconds) if seconds else [], skipped)
    with pytest.raises(TooFew) as raised:
        usable(index, "/audio", 2.0)
    said = str(raised.value)
    assert advice in said and all(f" x {kind}" in said for kind in kinds)
    assert {skip.kind for skip in raised.value.skipped} == kinds
    for skip in raised.value.skipped:
        assert skip.path in said and skip.reason.removeprefix(skip.kind) in said
    if seconds:  # the advice, followed
        assert len(usable(index, "/audio", float(advice.split("=")[1].split()[0]))) == 2


def test_what_is_skipped_is_written_once_in_any_letters(tmp_path):
    skips = [Skip("\u00e4\u0623.wav", "too short"), Skip("b\udcff.wav", "not audio: no header")]
    write_skipped(tmp_path / "skipped.jsonl", [*skips, skips[0]])
    text = (tmp_path / "skipped.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == [skip._asdict() for skip in skips]
    assert skips[0].path in text


def test_report_counts_skipped_files_by_kind_with_their_paths():
    skipped = [Skip(f"{i}.wav", f"not audio: detail {i}") for i in range(5)] + [Skip("e.wav", "empty file")]
    index = make_index([*rows("ab", 3.0), *rows("c", 12.0)], skipped)
    index.notes.append("a note")
    report = index.report()
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
    with pytest.raises(UserError, match=r"'/nowhere/a' does not exist \(one of 2 paths: a comma "):
        roots(("/nowhere/a", "b"))


def test_a_root_below_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert roots("~") == (tmp_path,)


def spoken(count, speakers):
    """An index whose row i has speaker i modulo `speakers`."""
    return make_index(Row(f"r{i}", f"/audio/{i}.flac", 0, 16_000, 16_000, f"s{i % speakers}") for i in range(count))


def test_held_out_speakers_are_not_trained_on_and_are_chosen_whatever_their_rows():
    index = spoken(200, 20)
    train, heldout = split_heldout(index, 0.2, speakers=True)
    sides = [set(index.speakers[side].tolist()) for side in (train, heldout)]
    assert not sides[0] & sides[1] and len(sides[0]) + len(sides[1]) == 20 and 1 <= len(sides[1]) <= 8
    assert sorted([*train, *heldout]) == list(range(200))
    turned = index.select(np.arange(200)[::-1])
    assert set(turned.speakers[split_heldout(turned, 0.2, speakers=True)[1]].tolist()) == sides[1]
    least, most = (split_heldout(spoken(9, 3), share, speakers=True) for share in (1e-9, 1.0))
    assert len(least[1]) == 3 and len(most[0]) == 3, "one speaker on each side, whatever the share"
    assert len(split_heldout(spoken(9, 1), 0.0, speakers=True)[1]) == 0


def test_speakers_that_cannot_be_held_out_are_refused():
    with pytest.raises(
        UserError, match=r"data.eval_speakers: all 4 recordings, e.g. /audio/0.flac, have the speaker 's0'"
    ):
        split_heldout(spoken(4, 1), 0.5, speakers=True)
    nameless = make_index([Row("a", "a.wav", 0, 9, 9, "s"), Row("b", "b.wav", 0, 9, 9)])
    with pytest.raises(
        UserError, match=r"data.eval_speakers: 1 of 2 recordings of data.root have no speaker, e.g. b.wav"
    ):
        split_heldout(nameless, 0.5, speakers=True)
