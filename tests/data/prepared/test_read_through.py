"""Laws of reading through: it names what is bad, cuts as it goes, and goes on where it was stopped."""

import contextlib

import numpy as np
import pytest

from w2v_jax.data import open_source
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.prepared import read_through as module
from w2v_jax.data.prepared.cuts import Cut
from w2v_jax.data.prepared.read_through import Notes, read_through

soundfile = pytest.importorskip("soundfile")


def read(root, cut=None, decode=True, options=""):
    with contextlib.closing(Notes("folder", [str(root)], options)) as notes:
        return read_through(open_source("folder", root), cut=cut, decode=decode, workers=2, notes=notes)


def test_short_recordings_stay_whole_and_parts_are_named_by_their_second(talk):
    source, recordings = read(talk.index.paths[0].rsplit("/", 1)[0], Cut(3.5))
    index = source.index
    assert recordings == 2
    assert index.ids.tolist()[0] == "talk@0.000" and index.ids.tolist()[-1] == "word"
    assert sum(index.frames) == 220500 + 22050
    assert index.transcripts.tolist() == ["", "", "", "", "D"], "nobody knows which words a piece has"
    assert any("1 recordings with a transcript were cut" in note for note in index.notes)


def test_each_sample_is_read_once_to_decode_and_to_cut(talk, monkeypatch):
    lengths, own = [], AudioFiles.read
    counted = lambda self, *crop: lengths.append(len(wave := own(self, *crop))) or wave
    monkeypatch.setattr(AudioFiles, "read", counted)
    root = talk.index.paths[0].rsplit("/", 1)[0]
    for cut, decode, seconds in ((Cut(3.5), True, 11), (Cut(3.5), False, 10), (Cut(3.5, "length"), False, 0)):
        lengths.clear()
        read(root, cut, decode)
        assert sum(lengths) == seconds * 16000


@pytest.mark.parametrize("decode", [True, False])
def test_what_cannot_be_read_is_skipped_with_its_reason(tmp_path, decode):
    soundfile.write(tmp_path / "a.wav", np.ones(32000) / 2, 16000)
    soundfile.write(tmp_path / "b.wav", np.sin(np.arange(8000)) / 2, 16000)
    source = open_source("folder", tmp_path)
    (tmp_path / "a.wav").unlink()
    notes = Notes("folder", [str(tmp_path)], "")
    cut, recordings = read_through(source, cut=Cut(1.0), decode=decode, workers=1, notes=notes)
    assert recordings == 1
    assert cut.index.ids.tolist() == ["b"] and "changed after listing" in cut.index.skipped[0].reason


@pytest.mark.parametrize("cut", [None, Cut(3.5)])
def test_a_start_that_was_stopped_goes_on(talk, tmp_path, monkeypatch, cut):
    """What has changed since is read again, and the next command reads everything."""
    wave = talk.read(0, 0, 160000)
    for number in range(12):
        soundfile.write(tmp_path / f"{number:02d}.flac", wave / (1 + number), 16000)
    soundfile.write(tmp_path / "05.flac", np.zeros(16000), 16000)
    rows, own, last = [], AudioFiles.read, 8
    monkeypatch.setattr(module, "NOTED_HOURS", 15 / 3600)

    def counted(self, row, start, length):
        if row >= last:
            raise KeyboardInterrupt
        rows.append(row)
        return own(self, row, start, length)

    monkeypatch.setattr(AudioFiles, "read", counted)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path, cut)
    soundfile.write(tmp_path / "01.flac", wave[:50000], 16000)
    last, told = 100, []
    for _ in range(2):
        rows.clear()
        source, recordings = read(tmp_path, cut)
        told.append((source.index.fingerprint(), source.index.notes, recordings))
        if len(told) == 1:
            assert {1, 5, 8, 9, 10, 11} <= set(rows) and not {0, 2, 3} & set(rows)
    assert set(rows) == set(range(12)), "nothing is left of the notes"
    assert told[0] == told[1] and told[0][2] == 12 and any("silent" in note for note in told[0][1])
