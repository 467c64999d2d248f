"""N-gram language models: reads and writes ARPA files, scores words as KenLM does, and builds models from transcripts.

    lm = read_arpa("4-gram.arpa.gz")
    total, state = 0.0, lm.start()
    for word in words:
        score, state = lm.score(state, word)
        total += score
    total += lm.end(state)

Scores are log10, as in the file. Words are strings. The words of a language model of characters are characters.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import whole_file
from w2v_jax.core.text import numbered_lines

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
ARPA_ZERO = -99.0
"""The log10 of 0 in ARPA files, such as that of <s>, which is never predicted. Some files write -inf instead."""
FALLBACK = (0.5, 1.0, 1.5)
"""Discounts for a corpus that is too small to estimate them, as with KenLM's --discount_fallback."""
SPACES = frozenset(" \t\r\n")

Gram = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NGram:
    """grams {(w1, ..., wn): (log10 p(wn | w1 ... wn-1), log10 of the back-off weight)} of all orders up to `order`.

    path: the file of the model, if it was read from one.
    """

    order: int
    grams: dict[Gram, tuple[float, float]]
    path: str = dataclasses.field(default="", compare=False)

    __repr__ = short_repr

    @property
    def words(self) -> set[str]:
        """The words that the model knows, without <s>, </s> and <unk>."""
        return {gram[0] for gram in self.grams if len(gram) == 1} - {BEGIN, END, UNKNOWN}

    @functools.cached_property
    def longest(self) -> int:
        """The number of characters of the longest word."""
        return max((len(gram[0]) for gram in self.grams if len(gram) == 1), default=0)

    def start(self) -> Gram:
        """The state before the first word."""
        return (BEGIN,) if self.order > 1 and (BEGIN,) in self.grams else ()

    def score(self, state: Gram, word: str) -> tuple[float, Gram]:
        """(log10 probability of the word after the state, the state after it).

        An unknown word gets the score of <unk>, or -inf without one. A state is the longest end of the history that
        the model has as a context (Katz back-off).
        """
        word = word if (word,) in self.grams else UNKNOWN
        context, total = state, 0.0
        while (entry := self.grams.get((*context, word))) is None and context:
            total += self.grams.get(context, (0.0, 0.0))[1]
            context = context[1:]
        next_state = (*state, word)[-(self.order - 1) :] if self.order > 1 else ()
        while next_state and next_state not in self.grams:
            next_state = next_state[1:]
        return (-math.inf if entry is None else total + entry[0]), next_state

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
    """The model of an ARPA file, plain or gzip, in UTF-8. Raises UserError with the number of a malformed line.

    -inf, the log10 of 0, becomes -99, as other files write it, so that no sum of scores is undefined. Only ASCII spaces
    and tabs separate words, as for KenLM; a no-break space is part of a word. <UNK>, which the models
    of LibriSpeech have, becomes <unk>.
    """
    lines = (line for _, line in numbered_lines(path, gzipped=True))
    return _Arpa(os.fspath(path), lines).model()


class _Arpa:
    """Reads an ARPA file line by line."""

    def __init__(self, path: str, lines: Iterator[str]):
        self.path, self.lines, self.number = path, lines, 0
        self.at_end = "no \\data\\ so far: this is not an ARPA file"

    def fail(self, what: str) -> UserError:
        return UserError(f"{self.path}, line {self.number}: {what}")

    def line(self) -> str:
        """The next line that is not empty."""
        for line in self.lines:
            self.number += 1
            if line := line.strip(" \t\r\n"):
                return line
        raise self.fail(self.at_end)

    def model(self) -> NGram:
        while self.line() != "\\data\\":
            if self.number > 100:
                raise self.fail(self.at_end)
        self.at_end = "the file ends before \\end\\; it is cut short"
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
        """Adds the n-grams of an order to `grams` and returns the line after them."""
        before = len(grams)
        while not (line := self.line()).startswith("\\"):
            fields = line.split() if line.isascii() else [f for f in line.replace("\t", " ").split(" ") if f]
            if len(fields) not in (order + 1, order + 2):
                raise self.fail(
                    f"a line of {order}-grams needs a probability, {order} words, maybe a back-off: {line!r}"
                )
            try:
                numbers = float(fields[0]), float(fields[order + 1]) if len(fields) == order + 2 else 0.0
            except ValueError:
                raise self.fail(f"a number was expected in {line!r}") from None
            score, backoff = (ARPA_ZERO if number == -math.inf else number for number in numbers)
            if not score <= 0 or not math.isfinite(backoff):
                raise self.fail(f"log10 probabilities must be at most 0, and weights finite or -inf: {line!r}")
            gram = tuple(fields[1 : order + 1])
            if "<UNK>" in gram:
                gram = tuple(UNKNOWN if word == "<UNK>" else word for word in gram)
            if order > 1 and gram[:-1] not in grams:
                raise self.fail(f"the {order}-gram {' '.join(gram)!r} lacks its context {' '.join(gram[:-1])!r}")
            grams[gram] = (score, backoff)
        if len(grams) - before != count:
            raise self.fail(f"{len(grams) - before:,} {order}-grams, but \\data\\ promised {count:,}")
        return line


def write_arpa(path: str | os.PathLike, lm: NGram) -> None:
    """Writes the model, compressed if the path ends with .gz. The file appears whole or not at all."""
    opener = gzip.open if os.fspath(path).endswith(".gz") else open
    by_order = [sorted(gram for gram in lm.grams if len(gram) == n) for n in range(1, lm.order + 1)]
    with whole_file(path) as partial, opener(partial, "wt", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {n}={len(grams)}\n" for n, grams in enumerate(by_order, 1)))
        for order, grams in enumerate(by_order, 1):
            file.write(f"\n\\{order}-grams:\n")
            for gram in grams:
                score, backoff = lm.grams[gram]
                tail = f"\t{backoff:.7g}" if order < lm.order else ""
                file.write(f"{score:.7g}\t{' '.join(gram)}{tail}\n")
        file.write("\n\\end\\\n")


# Building


def build_ngram(sentences: Iterable[Sequence[str]], order: int) -> NGram:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1999, section 3), as KenLM's lmplz without pruning.

    Lower orders count the different words before an n-gram. Unigrams are interpolated with the uniform distribution
    over all words, </s> and <unk>. An order whose counts of counts give no discounts uses 0.5, 1 and 1.5. Raises
    UserError if there is no word at all, and for words that no ARPA file can hold.
    """
    if order < 1:
        raise UserError(f"a language model cannot have order {order}; it must be at least 1")
    counts: list[Counter[Gram]] = [Counter() for _ in range(order + 1)]
    for number, sentence in enumerate(sentences, 1):
        words = [BEGIN, *sentence, END]
        for word in words[1:-1]:
            if not word or word in (BEGIN, END) or not SPACES.isdisjoint(word):
                raise UserError(f"sentence {number}: {word!r} cannot be a word of a language model")
        for n in range(1, order + 1):
            counts[n].update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    if len(counts[1]) <= 2:
        raise UserError("there is no word to build a language model from: all transcripts are empty")
    counts[1].pop((BEGIN,))
    adjusted = [_adjusted_counts(counts, n, order) for n in range(1, order + 1)]
    adjusted[0][(UNKNOWN,)] += 0
    uniform = 1.0 / len(adjusted[0])
    probability: dict[Gram, float] = {}
    weights: dict[Gram, float] = {}
    for order_counts in adjusted:
        discounts = _discounts(order_counts.values())
        totals: Counter[Gram] = Counter()
        reserved: defaultdict[Gram, float] = defaultdict(float)
        for gram, count in order_counts.items():
            totals[gram[:-1]] += count
            reserved[gram[:-1]] += min(discounts[min(count, 3)], count)
        for context, total in totals.items():
            weights[context] = reserved[context] / total
        for gram, count in order_counts.items():
            context = gram[:-1]
            lower = probability[gram[1:]] if context else uniform
            discounted = max(count - discounts[min(count, 3)], 0.0) / totals[context]
            probability[gram] = discounted + weights[context] * lower
    log = lambda p: math.log10(p) if p > 0 else ARPA_ZERO
    grams = {gram: (log(p), log(weights[gram]) if gram in weights else 0.0) for gram, p in probability.items()}
    grams[BEGIN,] = (ARPA_ZERO, log(weights[BEGIN,]) if (BEGIN,) in weights else 0.0)
    return NGram(order, grams)


def _adjusted_counts(counts: Sequence[Counter[Gram]], n: int, order: int) -> Counter[Gram]:
    """The counts of n-grams of the highest order and of those that begin a sentence; of others, the number of
    different words before them."""
    if n == order:
        return Counter(counts[n])
    before: Counter[Gram] = Counter(gram[1:] for gram in counts[n + 1])
    return Counter({gram: counts[n][gram] if gram[0] == BEGIN else before[gram] for gram in counts[n]})


def _discounts(counts: Iterable[int]) -> tuple[float, float, float, float]:
    """The discounts of counts of 0, 1, 2, and 3 or more."""
    count_of_counts = Counter(counts)
    n1, n2, n3, n4 = (count_of_counts[i] for i in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return 0.0, *FALLBACK
    y = n1 / (n1 + 2 * n2)
    discounts = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    fits = all(0 < discount <= count for count, discount in enumerate(discounts, 1))
    return (0.0, *discounts) if fits else (0.0, *FALLBACK)
