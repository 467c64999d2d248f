"""`ngram` from end to end: language models of the words and letters of transcripts, or of text."""

from __future__ import annotations

import json
import shutil

import pytest
from commands import assert_only_the_damaged_is_named, with_a_damaged_file

from w2v_jax import ngram
from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet, build_alphabet
from w2v_jax.decoding.ngram_lm import build_ngram, read_arpa


def test_language_model_knows_the_words_of_the_transcripts(arpa, ctc_run, tiny_corpus, tmp_path):
    texts = open_source("folder", tiny_corpus / "train").index.transcripts.tolist()
    assert read_arpa(arpa).words == {word for text in texts for word in text.split()}
    flags = ["--root", str(tiny_corpus / "train"), "--run", str(ctc_run), "--unit", "token"]
    assert ngram.main([*flags, "--out", str(tmp_path / "letters.arpa")]) == 0
    assert read_arpa(tmp_path / "letters.arpa").words <= set(Alphabet.load(ctc_run / ALPHABET_FILE).tokens)
    (tmp_path / "text.txt").write_text("Ein Satz\nnoch ein Satz\n", encoding="utf-8")
    flags = ["--text", str(tmp_path / "text.txt"), "--casing", "lower", "--order", "2"]
    assert ngram.main([*flags, "--out", str(tmp_path / "text.arpa")]) == 0
    assert read_arpa(tmp_path / "text.arpa").words == {"ein", "satz", "noch"}
    for wrong, word in (([], "nothing to learn"), (["--text", "x", "--unit", "token"], "needs the alphabet")):
        with pytest.raises(UserError, match=word):
            ngram.main([*wrong, "--out", str(tmp_path / "no.arpa")])


def test_language_models_learn_no_empty_sentences(tmp_path, capsys):
    """Recordings without a transcript are left out, counted and named, as are lines of text without words."""
    texts = ["the cat sat", "", "the dog", " ", "\ufeff", "\u200b", "-"]
    lines = [{"audio_filepath": f"a{i}.wav", "frames": 9, "rate": 16_000, "text": t} for i, t in enumerate(texts)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "text.txt").write_text("\ufeffthe cat sat\n\n \u3000\nthe dog\n-\n", encoding="utf-8")
    (tmp_path / "run").mkdir()
    alphabet, *counts = build_alphabet(texts, "letters", "keep", remove="-", min_count=1)
    alphabet.save(tmp_path / "run" / ALPHABET_FILE, *counts)
    expected = build_ngram([["the", "cat", "sat"], ["the", "dog"]], 3)
    reports = []
    for flags, named in (
        (["--source", "jsonl", "--root", "m.jsonl"], "5 of 7, which have no words: a1, a3, a4, a5, a6"),
        (["--text", "text.txt"], "3 of 5, which have no words: text.txt:2, text.txt:3, text.txt:5"),
    ):
        flags = [str(tmp_path / flag) if "." in flag else flag for flag in flags]
        assert ngram.main([*flags, "--run", str(tmp_path / "run"), "--out", str(tmp_path / "lm.arpa")]) == 0
        report = capsys.readouterr().out.replace(f"{tmp_path}/", "")
        assert named in report and "2 sentences, 5 words, 4 different" in report
        assert read_arpa(tmp_path / "lm.arpa").grams.keys() == expected.grams.keys()
        reports.append(next(line for line in report.split("\n") if "perplexity" in line))
    assert reports[0] == reports[1]
    with pytest.raises(UserError, match=r"(?s)no word to build.*1 x no words\n +a1"):
        (tmp_path / "m.jsonl").write_text(json.dumps(lines[1]) + "\n")
        ngram.main(["--source", "jsonl", "--root", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "lm.arpa")])


def test_recordings_that_cannot_be_listed_are_named(ctc_run, heard, tmp_path, capsys):
    some = with_a_damaged_file(heard, tmp_path / "some")
    assert ngram.main(["--run", str(ctc_run), "--root", str(some), "--out", str(tmp_path / "lm.arpa")]) == 0
    assert_only_the_damaged_is_named(capsys.readouterr().out)


def test_nothing_left_to_learn_tells_all_of_it(ctc_run, heard, tmp_path):
    shutil.copy(next(heard.rglob("*.flac")), tmp_path / "a.flac")
    (tmp_path / "x.trans.txt").write_bytes(b"a caf\xe9\n")
    with pytest.raises(UserError, match=r"(?s)no word to build.*skipped.*x\.trans\.txt:1"):
        ngram.main(["--run", str(ctc_run), "--root", str(tmp_path), "--out", str(tmp_path / "lm.arpa")])
