"""Alphabets and labels: what texts become, what is left out and why, and that nothing is cut."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from w2v_jax.config import UserError
from w2v_jax.data import labels
from w2v_jax.data.index import WAVE, Row, make_index
from w2v_jax.data.labels import BLANK, Alphabet, Labels, build, labelled, reuse


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
    return labelled(source, alphabet, **law)


@pytest.mark.parametrize("text", ["a bad cab", "ab", "a", "قال ذلك", "straße e\u0301cole"])
def test_texts_come_back_from_their_ids(text):
    alphabet, _, _ = build([text], "letters", "keep", "", 1)
    ids, unknown = alphabet.encode(text)
    assert not unknown and 0 not in ids
    assert alphabet.decode(ids) == alphabet.clean(text)


def test_symbols_are_what_white_space_separates():
    alphabet, counts, _ = build(["AH0 K  K", "S"], "symbols", "keep", "", 1)
    assert alphabet.tokens == (BLANK, "AH0", "K", "S") and counts["K"] == 2
    assert alphabet.decode(alphabet.encode("K S AH0")[0]) == "K S AH0"


def test_alphabet_does_not_depend_on_the_order_of_the_transcripts():
    texts = ["b a", "c", "a d"]
    assert build(texts, "letters", "keep", "", 1)[0] == build(texts[::-1], "letters", "keep", "", 1)[0]


def test_rare_letters_are_taken_out_and_their_transcripts_stay():
    alphabet, counts, dropped = build(["abba", "ab?", "ABBA"], "letters", "lower", ".", 2)
    assert alphabet.tokens == (BLANK, "|", "a", "b") and dropped == {"?": 1}
    ids, unknown = alphabet.encode("a?b. A")
    assert alphabet.decode(ids) == "ab a" and not unknown
    text = labels.table(alphabet, counts, dropped)
    assert "? 1" in text and "a 5" in text


def test_marks_are_named_so_that_they_can_be_read():
    alphabet, counts, dropped = build(["bb\u064eb\u064e", "b\u0651"], "letters", "keep", "", 2)
    assert "ARABIC SHADDA 1" in labels.table(alphabet, counts, dropped)
    assert "ARABIC FATHA 2" in labels.table(alphabet, counts, dropped)


def test_alphabet_survives_saving_and_damage_is_named(tmp_path):
    alphabet, counts, dropped = build(["naïve", "co op"], "letters", "upper", "-", 1)
    file = tmp_path / "alphabet.json"
    alphabet.save(file, counts, dropped)
    assert Alphabet.load(file) == alphabet and Alphabet.load(file).digest == alphabet.digest
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
    build(["a b. a", "b a", "z"], "letters", "upper", ".", 2)[0].save(tmp_path / "alphabet.json", {}, {})
    return tmp_path / "alphabet.json"


def test_reused_alphabet_counts_its_tokens_and_those_that_it_lacks(file):
    alphabet, counts, dropped = reuse(file, ["a c", "ca.z"], "letters", "upper", ".")
    assert alphabet == Alphabet.load(file)
    assert counts == {"|": 1, "A": 2, "B": 0} and dropped == {"C": 2}
    text = labels.table(alphabet, counts, dropped)
    assert "A 2" in text and "dropped, not in the alphabet: C 2" in text and "removed from transcripts: . Z" in text


def test_reused_alphabet_that_contradicts_the_config_is_refused_with_both_values(file):
    for given, message in (
        (("symbols", "upper", ""), r"data.labels is 'symbols', and 'letters' in the file\."),
        (("letters", "keep", ""), r"data.casing is 'keep', and 'upper' in the file.*--config.data.casing=upper;"),
        (("letters", "upper", "-."), r"data.remove is '-\.', and '\.Z' in the file"),
        (("symbols", "keep", "?"), r"data.labels.*data.casing.*data.remove"),
    ):
        with pytest.raises(UserError, match=message):
            reuse(file, ["a"], *given)
    for remove in ("", "Z", ".Z"):
        reuse(file, ["a"], "letters", "upper", remove)


def test_nothing_to_learn_and_unknown_settings_are_named():
    with pytest.raises(UserError, match="nothing to learn"):
        build(["", "  "], "letters", "keep", "", 1)
    with pytest.raises(UserError, match=r"data.labels"):
        build(["a"], "bytes", "keep", "", 1)


def test_rows_that_cannot_be_learnt_are_skipped_with_the_reason():
    alphabet, _, _ = build(["abc a"], "letters", "keep", "", 1)
    source = source_of([(1, "abc"), (1, ""), (1, "abz"), (3, "abc"), (1, "abcabcabcabc"), (0.06, "aaaa"), (2, "cab a")])
    chosen, found = read(source, alphabet)
    assert chosen.index.ids.tolist() == ["r0", "r6"]
    reasons = {skip.path.split(" ")[0]: skip.reason for skip in chosen.index.skipped}
    assert reasons["r1.wav"] == "no transcript"
    assert reasons["r2.wav"] == "tokens that the alphabet lacks: z"
    assert reasons["r3.wav"].startswith("longer than the longest of data.bucket_seconds: 3.00 s")
    assert reasons["r4.wav"].startswith("more tokens than data.tokens_per_second: 12 in 1.00 s")
    assert reasons["r5.wav"] == "transcript longer than the audio: 7 frames needed, 3 there"
    assert [alphabet.decode(ids) for ids in found.ids] == ["abc", "cab a"]
    with pytest.raises(UserError, match="none of the 1 recordings has a transcript that can be learnt"):
        read(source_of([(1, "")]), alphabet)


def test_an_empty_index_and_the_key_at_fault_are_named():
    alphabet, _, _ = build(["abc a"], "letters", "keep", "", 1)
    with pytest.raises(UserError, match=r"^data.eval_share=0 gives no recordings: .*--config.data.eval_root=FOLDER"):
        read(source_of([]), alphabet, where="data.eval_share=0")
    with pytest.raises(UserError, match=r"^data.eval_root: none of the 1 recordings"):
        read(source_of([(1, "")]), alphabet, where="data.eval_root")


def test_labels_are_padded_to_a_width_that_the_length_gives():
    alphabet, _, _ = build(["abc"], "letters", "keep", "", 1)
    found = Labels([alphabet.encode(t)[0] for t in ("abc", "a")], 3.5, alphabet).padded(np.array([1, -1, 0]), 16_000)
    np.testing.assert_array_equal(found["tokens"], [[2, 0, 0, 0], [0, 0, 0, 0], [2, 3, 4, 0]])
    np.testing.assert_array_equal(found["num_tokens"], [1, 0, 3])


def test_digest_changes_with_every_transcript_and_with_the_alphabet():
    alphabet, _, _ = build(["abc"], "letters", "keep", "", 1)
    other, _, _ = build(["abc"], "letters", "keep", ".", 1)
    make = lambda texts, a=alphabet: Labels([a.encode(t)[0] for t in texts], 9.0, a).digest()
    assert len({make(["ab", "c"]), make(["a", "bc"]), make(["ab", "a"]), make(["ab", "c"], other)}) == 4
    assert make(["ab", "c"]) == make(["ab", "c"])
