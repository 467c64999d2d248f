"""How sure a CTC recogniser is of each word, and when it was said.

The best path through a hypothesis gives each of its tokens some frames (the Viterbi algorithm on the states of CTC,
Graves et al. 2006). A token's confidence is its highest probability among its frames; a word's is the geometric mean of
those of its tokens. It is the model's own opinion: a model that overfits is too sure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Word(NamedTuple):
    """A word of a hypothesis: its text, its confidence from 0 to 1, and its first and last frame."""

    text: str
    confidence: float
    first: int
    last: int


def words(log_probs: np.ndarray, ids: Sequence[int], tokens: Sequence[str], *, boundary: str = "") -> list[Word]:
    """The words of the hypothesis `ids`, given log_probs [F A] in nats and the alphabet's tokens.

    boundary: the token between words. Without one every token is a word.
    """
    spans = token_spans(log_probs, ids)
    sure = [float(log_probs[first : last + 1, i].max()) for i, (first, last) in zip(ids, spans, strict=True)]
    groups: list[list[int]] = [[]]
    for place, i in enumerate(ids):
        if boundary and tokens[i] == boundary:
            groups.append([])
        else:
            groups[-1].append(place)
            if not boundary:
                groups.append([])
    return [
        Word(
            "".join(tokens[ids[place]] for place in group),
            confidence=math.exp(sum(sure[place] for place in group) / len(group)),
            first=int(spans[group[0], 0]),
            last=int(spans[group[-1], 1]),
        )
        for group in groups
        if group
    ]


def token_spans(log_probs: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """The first and the last frame [U 2] of each of the tokens `ids` (0 is the blank) on the best path of [F A].

    The way back is kept for one block of frames at a time and computed again for the others, so that memory grows with
    the square root of the length. Raises ValueError where the frames are too few for the tokens.
    """
    frames, states = len(log_probs), np.zeros(2 * len(ids) + 1, np.int64)
    states[1::2] = ids
    may_skip = np.zeros(len(states), bool)
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    repeats = int((states[3::2] == states[1:-2:2]).sum())
    if frames < len(ids) + repeats:
        raise ValueError(f"{frames} frames are too few for {len(ids)} tokens, {repeats} of them repeated")
    if not len(ids):
        return np.zeros((0, 2), np.int64)

    def forward(best: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores after frame t, how many states each came forward) from the scores before it."""
        came = np.full((3, len(states)), -np.inf)
        came[0], came[1, 1:] = best, best[:-1]
        came[2, 2:] = np.where(may_skip[2:], best[:-2], -np.inf)
        jump = came.argmax(axis=0)
        return came[jump, np.arange(len(states))] + log_probs[t, states], jump.astype(np.int8)

    block = math.isqrt(frames - 1) + 1
    best = np.full(len(states), -np.inf)
    best[:2] = log_probs[0, states[:2]]
    before = []  # the scores before the first step of each block
    for t in range(1, frames):
        if (t - 1) % block == 0:
            before.append(best)
        best, _ = forward(best, t)
    state = len(states) - 2 + int(best[-1] > best[-2])
    path = np.zeros(frames, np.int64)
    for number in reversed(range(len(before))):
        steps, best, jumps = range(1 + number * block, min(1 + (number + 1) * block, frames)), before[number], []
        for t in steps:
            best, jump = forward(best, t)
            jumps.append(jump)
        for t, jump in zip(reversed(steps), reversed(jumps), strict=True):
            path[t] = state
            state -= int(jump[state])
    path[0] = state
    order = np.arange(1, len(states), 2)  # of the tokens' states; the path never goes back
    return np.stack([np.searchsorted(path, order), np.searchsorted(path, order, side="right") - 1], axis=1)
