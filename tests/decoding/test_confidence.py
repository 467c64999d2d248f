"""The best CTC path through a hypothesis, against every path; confidences of words."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2v_jax.decoding.confidence import token_spans, words

TOKENS = ("<blank>", "|", "a", "b")


def random_log_probs(seed: int, frames: int, size: int = len(TOKENS)) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(frames, size)) * 2
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def collapse(path) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token)


def score_of_spans(log_probs, ids, spans) -> float:
    """The sum of the path that has each token in its span, and blanks elsewhere."""
    path = np.zeros(len(log_probs), int)
    for i, (first, last) in zip(ids, spans, strict=True):
        path[first : last + 1] = i
    assert collapse(path) == tuple(ids)
    return float(log_probs[np.arange(len(path)), path].sum())


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.lists(st.integers(1, 3), max_size=4))
def test_the_alignment_is_the_best_of_all_paths(seed, frames, ids):
    log_probs = random_log_probs(seed, frames)
    paths = [p for p in itertools.product(range(len(TOKENS)), repeat=frames) if collapse(p) == tuple(ids)]
    if not paths:
        with pytest.raises(ValueError, match="too few"):
            token_spans(log_probs, ids)
        return
    best = max(sum(log_probs[t, token] for t, token in enumerate(path)) for path in paths)
    assert score_of_spans(log_probs, ids, token_spans(log_probs, ids)) == pytest.approx(best, abs=1e-5)


def test_a_long_recording_is_aligned_in_blocks_as_in_one():
    """The best path of all is its own alignment, however many blocks it takes."""
    log_probs = random_log_probs(3, 1000)
    best = log_probs.argmax(axis=1)
    ids = collapse(best)
    assert score_of_spans(log_probs, ids, token_spans(log_probs, ids)) == pytest.approx(
        log_probs.max(axis=1).sum(), rel=1e-6
    )


def test_the_confidence_of_a_word_is_the_geometric_mean_of_its_letters():
    shares = np.full((6, 4), 0.01)
    for frame, (token, share) in enumerate([(2, 0.9), (2, 0.6), (3, 0.4), (1, 0.97), (0, 0.97), (3, 0.5)]):
        shares[frame, token] = share
    log_probs = np.log(shares)
    first, second = words(log_probs, [2, 3, 1, 3], TOKENS, boundary="|")
    assert first == ("ab", pytest.approx(math.sqrt(0.9 * 0.4)), 0, 2)
    assert second == ("b", pytest.approx(0.5), 5, 5)
    assert [w.text for w in words(log_probs, [2, 3, 1, 3], TOKENS)] == ["a", "b", "|", "b"]
    assert words(log_probs, [], TOKENS) == [] and words(log_probs, [1], TOKENS, boundary="|") == []
