"""How much is heard of each group of recordings (a corpus, or a language of it), and whose turn it is.

`temperature_shares` are those of multilingual pretraining: hours to a power, first of corpora, then of the languages of
each (Omnilingual ASR, arXiv 2511.09690). Differs: mHuBERT-147 (arXiv 2406.06371; utter-project/fairseq) begins with the
languages of all data, goes on to the corpora of each language, and counts recordings, not hours. `turns` deals any
shares out so evenly that no group is ever a row ahead or behind. Both are pure NumPy and know no recordings.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from w2v_jax.core.display import short_repr

_CYCLE, _MAX_CYCLE, _RAREST = 1 << 14, 1 << 20, 512
ERROR, SMALLEST = 0.002, _RAREST / _MAX_CYCLE
"""By which part of itself a share may be missed by `turns`, if no share is below the smallest one."""


def powers(amounts: np.ndarray, exponent: float) -> np.ndarray:
    """Shares [n] in proportion to amounts ** exponent: 1 keeps the proportions, 0 makes all equal."""
    weights = (amounts / amounts.sum()) ** exponent
    return weights / weights.sum()


def temperature_shares(
    hours: np.ndarray,
    corpora: Sequence[str],
    *,
    exponents: tuple[float, float],
    corpus_weights: Sequence[float] | None = None,
    language_weights: Sequence[float | None] | None = None,
) -> np.ndarray:
    """The share [G] of each group in what is heard.

    hours [G]: those of each group. corpora [G]: the corpus of each, so that those of one name are its languages. With
    H hours in all, h_c of a corpus and h_cl of a language of it, a corpus gets (h_c / H) ** exponents[0] and a language
    (h_cl / h_c) ** exponents[1] of that, each normalised. corpus_weights, language_weights [G]: numbers that take the
    place of these powers, for all corpora, and for the languages of the corpora where they are not None.
    """
    names = list(dict.fromkeys(corpora))
    members = [[number for number, corpus in enumerate(corpora) if corpus == name] for name in names]
    if corpus_weights is None:
        of_corpora = powers(np.array([hours[m].sum() for m in members]), exponents[0])
    else:
        of_corpora = powers(np.array([corpus_weights[m[0]] for m in members], np.float64), 1.0)
    shares = np.zeros(len(hours))
    for share, languages in zip(of_corpora, members, strict=True):
        weights = [None if language_weights is None else language_weights[m] for m in languages]
        if weights[0] is None:
            shares[languages] = share * powers(hours[languages], exponents[1])
        else:
            shares[languages] = share * powers(np.array(weights, np.float64), 1.0)
    return shares


class Turns(NamedTuple):
    """An endless sequence of groups, one for each row: a cycle [M] of group numbers.

    before [M]: how many rows of the same group came earlier in the cycle. counts [G]: those of a whole cycle.
    """

    cycle: np.ndarray
    before: np.ndarray
    counts: np.ndarray

    __repr__ = short_repr

    def rows(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(the group of each of `count` rows from number `first` on, how many rows of that group came before it)."""
        cycles, places = np.divmod(np.arange(first, first + count), len(self.cycle))
        groups = self.cycle[places]
        return groups, cycles * self.counts[groups] + self.before[places]

    def rows_before(self, number: int) -> np.ndarray:
        """How many of the rows before row `number` are of each group [G]."""
        cycles, place = divmod(number, len(self.cycle))
        return cycles * self.counts + np.bincount(self.cycle[:place], minlength=len(self.counts))


def turns(weights: np.ndarray) -> Turns:
    """The turns of groups in proportion to weights [G], of which some may be 0.

    After any number of rows, each group has had its share of a cycle (counts / M) of them to within one row. The counts
    are whole, so that these shares are those of the weights to within ERROR of each, as long as none is below SMALLEST;
    a group of any weight has at least one row in a cycle. A cycle has some ten thousand rows, more where a group is
    rare. Row j of a group with the share s has its turn between rows (j - 1) / s and j / s of the sequence; the row
    whose time runs out first goes first, which keeps them all (Baruah et al. 1996, proportionate progress).
    """
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    present = np.flatnonzero(shares > 0)
    counts = np.zeros(len(shares), np.int64)
    if len(present) == 1:
        counts[present] = 1
    else:
        counts[present] = _whole(shares[present])
    cycle = _dealt(counts)
    order = np.argsort(cycle, kind="stable")
    before = np.empty(len(cycle), np.int64)
    before[order] = np.concatenate([np.arange(count) for count in counts])
    return Turns(cycle, before, counts)


def _whole(shares: np.ndarray) -> np.ndarray:
    """Whole numbers above 0 in the proportions of positive shares [n]: of some cycles, the first that is near enough.

    In each of these, the rarest group has very nearly a whole number of rows.
    """
    rarest = shares.min()
    least = max(int(np.ceil(_CYCLE * rarest)), 1)
    rows = np.arange(least, max(least, _RAREST) + 1)
    for size in np.unique(np.minimum(np.rint(rows / rarest), _MAX_CYCLE)):
        counts = np.maximum(np.rint(shares * size), 1)
        if np.abs(counts / counts.sum() / shares - 1).max() < ERROR:
            break
    return counts.astype(np.int64)


def _dealt(counts: np.ndarray) -> np.ndarray:
    """Group numbers [sum of counts], each group as often as it counts and within a row of its share at any place."""
    size = int(counts.sum())
    due = lambda group, number: -(-number * size // int(counts[group]))
    waiting = [(0, due(group, 1), int(group), 1) for group in np.flatnonzero(counts)]
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int]] = []
    cycle = np.empty(size, np.int32)
    for place in range(size):
        while waiting and waiting[0][0] <= place:
            heapq.heappush(ready, heapq.heappop(waiting)[1:])
        _, group, number = heapq.heappop(ready)
        cycle[place] = group
        if number < counts[group]:
            opens = number * size // int(counts[group])
            heapq.heappush(waiting, (opens, due(group, number + 1), group, number + 1))
    return cycle
