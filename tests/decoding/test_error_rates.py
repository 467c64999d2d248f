"""Error rates against jiwer and by hand; intervals over speakers."""

from __future__ import annotations

import numpy as np
import pytest

from w2v_jax.decoding import error_rates
from w2v_jax.decoding.error_rates import Counts, character_errors, interval, total, word_errors


def random_text(rng, words: int) -> str:
    return " ".join("".join(rng.choice(list("abcش"), rng.integers(1, 4))) for _ in range(words))


def test_rates_over_a_corpus_equal_those_of_jiwer():
    jiwer = pytest.importorskip("jiwer")
    rng = np.random.default_rng(0)
    references = [random_text(rng, int(rng.integers(1, 9))) for _ in range(60)]
    hypotheses = [random_text(rng, int(rng.integers(0, 9))) for _ in range(60)]
    pairs = list(zip(references, hypotheses, strict=True))
    words, characters = (total([rate(r, h) for r, h in pairs]) for rate in (word_errors, character_errors))
    assert words.rate == pytest.approx(jiwer.wer(references, hypotheses))
    assert characters.rate == pytest.approx(jiwer.cer(references, hypotheses))


def test_counts_are_those_of_the_alignment():
    assert word_errors("one two three", "one too three four") == Counts(1, 0, 1, 3)
    assert word_errors("one two", "") == Counts(0, 2, 0, 2)
    assert character_errors("ab  c", "abc") == Counts(0, 1, 0, 4)
    text = error_rates.alignment("one two three", "one too three four")
    assert text.splitlines() == ["REF: one two three ****", "HYP: one too three four", "           S          I"]


@pytest.mark.parametrize("space", ["\t", "\n", "\u00a0", "\u3000", "  "])
def test_every_white_space_of_unicode_separates_words(space):
    assert word_errors(f"a{space}b c", f"a b{space}c") == Counts(0, 0, 0, 3)
    assert character_errors(f"a{space}b c", f"a b{space}c") == Counts(0, 0, 0, 5)
    assert error_rates.alignment(f"a{space}b", "a b") == "REF: a b\nHYP: a b\n"


def test_empty_references_add_insertions_and_no_unit():
    assert word_errors(" ", "a b") == Counts(0, 0, 2, 0)
    assert character_errors("", "a b") == Counts(0, 0, 3, 0)
    whole = total([word_errors("", "a"), word_errors("a b", "a b")])
    assert whole.rate == 0.5 and np.isnan(total([]).rate)
    assert "HYP: a" in error_rates.alignment("", "a")


def test_interval_covers_the_mean_and_widens_with_the_spread_over_speakers():
    speakers = np.repeat([f"s{i}" for i in range(6)], 50)
    alike = np.tile([1.0, 0.0], 150)
    unlike = np.repeat([1.0, 0.0], 150)
    low, high = interval(alike, np.ones(len(alike)), speakers)
    assert low == high == 0.5
    low, high = interval(unlike, np.ones(len(unlike)), speakers)
    assert low < 0.3 and high > 0.7
