"""Laws of cutting: every sample is in one piece, none is longer than asked for, and pauses are where pieces end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2v_jax.data.prepared.cuts import FRAME, Cut, pieces, quiet_moments


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


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.integers(4, 50))
def test_no_piece_of_frames_is_longer_than_the_longest(levels, longest):
    edges = [0, *quiet_moments(np.array(levels), longest), len(levels)]
    assert (np.diff(edges) > 0).all() and (np.diff(edges) <= longest).all()


def test_a_frame_is_20_ms():
    assert FRAME == 320
