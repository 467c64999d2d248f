"""Transcripts as token ids: the alphabet of a run, and the tokens of every row.

An alphabet is made from the training transcripts once and kept in the run (alphabet.json), with a table of what was
dropped. Token 0 is the blank of CTC. Of letters, "|" stands between words; symbols (phonemes, whole words) are what
white space separates. Transcripts that no batch can hold are skipped with id and reason, never cut.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError
from w2v_jax.data.index import Skip, Source, subset

FILE = "alphabet.json"
BLANK, BOUNDARY = "<blank>", "|"
KINDS = ("letters", "symbols")
CASINGS = ("keep", "lower", "upper")
SHOWN = 8


def clean(text: str, casing: str = "keep", remove: str = "") -> str:
    """The text as it is compared and learnt: Unicode NFC, casing, without the characters of `remove`, single spaces.

    A removed character leaves no space: "don't" becomes "dont".
    """
    text = unicodedata.normalize("NFC", text)
    if casing != "keep":
        text = text.lower() if casing == "lower" else text.upper()
    if remove:
        text = text.translate(dict.fromkeys(map(ord, unicodedata.normalize("NFC", remove))))
    return " ".join(text.split())


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """`tokens`, of which the first is the blank; `kind` letters or symbols; how texts are cleaned before."""

    tokens: tuple[str, ...]
    kind: str
    casing: str = "keep"
    remove: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def digest(self) -> str:
        """16 hex digits: equal for alphabets that give the same ids to the same texts."""
        return hashlib.sha256(json.dumps(dataclasses.astuple(self)).encode()).hexdigest()[:16]

    def clean(self, text: str) -> str:
        return clean(text, self.casing, self.remove)

    def split(self, text: str) -> list[str]:
        """The tokens of a text, known or not."""
        text = self.clean(text)
        return text.split() if self.kind == "symbols" else [BOUNDARY if c == " " else c for c in text]

    def encode(self, text: str) -> tuple[np.ndarray, list[str]]:
        """(ids int32 of the known tokens, the unknown ones)."""
        numbers, tokens = self._numbers, self.split(text)
        unknown = [token for token in tokens if token not in numbers]
        return np.array([numbers[t] for t in tokens if t in numbers], np.int32), unknown

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids without blanks: words with single spaces."""
        tokens = [self.tokens[i] for i in ids if i]
        if self.kind == "symbols":
            return " ".join(tokens)
        return " ".join("".join(tokens).replace(BOUNDARY, " ").split())

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens) if i}

    def save(self, path: str | os.PathLike, counts: dict[str, int], dropped: dict[str, int]) -> None:
        """Writes the alphabet with how often each token occurs, and what was dropped; whole or not at all."""
        partial = pathlib.Path(f"{os.fspath(path)}.partial")
        about = dataclasses.asdict(self) | {"counts": counts, "dropped": dropped}
        partial.write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)

    @staticmethod
    def load(path: str | os.PathLike) -> Alphabet:
        """The alphabet of a file that `save` wrote. Raises UserError."""
        try:
            found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
            alphabet = Alphabet(tuple(found["tokens"]), found["kind"], found["casing"], found["remove"])
        except OSError as error:
            raise UserError(f"{os.fspath(path)}: the alphabet cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{os.fspath(path)} is not an alphabet of w2v_jax") from None
        if alphabet.tokens[:1] != (BLANK,) or len(set(alphabet.tokens)) != len(alphabet):
            raise UserError(f"{os.fspath(path)}: tokens must be distinct and begin with {BLANK}")
        return alphabet


def build(
    transcripts: Iterable[str], kind: str, casing: str, remove: str, min_count: int
) -> tuple[Alphabet, dict[str, int], dict[str, int]]:
    """(alphabet, how often each of its tokens occurs, how often each dropped token occurs).

    A token that occurs fewer than `min_count` times is dropped from the alphabet; a letter then joins `remove`, so
    that its transcript stays usable. Tokens are in the order of their code points, so that the alphabet does not
    depend on the order of the transcripts. Raises UserError.
    """
    if kind not in KINDS or casing not in CASINGS:
        raise UserError(f"data.labels is one of {', '.join(KINDS)} and data.casing one of {', '.join(CASINGS)}")
    counter = _counted(Alphabet((BLANK,), kind, casing, remove), transcripts)
    rare = sorted(token for token, count in counter.items() if count < min_count and token != BOUNDARY)
    kept = sorted(token for token in counter if token not in set(rare) | {BOUNDARY})
    if not kept:
        raise UserError(f"data.root: no transcript has a token that occurs {max(min_count, 1)} times; nothing to learn")
    letters = kind == "letters"
    tokens = (BLANK, *([BOUNDARY] if letters else []), *kept)
    alphabet = Alphabet(tokens, kind, casing, remove + ("".join(rare) if letters else ""))
    return alphabet, {t: counter[t] for t in tokens[1:]}, {t: counter[t] for t in rare}


def reuse(
    path: str | os.PathLike, transcripts: Iterable[str], kind: str, casing: str, remove: str
) -> tuple[Alphabet, dict[str, int], dict[str, int]]:
    """What `build` returns, of the alphabet that `save` wrote to a file: dropped are the tokens that it lacks.

    Raises UserError where the file says something else than `kind` and `casing`, or keeps characters of `remove`. It
    may remove others, as those that were too rare where it was made.
    """
    alphabet = Alphabet.load(path)
    given = {"data.labels": (kind, alphabet.kind), "data.casing": (casing, alphabet.casing)}
    if set(unicodedata.normalize("NFC", remove)) - set(unicodedata.normalize("NFC", alphabet.remove)):
        given["data.remove"] = (remove, alphabet.remove)
    wrong = {key: values for key, values in given.items() if values[0] != values[1]}
    if wrong:
        told = "; ".join(f"{key} is {here!r}, and {there!r} in the file" for key, (here, there) in wrong.items())
        flags = " ".join(f"--config.{key}={shlex.quote(there)}" for key, (_, there) in wrong.items())
        raise UserError(
            f"data.alphabet={os.fspath(path)} contradicts the config: {told}. To read transcripts as the file says: "
            f"{flags}; or leave data.alphabet empty to have an alphabet made"
        )
    counter = _counted(alphabet, transcripts)
    lacking = sorted(set(counter) - set(alphabet.tokens[1:]))
    return alphabet, {t: counter[t] for t in alphabet.tokens[1:]}, {t: counter[t] for t in lacking}


def _counted(alphabet: Alphabet, transcripts: Iterable[str]) -> Counter[str]:
    return Counter(token for text in transcripts for token in alphabet.split(text))


def table(alphabet: Alphabet, counts: dict[str, int], dropped: dict[str, int]) -> str:
    """Lines for people: how many tokens, the most frequent, and what was dropped."""
    often = sorted(counts.items(), key=lambda item: -item[1])
    lines = [f"alphabet: {len(alphabet)} {alphabet.kind} with the blank; most frequent {_named(often)}"]
    if alphabet.remove:
        lines.append(f"  removed from transcripts: {' '.join(map(_name, alphabet.remove))}")
    if dropped:
        lacking = sorted(dropped.items(), key=lambda item: -item[1])
        lines.append(f"  dropped, not in the alphabet: {_named(lacking, len(lacking))}")
    return "\n".join(lines)


def _named(found: Sequence[tuple[str, int]], shown: int = SHOWN) -> str:
    return ", ".join(f"{_name(token)} {count:,}" for token, count in found[:shown])


def _name(token: str) -> str:
    """A token as it can be read: marks that stand on a letter, and signs without a shape, by their Unicode name."""
    if len(token) == 1 and (unicodedata.combining(token) or not token.isprintable()):
        return unicodedata.name(token, f"U+{ord(token):04X}")
    return token


class Labels:
    """The token ids of each row of a source, in static arrays on demand.

    per_second: the most tokens per second of a batch's length; U = ceil(seconds * per_second).
    """

    def __init__(self, ids: Sequence[np.ndarray], per_second: float, alphabet: Alphabet):
        self.ids, self.per_second, self.alphabet = list(ids), per_second, alphabet

    def width(self, length: int) -> int:
        """U of a batch whose rows are `length` samples long."""
        return max(1, math.ceil(length / SAMPLE_RATE * self.per_second))

    def padded(self, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """tokens [n U] int32, padded with 0, and num_tokens [n]; nothing for rows below 0 (fillers)."""
        tokens = np.zeros((len(rows), self.width(length)), np.int32)
        num_tokens = np.zeros(len(rows), np.int32)
        for i, row in enumerate(rows):
            if row >= 0:
                num_tokens[i] = len(self.ids[row])
                tokens[i, : num_tokens[i]] = self.ids[row]
        return {"tokens": tokens, "num_tokens": num_tokens}

    def digest(self) -> str:
        """16 hex digits of all labels and the alphabet: what a resumed run must find again."""
        digest = hashlib.sha256(self.alphabet.digest.encode())
        for ids in self.ids:
            digest.update(len(ids).to_bytes(4, "little") + ids.astype("<i4").tobytes())
        return digest.hexdigest()[:16]


def needed_frames(ids: np.ndarray) -> int:
    """The fewest frames in which CTC can say these ids: one each, and a blank between equal neighbours."""
    return len(ids) + int((ids[1:] == ids[:-1]).sum())


def labelled(
    source: Source,
    alphabet: Alphabet,
    *,
    bucket_samples: Sequence[int],
    per_second: float,
    frames: Callable[[Any], Any],
    where: str,
) -> tuple[Source, Labels]:
    """The rows whose transcript can be learnt, and their labels; the others join `index.skipped` with the reason.

    frames: samples -> frames of the model's output, which CTC needs at least `needed_frames` of. where: the config key
    that chose the rows. Raises UserError when there are none, or none is left.
    """
    index, labels = source.index, Labels([], per_second, alphabet)
    if not len(index):
        raise UserError(
            f"{where} gives no recordings: raise data.eval_share, add recordings to data.root, or name those to score "
            "by --config.data.eval_root=FOLDER"
        )
    lengths, kept, skips = np.array(sorted(bucket_samples)), [], []
    for row, text in enumerate(index.transcripts.tolist()):
        ids, unknown = alphabet.encode(text)
        samples = int(index.num_samples[row])
        place = int(np.searchsorted(lengths, samples))
        most = labels.width(int(lengths[place])) if place < len(lengths) else None
        if reason := _unusable(ids, unknown, samples, int(frames(samples)), most):
            skips.append(Skip(f"{index.paths[row]} ({index.ids[row]})", reason))
        else:
            kept.append(row)
            labels.ids.append(ids)
    if not kept:
        reasons = Counter(skip.reason.split(": ")[0] for skip in skips).most_common(3)
        raise UserError(
            f"{where}: none of the {len(index):,} recordings has a transcript that can be learnt: "
            f"{'; '.join(f'{n:,} x {reason}' for reason, n in reasons)}; first: {skips[0].path}: {skips[0].reason}; "
            "put transcripts or settings right, or name other recordings"
        )
    chosen = subset(source, np.array(kept))
    chosen.index.skipped.extend(skips)
    return chosen, labels


def _unusable(ids: np.ndarray, unknown: list[str], samples: int, frames: int, most: int | None) -> str:
    """Why a transcript cannot be learnt, empty if it can; most: the tokens that its bucket holds, None without one."""
    if unknown:
        names = " ".join(dict.fromkeys(map(_name, unknown)))
        return f"tokens that the alphabet lacks: {names}"
    if not len(ids):
        return "no transcript"
    if most is None:
        return f"longer than the longest of data.bucket_seconds: {samples / SAMPLE_RATE:.2f} s cannot be cropped"
    if frames < needed_frames(ids):
        return f"transcript longer than the audio: {needed_frames(ids)} frames needed, {frames} there"
    if len(ids) > most:
        return f"more tokens than data.tokens_per_second: {len(ids)} in {samples / SAMPLE_RATE:.2f} s"
    return ""
