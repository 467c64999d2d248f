"""What is found in folders: labels, speakers, what is held out, and what is wrong, told with what to do."""

import shutil

import numpy as np
import pytest
import soundfile

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.index import Row, TooFew, make_index
from w2v_jax.profiling.recipes.look import DEV_SHARE, SPEAKERS_TO_HOLD_OUT, data_rows, hold_out, look_at_data


def recordings(folder, speakers=1, count=10, seconds=10.0, rate=16_000, transcribed=True):
    """A folder in LibriSpeech's layout: so many speakers with so many recordings each."""
    for speaker in range(speakers):
        place = folder / f"s{speaker}" / "1"
        place.mkdir(parents=True)
        names = [f"s{speaker}-1-{number:04d}" for number in range(count)]
        for number, name in enumerate(names):
            noise = np.random.default_rng([speaker, number]).normal(size=int(seconds * rate)) * 0.1
            soundfile.write(place / f"{name}.flac", noise, rate)
        if transcribed:
            lines = "".join(f"{name} hello\n" for name in names)
            (place / f"s{speaker}-1.trans.txt").write_text(lines)
    return str(folder)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    return recordings(tmp_path_factory.mktemp("spoken") / "train", speakers=1, count=12)


def ids(source):
    return set(source.index.ids.tolist())


def index_of(speakers, count=10, seconds=10):
    rows = [Row(f"{s}-{n}", "x", 0, seconds * 16_000, 16_000, s, "a") for s in speakers for n in range(count)]
    return make_index(rows)


def test_whole_speakers_are_held_out_where_there_are_enough():
    names = [f"s{n}" for n in range(SPEAKERS_TO_HOLD_OUT)]
    index = index_of(names)
    train, dev, by_speaker = hold_out(index)
    assert by_speaker and sorted([*train, *dev]) == list(range(len(index)))
    assert not set(index.speakers[train]) & set(index.speakers[dev])


@pytest.mark.parametrize("names", [["one"], ["one", "two"], [""] * 6])
def test_recordings_are_held_out_of_few_or_unnamed_speakers(names):
    index = index_of(names, count=40)
    train, dev, by_speaker = hold_out(index)
    assert not by_speaker and sorted([*train, *dev]) == list(range(len(index)))
    share = index.durations[dev].sum() / index.durations.sum()
    assert DEV_SHARE <= share <= 0.5
    order = np.random.default_rng(0).permutation(len(index))
    again = hold_out(index.select(order))[1]
    assert set(index.ids[dev]) == set(index.select(order).ids[again])  # whatever the order


def test_one_folder_may_be_audio_and_labels_and_dev_is_not_pretrained_on(spoken):
    found = look_at_data(spoken, spoken)
    assert ids(found.train) | ids(found.dev) == ids(open_source("folder", (spoken,))) and ids(found.dev)
    assert ids(found.audio) == ids(found.train)
    assert found.facts.speakers == 1 and not found.facts.by_speaker
    assert "of the same 1 speaker(s)" in data_rows(found.facts)["held out"]


def test_untranscribed_audio_joins_and_what_is_tested_stays_apart(spoken, tmp_path):
    audio = recordings(tmp_path / "audio", speakers=2, count=2, seconds=2.0, rate=8_000, transcribed=False)
    test = recordings(tmp_path / "audio" / "test", count=1, seconds=2.0)
    found = look_at_data(audio, spoken, test)
    assert len(found.audio.index) == 4 + len(found.train.index)
    assert dict(found.facts.rates)[8_000] == 4 and "below 16 kHz" in data_rows(found.facts)["note"]
    with pytest.raises(UserError, match="--test .* of its recordings are in --labels"):
        look_at_data(spoken, spoken, spoken)


def test_lists_are_read_as_they_were_found(spoken, tmp_path):
    found = look_at_data(spoken, spoken)
    found.write(tmp_path / "lists")
    for name, source in (("audio", found.audio), ("train", found.train), ("dev", found.dev)):
        read = open_source("jsonl", str(tmp_path / "lists" / f"{name}.jsonl"), labels="letters")
        assert read.index.ids.tolist() == source.index.ids.tolist()
        assert read.index.transcripts.tolist() == source.index.transcripts.tolist()
        assert read.read(0, 0, 100).tolist() == source.read(0, 0, 100).tolist()


def test_labels_without_recordings_are_told_where_they_belong(spoken, tmp_path):
    lines = tmp_path / "labels" / "1"
    recordings(tmp_path / "labels", count=1, seconds=0.5, transcribed=False)
    lines.mkdir()
    (lines / "s0-1.trans.txt").write_text("s0-1-0000 hello\ns0-1-0001 hello\n")
    with pytest.raises(TooFew, match=r"--labels .* 2 lines of transcripts have no recording .* beside them"):
        look_at_data(spoken, str(tmp_path / "labels"))


def test_no_and_too_few_labels_are_told(spoken, tmp_path):
    silent = recordings(tmp_path / "silent", count=2, seconds=1.0, transcribed=False)
    with pytest.raises(TooFew, match=r"--labels .*: no recording has a transcript"):
        look_at_data(spoken, silent)
    short = recordings(tmp_path / "short", count=5, seconds=2.0)
    with pytest.raises(TooFew, match=r"5 recordings with a transcript last 10 s .* 60 s at the least"):
        look_at_data(spoken, short)
    with pytest.raises(UserError, match="--audio: .*nowhere' does not exist"):
        look_at_data(str(tmp_path / "nowhere"), spoken)


def test_missing_transcripts_and_long_recordings_are_counted(spoken, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(spoken, some)
    place = some / "s0" / "1"
    soundfile.write(place / "s0-1-9999.flac", np.zeros(16_000), 16_000)
    soundfile.write(place / "s0-1-0000.flac", np.zeros(40 * 16_000), 16_000)
    found = look_at_data(str(some), str(some))
    assert (found.facts.untranscribed, found.facts.longer) == (1, 1) and found.facts.lengths[2] <= 36
    note = data_rows(found.facts)["note"]
    assert "1 recordings of --labels have no transcript" in note and "longer than 36 s" in note
