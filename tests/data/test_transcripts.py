"""Alphabets and labels: what texts become, what is left out and why, and that nothing is cut."""

from __future__ import annotations

import dataclasses
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from w2v_jax.core.cli import UserError
from w2v_jax.data import transcripts
from w2v_jax.data.index import WAVE, Row, TooFew, make_index
from w2v_jax.data.transcripts import (
    BLANK,
    CASINGS,
    INVISIBLE,
    Alphabet,
    Labels,
    build_alphabet,
    clean_text,
    reuse_alphabet,
    with_labels,
)


@dataclasses.dataclass
class Silence:
    """A source of silent rows with transcripts."""

    index: object
    form = WAVE

    def read(self, row, start, length):
        return np.zeros(min(length, int(self.index.num_samples[row]) - start), np.float32)


def source_of(rows: list[tuple[float, str]]) -> Silence:
    return Silence(
        make_index(Row(f"r{i}", f"r{i}.wav", 0, int(s * 16_000), 16_000, "", t) for i, (s, t) in enumerate(rows))
    )


def read(source, alphabet, **changes):
    law = dict(bucket_samples=[16_000, 32_000], per_second=10.0, frames=lambda n: n // 320, where="data.root") | changes
    return with_labels(source, alphabet, **law)


@pytest.mark.parametrize("text", ["a bad cab", "ab", "a", "قال ذلك", "straße e\u0301cole"])
def test_texts_come_back_from_their_ids(text):
    alphabet, _, _ = build_alphabet([text], "letters", "keep", remove="", min_count=1)
    ids, unknown = alphabet.encode(text)
    assert not unknown and 0 not in ids
    assert alphabet.decode(ids) == alphabet.clean(text)


AWKWARD = st.sampled_from(
    "aeEisSzßǰΐΣσς. \t\x85\u2028\u0301\u0307\u0308\u030c\u0345İŉǅᾳéÉ가"
    "\u1161\u11a8\u0dd9\u0dcf\u200b\u200c\u200d\xad\ufeff\u094dकیخ"
)
UNICODE = st.text(AWKWARD | st.characters(exclude_categories=["Cs"]), max_size=20)


@given(UNICODE, st.sampled_from(CASINGS), UNICODE)
def test_a_cleaned_text_stays_as_it_is_when_it_is_cleaned_again(text, casing, remove):
    cleaned = clean_text(text, casing, remove)
    assert clean_text(cleaned, casing, remove) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned) and cleaned == " ".join(cleaned.split())
    assert not set(cleaned) & (set(unicodedata.normalize("NFC", remove)) - {" "})
    assert set("".join(INVISIBLE.findall(cleaned))) <= set("\u200c\u200d")
    if casing != "keep":
        assert cleaned == unicodedata.normalize("NFC", getattr(cleaned, casing)())


@pytest.mark.parametrize(
    ("text", "casing", "remove", "cleaned"),
    [
        ("ΐ", "upper", "", "\u03aa\u0301"),  # NFC of what casing takes apart
        ("e.\u0301", "keep", ".", "é"),
        ("e.\u0301", "keep", ".é", ""),
        ("e\u0301", "keep", "e\u0301", ""),
        ("ab\u00a0c", "keep", " ", "abc"),
        ("one\u2028two\x85three", "keep", "", "one two three"),
    ],
)
def test_normal_forms_survive_the_other_steps(text, casing, remove, cleaned):
    assert clean_text(text, casing, remove) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\ufeffhel\u00adlo wo\u200brld\u200e", "hello world"),
        ("a\u2066b\u2069 \u202ac\u202c x\u2060y \x00z\x7f ❤\ufe0f", "ab c xy z ❤"),
        ("auf\u200clage 👩\u200d👧", "auflage 👩👧"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # Persian: I want
        ("می\u200c\u200d\u200e\u200cخواهم", "می\u200cخواهم"),
        ("می\u064e\u200cخواهم می\u200c \u200cهم", "می\u064e\u200cخواهم می هم"),
        ("می\u200c؟", "می؟"),
        ("ශ\u0dca\u200dර", "ශ\u0dca\u200dර"),  # Sinhala: a conjunct
        ("ন\u09cd\u200d ক\u094d\u200cষ", "ন\u09cd\u200d ক\u094d\u200cষ"),
        ("র\u200d\u09cdয", "র\u200d\u09cdয"),  # Bengali: the joiner is before the virama
        ("សួ\u200bស្តី ไทย\u200bดี", "សួ ស្តី ไทย ดี"),  # Khmer and Thai: a zero-width space is between words
    ],
)
def test_invisible_signs_are_deleted_but_for_those_that_spell_words(text, cleaned):
    assert clean_text(text) == unicodedata.normalize("NFC", cleaned)


@pytest.mark.parametrize("kind", ["letters", "symbols"])
def test_invisible_signs_become_no_tokens_without_a_word(kind):
    texts = ["\ufeffa b\u00ad", "a\u200b b\u200b", "می\u200cخواهم \ufffd"]
    alphabet, counts, dropped = build_alphabet(texts, kind, "keep", remove="", min_count=1)
    assert not set("".join(alphabet.tokens)) & set("\ufeff\u00ad\u200b")
    assert {"\ufeff": 1, "\u00ad": 1, "\u200b": 2} == dropped
    assert all(not alphabet.encode(text)[1] for text in texts)
    summary = transcripts.alphabet_summary(alphabet, counts, dropped)
    assert "dropped, not in the alphabet: ZERO WIDTH SPACE 2, ZERO WIDTH NO-BREAK SPACE 1, SOFT HYPHEN 1" in summary
    joiner = "ZERO WIDTH NON-JOINER 1" if kind == "letters" else r"\u200c"
    warning = next(line for line in summary.split("\n") if "nobody can see" in line)
    assert joiner in warning and "REPLACEMENT CHARACTER 1" in warning and "data.remove" in warning
    assert not any(
        "nobody" in line
        for line in transcripts.alphabet_summary(
            *build_alphabet(["a é b\u0301"], kind, "keep", remove="", min_count=1)
        ).split("\n")
    )


@given(UNICODE, UNICODE)
@example("e b\u0301", "")
def test_rare_letters_are_removed_whatever_stands_beside_them(text, remove):
    text = f"{text} xx"
    alphabet, counts, dropped = build_alphabet([text], "letters", "keep", remove=remove.replace("x", ""), min_count=2)
    assert not set(alphabet.split(text)) & set(dropped)


def test_symbols_are_what_white_space_separates():
    alphabet, counts, _ = build_alphabet(["AH0 K  K", "S"], "symbols", "keep", remove="", min_count=1)
    assert alphabet.tokens == (BLANK, "AH0", "K", "S") and counts["K"] == 2
    assert alphabet.decode(alphabet.encode("K S AH0")[0]) == "K S AH0"


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="|"), min_size=1, max_size=6)
SYMBOLS = st.sampled_from(["|", "<blank>", "<pad>", "<s>", "</s>", "<unk>", "[PAD]", "AH0", "ʃ", "a"])


@given(st.lists(WORDS, min_size=1, max_size=5), st.lists(SYMBOLS, min_size=1, max_size=9))
def test_no_sign_of_a_text_is_lost_or_read_as_one_of_ours(words, symbols):
    """Also of symbols that are named like the blank, the boundary or a token of another package."""
    for kind, text in (("letters", " ".join(words)), ("symbols", " ".join(symbols))):
        if not transcripts.clean_text(text):
            continue
        alphabet, _, _ = build_alphabet([text], kind, "keep", remove="", min_count=1)
        ids, unknown = alphabet.encode(text)
        assert not unknown and 0 not in ids and alphabet.decode(ids) == alphabet.clean(text)


def test_symbols_that_are_named_like_ours_survive_the_file(tmp_path):
    alphabet, counts, _ = build_alphabet(["a <blank> | b", "<pad> |"], "symbols", "keep", remove="", min_count=1)
    assert alphabet.tokens == (BLANK, "<blank>", "<pad>", "a", "b", "|") and counts["|"] == 2
    alphabet.save(tmp_path / "alphabet.json", counts, {})
    again = Alphabet.load(tmp_path / "alphabet.json")
    assert again == alphabet and again.decode(again.encode("| <blank>")[0]) == "| <blank>"


def test_letters_with_the_sign_for_a_space_are_refused_with_the_place_and_what_to_do():
    texts = ["ab", "a|b"]
    alphabet, _, _ = build_alphabet(texts, "letters", "keep", remove="", min_count=1)
    rows = source_of([(1, text) for text in texts])
    with pytest.raises(UserError, match=r"data.root: the transcript of r1.wav \(r1\) has '\|'.*data.remove='\|'"):
        read(rows, alphabet)
    removed, _, _ = build_alphabet(texts, "letters", "keep", remove="|", min_count=1)
    assert [removed.decode(ids) for ids in read(rows, removed)[1].ids] == ["ab", "ab"]


def test_tokens_of_several_letters_are_joined_and_the_longest_wins():
    alphabet = Alphabet((BLANK, "|", "a", "c", "h", "ch", "sch", "s"), "letters")
    assert alphabet.split("schach sa") == ["sch", "a", "ch", "|", "s", "a"]
    assert alphabet.decode(alphabet.encode("schach sa")[0]) == "schach sa"


def test_delimiter_of_another_name_is_the_space_of_letters_and_is_left_out_of_symbols():
    letters = Alphabet((BLANK, "_", "|", "a"), "letters", delimiter="_")
    assert letters.split("a |") == ["a", "_", "|"] and letters.decode([3, 1, 2]) == "a |"
    joined = Alphabet((BLANK, "|", "a"), "letters", delimiter=" ")
    assert joined.decode([2, 1, 2]) == "a|a" and joined.encode("a a")[1] == [" "]
    phonemes = Alphabet((BLANK, "#", "AH"), "symbols", delimiter="#")
    assert phonemes.encode("AH # AH")[0].tolist() == [2, 1, 2]
    assert phonemes.decode([2, 1, 2]) == phonemes.clean("AH # AH") == "AH AH"
    assert [a.boundary for a in (letters, joined, phonemes, Alphabet((BLANK, "|"), "letters"))] == ["_", " ", "", "|"]


def test_digest_is_that_of_alphabets_made_before_there_was_a_delimiter():
    assert Alphabet((BLANK, "|", "a"), "letters").digest == "43abba61f7aa33c9"
    assert Alphabet((BLANK, "|", "a"), "letters", delimiter=" ").digest != "43abba61f7aa33c9"


def test_alphabet_does_not_depend_on_the_order_of_the_transcripts():
    texts = ["b a", "c", "a d"]
    assert (
        build_alphabet(texts, "letters", "keep", remove="", min_count=1)[0]
        == build_alphabet(texts[::-1], "letters", "keep", remove="", min_count=1)[0]
    )


def test_rare_letters_are_taken_out_and_their_transcripts_stay():
    alphabet, counts, dropped = build_alphabet(["abba", "ab?", "ABBA"], "letters", "lower", remove=".", min_count=2)
    assert alphabet.tokens == (BLANK, "|", "a", "b") and dropped == {"?": 1}
    ids, unknown = alphabet.encode("a?b. A")
    assert alphabet.decode(ids) == "ab a" and not unknown
    text = transcripts.alphabet_summary(alphabet, counts, dropped)
    assert "? 1" in text and "a 5" in text


def test_marks_are_named_so_that_they_can_be_read():
    alphabet, counts, dropped = build_alphabet(
        ["bb\u064eb\u064e", "b\u0651"], "letters", "keep", remove="", min_count=2
    )
    assert "ARABIC SHADDA 1" in transcripts.alphabet_summary(alphabet, counts, dropped)
    assert "ARABIC FATHA 2" in transcripts.alphabet_summary(alphabet, counts, dropped)


def test_alphabet_survives_saving_and_damage_is_named(tmp_path):
    alphabet, counts, dropped = build_alphabet(["naïve", "co op"], "letters", "upper", remove="-", min_count=1)
    file = tmp_path / "alphabet.json"
    alphabet.save(file, counts, dropped)
    assert Alphabet.load(file) == alphabet and Alphabet.load(file).digest == alphabet.digest
    file.write_bytes("\ufeff".encode() + file.read_bytes())  # as an editor may save it
    assert Alphabet.load(file) == alphabet
    with pytest.raises(UserError, match="cannot be read"):
        Alphabet.load(tmp_path / "no.json")
    file.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not an alphabet"):
        Alphabet.load(file)
    file.write_text(json.dumps(dict(tokens=["a", "a"], kind="letters", casing="keep", remove="")), encoding="utf-8")
    with pytest.raises(UserError, match="distinct"):
        Alphabet.load(file)


@pytest.fixture
def file(tmp_path):
    """An alphabet of upper-case letters without full stops, made where "Z" was too rare."""
    build_alphabet(["a b. a", "b a", "z"], "letters", "upper", remove=".", min_count=2)[0].save(
        tmp_path / "alphabet.json", {}, {}
    )
    return tmp_path / "alphabet.json"


def test_reused_alphabet_counts_its_tokens_and_those_that_it_lacks(file):
    alphabet, counts, dropped = reuse_alphabet(file, ["a c", "ca.z"], "letters", casing="upper", remove=".")
    assert alphabet == Alphabet.load(file)
    assert counts == {"|": 1, "A": 2, "B": 0} and dropped == {"C": 2}
    text = transcripts.alphabet_summary(alphabet, counts, dropped)
    assert "A 2" in text and "dropped, not in the alphabet: C 2" in text and "removed from transcripts: . Z" in text


def test_reused_alphabet_that_contradicts_the_config_is_refused_with_both_values(file):
    for (kind, casing, remove), message in (
        (("symbols", "upper", ""), r"data.labels is 'symbols', and 'letters' in the file\."),
        (("letters", "keep", ""), r"data.casing is 'keep', and 'upper' in the file.*--config.data.casing=upper;"),
        (("letters", "upper", "-."), r"data.remove is '-\.', and '\.Z' in the file"),
        (("symbols", "keep", "?"), r"data.labels.*data.casing.*data.remove"),
    ):
        with pytest.raises(UserError, match=message):
            reuse_alphabet(file, ["a"], kind, casing=casing, remove=remove)
    for remove in ("", "Z", ".Z"):
        reuse_alphabet(file, ["a"], "letters", casing="upper", remove=remove)


def test_nothing_to_learn_and_unknown_settings_are_named():
    with pytest.raises(TooFew, match="nothing to learn: no recording has a transcript with a token$"):
        build_alphabet(["", "  "], "letters", "keep", remove="", min_count=1)
    with pytest.raises(TooFew, match="a token that occurs data.min_count=3 times$"):
        build_alphabet(["ab a"], "letters", "keep", remove="", min_count=3)
    with pytest.raises(UserError, match=r"data.labels"):
        build_alphabet(["a"], "bytes", "keep", remove="", min_count=1)


def test_rows_that_cannot_be_learnt_are_skipped_with_the_reason():
    alphabet, _, _ = build_alphabet(["abc a"], "letters", "keep", remove="-", min_count=1)
    source = source_of(
        [(1, "abc"), (1, ""), (1, "abz"), (3, "abc"), (1, "abcabcabcabc"), (0.06, "aaaa"), (2, "cab a")]
        + [(1, " \u200b"), (1, "-")]
    )
    chosen, found = read(source, alphabet)
    assert chosen.index.ids.tolist() == ["r0", "r6"]
    reasons = {skip.path.split(" ")[0]: skip.reason for skip in chosen.index.skipped}
    assert reasons["r1.wav"] == reasons["r7.wav"] == "no transcript"
    assert reasons["r8.wav"] == "no token is left of the transcript without the characters of data.remove"
    assert reasons["r2.wav"] == "tokens that the alphabet lacks: z"
    assert reasons["r3.wav"].startswith("longer than the longest of data.bucket_seconds: 3.00 s")
    assert reasons["r4.wav"].startswith("more tokens than data.tokens_per_second: 12 in 1.00 s")
    assert reasons["r5.wav"] == "transcript longer than the audio: it needs 7 frames and has 3"
    assert [alphabet.decode(ids) for ids in found.ids] == ["abc", "cab a"]
    with pytest.raises(UserError, match="none of the 1 recordings has a transcript that can be learnt"):
        read(source_of([(1, "")]), alphabet)


def test_an_empty_index_and_the_key_at_fault_are_named():
    alphabet, _, _ = build_alphabet(["abc a"], "letters", "keep", remove="", min_count=1)
    with pytest.raises(UserError, match=r"^data.eval_share=0 gives no recordings: .*--config.data.eval_root=FOLDER"):
        read(source_of([]), alphabet, where="data.eval_share=0")
    with pytest.raises(UserError, match=r"^data.eval_root: none of the 1 recordings"):
        read(source_of([(1, "")]), alphabet, where="data.eval_root")


def test_labels_are_padded_to_a_width_that_the_length_gives():
    alphabet, _, _ = build_alphabet(["abc"], "letters", "keep", remove="", min_count=1)
    found = Labels([alphabet.encode(t)[0] for t in ("abc", "a")], 3.5, alphabet).padded(np.array([1, -1, 0]), 16_000)
    np.testing.assert_array_equal(found["tokens"], [[2, 0, 0, 0], [0, 0, 0, 0], [2, 3, 4, 0]])
    np.testing.assert_array_equal(found["num_tokens"], [1, 0, 3])


def test_digest_changes_with_every_transcript_and_with_the_alphabet():
    alphabet, _, _ = build_alphabet(["abc"], "letters", "keep", remove="", min_count=1)
    other, _, _ = build_alphabet(["abc"], "letters", "keep", remove=".", min_count=1)
    make = lambda texts, a=alphabet: Labels([a.encode(t)[0] for t in texts], 9.0, a).digest()
    assert len({make(["ab", "c"]), make(["a", "bc"]), make(["ab", "a"]), make(["ab", "c"], other)}) == 4
    assert make(["ab", "c"]) == make(["ab", "c"])
