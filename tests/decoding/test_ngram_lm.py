"""Language models: ARPA there and back, sums of probabilities, KenLM's scores, and what a damaged file says."""

from __future__ import annotations

import gzip
import itertools

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.decoding.ngram_lm import BEGIN, END, UNKNOWN, NGram, build_ngram, read_arpa, write_arpa

TEXT = """the cat sat on the mat
the dog sat on the cat
a cat saw the dog
the mat
قطة على السجادة
a dog a dog a cat the""".split("\n")
SENTENCES = [line.split() for line in TEXT]


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def lm(request) -> NGram:
    return build_ngram(SENTENCES * 3, request.param)


def test_probabilities_after_every_context_sum_to_one(lm):
    words = [*lm.words, END, UNKNOWN]
    contexts = [gram for gram in lm.grams if len(gram) < lm.order and gram[-1] != END] + [()]
    for context in contexts:
        total = sum(10 ** lm.score(context, word)[0] for word in words)
        assert total == pytest.approx(1, abs=1e-5), context


def test_seen_sentences_are_likelier_than_shuffled_ones():
    lm = build_ngram(SENTENCES, 3)
    for words in SENTENCES[:3]:
        assert lm.sentence(words) > lm.sentence(words[::-1])
    assert lm.sentence(["the", "zebra"]) < lm.sentence(["the", "cat"])


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_models_survive_a_file(lm, tmp_path, name):
    write_arpa(tmp_path / name, lm)
    found = read_arpa(tmp_path / name)
    assert found.order == lm.order and found.grams.keys() == lm.grams.keys()
    for gram, scores in lm.grams.items():
        np.testing.assert_allclose(found.grams[gram], scores, atol=1e-5)
    for words in SENTENCES:
        assert found.sentence(words) == pytest.approx(lm.sentence(words), abs=1e-4)


@pytest.mark.parametrize("order", [2, 3, 4])  # KenLM reads no model of single words
def test_scores_equal_those_of_kenlm(order, tmp_path):
    kenlm = pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="flashlight-text is not installed")
    from flashlight.lib.text.dictionary import Dictionary

    lm = build_ngram(SENTENCES * 3, order)
    write_arpa(tmp_path / "lm.arpa", lm)
    words = [*sorted(lm.words), UNKNOWN]
    theirs = kenlm.KenLM(str(tmp_path / "lm.arpa"), Dictionary(words))
    rng = np.random.default_rng(0)
    for _ in range(50):
        state, other, ours, total = lm.start(), theirs.start(False), 0.0, 0.0
        for number in rng.integers(len(words), size=6):
            score, state = lm.score(state, words[number])
            other, given = theirs.score(other, int(number))
            ours, total = ours + score, total + given
            assert score == pytest.approx(given, abs=1e-4)
        assert ours + lm.end(state) == pytest.approx(total + theirs.finish(other)[1], abs=1e-3)


def test_model_without_an_unknown_word_gives_it_no_chance():
    lm = NGram(1, {("a",): (-0.3, 0.0), (END,): (-0.3, 0.0)})
    assert lm.score((), "b")[0] == -np.inf and lm.score((), "a") == (-0.3, ())
    assert lm.start() == ()


def test_unigrams_by_hand():
    """Kneser-Ney with the fallback discounts: "b" follows two words, "a" one, the end one; nothing else is known."""
    lm = build_ngram([["a", "b"], ["b", "b"]], 2)
    followed = {"a": 1, "b": 3, END: 1}  # different words before each: <s>; a, <s>, b; b
    total, discounts = 5, {1: 0.5, 3: 1.5}
    spared = (0.5 + 1.5 + 0.5) / total
    for word, count in followed.items():
        expected = (count - discounts[count]) / total + spared / 4
        assert 10 ** lm.grams[word,][0] == pytest.approx(expected)
    assert 10 ** lm.grams[UNKNOWN,][0] == pytest.approx(spared / 4)
    assert (BEGIN,) in lm.grams


def test_nothing_to_build_from_is_named():
    with pytest.raises(UserError, match="all transcripts are empty"):
        build_ngram([[], []], 3)
    with pytest.raises(UserError, match="order 0"):
        build_ngram([["a"]], 0)


GOOD = "\\data\\\nngram 1=3\nngram 2=1\n\n\\1-grams:\n-1 <s> -0.3\n-0.5 </s>\n-0.7 a -0.2\n"
GOOD += "\n\\2-grams:\n-0.1 <s> a\n\n\\end\\\n"


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("\\data\\", "data", "not an ARPA file"),
        ("ngram 1=3", "ngram 1=x", "line 2: expected 'ngram N=COUNT'"),
        ("ngram 2=1", "ngram 3=1", "line 3: expected the number of 2-grams"),
        ("ngram 1=3", "ngram 1=4", "3 1-grams, but .* promised 4"),
        ("-0.7 a -0.2", "-0.7 a b c d", "line 8: a line of 1-grams"),
        ("-0.7 a", "much a", "line 8: a number was expected"),
        ("-0.7 a", "0.7 a", "at most 0"),
        ("-0.7 a", "inf a", "line 8: .* at most 0"),
        ("-0.7 a", "nan a", "line 8: .* at most 0"),
        ("-0.7 a -0.2", "-0.7 a nan", "line 8: .* finite"),
        ("-0.7 a -0.2", "-0.7 a inf", "line 8: .* finite"),
        ("\\2-grams:", "\\3-grams:", "line 10: expected .2-grams:"),
        ("-0.1 <s> a", "-0.1 b a", "line 11: the 2-gram 'b a' lacks its context 'b'"),
        ("\\end\\\n", "", "cut short"),
    ],
)
def test_damaged_files_are_named_with_their_line(tmp_path, old, new, word):
    file = tmp_path / "lm.arpa"
    file.write_text(GOOD)
    assert read_arpa(file).order == 2
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(UserError, match=word):
        read_arpa(file)


def test_files_that_are_no_text_are_named(tmp_path):
    for name, content in (("lm.arpa", b"\xff\xfe\x00binary\xff"), ("lm.arpa.gz", gzip.compress(b"x" * 99)[:-9])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="UTF-8|cannot be read"):
            read_arpa(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_arpa(tmp_path / "none.arpa")


def test_packed_files_with_a_damaged_middle_are_named(tmp_path):
    rng = np.random.default_rng(0)
    lm = NGram(1, {(str(number),): (-float(p), 0.0) for number, p in enumerate(rng.random(5000))})
    write_arpa(tmp_path / "lm.arpa.gz", lm)
    packed = bytearray((tmp_path / "lm.arpa.gz").read_bytes())
    for place in range(200, len(packed) - 200, 1500):
        damaged = packed[:place] + bytes(100) + packed[place + 100 :]
        (tmp_path / "lm.arpa.gz").write_bytes(damaged)
        with pytest.raises(UserError):
            read_arpa(tmp_path / "lm.arpa.gz")


def test_words_may_hold_any_character_but_the_separators_of_the_file(tmp_path):
    words = ["10\u00a0000", "\u3000", "قطة", "e\u0301", "\u2028", "\\data\\", "<unk>"]
    lm = build_ngram([words, words[::-1]], 2)
    write_arpa(tmp_path / "lm.arpa", lm)
    assert read_arpa(tmp_path / "lm.arpa").grams.keys() == lm.grams.keys()
    for word in ("", " ", "a b", "a\tb", "<s>", "</s>"):
        with pytest.raises(UserError, match="sentence 2: .* cannot be a word"):
            build_ngram([["a"], ["a", word]], 2)


def test_marks_of_other_tools_are_understood(tmp_path):
    """The <UNK> of LibriSpeech's models, the byte order mark of some editors, and gzip."""
    text = GOOD.replace("ngram 1=3", "ngram 1=4").replace("-0.7 a", "-1.5\t<UNK>\t-0.25\n-0.7 a")
    (tmp_path / "lm.arpa").write_text(text, encoding="utf-8-sig")
    lm = read_arpa(tmp_path / "lm.arpa")
    (tmp_path / "packed").write_bytes(gzip.compress((tmp_path / "lm.arpa").read_bytes()))
    assert read_arpa(tmp_path / "packed") == lm, "its content says that it is packed, whatever its name"
    assert lm.score((), "zebra") == lm.score((), "<UNK>") == (-1.5, (UNKNOWN,))
    assert lm.words == {"a"}


def test_minus_infinity_is_the_probability_0_of_other_files(tmp_path):
    (tmp_path / "lm.arpa").write_text(GOOD.replace("-1 <s> -0.3", "-inf <s> -inf").replace("-0.5 </s>", "-inf </s>"))
    (tmp_path / "99.arpa").write_text(GOOD.replace("-1 <s> -0.3", "-99 <s> -99").replace("-0.5 </s>", "-99 </s>"))
    lm = read_arpa(tmp_path / "lm.arpa")
    assert lm == read_arpa(tmp_path / "99.arpa") and lm.grams[BEGIN,] == (-99.0, -99.0)
    assert np.isfinite(0.0 * lm.sentence(["a"]))
    write_arpa(tmp_path / "again.arpa", lm)
    assert read_arpa(tmp_path / "again.arpa") == lm


def test_large_models_are_read_at_a_usable_speed(tmp_path):
    words = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=4)]
    lm = NGram(2, {(w,): (-3.0, -0.1) for w in words} | {(a, b): (-2.0, 0.0) for a, b in itertools.pairwise(words)})
    write_arpa(tmp_path / "lm.arpa", lm)
    assert len(read_arpa(tmp_path / "lm.arpa").grams) == 2 * len(words) - 1
