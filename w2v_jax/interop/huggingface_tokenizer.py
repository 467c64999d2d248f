"""The vocabulary of a recogniser: the tokenizer's files of transformers to an alphabet of this package, and back.

The files are vocab.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json and config.json. The class
of the tokenizer says whether tokens are joined into words or have spaces between them. The tokens never decide that: a
letter may be written with two signs, and a phoneme with one. Files that contradict each other are an error.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from w2v_jax.core.cli import UserError
from w2v_jax.data.transcripts import ALPHABET_FILE, BLANK, BOUNDARY, Alphabet
from w2v_jax.interop.huggingface_config import read_json

CONFIG, TOKENIZER, SPECIAL_MAP = "config.json", "tokenizer_config.json", "special_tokens_map.json"
CLASSES = {
    "Wav2Vec2CTCTokenizer": "letters",
    "Wav2Vec2Tokenizer": "letters",
    "Wav2Vec2PhonemeCTCTokenizer": "symbols",
}
"""Class of a tokenizer -> kind of alphabet: letters are joined into words, symbols have spaces between them. The first
is the one that transformers uses where no file names a class."""
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
"""The special tokens of these classes, and their defaults."""

Files = Mapping[str, Mapping[str, Any]]
"""{name: content} of config.json and of the tokenizer's two files; a file that is not there is empty."""


def read_alphabet(
    folder: pathlib.Path, config: Mapping[str, Any], *, outputs: int, notes: list[str]
) -> tuple[Alphabet, int]:
    """(the alphabet of the model in a folder, the id of its blank). The blank, their padding token, comes first.

    config: the content of config.json. outputs: how many the model has. Adds to `notes` what a person should know.
    Raises UserError, which names the files, for ids without a token and for files that contradict each other.
    """
    files = {name: _read_if_there(folder / name) for name in (TOKENIZER, SPECIAL_MAP)} | {CONFIG: config}
    tokenizer = {**files[TOKENIZER], **files[SPECIAL_MAP]}
    tokens = _tokens(folder, tokenizer, outputs, notes=notes)
    blank = _blank(folder, files, tokens)
    written = str.lower if tokenizer.get("do_lower_case") else str
    symbols = [written(token) for number, token in enumerate(tokens) if number != blank]
    if repeated := sorted({token for token in symbols if symbols.count(token) > 1}):
        raise UserError(f"{folder / 'vocab.json'}: several ids have the token {', '.join(map(repr, repeated))}")
    special = {_content(tokenizer.get(key)) for key in SPECIAL} | {*SPECIAL.values()}
    kind = _kind(folder, files, notes if any(len(token) > 1 for token in symbols if token not in special) else [])
    delimiter = _content(tokenizer.get("word_delimiter_token", BOUNDARY if kind == "letters" else None))
    delimiter = written(delimiter) if delimiter else None
    if kind == "letters" and (space := tokenizer.get("replace_word_delimiter_char", " ")) != " ":
        raise UserError(f"{folder / TOKENIZER}: replace_word_delimiter_char is {space!r}; only ' ' is supported")
    return _with_our_rules(folder, alphabet_of(symbols, kind, special=special, delimiter=delimiter), notes), blank


def alphabet_of(symbols: Sequence[str], kind: str, *, special: Collection[Any], delimiter: str | None) -> Alphabet:
    """The alphabet of a blank and these tokens. delimiter: the one between words, if they have it.

    The case of letters is that of the tokens that are not special.
    """
    delimiter = delimiter if delimiter in symbols else None
    text, casing = "".join(token for token in symbols if token not in {*special, delimiter}), "keep"
    if kind == "letters":
        if text.lower() != text.upper():
            casing = {text.lower(): "lower", text.upper(): "upper"}.get(text, "keep")
        delimiter = {BOUNDARY: "", None: " "}.get(delimiter, delimiter)
    return Alphabet((BLANK, *symbols), kind, casing, delimiter=delimiter or "")


def their_tokenizer(alphabet: Alphabet) -> dict[str, dict[str, Any]]:
    """{file: content} of a tokenizer with the ids of the alphabet, which writes the same texts.

    The blank is its padding token. Letters are joined by a Wav2Vec2CTCTokenizer, and symbols keep the spaces between
    them by a Wav2Vec2PhonemeCTCTokenizer.
    """
    symbols = alphabet.tokens[1:]
    usual, others = (SPECIAL["pad_token"], BLANK, "[PAD]", "[BLANK]"), (f"<pad{n}>" for n in itertools.count())
    pad = next(name for name in itertools.chain(usual, others) if name not in symbols)
    unknown = SPECIAL["unk_token"] if SPECIAL["unk_token"] in symbols else pad
    special = dict(pad_token=pad, unk_token=unknown)
    tokenizer = special | dict(bos_token=None, eos_token=None, do_lower_case=False)
    if alphabet.kind == "letters":
        delimiter = alphabet.boundary if alphabet.boundary in symbols else None
        tokenizer |= dict(tokenizer_class="Wav2Vec2CTCTokenizer", replace_word_delimiter_char=" ")
    else:
        delimiter = alphabet.delimiter or None
        tokenizer |= dict(tokenizer_class="Wav2Vec2PhonemeCTCTokenizer", phone_delimiter_token=" ", do_phonemize=False)
    return {
        "vocab.json": {token: number for number, token in enumerate((pad, *symbols))},
        TOKENIZER: tokenizer | dict(word_delimiter_token=delimiter),
        SPECIAL_MAP: special,
    }


def _read_if_there(file: pathlib.Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _content(token: Any) -> Any:
    """The text of a special token, which may have been saved with its properties."""
    return token.get("content") if isinstance(token, dict) else token


def _tokens(folder: pathlib.Path, tokenizer: Mapping[str, Any], outputs: int, *, notes: list[str]) -> list[str]:
    """The token of each id below `outputs`. Raises UserError for an id without one, or with two."""
    file, language = folder / "vocab.json", tokenizer.get("target_lang")
    vocabulary = read_json(file)
    if languages := [name for name, ids in vocabulary.items() if isinstance(ids, dict)]:
        if language not in languages:
            raise UserError(
                f"{file} has vocabularies of several languages ({', '.join(languages)}): name one of them as "
                f"target_lang in {TOKENIZER}, where it is {language!r}"
            )
        vocabulary = vocabulary[language]
    decoder = tokenizer.get("added_tokens_decoder") or {}
    added = [(number, token) for token, number in _read_if_there(folder / "added_tokens.json").items()]
    added += [(int(number), _content(token)) for number, token in decoder.items() if number.isdecimal()]
    tokens: dict[int, str] = {}
    for token, number in vocabulary.items():
        if type(number) is not int or number < 0:
            raise UserError(f"{file}: the id of {token!r} is {number!r}; it must be a whole number of at least 0")
        if tokens.setdefault(number, token) != token:
            raise UserError(f"{file}: the id {number} has two tokens, {tokens[number]!r} and {token!r}; keep one")
    tokens = {number: token for number, token in added if type(number) is int} | tokens
    if missing := [number for number in range(outputs) if number not in tokens]:
        shown = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        raise UserError(
            f"{file}: the model has {outputs} outputs, so each id from 0 to {outputs - 1} must have one token, and "
            f"these have none: {shown}. Take the vocab.json that belongs to the model, or name the missing tokens there"
        )
    if beyond := [tokens[number] for number in sorted(tokens) if number >= outputs]:
        notes.append(f"left out tokens for which the model has no output: {' '.join(beyond)}")
    return [tokens[number] for number in range(outputs)]


def _blank(folder: pathlib.Path, files: Files, tokens: Sequence[str]) -> int:
    """The id of the blank: pad_token_id of config.json, or the tokenizer's padding token where that says nothing.

    Raises UserError where the files name different tokens, or none that the model has.
    """
    pads = {name: _content(files[name].get("pad_token")) for name in (TOKENIZER, SPECIAL_MAP)}
    claims = {f"pad_token of {name}": pad for name, pad in pads.items() if pad is not None}
    if not claims and SPECIAL["pad_token"] in tokens:
        claims = {"the tokenizer's pad_token, by default,": SPECIAL["pad_token"]}
    number = files[CONFIG].get("pad_token_id", None if any(pads.values()) else 0)
    if number is None and any(pads.values()):
        number = next((i for i, token in enumerate(tokens) if token in claims.values()), None)
    if number is None or number >= len(tokens):
        raise UserError(
            f"{folder}: the blank is {number}: pad_token_id of {CONFIG} must be an id below {len(tokens)}, or "
            f"pad_token of {TOKENIZER} a token of vocab.json"
        )
    if differing := [f"{claim} is {pad!r}" for claim, pad in claims.items() if pad != tokens[number]]:
        raise UserError(
            f"{folder}: the files contradict each other on the blank: {', '.join(differing)}; pad_token_id of {CONFIG} "
            f"is {number}, which is {tokens[number]!r} in vocab.json. Correct the wrong one"
        )
    return number


def _kind(folder: pathlib.Path, files: Files, notes: list[str]) -> str:
    """The kind of alphabet that the class of the tokenizer stands for. Adds to `notes` where no file names a class."""
    kinds: dict[str, str] = {}
    for file in (TOKENIZER, CONFIG):
        if name := files[file].get("tokenizer_class"):
            if name not in CLASSES:
                raise UserError(f"{folder / file}: tokenizer_class is {name!r}; supported are {', '.join(CLASSES)}")
            kinds[CLASSES[name]] = f"{file} has {name}"
    if len(kinds) > 1:
        raise UserError(f"{folder}: the files contradict each other on tokenizer_class: {', '.join(kinds.values())}")
    if not kinds:
        notes.append(
            "no file names the class of the tokenizer, so tokens are joined, as in transformers. If they are phonemes "
            f'with spaces between them, put "tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer" into {TOKENIZER}'
        )
    return next(iter(kinds), "letters")


def _with_our_rules(folder: pathlib.Path, alphabet: Alphabet, notes: list[str]) -> Alphabet:
    """The alphabet that `convert` wrote beside vocab.json, which also says how texts were cleaned; else the given one.

    Whatever lacks the keys of ours is of another package and left out, and `notes` says so. One is pyctcdecode, which a
    model with a language model has. Raises UserError where ours has other tokens.
    """
    file = folder / ALPHABET_FILE
    if (folder / "language_model").exists():
        notes.append("left out the language model in language_model; give its ARPA file to evaluate by --lm")
    if not file.exists():
        return alphabet
    try:
        is_ours = {"tokens", "kind", "casing", "remove"} <= read_json(file).keys()
    except UserError:
        is_ours = False
    if not is_ours:
        notes.append(f"left out {ALPHABET_FILE}, which is not one of w2v_jax; pyctcdecode has a file of this name")
        return alphabet
    ours = Alphabet.load(file)
    if ours.tokens != alphabet.tokens:
        raise UserError(f"{file} has other tokens than vocab.json; remove one of the two files")
    return ours
