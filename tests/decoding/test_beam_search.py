"""Decoding: prefix search against all alignments, and against the textbook."""

from __future__ import annotations

import dataclasses
import itertools
import math
import tracemalloc
from collections import defaultdict

import numpy as np
import pytest
from searches import LAWS, LETTERS, TOKENS, WIDE, WORDS, log_probs, spoken, text_of

from w2v_jax.core.cli import UserError
from w2v_jax.decoding.beam_search import Hypothesis, Search, _log_add, _Prefixes, beam_search, greedy, mismatch
from w2v_jax.decoding.ngram_lm import build_ngram

LOST = -np.inf


def said(ids, law: Search) -> float | None:
    """What the language model and the word score add; None if the lexicon forbids it."""
    words = text_of(ids)
    if law.lexicon is not None and not set(words) <= law.lexicon:
        return None
    total = law.word_score * len(words)
    if law.lm is None:
        return total
    if law.lm_unit == "token":
        return total + law.lm_weight * law.lm.sentence([TOKENS[i] for i in ids])
    state = law.lm.start()
    for word in words:
        score, state = law.lm.score(state, word)
        total += law.lm_weight * score
        total += law.unknown_score * law.lm_weight * ((word,) not in law.lm.grams)
    return total + law.lm_weight * law.lm.end(state)


def best_by_enumeration(frames: np.ndarray, law: Search) -> list[tuple[tuple[str, ...], float]]:
    """Every alignment, summed (or the best) per text, with the scores of its words.

    Repeated spaces are one, unless a language model of tokens scores each of them. An utterance starts after a space.
    """
    every = law.lm is not None and law.lm_unit == "token"
    found: dict[tuple[int, ...], list[float]] = {}
    for path in itertools.product(range(len(TOKENS)), repeat=len(frames)):
        kept = tuple(t for i, t in enumerate(path) if t and t != (path[i - 1] if i else 1))
        ids = tuple(t for i, t in enumerate(kept) if every or t != 1 or (i and kept[i - 1] != 1))
        found.setdefault(ids, []).append(sum(float(frames[i, t]) for i, t in enumerate(path)))
    results = []
    for ids, scores in found.items():
        extra = said(ids, law)
        if extra is not None:
            acoustic = max(scores) if law.merge == "max" else float(np.logaddexp.reduce(scores))
            results.append((ids, acoustic + extra))
    best = {}
    for ids, score in sorted(results, key=lambda entry: (-entry[1], entry[0])):
        best.setdefault(tuple(text_of(ids)), (ids, score))
    return list(best.values())


@pytest.mark.parametrize("merge", ["sum", "max"])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_wide_beam_equals_the_search_over_all_alignments(law, merge):
    law = dataclasses.replace(WIDE, merge=merge, **law)
    for seed in range(6):
        frames = log_probs(6, seed)
        found, expected = beam_search(frames, TOKENS, law), best_by_enumeration(frames, law)
        assert len(found) == 5
        for hypothesis, (ids, score) in zip(found, expected, strict=False):
            assert hypothesis.score == pytest.approx(score, abs=1e-4)
            assert hypothesis.ids == ids
            assert hypothesis.words == len(text_of(ids))


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_impossible_tokens_are_never_said(law):
    law = dataclasses.replace(WIDE, **law)
    for seed in range(4):
        frames = log_probs(5, seed)
        frames[np.random.default_rng(seed).random(frames.shape) < 0.3] = LOST
        expected = [entry for entry in best_by_enumeration(frames, law) if entry[1] > LOST][:5]
        found = [
            (hypothesis.ids, pytest.approx(hypothesis.score, abs=1e-4))
            for hypothesis in beam_search(frames, TOKENS, law)
        ]
        assert found == expected or (not expected and found == [((), LOST)])


def by_the_textbook(frames: np.ndarray, beam: int) -> list[tuple[tuple[int, ...], float]]:
    """Prefix beam search over an alphabet without a boundary, with a dict of ids: (ids, score), best first."""
    held = {(): (0.0, LOST)}
    for frame in frames.astype(float):
        found = defaultdict(lambda: [LOST, LOST])
        for ids, (blank, token) in held.items():
            whole = np.logaddexp(blank, token)
            found[ids][0] = np.logaddexp(found[ids][0], whole + frame[0])
            if ids:
                found[ids][1] = np.logaddexp(found[ids][1], token + frame[ids[-1]])
            for k in range(1, len(frame)):
                before = blank if ids[-1:] == (k,) else whole
                found[*ids, k][1] = np.logaddexp(found[*ids, k][1], before + frame[k])
        held = dict(sorted(found.items(), key=lambda entry: -np.logaddexp(*entry[1]))[:beam])
    return [(ids, float(np.logaddexp(*ends))) for ids, ends in held.items()]


@pytest.mark.parametrize("beam", [1, 3, 10])
def test_narrow_beam_equals_the_search_of_the_textbook(beam):
    law = Search(beam=beam, threshold=1e9, word_score=0.0, n_best=beam)
    for seed in range(10):
        frames = log_probs(40, seed)
        found = beam_search(frames, ("<blank>", "c", "a", "b"), law)
        for hypothesis, (ids, score) in zip(found, by_the_textbook(frames, beam), strict=True):
            assert hypothesis.ids == ids and hypothesis.score == pytest.approx(score, abs=1e-6)


def peak_memory(frames: np.ndarray, tokens, law: Search) -> int:
    tracemalloc.start()
    beam_search(frames, tokens, law)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("law", ["none", "words", "letters"])
def test_memory_grows_with_the_length_and_not_with_its_square(law):
    """Words never end here, as in a script without spaces, so that they are as long as the recording."""
    frames = log_probs(2000, 0)
    frames[:, 1] = -40.0
    law = Search(beam=20, **LAWS[law])
    beam_search(frames[:50], TOKENS, law)  # what is made once
    assert peak_memory(frames, TOKENS, law) < 6 * peak_memory(frames[:500], TOKENS, law)


def test_nodes_are_ordered_as_their_ids():
    prefixes = _Prefixes(TOKENS, Search(word_score=0.0))
    nodes = {prefixes.root}
    for tokens in itertools.product((1, 2, 3), repeat=4):
        node = prefixes.root
        for token in tokens:
            nodes.add(node := prefixes.child(node, token))
    assert len(nodes) == len({node.ids() for node in nodes}) > 50
    for a, b in itertools.product(nodes, repeat=2):
        assert (a < b) == (a.ids() < b.ids())


def test_scores_are_the_sum_of_their_parts():
    law = dataclasses.replace(WIDE, **LAWS["words"], n_best=20)
    for hypothesis in beam_search(log_probs(6, 0), TOKENS, law):
        if all((word,) in WORDS.grams for word in text_of(hypothesis.ids)):
            total = hypothesis.acoustic + 1.3 * hypothesis.lm + 0.4 * hypothesis.words
            assert hypothesis.score == pytest.approx(total, abs=1e-6)


def test_token_model_scores_every_token():
    law = dataclasses.replace(WIDE, lm=LETTERS, lm_unit="token", lm_weight=0.9, word_score=0.0)
    for hypothesis in beam_search(log_probs(5, 3), TOKENS, law):
        assert hypothesis.lm == pytest.approx(LETTERS.sentence([TOKENS[i] for i in hypothesis.ids]), abs=1e-6)


def test_every_token_is_a_word_where_there_is_no_boundary():
    tokens = ("<blank>", "AH", "K", "S")
    lm = build_ngram([["K", "AH", "S"], ["S", "AH"]], 2)
    law = dataclasses.replace(WIDE, lm=lm, lm_weight=1.1, word_score=-0.2)
    for hypothesis in beam_search(log_probs(5, 1), tokens, law):
        assert hypothesis.words == len(hypothesis.ids)
        assert hypothesis.lm == pytest.approx(lm.sentence([tokens[i] for i in hypothesis.ids]), abs=1e-6)


def test_greedy_is_the_best_path():
    for seed in range(5):
        frames = log_probs(8, seed)
        path = frames.argmax(1)
        assert greedy(frames) == tuple(int(t) for i, t in enumerate(path) if t and (i == 0 or t != path[i - 1]))
    assert greedy(np.zeros((0, 4), np.float32)) == ()


def test_narrow_beams_find_less_likely_hypotheses_and_never_fail():
    frames = log_probs(40, 0)
    scores = [
        beam_search(frames, TOKENS, Search(beam=b, lm=WORDS, lm_weight=1.0, tokens=t, threshold=threshold))[0].score
        for b, t, threshold in ((1, 1, 1.0), (5, 4, 8.0), (200, 4, 1e9))
    ]
    assert scores[0] <= scores[1] + 1e-9 <= scores[2] + 2e-9


def test_odd_inputs_have_an_answer():
    law = Search(lm=WORDS, n_best=2)
    assert beam_search(np.zeros((0, 4), np.float32), TOKENS, law)[0].ids == ()
    silent = np.log(
        np.array([[1.0, 0, 0, 0]] * 5, np.float32),
        where=[[True, False, False, False]] * 5,
        out=np.full((5, 4), -np.inf, np.float32),
    )
    assert beam_search(silent, TOKENS, law)[0].ids == ()
    assert beam_search(log_probs(4, 0)[:, :1] * 0, ("<blank>",), Search())[0].ids == ()
    assert beam_search(np.full((3, 4), LOST), TOKENS, law) == [Hypothesis((), LOST, LOST, 0.0, 0)]
    assert greedy(np.full((3, 4), LOST)) == ()
    for wrong in (np.nan, np.inf):
        with pytest.raises(UserError, match="NaN"):
            beam_search(np.full((2, 4), wrong), TOKENS, law)
    for key, value in dict(
        merge="mean", lm_unit="letter", beam=-1, tokens=0, n_best=0, threshold=math.nan, lm_weight=math.inf
    ).items():
        with pytest.raises(UserError, match=f"{key}.*{value}"):
            Search(**{key: value})
    with pytest.raises(UserError, match="alphabet of 3"):
        beam_search(log_probs(2, 0), TOKENS[:3], law)


def test_a_word_that_is_cut_off_is_left_out_where_only_words_of_the_lexicon_may_be_said():
    law = Search(beam=2, threshold=9.0, lexicon=frozenset({"ab", "bbb"}))
    assert [text_of(hypothesis.ids) for hypothesis in beam_search(spoken("ab|b"), TOKENS, law)] == [("ab",)]
    assert [text_of(hypothesis.ids) for hypothesis in beam_search(spoken("b"), TOKENS, law)] == [()]


def test_lexicons_and_models_hold_for_tokens_of_several_characters_and_other_scripts():
    tokens = ("<blank>", "|", "sh", "قط", "ة")
    law = Search(lexicon=frozenset({"قطة", "shة"}), word_score=0.0)
    frames = log_probs(6, 2, 5)
    for hypothesis in beam_search(frames, tokens, dataclasses.replace(law, n_best=9)):
        assert set("".join(tokens[i] for i in hypothesis.ids).replace("|", " ").split()) <= law.lexicon
    sure = np.full((5, 5), -9.0)
    sure[range(5), [3, 4, 1, 2, 4]] = 0.0
    assert beam_search(sure, tokens, law)[0].ids == (3, 4, 1, 2, 4)
    assert mismatch(build_ngram([["قطة", "sh"]], 2), tokens, "word") == []


def test_equal_scores_are_ordered_by_their_ids():
    even = np.full((4, 4), math.log(0.25))
    law = Search(beam=20, word_score=0.0, n_best=7, merge="max")
    found = [hypothesis.ids for hypothesis in beam_search(even, TOKENS, law)]
    assert found == sorted(found) and len(found) == 7
    assert beam_search(even, TOKENS, dataclasses.replace(law, beam=2, n_best=2)) == beam_search(even, TOKENS, law)[:2]


def test_language_model_of_another_alphabet_is_named():
    assert mismatch(WORDS, TOKENS, "word") == []
    assert mismatch(build_ngram([["ab", "ac"]], 2), TOKENS, "word") == ["c"]
    with pytest.raises(UserError, match="'A', 'B'"):
        mismatch(build_ngram([["AB", "B"]], 2), TOKENS, "word")
    with pytest.raises(UserError, match="tokens cannot be written"):
        mismatch(WORDS, ("<blank>", "|", "x", "y"), "token")


def test_log_add_is_exact_where_one_side_is_impossible():
    assert _log_add(-math.inf, -3.0) == -3.0 == _log_add(-3.0, -math.inf)
    assert _log_add(-math.inf, -math.inf) == -math.inf
    assert _log_add(-1.0, -2.0) == pytest.approx(np.logaddexp(-1.0, -2.0))
