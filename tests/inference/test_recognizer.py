"""What `evaluate` and `transcribe` share: the search that arguments describe, word lists, log-probabilities."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

from w2v_jax import evaluate, ngram, transcribe
from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.index import subset
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet, build_alphabet
from w2v_jax.decoding.beam_search import Search, greedy
from w2v_jax.decoding.ngram_lm import build_ngram, read_arpa, write_arpa
from w2v_jax.inference import recognizer


def test_word_lists_are_read_as_text(tmp_path):
    alphabet = build_alphabet(["abe dog"], "letters", "keep", remove="", min_count=1)[0]
    (tmp_path / "words.txt").write_text("\ufeffabe\tsp e l t\r\n\ndog\u2028x\n", encoding="utf-8")
    assert recognizer.read_lexicon(str(tmp_path / "words.txt"), alphabet) == {"abe", "dog"}
    (tmp_path / "words.txt").write_bytes("abe\n".encode("utf-16"))
    with pytest.raises(UserError, match="--lexicon .*words.txt:1: is UTF-16"):
        recognizer.read_lexicon(str(tmp_path / "words.txt"), alphabet)


def test_what_the_arguments_say_reaches_the_search(ctc_run, arpa):
    parser = argparse.ArgumentParser()
    recognizer.add_arguments(parser)
    alphabet = Alphabet.load(ctc_run / ALPHABET_FILE)
    search_of = lambda *flags: recognizer.search_of(parser.parse_args(["--run", str(ctc_run), *flags]), alphabet)
    said = dict(
        beam=7, lm_weight=1.5, word_score=0.5, unknown_score=-3.0, threshold=9.0, tokens=5, merge="max", n_best=2
    )
    flags = [part for key, value in said.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    search = search_of("--lm", str(arpa), *flags)
    assert {key: getattr(search, key) for key in said} == said and search.lm == read_arpa(arpa)
    assert search_of() is None
    assert search_of("--merge", "max") == Search(merge="max", word_score=0.0)
    assert search_of("--lm", str(arpa)) == Search(lm=search.lm)


def test_each_symbol_is_a_word_for_the_search_also_one_that_is_a_bar(tmp_path):
    alphabet = Alphabet(("<blank>", "|", "AH", "K"), "symbols")
    write_arpa(tmp_path / "lm.arpa", build_ngram([alphabet.split("AH | K")], 2))
    (tmp_path / "lexicon.txt").write_text("AH\n|\n")
    parser = argparse.ArgumentParser()
    recognizer.add_arguments(parser)
    flags = ["--run", "x", "--lm", str(tmp_path / "lm.arpa"), "--lexicon", str(tmp_path / "lexicon.txt")]
    search = recognizer.search_of(parser.parse_args(flags), alphabet)
    assert search is not None and search.boundary == "" and search.lexicon == {"AH", "|"}
    frames = np.log(np.eye(4)[[2, 0, 1, 2]] * 0.97 + 0.01)
    (best,) = recognizer.decoder_of(search, alphabet)(frames)
    assert alphabet.decode(best.ids) == "AH | AH" and best.words == 3


def test_lexicon_holds_words_that_the_tokens_can_write(tmp_path):
    (tmp_path / "lexicon.txt").write_text("chat\ncat\nhat\n")
    alphabet = Alphabet(("<blank>", "|", "ch", "a", "t"), "letters")
    assert recognizer.read_lexicon(str(tmp_path / "lexicon.txt"), alphabet) == {"chat"}


def test_decoder_says_what_it_cannot_do_before_anything_is_encoded(ctc_run, heard, arpa, tmp_path, monkeypatch):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed (extra `decode`)")
    monkeypatch.setattr(recognizer, "encode", lambda *args, **law: pytest.fail("encoded"))
    (tmp_path / "words.txt").write_text("\n".join(read_arpa(arpa).words), encoding="utf-8")
    words = ["--lexicon", str(tmp_path / "words.txt")]
    flags = ["--root", str(heard), "--run", str(ctc_run), "--unit", "token"]
    ngram.main([*flags, "--out", str(tmp_path / "letters.arpa")])
    letters = ["--lm", str(tmp_path / "letters.arpa"), "--lm-unit", "token"]
    ngram.main([*flags[:4], "--order", "1", "--out", str(tmp_path / "one.arpa")])
    flashlight = ["--decoder", "flashlight"]
    for wrong, word in (
        (["--beam", "-1"], "beam=-1"),
        (["--beam", "5", "--tokens", "0"], "tokens=0"),
        (["--lm-weight", "1", "--beam", "5"], "--lm-weight needs a language model"),
        (flashlight, "--beam N"),
        ([*flashlight, *letters], "--word-score 0"),
        ([*flashlight, "--beam", "5", "--word-score", "1"], "--word-score 0"),
        ([*flashlight, *words, "--lm", str(tmp_path / "one.arpa")], "one.arpa: KenLM"),
    ):
        for command in (
            lambda *more: evaluate.main(["--run", str(ctc_run), "--root", str(heard), "--out", str(tmp_path), *more]),
            lambda *more: transcribe.main(["--run", str(ctc_run), *more, str(heard)]),
        ):
            with pytest.raises(UserError, match=word):
                command(*wrong)
    with pytest.raises(UserError, match="flashlight has with --lexicon only"):
        more = [*flashlight, *letters, "--word-score", "0", "--tune", "2"]
        evaluate.main(["--run", str(ctc_run), "--root", str(heard), "--out", str(tmp_path), *more])


def test_recordings_transcribed_together_are_those_transcribed_one_by_one(ctc_run, heard):
    opened, source = recognizer.open_recognizer(ctc_run), open_source("folder", heard)
    together = dict(recognizer.log_probs(opened, source))
    assert len(together) == len(source.index) > 4
    for row in range(4):
        alone = dict(recognizer.log_probs(opened, subset(source, np.array([row]))))[0]
        np.testing.assert_allclose(together[row], alone, atol=1e-4)
        assert greedy(together[row]) == greedy(alone)
        np.testing.assert_allclose(np.exp(alone).sum(axis=1), 1, atol=1e-5)
