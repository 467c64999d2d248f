"""Transcripts as token ids: the alphabet of a run, and the tokens of every row.

A run makes its alphabet once, from the training transcripts, and writes it to alphabet.json with a table of what was
dropped. Token 0 is the blank of CTC, whatever its name: a symbol of the same name is another token. An alphabet of
letters has "|" between words. An alphabet of symbols has what white space separates, such as phonemes or whole words;
there "|" is a symbol like any other. Transcripts that no batch can hold are skipped with id and reason, never cut.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import write_whole
from w2v_jax.core.text import read_text
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import Index, Skip, Source, TooFew, subset

ALPHABET_FILE = "alphabet.json"
BLANK, BOUNDARY = "<blank>", "|"
KINDS = ("letters", "symbols")
CASINGS = ("keep", "lower", "upper")
SHOWN_TOKENS = 8
NO_TRANSCRIPT = "no transcript"

INVISIBLE = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufff9-\ufffb"
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
"""A run of control characters and of Unicode's Default_Ignorable_Code_Point: soft hyphen, joiners, byte order mark."""
JOINERS, WORD_BREAK, NO_COMPOSITION, VIRAMA = "\u200c\u200d", "\u200b", "\u034f", 9
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf]")
"""The scripts that may have WORD_BREAK, the zero-width space, between words: Thai, Lao, Khmer, Myanmar, Tai."""


def clean_text(text: str, casing: str = "keep", remove: str = "") -> str:
    """The text as it is compared and learnt: in Unicode NFC and the given casing, with single spaces.

    The characters of `remove` are deleted without a space in their place: "don't" becomes "dont". So are invisible
    signs, but for those that spell words: joiners beside a virama and between Arabic letters stay, and zero-width
    spaces in UNSPACED scripts become spaces. A cleaned text stays as it is when it is cleaned again.
    """
    removed = dict.fromkeys(map(ord, unicodedata.normalize("NFC", remove)))
    while True:  # a step can undo what another has done: casing takes letters apart, `remove` brings marks together
        cleaned = INVISIBLE.sub(_spelling, unicodedata.normalize("NFC", text))
        if casing != "keep":
            cleaned = cleaned.lower() if casing == "lower" else cleaned.upper()
        cleaned = " ".join(" ".join(cleaned.split()).translate(removed).split())
        if cleaned == text or cleaned.isascii():
            return cleaned
        text = cleaned


def is_missing(text: str) -> bool:
    """Whether a transcript has no character that can be seen. Such a recording is untranscribed, not silent."""
    return not clean_text(text)


def _spelling(match: re.Match[str]) -> str:
    """What a run of invisible signs means in its text: a joiner, a space or nothing."""
    signs, before, after = match[0], match.string[: match.start()], match.string[match.end() :]
    if WORD_BREAK in signs and UNSPACED.match(before[-1:]) and UNSPACED.match(after):
        return " "
    joiner = next((sign for sign in signs if sign in JOINERS), "")
    beside = before[-1:] + after[:1]
    letters = [next((c for c in side if unicodedata.category(c)[0] != "M"), " ") for side in (before[::-1], after)]
    is_arabic = all(letter.isalpha() and unicodedata.bidirectional(letter) == "AL" for letter in letters)
    return joiner if is_arabic or VIRAMA in map(unicodedata.combining, beside) else ""


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """The `tokens`, of which the first is the blank, their `kind` ("letters" or "symbols"), and how to clean texts.

    Letters are joined into words; a token may be several letters long. Symbols have spaces between them. `delimiter`
    is the token between words where that is not the default ("|" for letters, none for symbols): letters have a space
    in its place, and symbols leave it out of the text.
    """

    tokens: tuple[str, ...]
    kind: str
    casing: str = "keep"
    remove: str = ""
    delimiter: str = ""

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def digest(self) -> str:
        """16 hex digits, equal for alphabets that give the same ids to the same texts."""
        fields = dataclasses.astuple(self)
        fields = fields if self.delimiter else fields[:-1]  # as in runs that were made before there was a choice
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]

    @property
    def boundary(self) -> str:
        """The token that ends words, for which texts have a space; "" where every token is a word."""
        return (self.delimiter or BOUNDARY) if self.kind == "letters" else ""

    def clean(self, text: str) -> str:
        """The text as it is compared with decoded ones."""
        text = clean_text(text, self.casing, self.remove)
        if self.kind == "symbols" and self.delimiter:
            return " ".join(token for token in text.split() if token != self.delimiter)
        return text

    def split(self, text: str) -> list[str]:
        """The tokens of a text, in the alphabet or not. Where several tokens of letters fit, the longest is taken."""
        text = clean_text(text, self.casing, self.remove)
        if self.kind == "symbols":
            return text.split()
        letters = self._long_tokens.findall(text) if self._long_tokens else text
        return [self.boundary if c == " " else c for c in letters]

    def encode(self, text: str) -> tuple[np.ndarray, list[str]]:
        """(ids int32 of the known tokens, the unknown tokens)."""
        ids, tokens = self._ids, self.split(text)
        unknown = [token for token in tokens if token not in ids]
        return np.array([ids[token] for token in tokens if token in ids], np.int32), unknown

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: words with single spaces, without blanks."""
        tokens = [self.tokens[i] for i in ids if i]
        if self.kind == "symbols":
            return " ".join(token for token in tokens if token != self.delimiter)
        return " ".join("".join(" " if token == self.boundary else token for token in tokens).split())

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens) if i}

    @functools.cached_property
    def _long_tokens(self) -> re.Pattern[str] | None:
        """Finds the next token of several letters, the longest first, or one letter; None without such tokens."""
        long = sorted((token for token in self.tokens[1:] if len(token) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, long)) + "|.", re.DOTALL) if long else None

    def save(self, path: str | os.PathLike, counts: dict[str, int], dropped: dict[str, int]) -> None:
        """Writes the alphabet with the counts of its and of dropped tokens. The file appears whole or not at all."""
        content = dataclasses.asdict(self) | {"counts": counts, "dropped": dropped}
        write_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @staticmethod
    def load(path: str | os.PathLike) -> Alphabet:
        """Reads what `save` wrote. Raises UserError where the file is missing or not an alphabet."""
        try:
            content = json.loads(read_text(path, f"alphabet {os.fspath(path)}"))
            fields = (content["kind"], content["casing"], content["remove"], content.get("delimiter", ""))
            alphabet = Alphabet(tuple(content["tokens"]), *fields)
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{os.fspath(path)} is not an alphabet of w2v_jax") from None
        if alphabet.tokens[:1] != (BLANK,) or len(set(alphabet.tokens[1:])) != len(alphabet) - 1:
            raise UserError(f"{os.fspath(path)}: the tokens must be distinct, and the first must be {BLANK}")
        return alphabet


def build_alphabet(
    transcripts: Iterable[str], kind: str, casing: str, *, remove: str, min_count: int
) -> tuple[Alphabet, dict[str, int], dict[str, int]]:
    """(alphabet, how often each of its tokens occurs, how often each dropped token occurs).

    The alphabet drops tokens that occur fewer than `min_count` times. A dropped letter joins `remove`, so that its
    transcript stays usable. Tokens are in the order of their code points, so that the alphabet does not depend on the
    order of the transcripts. Invisible signs that cleaning deletes count as dropped. Raises UserError for unknown
    settings, and TooFew where no token remains.
    """
    if kind not in KINDS or casing not in CASINGS:
        raise UserError(
            f"data.labels={kind!r} must be one of {', '.join(KINDS)}, "
            f"and data.casing={casing!r} one of {', '.join(CASINGS)}"
        )
    letters = kind == "letters"
    boundaries = [BOUNDARY] if letters else []
    counts, invisible = _count_tokens(Alphabet((BLANK,), kind, casing=casing, remove=remove), transcripts)
    rare = sorted(token for token, count in counts.items() if count < min_count and token not in boundaries)
    frequent = sorted(token for token in counts if token not in {*rare, *boundaries})
    if not frequent:
        often = f" that occurs data.min_count={min_count} times" if counts else ""
        raise TooFew(f"data.root: there is nothing to learn: no recording has a transcript with a token{often}", ())
    tokens = (BLANK, *boundaries, *frequent)
    alphabet = Alphabet(tokens, kind, casing=casing, remove=_with_letters(remove, rare) if letters else remove)
    return alphabet, {t: counts[t] for t in tokens[1:]}, {t: counts[t] for t in rare} | invisible


def _with_letters(remove: str, letters: Sequence[str]) -> str:
    """`remove` and further letters. NFC, in which `remove` is read, must not join a letter and the mark behind it."""
    remove, joined = unicodedata.normalize("NFC", remove), "".join(letters)
    is_kept = unicodedata.normalize("NFC", remove + joined) == remove + joined
    return remove + (joined if is_kept else NO_COMPOSITION + NO_COMPOSITION.join(letters))


def reuse_alphabet(
    path: str | os.PathLike, transcripts: Iterable[str], kind: str, *, casing: str, remove: str
) -> tuple[Alphabet, dict[str, int], dict[str, int]]:
    """What `build_alphabet` returns, for the alphabet in a file that `save` wrote. Tokens missing from it are dropped.

    Raises UserError where the file's `kind` or `casing` differs, or where the file keeps characters of `remove`. The
    file may remove further characters, such as those that were too rare when it was made.
    """
    alphabet = Alphabet.load(path)
    settings = [("data.labels", kind, alphabet.kind), ("data.casing", casing, alphabet.casing)]
    if set(unicodedata.normalize("NFC", remove)) - set(unicodedata.normalize("NFC", alphabet.remove)):
        settings.append(("data.remove", remove, alphabet.remove))
    differing = [(key, ours, theirs) for key, ours, theirs in settings if ours != theirs]
    if differing:
        differences = "; ".join(f"{key} is {ours!r}, and {theirs!r} in the file" for key, ours, theirs in differing)
        flags = " ".join(f"--config.{key}={shlex.quote(theirs)}" for key, _, theirs in differing)
        raise UserError(
            f"data.alphabet={os.fspath(path)} contradicts the config: {differences}. To follow the file, give "
            f"{flags}; or leave data.alphabet empty to have an alphabet made"
        )
    counts, invisible = _count_tokens(alphabet, transcripts)
    unknown = sorted(set(counts) - set(alphabet.tokens[1:]))
    return alphabet, {t: counts[t] for t in alphabet.tokens[1:]}, {t: counts[t] for t in unknown} | invisible


def _count_tokens(alphabet: Alphabet, transcripts: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
    """How often each token occurs, and each invisible sign that cleaning deletes."""
    tokens: Counter[str] = Counter()
    invisible: Counter[str] = Counter()
    for text in transcripts:
        tokens.update(alphabet.split(text))
        if signs := "".join(INVISIBLE.findall(text)):
            invisible += Counter(signs) - Counter("".join(INVISIBLE.findall(alphabet.clean(text))))
    return tokens, invisible


def alphabet_summary(alphabet: Alphabet, counts: dict[str, int], dropped: dict[str, int]) -> str:
    """A text for people: how many tokens, the most frequent, and what was dropped."""
    frequent = _frequencies(counts, SHOWN_TOKENS)
    lines = [f"alphabet: {len(alphabet)} {alphabet.kind} with the blank; most frequent {frequent}"]
    if alphabet.remove:
        lines.append(f"  removed from transcripts: {' '.join(map(_name, alphabet.remove))}")
    if dropped:
        lines.append(f"  dropped, not in the alphabet: {_frequencies(dropped, len(dropped))}")
    if unseen := {token: count for token, count in counts.items() if not _is_visible(token)}:
        names = _frequencies(unseen, SHOWN_TOKENS)
        lines.append(f"  in the alphabet, though nobody can see them: {names}; data.remove takes them out")
    return "\n".join(lines)


def _frequencies(counts: dict[str, int], shown: int) -> str:
    most_frequent = sorted(counts.items(), key=lambda item: -item[1])[:shown]
    return ", ".join(f"{_name(token)} {count:,}" for token, count in most_frequent)


def _name(token: str) -> str:
    """A readable form of a token: spaces, combining marks and what nobody can see become their Unicode names."""
    if len(token) == 1 and (token.isspace() or unicodedata.combining(token) or not _is_visible(token)):
        return unicodedata.name(token, f"U+{ord(token):04X}")
    return token if _is_visible(token) else ascii(token)


def _is_visible(token: str) -> bool:
    """False for joiners, for characters that Unicode does not know, and for the mark of damaged text, U+FFFD."""
    return token.isprintable() and "\ufffd" not in token


class Labels:
    """The token ids of each row of a source. `padded` returns them as arrays of static shape.

    A batch of rows of some length has room for `per_second` tokens per second: U = ceil(seconds * per_second).
    """

    __repr__ = short_repr

    def __init__(self, ids: Sequence[np.ndarray], per_second: float, alphabet: Alphabet):
        self.ids, self.per_second, self.alphabet = list(ids), per_second, alphabet

    def width(self, length: int) -> int:
        """U of a batch whose rows are `length` samples long."""
        return max(1, math.ceil(length / SAMPLE_RATE * self.per_second))

    def padded(self, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """tokens [n U] int32, padded with 0, and num_tokens [n] int32. Rows below 0 (fillers) have no tokens."""
        tokens = np.zeros((len(rows), self.width(length)), np.int32)
        num_tokens = np.zeros(len(rows), np.int32)
        for i, row in enumerate(rows):
            if row >= 0:
                num_tokens[i] = len(self.ids[row])
                tokens[i, : num_tokens[i]] = self.ids[row]
        return {"tokens": tokens, "num_tokens": num_tokens}

    def digest(self) -> str:
        """16 hex digits of all labels and the alphabet. A resumed run must have the same."""
        digest = hashlib.sha256(self.alphabet.digest.encode())
        for ids in self.ids:
            digest.update(len(ids).to_bytes(4, "little") + ids.astype("<i4").tobytes())
        return digest.hexdigest()[:16]


def unlearnable(index: Index) -> list[Skip]:
    """One skip per row of an index whose transcripts give no alphabet."""
    reason = lambda text: NO_TRANSCRIPT if is_missing(text) else "no token that the alphabet keeps"
    return [_skip(index, row, reason(text)) for row, text in enumerate(index.transcripts.tolist())]


def needed_frames(ids: np.ndarray) -> int:
    """The fewest frames in which CTC can emit these ids: one per id, and a blank between equal neighbours."""
    return len(ids) + int((ids[1:] == ids[:-1]).sum())


def with_labels(
    source: Source,
    alphabet: Alphabet,
    *,
    bucket_samples: Sequence[int],
    per_second: float,
    frames: Callable[[Any], Any],
    where: str,
) -> tuple[Source, Labels]:
    """The rows whose transcript can be learnt, and their labels. The other rows join `index.skipped` with the reason.

    `frames` turns a number of samples into output frames of the model; CTC needs at least `needed_frames` of them.
    `where` is the config key that chose the rows. Raises UserError where there are no rows or none can be learnt, and
    for a text with the alphabet's sign for the space between words, which would be learnt as a space.
    """
    index, labels = source.index, Labels([], per_second, alphabet)
    if not len(index):
        raise UserError(
            f"{where} gives no recordings: raise data.eval_share, add recordings to data.root, or name those to score "
            "by --config.data.eval_root=FOLDER"
        )
    lengths, usable_rows, skips = np.array(sorted(bucket_samples)), [], []
    for row, text in enumerate(index.transcripts.tolist()):
        if (sign := alphabet.boundary.strip()) and sign in clean_text(text, alphabet.casing, alphabet.remove):
            raise UserError(
                f"{where}: the transcript of {index.paths[row]} ({index.ids[row]}) has {sign!r}, which "
                "stands for the space between words in this alphabet; write a space there, or leave the sign out by "
                f"--config.data.remove={shlex.quote(sign)} (for symbols with spaces between them: "
                "--config.data.labels=symbols)"
            )
        ids, unknown = alphabet.encode(text)
        samples = int(index.num_samples[row])
        bucket = int(np.searchsorted(lengths, samples))
        max_tokens = labels.width(int(lengths[bucket])) if bucket < len(lengths) else None
        if is_missing(text):
            skips.append(_skip(index, row, NO_TRANSCRIPT))
        elif reason := _why_unusable(
            ids, unknown=unknown, samples=samples, frames=int(frames(samples)), max_tokens=max_tokens
        ):
            skips.append(_skip(index, row, reason))
        else:
            usable_rows.append(row)
            labels.ids.append(ids)
    if not usable_rows:
        raise TooFew(
            f"{where}: none of the {len(index):,} recordings has a transcript that can be learnt: correct the "
            "transcripts or the settings, or name other recordings",
            [*index.skipped, *skips],
        )
    usable_source = subset(source, np.array(usable_rows))
    usable_source.index.skipped.extend(skips)
    return usable_source, labels


def _skip(index: Index, row: int, reason: str) -> Skip:
    return Skip(f"{index.paths[row]} ({index.ids[row]})", reason)


def _why_unusable(ids: np.ndarray, *, unknown: list[str], samples: int, frames: int, max_tokens: int | None) -> str:
    """Why a transcript cannot be learnt; empty if it can. max_tokens: what its bucket holds; None if it fits none."""
    if unknown:
        names = " ".join(dict.fromkeys(map(_name, unknown)))
        return f"tokens that the alphabet lacks: {names}"
    if not len(ids):
        return "no token is left of the transcript without the characters of data.remove"
    if max_tokens is None:
        return f"longer than the longest of data.bucket_seconds: {samples / SAMPLE_RATE:.2f} s cannot be cropped"
    if frames < needed_frames(ids):
        return f"transcript longer than the audio: it needs {needed_frames(ids)} frames and has {frames}"
    if len(ids) > max_tokens:
        return f"more tokens than data.tokens_per_second: {len(ids)} in {samples / SAMPLE_RATE:.2f} s"
    return ""
