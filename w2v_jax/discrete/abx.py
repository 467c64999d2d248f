"""The ABX error of units: how often a segment is nearer to one of another phone than to one of its own.

Schatz 2016, without contexts: A and X are segments of one phone, B is one of another. X is confused if it is nearer to
B; a draw counts half. Within speakers all three are of one speaker. Across, A and B are of one speaker and X is of
another. Errors are averaged over the triples of two phones and their speakers, then over speakers, then over pairs of
phones, so that frequent phones and talkative speakers do not dominate. Chance is 0.5.

The distance of two segments is the mean cost along the cheapest path of dynamic time warping, where a frame costs
nothing beside the same unit and 1 beside another. Of several such paths, of other lengths, the one counts that is
traced back from the end: a step in both segments before one in the second alone, and that before one in the first.
Without bounds this is the error that fastabx (Poli et al. 2025) gives for the distance "identical". At most TOKENS
segments of each phone and speaker and SPEAKERS speakers are taken, at random, and no segment of more than LONGEST
frames, which is a pause. NumPy only.

Differs: benchmarks such as ZeroSpeech's keep the phones on either side of a segment equal.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.display import short_repr
from w2v_jax.data.io.feature_files import Utterance
from w2v_jax.discrete.time_labels import TimeLabels, frame_times

CELLS = 4_000_000
"""Pairs of frames that are compared at once, over pairs of segments."""
LONGEST = 100
TOKENS, SPEAKERS = 8, 8


class Segment(NamedTuple):
    """units [F] of one phone, said by one speaker."""

    phone: int
    speaker: str
    units: np.ndarray

    __repr__ = short_repr


def cut_segments(labels: np.ndarray, units: np.ndarray, speaker: str) -> Iterable[Segment]:
    """The runs of equal labels [F] of a recording with their units [F]; -1 is no phone."""
    bounds = np.flatnonzero(np.diff(labels, prepend=-2, append=-2))
    for first, end in itertools.pairwise(bounds):
        if labels[first] >= 0:
            yield Segment(int(labels[first]), speaker, units[first:end])


def abx_errors(segments: Iterable[Segment]) -> tuple[float, float]:
    """(error within speakers, error across speakers); nan where there is no triple."""
    chosen = _some(segments)
    places: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, segment in enumerate(chosen):
        places[segment.speaker][segment.phone].append(place)
    distances = warped([segment.units for segment in chosen])
    within, across = defaultdict(list), defaultdict(list)
    for speaker, own in places.items():
        for phone, other in itertools.permutations(own, 2):
            a, b = own[phone], own[other]
            if len(a) > 1:
                within[phone, other].append(_confused(distances, a=a, b=b, x=a))
            others = [of[phone] for name, of in places.items() if name != speaker and phone in of]
            if others:
                across[phone, other].append(np.mean([_confused(distances, a=a, b=b, x=x) for x in others]))
    return _mean_of_means(within), _mean_of_means(across)


def abx_of_units(
    metadata: Mapping[str, Any], *, utterances: Sequence[Utterance], units: Sequence[np.ndarray], labels: TimeLabels
) -> list[float | None]:
    """The ABX errors of units [F G] within and across speakers; None without a triple, as of a single speaker.

    Codebooks count as one: two frames have the same unit where all of them agree.
    """
    radix = metadata["codes"] ** np.arange(metadata["groups"])
    segments = []
    for utterance, x in zip(utterances, units):
        if utterance.id in labels.segments:
            in_time = labels.segments[utterance.id].at(frame_times(len(x), metadata))
            segments += cut_segments(in_time, x.astype(np.int64) @ radix, utterance.speaker)
    return [None if math.isnan(error) else error for error in abx_errors(segments)]


def _mean_of_means(errors: dict[tuple[int, int], list]) -> float:
    return float(np.mean([np.mean(of_pair) for of_pair in errors.values()])) if errors else np.nan


def warped(rows: list[np.ndarray]) -> np.ndarray:
    """The distance [N N] of each row of units to each other one. It may hang on which of two is the first."""
    lengths = np.array([len(row) for row in rows], np.int64)
    padded = np.full((len(rows), lengths.max(initial=1)), -1, np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    distances = np.zeros((len(rows), len(rows)), np.float32)
    first, second = np.nonzero(~np.eye(len(rows), dtype=bool))
    longest = np.maximum(lengths[first], lengths[second])
    for length in np.unique(longest).tolist():
        pairs, size = np.flatnonzero(longest == length), max(1, CELLS // length**2)
        for begin in range(0, len(pairs), size):
            i, j = first[pairs[begin : begin + size]], second[pairs[begin : begin + size]]
            distances[i, j] = _dtw(padded[i], padded[j], num_x=lengths[i], num_y=lengths[j])
    return distances


def _dtw(x: np.ndarray, y: np.ndarray, *, num_x: np.ndarray, num_y: np.ndarray) -> np.ndarray:
    """Mean cost along the path that is traced back, of each pair of rows x [N P], y [N Q]."""
    rows, width = num_x.max(), num_y.max()
    total = np.full((rows + 1, width + 1, len(x)), np.inf, np.float32)
    steps = np.zeros((rows + 1, width + 1, len(x)), np.float32)
    total[0, 0] = 0
    for i, j in itertools.product(range(rows), range(width)):
        both, in_x, in_y = total[i, j], total[i, j + 1], total[i + 1, j]
        alone = np.minimum(in_x, in_y)
        before = np.where(both <= alone, steps[i, j], np.where(in_y <= in_x, steps[i + 1, j], steps[i, j + 1]))
        total[i + 1, j + 1] = np.minimum(both, alone) + (x[:, i] != y[:, j])
        steps[i + 1, j + 1] = 1 + before
    pair = np.arange(len(x))
    return total[num_x, num_y, pair] / steps[num_x, num_y, pair]


def _confused(distances: np.ndarray, *, a: list[int], b: list[int], x: list[int]) -> float:
    """The share of triples in which x is nearer to b than to a; a segment is never both a and x."""
    to_a, to_b = distances[np.ix_(x, a)][:, :, None], distances[np.ix_(x, b)][:, None, :]
    wrong = (to_b < to_a) + 0.5 * (to_b == to_a)  # [X A B]
    differ = np.array(x)[:, None] != np.array(a)
    return float(wrong[differ].mean())


def _some(segments: Iterable[Segment]) -> list[Segment]:
    """At most TOKENS of each phone and speaker, of at most SPEAKERS speakers."""
    groups: dict[str, dict[int, list[Segment]]] = defaultdict(lambda: defaultdict(list))
    for segment in segments:
        if len(segment.units) <= LONGEST:
            groups[segment.speaker][segment.phone].append(segment)
    rng, names = np.random.default_rng(0), sorted(groups)
    chosen = []
    for place in np.sort(rng.choice(len(names), min(SPEAKERS, len(names)), replace=False)) if names else ():
        phones = groups[names[place]]
        for group in (phones[phone] for phone in sorted(phones)):
            kept = rng.choice(len(group), min(TOKENS, len(group)), replace=False)
            chosen += [group[i] for i in np.sort(kept)]
    return chosen
