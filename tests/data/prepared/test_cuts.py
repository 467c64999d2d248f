"""Laws of cutting: every sample is in one piece, none is longer than asked for, and pauses are where pieces end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2v_jax.data import open_source
from w2v_jax.data.prepared.cuts import FRAME, Cut, cut_source, pieces, quiet_moments

soundfile = pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """Ten seconds at 22.05 kHz, loud but for 0.4 s around second 2.5, 4.2 and 7.1; and a second of noise."""
    folder = tmp_path_factory.mktemp("talk")
    seconds = np.arange(220500) / 22050
    wave = 0.3 * np.sin(2000 * seconds)
    for pause in (2.5, 4.2, 7.1):
        wave[np.abs(seconds - pause) < 0.2] *= 1e-3
    soundfile.write(folder / "talk.flac", wave, 22050)
    soundfile.write(folder / "word.flac", wave[:22050], 22050)
    (folder / "a.trans.txt").write_text("talk A B C\nword D\n")
    return open_source("folder", folder)


@pytest.mark.parametrize("place", ["silence", "length"])
@pytest.mark.parametrize("seconds", [0.5, 3.0, 9.99])
def test_pieces_hold_every_sample_once_and_are_no_longer_than_asked_for(talk, place, seconds):
    found = pieces(talk, 0, Cut(seconds, place))
    assert found[0].start == 0 and found[-1].stop == 220500
    assert all(one.stop == other.start for one, other in zip(found, found[1:], strict=False))
    lengths = [piece.stop - piece.start for piece in found]
    assert max(lengths) <= seconds * 22050 and min(lengths) >= 0.24 * seconds * 22050


def test_pieces_end_in_pauses(talk):
    ends = [piece.stop / 22050 for piece in pieces(talk, 0, Cut(3.5))][:-1]
    np.testing.assert_allclose(ends, [2.5, 4.2, 7.1], atol=0.15)


def test_short_recordings_stay_whole_and_parts_are_named_by_their_second(talk):
    index = cut_source(talk, Cut(3.5), 2).index
    assert index.ids.tolist()[0] == "talk@0.000" and index.ids.tolist()[-1] == "word"
    assert sum(index.frames) == 220500 + 22050
    assert index.transcripts.tolist() == ["", "", "", "", "D"], "nobody knows which words a piece has"
    assert any("1 recordings with a transcript were cut" in note for note in index.notes)


def test_what_cannot_be_read_is_skipped_with_its_reason(talk, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.ones(32000) / 2, 16000)
    soundfile.write(tmp_path / "b.wav", np.ones(8000) / 2, 16000)
    source = open_source("folder", tmp_path)
    (tmp_path / "a.wav").unlink()
    cut = cut_source(source, Cut(1.0), 1)
    assert cut.index.ids.tolist() == ["b"] and "changed after listing" in cut.index.skipped[0].reason


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.integers(4, 50))
def test_no_piece_of_frames_is_longer_than_the_longest(levels, longest):
    edges = [0, *quiet_moments(np.array(levels), longest), len(levels)]
    assert (np.diff(edges) > 0).all() and (np.diff(edges) <= longest).all()


def test_a_frame_is_20_ms():
    assert FRAME == 320
