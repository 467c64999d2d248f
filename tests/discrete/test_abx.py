"""Laws of the ABX error: that of a plain count over all triples, 0 for units that name the phone, 0.5 by chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from w2v_jax.discrete import abx
from w2v_jax.discrete.abx import LONGEST, Segment, abx_errors, cut_segments, warped


def plain_dtw(x, y):
    """Costs by recursion over cells, then the path traced back, step by step."""
    costs = {}
    for i, j in itertools.product(range(len(x)), range(len(y))):
        before = [costs[p] for p in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p in costs] or [0]
        costs[i, j] = min(before) + int(x[i] != y[j])
    i, j, length = len(x) - 1, len(y) - 1, 1
    while (i, j) != (0, 0):
        steps = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]  # of equal costs the first
        i, j = min((step for step in steps if step in costs), key=costs.__getitem__)
        length += 1
    return costs[len(x) - 1, len(y) - 1] / length


def plain_abx(segments, across):
    """Every triple one by one."""
    scores: dict = {}
    for (i, a), (_, b), (k, x) in itertools.product(enumerate(segments), repeat=3):
        if a.phone == x.phone != b.phone and a.speaker == b.speaker and i != k:
            if (x.speaker != a.speaker) == across:
                to_a, to_b = plain_dtw(x.units, a.units), plain_dtw(x.units, b.units)
                wrong = 1.0 if to_b < to_a else 0.5 if to_b == to_a else 0.0
                scores.setdefault((a.phone, b.phone), {}).setdefault(a.speaker, {}).setdefault(x.speaker, []).append(
                    wrong
                )
    pairs = [
        np.mean([np.mean([np.mean(triples) for triples in speakers.values()]) for speakers in pair.values()])
        for pair in scores.values()
    ]
    return np.mean(pairs)


def random_segments(noise: float, seed: int = 0, speakers="stu", phones=3, each=3):
    rng = np.random.default_rng(seed)
    found = []
    for speaker, phone, _ in itertools.product(speakers, range(phones), range(each)):
        units = np.where(rng.random(rng.integers(1, 7)) < noise, rng.integers(0, 9), phone)
        found.append(Segment(phone, speaker, units))
    return found


def test_distances_are_those_of_plain_warping():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 3, rng.integers(1, 9)) for _ in range(12)]
    found = warped(rows)
    for i, j in itertools.product(range(12), repeat=2):
        assert found[i, j] == (0 if i == j else pytest.approx(plain_dtw(rows[i], rows[j])))


@pytest.mark.parametrize("noise", [0.2, 0.6])
def test_errors_are_those_of_all_triples_one_by_one(noise):
    segments = random_segments(noise)
    within, across = abx_errors(segments)
    assert within == pytest.approx(plain_abx(segments, across=False))
    assert across == pytest.approx(plain_abx(segments, across=True))


def test_units_that_name_the_phone_make_no_error_and_random_ones_half():
    assert abx_errors(random_segments(0.0)) == (0.0, 0.0)
    within, across = abx_errors(random_segments(1.0, phones=6, each=8))
    assert 0.4 < within < 0.6 and 0.4 < across < 0.6


def test_a_single_speaker_has_no_error_across():
    within, across = abx_errors(random_segments(0.3, speakers="s"))
    assert 0 <= within < 0.5 and np.isnan(across)


def test_tokens_bound_the_segments_which_are_the_same_each_time(monkeypatch):
    segments, found = random_segments(0.5, each=20), []
    for tokens in (3, 3, 4):
        monkeypatch.setattr(abx, "TOKENS", tokens)
        found.append(abx_errors(segments))
    assert found[0] == found[1] != found[2]


def test_speakers_are_bounded_and_long_pauses_are_left_out(monkeypatch):
    segments = random_segments(0.3, speakers="stuvw")
    all_speakers = abx_errors(segments)
    monkeypatch.setattr(abx, "SPEAKERS", 2)
    assert abx_errors(segments) != all_speakers
    pauses = [Segment(9, speaker, np.zeros(LONGEST + 1, int)) for speaker in "stuvw"] * 2
    assert abx_errors(segments + pauses) == abx_errors(segments)


def test_segments_are_runs_of_one_label():
    labels, units = np.array([2, 2, -1, 0, 0, 0, 2]), np.arange(7)
    found = list(cut_segments(labels, units, "s"))
    assert [(s.phone, s.units.tolist()) for s in found] == [(2, [0, 1]), (0, [3, 4, 5]), (2, [6])]
    assert not list(cut_segments(np.zeros(0, int), np.zeros(0, int), "s"))


@pytest.mark.parity
@pytest.mark.parametrize("noise", [0.2, 0.6])
def test_errors_are_those_of_fastabx(noise):
    """The same to the last triple, with phones that not every speaker says equally often."""
    fastabx = pytest.importorskip("fastabx", reason="compares with fastabx: pip install fastabx, on Python 3.12")
    torch = pytest.importorskip("torch")
    whole = random_segments(noise, speakers="stuv", phones=5, each=6)
    kept = np.random.default_rng(1).random(len(whole)) < 0.6
    segments = [segment for segment, keep in zip(whole, kept) if keep and (segment.phone, segment.speaker) != (2, "t")]
    ends = np.cumsum([len(segment.units) for segment in segments])
    places = {i: (int(end) - len(segment.units), int(end)) for i, (segment, end) in enumerate(zip(segments, ends))}
    units = torch.from_numpy(np.concatenate([segment.units for segment in segments])).float()[:, None]
    import polars

    labels = {"phone": [segment.phone for segment in segments], "speaker": [segment.speaker for segment in segments]}
    accessor = fastabx.InMemoryAccessor(places, units, torch.device("cpu"))
    data = fastabx.Dataset(labels=polars.DataFrame(labels), accessor=accessor)
    theirs = []
    for conditions in ({"by": ["speaker"]}, {"across": ["speaker"]}):
        score = fastabx.Score(fastabx.Task(data, on="phone", **conditions), "identical", progress=False)
        theirs.append(score.collapse(levels=["speaker"]))
    assert abx_errors(segments) == pytest.approx(theirs, abs=1e-6)
