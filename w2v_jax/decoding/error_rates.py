"""Word and character error rates, alignments, and confidence intervals over speakers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 1000


class Counts(NamedTuple):
    """Edits that turn references into hypotheses, and the number of units (words or characters) of the references."""

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
    """Word errors of one utterance, by jiwer. White space separates words."""
    import jiwer

    return _counts(reference, hypothesis, process=jiwer.process_words, split=str.split)


def character_errors(reference: str, hypothesis: str) -> Counts:
    """Character errors of one utterance, by jiwer. Spaces between words are characters."""
    import jiwer

    return _counts(reference, hypothesis, process=jiwer.process_characters, split=str)


def _counts(reference: str, hypothesis: str, *, process: Callable[[str, str], Any], split: Callable) -> Counts:
    reference, hypothesis = _spaced(reference), _spaced(hypothesis)
    if not reference:  # jiwer would turn insertions into an empty reference into an error rate
        return Counts(0, 0, len(split(hypothesis)), units=0)
    output = process(reference, hypothesis)
    return Counts(output.substitutions, output.deletions, output.insertions, units=len(split(reference)))


def total(counts: Sequence[Counts]) -> Counts:
    """The sum over utterances. An empty reference adds its insertions and no unit."""
    return Counts(*map(sum, zip(*counts, strict=True))) if counts else Counts(0, 0, 0, units=0)


def alignment(reference: str, hypothesis: str) -> str:
    """Three lines: reference, hypothesis, and S, D or I under each word that differs."""
    import jiwer

    reference, hypothesis = _spaced(reference), _spaced(hypothesis)
    if not reference:
        return f"REF: \nHYP: {hypothesis}\n"
    output = jiwer.process_words(reference, hypothesis)
    lines = jiwer.visualize_alignment(output, show_measures=False, skip_correct=False).split("\n")
    return "\n".join(line.rstrip() for line in lines[1:] if line.strip()) + "\n"


def _spaced(text: str) -> str:
    """The text with a single space for any white space of Unicode; jiwer splits at spaces only."""
    return " ".join(text.split())


def interval(errors: np.ndarray, units: np.ndarray, speakers: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of sum(errors) / sum(units) over speakers, or over recordings of a single speaker.

    errors, units and speakers [N], one entry per recording.
    """
    names, group = np.unique(speakers, return_inverse=True)
    if len(names) < 2:
        group = np.arange(len(errors))
    group_errors, group_units = np.bincount(group, errors), np.bincount(group, units)
    drawn = np.random.default_rng(0).integers(len(group_errors), size=(RESAMPLES, len(group_errors)))
    rates = group_errors[drawn].sum(axis=1) / np.maximum(group_units[drawn].sum(axis=1), 1)
    low, high = np.quantile(rates, (0.025, 0.975))
    return float(low), float(high)
