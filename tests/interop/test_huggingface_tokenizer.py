"""Laws of vocabularies: their kind is what the tokenizer's files say, and texts are those that transformers writes."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data.transcripts import ALPHABET_FILE, BLANK, Alphabet
from w2v_jax.interop import huggingface_tokenizer as tokenizers

LETTERS = ["<pad>", "|", "E", "T", "A", "<s>", "</s>", "<unk>"]
PHONEMES = ["<pad>", "|", "t", "aɪ", "ʃ", "dʒ"]
CTC, PHONEME = "Wav2Vec2CTCTokenizer", "Wav2Vec2PhonemeCTCTokenizer"


def write(folder: pathlib.Path, tokens: list[str] | dict, tokenizer: dict | None = None, **files: dict) -> pathlib.Path:
    """The folder with a vocabulary, and with the other files of a tokenizer where they are given."""
    folder.mkdir(exist_ok=True)
    vocabulary = tokens if isinstance(tokens, dict) else {token: i for i, token in enumerate(tokens)}
    contents = {"vocab": vocabulary, "tokenizer_config": tokenizer, **files}
    for name, content in contents.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def read(folder: pathlib.Path, outputs: int, **config) -> tuple[Alphabet, int, list[str]]:
    notes: list[str] = []
    alphabet, blank = tokenizers.read_alphabet(folder, {"pad_token_id": 0} | config, outputs=outputs, notes=notes)
    return alphabet, blank, notes


@pytest.mark.parametrize("odd", ["CH", "[UNK]", "madeupword0000", "ʃː"])
def test_one_token_of_several_signs_leaves_letters_letters(tmp_path, odd):
    tokens = [*LETTERS[:5], odd]
    alphabet, _, notes = read(write(tmp_path, tokens, {"tokenizer_class": CTC}), len(tokens))
    assert alphabet.kind == "letters" and alphabet.decode([2, 5, 1, 3]) == f"E{odd} T" and not notes


def test_special_tokens_count_neither_for_the_kind_nor_for_the_casing(tmp_path):
    named = {"pad_token": {"content": "[PAD]"}, "unk_token": "[unk]", "bos_token": "[b]", "eos_token": "[e]"}
    tokens = ["[PAD]", "|", "E", "T", "[unk]", "[b]", "[e]"]
    for files in (dict(special_tokens_map=named), dict(tokenizer=named)):
        (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
        alphabet, blank, notes = read(write(tmp_path, tokens, **files), len(tokens))
        assert (alphabet.kind, alphabet.casing, blank) == ("letters", "upper", 0) and not notes


def test_class_decides_and_its_absence_is_told_where_it_matters(tmp_path):
    signs = ["<pad>", "a", "b"]
    for file in ("tokenizer_config", "config"):
        folder = write(tmp_path / file, signs, {"tokenizer_class": PHONEME} if file == "tokenizer_config" else None)
        alphabet, _, notes = read(folder, 3, **({"tokenizer_class": PHONEME} if file == "config" else {}))
        assert alphabet.kind == "symbols" and alphabet.decode([1, 2]) == "a b" and not notes
    assert read(write(tmp_path / "signs", signs), 3)[2] == []
    alphabet, _, notes = read(write(tmp_path / "none", PHONEMES), len(PHONEMES))
    assert alphabet.kind == "letters" and len(notes) == 1 and PHONEME in notes[0]
    with pytest.raises(UserError, match="tokenizer_config.json: tokenizer_class is 'BertTokenizer'; supported are"):
        read(write(tmp_path / "bert", signs, {"tokenizer_class": "BertTokenizer"}), 3)
    with pytest.raises(UserError, match=f"contradict.*tokenizer_config.json has {CTC}, config.json has {PHONEME}"):
        read(write(tmp_path / "two", signs, {"tokenizer_class": CTC}), 3, tokenizer_class=PHONEME)


def test_files_that_contradict_each_other_on_the_blank_are_both_named(tmp_path):
    moved = ["B", "|", "<pad>"]
    for name, files in {
        "default": {},
        "config": dict(tokenizer={"pad_token": "<pad>"}),
        "map": dict(special_tokens_map={"pad_token": {"content": "<pad>"}}),
    }.items():
        with pytest.raises(UserError, match=r"contradict.*is '<pad>'; pad_token_id of config.json is 0, which is 'B'"):
            read(write(tmp_path / name, moved, **files), 3)
    with pytest.raises(UserError, match=r"tokenizer_config.json is '\[PAD\]'; pad_token_id of config.json is 0"):
        read(write(tmp_path / "unknown", LETTERS, {"pad_token": "[PAD]"}), 8)
    with pytest.raises(UserError, match=r"special_tokens_map.json is '\|'"):
        files = dict(tokenizer={"pad_token": "<pad>"}, special_tokens_map={"pad_token": "|"})
        read(write(tmp_path / "files", LETTERS, **files), 8)
    with pytest.raises(UserError, match="the blank is 9: pad_token_id of config.json must be an id below 8"):
        read(write(tmp_path / "beyond", LETTERS), 8, pad_token_id=9)


def test_blank_is_that_of_the_tokenizer_where_the_config_has_none(tmp_path):
    folder, notes = write(tmp_path, ["B", "|", "<pad>"], {"pad_token": "<pad>"}), []
    for config in ({}, {"pad_token_id": None}):
        alphabet, blank = tokenizers.read_alphabet(folder, config, outputs=3, notes=notes)
        assert blank == 2 and alphabet.tokens == (BLANK, "B", "|")
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({"x": 0, "|": 1, "B": 2}))
    assert tokenizers.read_alphabet(folder, {}, outputs=3, notes=notes)[1] == 0, "the default of transformers"
    with pytest.raises(UserError, match="the blank is None"):
        tokenizers.read_alphabet(folder, {"pad_token_id": None}, outputs=3, notes=notes)


def test_each_output_has_a_token_wherever_it_is_saved(tmp_path):
    five = LETTERS[:5]
    added = {"5": {"content": "<s>", "special": True}, "6": {"content": "</s>", "special": True}}
    alphabet, _, notes = read(write(tmp_path / "new", five, {"added_tokens_decoder": added}), 7)
    assert alphabet.tokens[-2:] == ("<s>", "</s>") and not notes
    folder = write(tmp_path / "old", five, added_tokens={"<s>": 5, "</s>": 6})
    assert read(folder, 7)[0] == alphabet
    left = read(folder, 5)
    assert left[0].tokens == (BLANK, *five[1:]) and "no output: <s> </s>" in left[2][0]
    with pytest.raises(UserError, match=r"vocab.json: the model has 9 outputs.*these have none: 7, 8\. Take"):
        read(folder, 9)
    for vocabulary, words in (
        ({"<pad>": 0, "|": 1, " ": 1}, r"the id 1 has two tokens, '\|' and ' '"),
        ({"<pad>": 0, "a": "1"}, "the id of 'a' is '1'"),
        ({"<pad>": 0, "a": -1}, "the id of 'a' is -1"),
    ):
        with pytest.raises(UserError, match=f"vocab.json: {words}"):
            read(write(tmp_path / "wrong", vocabulary), 2)


def test_vocabulary_of_several_languages_is_that_of_the_named_one(tmp_path):
    languages = {"eng": {"<pad>": 0, "a": 1}, "deu": {"<pad>": 0, "ä": 1}}
    assert read(write(tmp_path, languages, {"target_lang": "deu"}), 2)[0].tokens == (BLANK, "ä")
    with pytest.raises(UserError, match="eng, deu.*target_lang in tokenizer_config.json, where it is None"):
        read(write(tmp_path, languages, {}), 2)


def test_byte_order_mark_is_no_part_of_a_vocabulary(tmp_path):
    write(tmp_path, LETTERS)
    text = (tmp_path / "vocab.json").read_text()
    (tmp_path / "vocab.json").write_text(text, encoding="utf-8-sig")
    assert read(tmp_path, 8)[0].tokens == (BLANK, *LETTERS[1:])


def test_lower_case_is_what_such_a_tokenizer_writes(tmp_path):
    folder = write(tmp_path / "lower", ["<pad>", "|", "CH", "T"], {"do_lower_case": True})
    alphabet = read(folder, 4)[0]
    assert alphabet.casing == "lower" and alphabet.decode(alphabet.encode("Cht TCH")[0]) == "cht tch"
    with pytest.raises(UserError, match="several ids have the token 'a'"):
        read(write(tmp_path / "both", ["<pad>", "A", "a"], {"do_lower_case": True}), 3)
    with pytest.raises(UserError, match="replace_word_delimiter_char is '-'; only ' '"):
        read(write(tmp_path / "space", LETTERS, {"replace_word_delimiter_char": "-"}), 8)


def test_alphabet_of_another_package_is_left_out_and_named(tmp_path):
    """pyctcdecode, which every Wav2Vec2ProcessorWithLM saves, has a file of our name."""
    folder = write(tmp_path, LETTERS, alphabet={"labels": LETTERS, "is_bpe": False})
    (folder / "language_model").mkdir()
    alphabet, _, notes = read(folder, 8)
    assert alphabet.tokens == (BLANK, *LETTERS[1:])
    assert [word for word in (ALPHABET_FILE, "language_model") if any(word in note for note in notes)] == [
        ALPHABET_FILE,
        "language_model",
    ]


@pytest.mark.parametrize("text", ['["a", "b"]', "a b c", "", '"a"', '{"tokens": ["a"], "labels": []}', "\x00\xff"])
def test_whatever_lacks_our_keys_is_of_another_package(tmp_path, text):
    write(tmp_path, LETTERS)
    (tmp_path / ALPHABET_FILE).write_text(text, encoding="latin-1")
    alphabet, _, notes = read(tmp_path, 8)
    assert alphabet.tokens == (BLANK, *LETTERS[1:])
    assert len(notes) == 1 and f"left out {ALPHABET_FILE}, which is not one of w2v_jax" in notes[0]


ALPHABETS = {
    "letters": Alphabet((BLANK, "|", "a", "b"), "letters", "lower"),
    "letters of fairseq": Alphabet((BLANK, "<pad>", "</s>", "<unk>", "|", "a", "b"), "letters", "lower"),
    "digraphs": Alphabet((BLANK, "|", "C", "H", "CH"), "letters", "upper"),
    "characters": Alphabet((BLANK, "你", "好"), "letters", delimiter=" "),
    "a bar that is a letter": Alphabet((BLANK, "|", "a"), "letters", "lower", delimiter=" "),
    "another delimiter": Alphabet((BLANK, "_", "|", "a"), "letters", "lower", delimiter="_"),
    "phonemes": Alphabet((BLANK, "a", "ʃ", "dʒ"), "symbols"),
    "phonemes with bars": Alphabet((BLANK, "|", "a", "dʒ"), "symbols"),
    "phonemes with a delimiter": Alphabet((BLANK, "#", "a", "dʒ"), "symbols", delimiter="#"),
    "symbols named like ours": Alphabet((BLANK, "<pad>", "<blank>", "<s>", "<unk>", "a"), "symbols"),
    "every usual name of a blank": Alphabet((BLANK, "<pad>", "<blank>", "[PAD]", "[BLANK]", "<pad0>", "a"), "symbols"),
}


@pytest.mark.parametrize("name", ALPHABETS)
def test_alphabet_that_goes_out_comes_in_again(tmp_path, name):
    alphabet = ALPHABETS[name]
    for file, content in tokenizers.their_tokenizer(alphabet).items():
        (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
    again, blank, notes = read(tmp_path, len(alphabet))
    assert again == alphabet and blank == 0 and not notes


# Beside transformers


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="torch or transformers is not installed (extra `parity`)")
    return pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")


def paths(size: int, count: int = 40) -> list[list[int]]:
    """Random best paths over so many tokens, with repetitions and blanks."""
    rng = np.random.default_rng(0)
    return [np.repeat(rng.integers(size, size=9), rng.integers(1, 3, size=9)).tolist() for _ in range(count)]


def collapsed(path: list[int], blank: int) -> list[int]:
    """The ids of a best path in the alphabet, in which the blank comes first."""
    kept = [i for i, before in zip(path, [None, *path]) if i not in (before, blank)]
    return [i + 1 if i < blank else i for i in kept]


def single_spaces(text: str) -> str:
    """Differs: transformers keeps two spaces where two delimiters stand with a blank between them."""
    return " ".join(text.split())


THEIRS = {
    "letters": (LETTERS, {"tokenizer_class": CTC}),
    "letters without a file": (LETTERS, None),
    "letters without a delimiter": (["<pad>", "a", "b", "|"], {"tokenizer_class": CTC, "word_delimiter_token": None}),
    "digraphs": ([*LETTERS, "CH", "SCH"], {"tokenizer_class": CTC}),
    "digraphs without a delimiter": (["<pad>", "C", "CH"], {"tokenizer_class": CTC}),
    "other special tokens": (["|", "a", "[UNK]", "[PAD]"], {"pad_token": "[PAD]", "unk_token": "[UNK]"}),
    "lower case": (LETTERS, {"tokenizer_class": CTC, "do_lower_case": True}),
    "characters": (["<pad>", "你", "好", "<unk>"], {"tokenizer_class": CTC}),
    "phonemes": (PHONEMES, {"tokenizer_class": PHONEME, "do_phonemize": False}),
    "phonemes with a delimiter": (PHONEMES, {"tokenizer_class": PHONEME, "word_delimiter_token": "|"}),
    "phonemes of one sign": (["<pad>", "a", "ʃ", "|"], {"tokenizer_class": PHONEME, "word_delimiter_token": None}),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", THEIRS)
def test_imported_alphabet_writes_the_texts_of_transformers(transformers, tmp_path, name):
    tokens, tokenizer = THEIRS[name]
    folder = write(tmp_path, tokens, tokenizer, config={"model_type": "wav2vec2"})
    pad = tokens.index((tokenizer or {}).get("pad_token", "<pad>"))
    alphabet, blank, _ = read(folder, len(tokens), pad_token_id=pad)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [theirs.decode(path) for path in paths(len(tokens))]
    assert [alphabet.decode(collapsed(path, blank)) for path in paths(len(tokens))] == list(map(single_spaces, texts))
    saved = tmp_path / "saved"
    theirs.save_pretrained(saved)  # as this version of transformers writes all of it
    again, _, _ = read(saved, len(tokens), pad_token_id=pad)
    assert again == alphabet


@pytest.mark.parity
@pytest.mark.parametrize("name", ALPHABETS)
def test_exported_alphabet_writes_the_same_texts_in_transformers(transformers, tmp_path, name):
    alphabet = ALPHABETS[name]
    contents = tokenizers.their_tokenizer(alphabet) | {"config.json": {"model_type": "wav2vec2"}}
    for file, content in contents.items():
        (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
    settings = contents["tokenizer_config.json"]
    if name == "another delimiter":  # transformers 5.24 loads every tokenizer of letters with the delimiter "|"
        theirs = transformers.Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", **settings)
    else:
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__ == settings["tokenizer_class"]
    for path in paths(len(alphabet)):
        if any(path):
            assert alphabet.decode(collapsed(path, 0)) == single_spaces(theirs.decode(path)), path
