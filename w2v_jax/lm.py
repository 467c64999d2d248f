"""N-gram language models: read and written as ARPA, scored as KenLM does, built from transcripts.

    lm = read_arpa("4-gram.arpa.gz")
    total, state = 0.0, lm.start()
    for word in words:
        score, state = lm.score(state, word)
        total += score
    total += lm.end(state)

Scores are logarithms to the base of ten, as in the file. Words are strings; a language model of characters has
characters as its words.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import math
import os
import pathlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TextIO

from w2v_jax.config import UserError

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
NEVER = -99.0
"""What ARPA files give as the probability of the beginning of a sentence, which is never predicted."""
FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where a corpus is too small to estimate them: those of KenLM's --discount_fallback."""
SPACES = frozenset(" \t\r\n")

Gram = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NGram:
    """grams {(w1, ..., wn): (log10 p(wn | w1 ... wn-1), log10 of the back-off weight)} of all orders up to `order`.

    path: the file that it was read from, if any.
    """

    order: int
    grams: dict[Gram, tuple[float, float]]
    path: str = dataclasses.field(default="", compare=False)

    @property
    def words(self) -> set[str]:
        """What the model knows, without the marks of sentences and the unknown word."""
        return {gram[0] for gram in self.grams if len(gram) == 1} - {BEGIN, END, UNKNOWN}

    @functools.cached_property
    def longest(self) -> int:
        """Characters of the longest word."""
        return max((len(gram[0]) for gram in self.grams if len(gram) == 1), default=0)

    def start(self) -> Gram:
        """The state before the first word."""
        return (BEGIN,) if self.order > 1 and (BEGIN,) in self.grams else ()

    def score(self, state: Gram, word: str) -> tuple[float, Gram]:
        """(log10 probability of the word after the state, the state after it).

        A word that the model lacks is <unk>; -inf where there is no <unk> either. A state is the longest end of the
        history that the model has as a context (Katz back-off).
        """
        word = word if (word,) in self.grams else UNKNOWN
        context, total = state, 0.0
        while (found := self.grams.get((*context, word))) is None and context:
            total += self.grams.get(context, (0.0, 0.0))[1]
            context = context[1:]
        after = (*state, word)[-(self.order - 1) :] if self.order > 1 else ()
        while after and after not in self.grams:
            after = after[1:]
        return (-math.inf if found is None else total + found[0]), after

    def end(self, state: Gram) -> float:
        """log10 probability that the sentence ends here."""
        return self.score(state, END)[0]

    def sentence(self, words: Iterable[str]) -> float:
        """log10 probability of a whole sentence."""
        state, total = self.start(), 0.0
        for word in words:
            score, state = self.score(state, word)
            total += score
        return total + self.end(state)


# ARPA


def read_arpa(path: str | os.PathLike) -> NGram:
    """The model of an ARPA file, plain or .gz, in UTF-8. Raises UserError with the line for what is malformed.

    Words are what spaces and tabs of ASCII separate, as for KenLM; a no-break space is part of a word. <UNK>, as in the
    models of LibriSpeech, is read as <unk>.
    """
    opened = gzip.open if os.fspath(path).endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            return _Arpa(os.fspath(path), file).model()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{os.fspath(path)}: the language model cannot be read ({error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{os.fspath(path)} is not UTF-8 text ({error}); is it a binary of KenLM?") from None


class _Arpa:
    """Reads an ARPA file line by line."""

    def __init__(self, path: str, file: TextIO):
        self.path, self.lines, self.number, self.begun = path, iter(file), 0, False

    def fail(self, what: str) -> UserError:
        return UserError(f"{self.path}, line {self.number}: {what}")

    def line(self) -> str:
        """The next line that is not empty."""
        for line in self.lines:
            self.number += 1
            if line := line.strip(" \t\r\n"):
                return line
        short = "the file ends before \\end\\; it is cut short"
        raise self.fail(short if self.begun else "no \\data\\ so far: this is not an ARPA file")

    def model(self) -> NGram:
        while self.line() != "\\data\\":
            if self.number > 100:
                raise self.fail("no \\data\\ so far: this is not an ARPA file")
        self.begun = True
        counts: list[int] = []
        while (line := self.line()).startswith("ngram "):
            try:
                order, count = map(int, line.removeprefix("ngram ").split("="))
            except ValueError:
                raise self.fail(f"expected 'ngram N=COUNT', found {line!r}") from None
            if order != len(counts) + 1:
                raise self.fail(f"expected the number of {len(counts) + 1}-grams, found {line!r}")
            counts.append(count)
        if not counts:
            raise self.fail("no 'ngram 1=COUNT' after \\data\\")
        grams: dict[Gram, tuple[float, float]] = {}
        for order, count in enumerate(counts, 1):
            if line != f"\\{order}-grams:":
                raise self.fail(f"expected \\{order}-grams:, found {line!r}")
            line = self.section(grams, order, count)
        if line != "\\end\\":
            raise self.fail(f"expected \\end\\, found {line!r}")
        return NGram(len(counts), grams, self.path)

    def section(self, grams: dict[Gram, tuple[float, float]], order: int, count: int) -> str:
        """Reads the n-grams of an order; gives the line after them."""
        before = len(grams)
        while not (line := self.line()).startswith("\\"):
            fields = line.split() if line.isascii() else [f for f in line.replace("\t", " ").split(" ") if f]
            if len(fields) not in (order + 1, order + 2):
                raise self.fail(
                    f"a line of {order}-grams has a probability, {order} words and maybe a back-off: {line!r}"
                )
            try:
                score = float(fields[0])
                backoff = float(fields[order + 1]) if len(fields) == order + 2 else 0.0
            except ValueError:
                raise self.fail(f"a number was expected in {line!r}") from None
            if not -math.inf < score <= 0 or not math.isfinite(backoff):
                raise self.fail(f"a log10 probability is at most 0, and finite: {line!r}")
            gram = tuple(fields[1 : order + 1])
            if "<UNK>" in gram:
                gram = tuple(UNKNOWN if word == "<UNK>" else word for word in gram)
            if order > 1 and gram[:-1] not in grams:
                raise self.fail(f"the {order}-gram {' '.join(gram)!r} lacks its context {' '.join(gram[:-1])!r}")
            grams[gram] = (score, backoff)
        if len(grams) - before != count:
            raise self.fail(f"{len(grams) - before:,} {order}-grams, and \\data\\ promised {count:,}")
        return line


def write_arpa(path: str | os.PathLike, lm: NGram) -> None:
    """Writes the model; .gz is compressed. The file appears whole or not at all."""
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.partial")
    by_order: dict[int, list[Gram]] = defaultdict(list)
    for gram in lm.grams:
        by_order[len(gram)].append(gram)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(partial, "wt", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {n}={len(by_order[n])}\n" for n in range(1, lm.order + 1)))
        for order in range(1, lm.order + 1):
            file.write(f"\n\\{order}-grams:\n")
            for gram in sorted(by_order[order]):
                score, backoff = lm.grams[gram]
                tail = f"\t{backoff:.7g}" if order < lm.order else ""
                file.write(f"{score:.7g}\t{' '.join(gram)}{tail}\n")
        file.write("\n\\end\\\n")
    os.replace(partial, path)


# Building


def build(sentences: Iterable[Sequence[str]], order: int) -> NGram:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1999, section 3), as KenLM's lmplz without pruning.

    Lower orders count the words that an n-gram was seen after. Unigrams are interpolated with the uniform
    distribution over all words, </s> and <unk>. Where the counts of counts of an order cannot give discounts, they are
    0.5, 1 and 1.5. Raises UserError without a single word, and for words that no ARPA file can hold.
    """
    if order < 1:
        raise UserError(f"a language model of order {order} cannot be; 1 or more words")
    counts: list[Counter[Gram]] = [Counter() for _ in range(order + 1)]
    for number, sentence in enumerate(sentences, 1):
        words = [BEGIN, *sentence, END]
        for word in words[1:-1]:
            if not word or word in (BEGIN, END) or not SPACES.isdisjoint(word):
                raise UserError(f"sentence {number}: {word!r} cannot be a word of a language model")
        for n in range(1, order + 1):
            counts[n].update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    if len(counts[1]) <= 2:
        raise UserError("no word to build a language model from: all transcripts are empty")
    counts[1].pop((BEGIN,))
    adjusted = [_adjusted(counts, n, order) for n in range(1, order + 1)]
    adjusted[0][(UNKNOWN,)] += 0
    uniform = 1.0 / len(adjusted[0])
    probability: dict[Gram, float] = {}
    weights: dict[Gram, float] = {}
    for found in adjusted:
        discounts = _discounts(found.values())
        totals: Counter[Gram] = Counter()
        spared: defaultdict[Gram, float] = defaultdict(float)
        for gram, count in found.items():
            totals[gram[:-1]] += count
            spared[gram[:-1]] += min(discounts[min(count, 3)], count)
        for context, total in totals.items():
            weights[context] = spared[context] / total
        for gram, count in found.items():
            context = gram[:-1]
            lower = probability[gram[1:]] if context else uniform
            kept = max(count - discounts[min(count, 3)], 0.0) / totals[context]
            probability[gram] = kept + weights[context] * lower
    log = lambda p: math.log10(p) if p > 0 else NEVER
    grams = {gram: (log(p), log(weights[gram]) if gram in weights else 0.0) for gram, p in probability.items()}
    grams[BEGIN,] = (NEVER, log(weights[BEGIN,]) if (BEGIN,) in weights else 0.0)
    return NGram(order, grams)


def _adjusted(counts: Sequence[Counter[Gram]], n: int, order: int) -> Counter[Gram]:
    """Counts of the n-grams: of the highest order and of those that begin a sentence as they are, else how many
    different words came before."""
    if n == order:
        return Counter(counts[n])
    before: Counter[Gram] = Counter(gram[1:] for gram in counts[n + 1])
    return Counter({gram: counts[n][gram] if gram[0] == BEGIN else before[gram] for gram in counts[n]})


def _discounts(counts: Iterable[int]) -> tuple[float, float, float, float]:
    """What is taken from counts of 0, 1, 2, and 3 or more."""
    having = Counter(counts)
    n1, n2, n3, n4 = (having[i] for i in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return 0.0, *FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    fits = all(0 < discount <= count for count, discount in enumerate(found, 1))
    return (0.0, *found) if fits else (0.0, *FALLBACK)
