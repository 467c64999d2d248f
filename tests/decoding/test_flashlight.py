"""Laws of decoding by flashlight-text: the texts are those of our own search, and what it lacks is named."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from searches import LAWS, LETTERS, TOKENS, WIDE, WORDS, log_probs, spoken, text_of

from w2v_jax.core.cli import UserError
from w2v_jax.data.transcripts import Alphabet
from w2v_jax.decoding.beam_search import Search, beam_search
from w2v_jax.decoding.flashlight import Flashlight
from w2v_jax.decoding.ngram_lm import build_ngram, read_arpa, write_arpa


@pytest.fixture(scope="module")
def flashlight():
    return pytest.importorskip(
        "flashlight.lib.text.decoder", reason="flashlight-text is not installed (extra `decode`)"
    )


FLASHLIGHT = {
    "lexicon": LAWS["lexicon"],
    "words and lexicon": LAWS["words and lexicon"],
    "letters": dict(lm=LETTERS, lm_unit="token", lm_weight=0.9, word_score=0.0),
    "none": LAWS["none"],
    "words that the model lacks": LAWS["words and lexicon"]
    | dict(lexicon=frozenset({"a", "bb", "aa"}), unknown_score=-0.5),
}


@pytest.mark.parametrize("law", FLASHLIGHT.values(), ids=FLASHLIGHT)
def test_search_equals_flashlight(flashlight, law):
    law = dataclasses.replace(WIDE, merge="max", beam=3000, n_best=1, **law)
    for seed in range(12):
        frames = log_probs(14, seed)
        ours, theirs = beam_search(frames, TOKENS, law)[0], Flashlight(TOKENS, law).search(frames)[0]
        assert text_of(ours.ids) == text_of(theirs.ids), seed
        assert ours.score == pytest.approx(theirs.score, abs=1e-3)


def test_flashlight_counts_words_and_leaves_out_those_that_are_cut_off(flashlight):
    for seed in range(5):
        frames = log_probs(14, seed)
        for law in (WIDE, dataclasses.replace(WIDE, lexicon=frozenset({"ab", "b"}))):
            law = dataclasses.replace(law, beam=500, merge="max", word_score=0.0)
            assert Flashlight(TOKENS, law).search(frames)[0].words == beam_search(frames, TOKENS, law)[0].words
    law = Search(beam=1, threshold=9.0, lexicon=frozenset({"ab", "bbb"}))
    assert text_of(Flashlight(TOKENS, law).search(spoken("ab|b"))[0].ids) in ((), ("ab",))


def test_words_of_the_lexicon_are_spelt_in_tokens_of_several_letters(flashlight):
    alphabet = Alphabet(("<blank>", "|", "c", "h", "ch", "a"), "letters")
    frames = np.log(np.eye(6)[[4, 5, 1]] * 0.94 + 0.01)
    law = Search(lexicon=frozenset({"cha", "a"}), merge="max")
    theirs = Flashlight(alphabet.tokens, law, spell=alphabet.split).search(frames)[0].ids
    assert alphabet.decode(theirs) == "cha" and 4 in theirs
    assert alphabet.decode(beam_search(frames, alphabet.tokens, law)[0].ids) == "cha"


def test_flashlight_says_what_it_cannot_do(flashlight):
    with pytest.raises(UserError, match="needs a lexicon"):
        Flashlight(TOKENS, Search(lm=WORDS))
    with pytest.raises(UserError, match=r"no '\|'"):
        Flashlight(("<blank>", "AH", "K", "S"), Search())
    for law in (dict(word_score=-0.5), dict(lm=LETTERS, lm_unit="token")):
        with pytest.raises(UserError, match="cannot add a score per word.*--word-score 0"):
            Flashlight(TOKENS, Search(**law))
    search = Flashlight(TOKENS, Search(word_score=0.0)).search
    for wrong, word in ((np.full((3, 4), np.nan), "NaN"), (log_probs(3, 0, 3), "alphabet of 4")):
        with pytest.raises(UserError, match=word):
            search(wrong)


@pytest.mark.parametrize("missing", ["<s>", "</s>", "bigrams"])
def test_language_models_that_kenlm_refuses_are_named(flashlight, missing, tmp_path):
    lm = build_ngram([["ab", "a"]], 1 if missing == "bigrams" else 2)
    lm = dataclasses.replace(lm, grams={gram: scores for gram, scores in lm.grams.items() if missing not in gram})
    write_arpa(tmp_path / "small.arpa", lm)
    law = Search(lm=read_arpa(tmp_path / "small.arpa"), lexicon=frozenset({"ab"}))
    with pytest.raises(UserError, match=rf"small\.arpa: KenLM.*{'bigram' if missing == 'bigrams' else missing}"):
        Flashlight(TOKENS, law)
    assert beam_search(log_probs(5, 0), TOKENS, law)


def test_a_missing_flashlight_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    with pytest.raises(UserError, match=r"pip install 'w2v-jax\[decode\]'"):
        Flashlight(TOKENS, Search(word_score=0.0))
