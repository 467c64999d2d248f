"""Word and character error rates, alignments, and the interval of a mean over speakers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000


class Counts(NamedTuple):
    """Edits that turn references into hypotheses, and how many units (words or characters) the references have."""

    substitutions: int
    deletions: int
    insertions: int
    units: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per unit; NaN without any unit."""
        return self.errors / self.units if self.units else float("nan")


def word_errors(reference: str, hypothesis: str) -> Counts:
    """Of one utterance, by jiwer; words are what white space separates."""
    import jiwer

    reference, hypothesis = _spaced(reference), _spaced(hypothesis)
    if not reference:  # jiwer would count an insertion into nothing as an error rate
        return Counts(0, 0, len(hypothesis.split()), 0)
    found = jiwer.process_words(reference, hypothesis)
    return Counts(found.substitutions, found.deletions, found.insertions, len(reference.split()))


def character_errors(reference: str, hypothesis: str) -> Counts:
    """Of one utterance, by jiwer; spaces between words are characters."""
    import jiwer

    reference, hypothesis = _spaced(reference), _spaced(hypothesis)
    if not reference:
        return Counts(0, 0, len(hypothesis), 0)
    found = jiwer.process_characters(reference, hypothesis)
    return Counts(found.substitutions, found.deletions, found.insertions, len(reference))


def total(counts: Sequence[Counts]) -> Counts:
    """The sum; an empty reference adds its insertions and no unit."""
    return Counts(*(sum(column) for column in zip(*counts, strict=True))) if counts else Counts(0, 0, 0, 0)


def alignment(reference: str, hypothesis: str) -> str:
    """Three lines: reference, hypothesis, and S, D or I under each word that differs."""
    import jiwer

    reference, hypothesis = _spaced(reference), _spaced(hypothesis)
    if not reference:
        return f"REF: \nHYP: {hypothesis}\n"
    found = jiwer.process_words(reference, hypothesis)
    lines = jiwer.visualize_alignment(found, show_measures=False, skip_correct=False).split("\n")
    return "\n".join(line.rstrip() for line in lines[1:] if line.strip()) + "\n"


def _spaced(text: str) -> str:
    """Single spaces for all that Unicode calls white space; jiwer knows spaces only."""
    return " ".join(text.split())


def interval(errors: np.ndarray, units: np.ndarray, speakers: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of sum(errors) / sum(units) over speakers drawn anew (one speaker: over recordings).

    errors, units and speakers [N], one entry per recording.
    """
    names, number = np.unique(speakers, return_inverse=True)
    if len(names) < 2:
        number = np.arange(len(errors))
    wrong, all_units = np.bincount(number, errors), np.bincount(number, units)
    drawn = np.random.default_rng(0).integers(len(wrong), size=(RESAMPLES, len(wrong)))
    rates = wrong[drawn].sum(axis=1) / np.maximum(all_units[drawn].sum(axis=1), 1)
    low, high = np.quantile(rates, (0.025, 0.975))
    return float(low), float(high)
