"""A small alphabet with models of its words and letters, laws of searching, and log-probabilities to search."""

from __future__ import annotations

import numpy as np

from w2v_jax.decoding.beam_search import Search
from w2v_jax.decoding.ngram_lm import build_ngram

TOKENS = ("<blank>", "|", "a", "b")
WORDS = build_ngram([w.split() for w in ("ab a", "a ab b", "ba ab", "b b a")], 3)
LETTERS = build_ngram([list(w.replace(" ", "|")) for w in ("ab a", "a ab b", "ba ab", "b b a")], 3)
WIDE = Search(beam=100_000, threshold=1e9, tokens=99, n_best=5)
LAWS = {
    "none": dict(word_score=0.0),
    "word score": dict(word_score=-0.7),
    "words": dict(lm=WORDS, lm_weight=1.3, word_score=0.4, unknown_score=-2.0),
    "lexicon": dict(lexicon=frozenset({"ab", "a", "bb"}), word_score=0.2),
    "words and lexicon": dict(lm=WORDS, lm_weight=0.8, lexicon=frozenset({"ab", "a", "b"}), word_score=0.2),
    "letters": dict(lm=LETTERS, lm_unit="token", lm_weight=0.9, word_score=0.3),
    "letters and lexicon": dict(lm=LETTERS, lm_unit="token", lm_weight=0.9, lexicon=frozenset({"ab", "b"})),
}


def log_probs(frames: int, seed: int, tokens: int = len(TOKENS)) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(frames, tokens)) * 1.5
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def text_of(ids) -> tuple[str, ...]:
    return tuple("".join(TOKENS[i] for i in ids).replace("|", " ").split())


def spoken(text: str, tokens=TOKENS) -> np.ndarray:
    """Log-probabilities that leave no doubt, a frame for each character."""
    return np.log(np.full((len(text), len(tokens)), 1e-6) + np.eye(len(tokens))[[tokens.index(c) for c in text]])
