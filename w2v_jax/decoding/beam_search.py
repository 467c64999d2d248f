"""From the log-probabilities of one utterance to text: the best path, and prefix beam search with language models.

`beam_search` is the prefix search of Graves (2012, section 7.5.3) and Hannun et al. (2014). A hypothesis is a sequence
of tokens, with the sum of the probabilities of its alignments (with merge="max", the best of them). Its score is

    acoustic + lm_weight * lm + word_score * words

The acoustic part is in nats and the language model in log10, as in flashlight, so that published weights apply.
`flashlight.py` runs flashlight-text with the same options.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.decoding.ngram_lm import NGram

NEVER = -math.inf
UNITS = ("word", "token")
MERGES = ("sum", "max")


class Hypothesis(NamedTuple):
    """The ids of the tokens without blanks, and the score with its parts: acoustic (nats), lm (log10), word count."""

    ids: tuple[int, ...]
    score: float
    acoustic: float
    lm: float
    words: int


@dataclasses.dataclass(frozen=True)
class Search:
    """The settings of a search. Raises UserError for impossible ones.

    lm_unit: whether the words of the language model are "word"s or "token"s of the alphabet. lexicon: the only words
    that may appear. boundary: the token between words; if the alphabet lacks it (phonemes), every token is a word.
    threshold: drop hypotheses and tokens more than this many nats below the best of a frame. tokens: try at most this
    many per frame. merge: "sum" over the alignments of a hypothesis, or "max". unknown_score: added (in log10, and
    weighted with lm_weight) to the score of <unk>, for a word or token that the language model lacks.
    """

    beam: int = 50
    lm: NGram | None = None
    lm_unit: str = "word"
    lm_weight: float = 2.0
    word_score: float = -1.0
    lexicon: frozenset[str] | None = None
    boundary: str = "|"
    threshold: float = 50.0
    tokens: int = 40
    merge: str = "sum"
    unknown_score: float = -10.0
    n_best: int = 1

    __repr__ = short_repr

    def __post_init__(self):
        if self.merge not in MERGES or self.lm_unit not in UNITS:
            raise UserError(f"merge={self.merge!r} must be in {MERGES}, lm_unit={self.lm_unit!r} in {UNITS}")
        if self.beam < 1 or self.tokens < 1 or self.n_best < 1:
            raise UserError(f"beam={self.beam}, tokens={self.tokens} and n_best={self.n_best} must be at least 1")
        if not self.threshold >= 0:
            raise UserError(f"threshold={self.threshold} must be at least 0 nats")
        if not all(map(math.isfinite, weights := (self.lm_weight, self.word_score, self.unknown_score))):
            raise UserError(f"lm_weight, word_score and unknown_score must be finite numbers, not {weights}")


def greedy(log_probs: np.ndarray) -> tuple[int, ...]:
    """The best path of log_probs [F A], without repeats and blanks (id 0)."""
    check_log_probs(log_probs)
    best = log_probs.argmax(axis=1) if len(log_probs) else np.zeros(0, int)
    return tuple(best[(best != 0) & (best != np.concatenate([[0], best[:-1]]))].tolist())


def check_log_probs(log_probs: np.ndarray, tokens: Sequence[str] | None = None) -> None:
    """Raises UserError unless log_probs is [F A], without NaN or +inf, with A as in `tokens`."""
    if log_probs.ndim != 2 or not (log_probs < math.inf).all():
        raise UserError(f"log-probabilities of shape {log_probs.shape} must be [frames tokens], without NaN or +inf")
    if tokens is not None and log_probs.shape[1] != len(tokens):
        raise UserError(
            f"{log_probs.shape[1]} log-probabilities per frame do not fit an alphabet of {len(tokens)} tokens"
        )


class _Node:
    """A sequence of tokens: the last token, the node of those before, and the scores of its words.

    `lm` is the score of the language model and `prior` is lm_weight * lm + the scores of words. `state` belongs to the
    language model, and `trie` says how the last word may go on.
    """

    __slots__ = ("__weakref__", "depth", "lm", "parent", "prior", "state", "token", "trie", "words")

    def __init__(self, parent, token, *, words, lm, prior, state, trie):
        self.parent: _Node | None = parent
        self.depth: int = parent.depth + 1 if parent else 0
        self.token, self.words, self.lm, self.prior = token, words, lm, prior
        self.state, self.trie = state, trie

    def ids(self) -> tuple[int, ...]:
        node, tokens = self, []
        while node.parent is not None:
            tokens.append(node.token)
            node = node.parent
        return tuple(reversed(tokens))

    def __lt__(self, other: _Node) -> bool:
        """Compares `ids` without building them: by the first tokens after the last shared node."""
        a, b = self, other
        while a.depth > b.depth and a.parent:
            a = a.parent
        while b.depth > a.depth and b.parent:
            b = b.parent
        if a is b:
            return self.depth < other.depth
        while a.parent and b.parent and a.parent is not b.parent:
            a, b = a.parent, b.parent
        return a.token < b.token


class _Prefixes:
    """The tree of hypotheses.

    A node refers to its parent. Only the beam and the children of a node refer to the node, so that the tree holds no
    more than the ancestors of the beam. `nodes` finds a node as long as it exists: no two nodes are the same sequence.
    """

    def __init__(self, tokens: Sequence[str], settings: Search):
        self.tokens, self.settings = tokens, settings
        self.boundary = tokens.index(settings.boundary) if settings.boundary in tokens else -1
        self.trie = _trie(settings.lexicon)
        self.allowed: dict[int, np.ndarray] = {}  # id of a node of the trie: which tokens may follow [A]
        self.max_length = math.inf if settings.lexicon is not None else settings.lm.longest if settings.lm else 0
        self.scores_tokens = settings.lm is not None and settings.lm_unit == "token"
        state = settings.lm.start() if settings.lm else ()
        self.root = _Node(None, self.boundary, words=0, lm=0.0, prior=0.0, state=state, trie=self.trie)
        self.nodes: weakref.WeakValueDictionary[tuple[_Node, int], _Node] = weakref.WeakValueDictionary()

    def child(self, node: _Node, token: int) -> _Node | None:
        """The node with one more token; None where the lexicon forbids it."""
        child = self.nodes.get((node, token))
        if child is None:
            child = self.extend(node, token)
            if child is not None and child is not node:
                self.nodes[node, token] = child
        return child

    def ignores_boundary(self, node: _Node) -> bool:
        """Whether one more boundary leads back to the node, because the node ends with a boundary already."""
        return node.token == self.boundary >= 0 and not self.scores_tokens

    def is_in_word(self, node: _Node) -> bool:
        """Whether the last word may go on."""
        return node.token != self.boundary >= 0

    def last_word(self, node: _Node) -> str:
        """The unfinished last word. Of a word longer than all known words, only the end."""
        texts, left = [], self.max_length
        while self.is_in_word(node) and left >= 0 and node.parent:
            texts.append(self.tokens[node.token])
            left -= len(texts[-1])
            node = node.parent
        return "".join(reversed(texts))

    def without_last_word(self, node: _Node) -> _Node:
        while self.is_in_word(node) and node.parent:
            node = node.parent
        return node

    def child_priors(self, node: _Node) -> np.ndarray:
        """`prior` of the node with one more token [A]: -inf where the lexicon forbids it, NaN where unknown."""
        if self.scores_tokens or self.boundary < 0:
            return np.full(len(self.tokens), np.nan)
        prior = np.full(len(self.tokens), node.prior)
        if node.trie is not None:
            if id(node.trie) not in self.allowed:
                self.allowed[id(node.trie)] = np.array([_descend(node.trie, text) is not None for text in self.tokens])
            prior[~self.allowed[id(node.trie)]] = NEVER
        prior[self.boundary] = np.nan
        return prior

    def extend(self, node: _Node, token: int) -> _Node | None:
        """A new node with one more token, which is not in `nodes`; None where the lexicon forbids it."""
        text = self.tokens[token]
        if self.ignores_boundary(node) and token == self.boundary:
            return node
        words, lm, prior, state, trie = node.words, node.lm, node.prior, node.state, node.trie
        if self.boundary < 0 or (token == self.boundary and self.is_in_word(node)):
            completed = self._complete_word(node, text if self.boundary < 0 else self.last_word(node))
            if completed is None:
                return None
            (words, lm, prior, state), trie = completed, self.trie
        elif token != self.boundary and trie is not None:
            trie = _descend(trie, text)
            if trie is None:
                return None
        child = _Node(node, token, words=words, lm=lm, prior=prior, state=state, trie=trie)
        if self.scores_tokens:
            score, child.state = self._lm_score(node.state, text)
            child.lm, child.prior = child.lm + score, child.prior + self.settings.lm_weight * score
        return child

    def _complete_word(self, node: _Node, word: str) -> tuple[int, float, float, Any] | None:
        """(words, lm, prior, state) after a complete word; None if the lexicon lacks it."""
        settings = self.settings
        if settings.lexicon is not None and word not in settings.lexicon:
            return None
        score, state = 0.0, node.state
        if settings.lm and settings.lm_unit == "word":
            score, state = self._lm_score(node.state, word)
        return node.words + 1, node.lm + score, node.prior + settings.lm_weight * score + settings.word_score, state

    def _lm_score(self, state: Any, word: str) -> tuple[float, Any]:
        assert self.settings.lm is not None
        score, next_state = self.settings.lm.score(state, word)
        if (word,) not in self.settings.lm.grams:
            score = (0.0 if score == NEVER else score) + self.settings.unknown_score
        return score, next_state

    def finish(self, node: _Node, acoustic: float) -> Hypothesis | None:
        """The hypothesis of an utterance that ends here; None if the lexicon lacks the last word."""
        settings, words, lm, prior, state = self.settings, node.words, node.lm, node.prior, node.state
        if self.is_in_word(node):
            completed = self._complete_word(node, self.last_word(node))
            if completed is None:
                return None
            words, lm, prior, state = completed
        if settings.lm:
            score = settings.lm.end(state)
            if score > NEVER:
                lm, prior = lm + score, prior + settings.lm_weight * score
        return Hypothesis(node.ids(), score=acoustic + prior, acoustic=acoustic, lm=lm, words=words)


@functools.lru_cache(maxsize=2)
def _trie(lexicon: frozenset[str] | None) -> dict[str, Any] | None:
    """Nested {character: ...} of the words; None without a lexicon. Cached for the next utterance."""
    if lexicon is None:
        return None
    root: dict[str, Any] = {}
    for word in lexicon:
        node = root
        for character in word:
            node = node.setdefault(character, {})
    return root


def _descend(trie: dict[str, Any], text: str) -> dict[str, Any] | None:
    """The node of a trie after the characters of a token; None if no word continues like this."""
    node: dict[str, Any] | None = trie
    for character in text:
        node = node.get(character) if node is not None else None
    return node


def beam_search(log_probs: np.ndarray, tokens: Sequence[str], settings: Search) -> list[Hypothesis]:
    """The n_best texts, best first, of log_probs [F A] in nats. The first of `tokens` [A] is the blank.

    As in flashlight, the search starts as if a boundary came before: a boundary in the first frames repeats it. Ids
    break ties, so that a result never depends on the order of a dict. There is always a hypothesis. If every hypothesis
    of the beam ends inside a word that the lexicon lacks, all lose that word. If the log-probabilities rule out
    everything, the hypothesis is empty with a score of -inf. Raises UserError.
    """
    check_log_probs(log_probs, tokens)
    prefixes = _Prefixes(tokens, settings)
    beam = _Beam([prefixes.root], np.array([NEVER]), np.array([0.0]))  # as after a boundary
    priors: dict[_Node, np.ndarray] = {}
    for frame in log_probs.astype(np.float64):
        priors = {node: priors[node] if node in priors else prefixes.child_priors(node) for node in beam.nodes}
        beam = _next_beam(beam, frame, prefixes, priors=priors)
    acoustic = _combine(settings, beam.ends_blank, beam.ends_token).tolist()
    hypotheses = [prefixes.finish(node, score) for node, score in zip(beam.nodes, acoustic, strict=True)]
    if not any(hypotheses):
        best: dict[_Node, float] = {}
        for node, score in zip(map(prefixes.without_last_word, beam.nodes), acoustic, strict=True):
            best[node] = max(score, best.get(node, NEVER))
        hypotheses = [prefixes.finish(node, score) for node, score in best.items()]
    ends = [hypothesis for hypothesis in hypotheses if hypothesis is not None]
    return ranked(ends, prefixes.boundary, settings.n_best) or [
        Hypothesis((), score=NEVER, acoustic=NEVER, lm=0.0, words=0)
    ]


class _Beam(NamedTuple):
    """nodes [N], and log-probabilities [N] of their alignments that end with a blank, or with the last token."""

    nodes: list[_Node]
    ends_blank: np.ndarray
    ends_token: np.ndarray

    __repr__ = short_repr


def _next_beam(beam: _Beam, frame: np.ndarray, prefixes: _Prefixes, *, priors: dict[_Node, np.ndarray]) -> _Beam:
    """The beam after one more frame [A]. Fills in the entries of `priors` that are NaN where it needs them."""
    settings, nodes = prefixes.settings, beam.nodes
    if not nodes:
        return beam
    tried = np.argsort(-frame, kind="stable")[: settings.tokens]
    tried = tried[(tried != 0) & (frame[tried] >= frame.max() - settings.threshold)]
    token_scores = np.full(len(frame) + 1, NEVER)  # one more, for the index -1: no token
    token_scores[tried] = frame[tried]
    total = _combine(settings, beam.ends_blank, beam.ends_token)
    last = np.array([node.token for node in nodes])
    ends_blank, ends_token = total + frame[0], beam.ends_token + token_scores[last]
    extended = np.where(last[:, None] == tried, beam.ends_blank[:, None], total[:, None]) + frame[tried]  # [N tried]
    _merge(nodes, tried, prefixes, ends_token=ends_token, extended=extended)
    prior = np.stack([priors[node] for node in nodes])[:, tried]
    for i, k in np.argwhere(np.isnan(prior) & (extended > NEVER)).tolist():
        child = prefixes.extend(nodes[i], int(tried[k]))
        prior[i, k] = priors[nodes[i]][tried[k]] = NEVER if child is None else child.prior
    old_scores = _combine(settings, ends_blank, ends_token) + np.array([node.prior for node in nodes])
    new_scores = np.where(extended > NEVER, extended + prior, NEVER)
    best = _best(np.concatenate([old_scores, new_scores.ravel()]), nodes, tried=tried, prefixes=prefixes)
    old, (parents, columns) = best[best < len(nodes)], np.divmod(best[best >= len(nodes)] - len(nodes), len(tried) or 1)
    children = [prefixes.child(nodes[i], int(tried[k])) for i, k in zip(parents.tolist(), columns.tolist())]
    return _Beam(
        [nodes[i] for i in old.tolist()] + [child for child in children if child is not None],
        np.concatenate([ends_blank[old], np.full(len(children), NEVER)]),
        np.concatenate([ends_token[old], extended[parents, columns]]),
    )


def _merge(
    nodes: list[_Node], tried: np.ndarray, prefixes: _Prefixes, *, ends_token: np.ndarray, extended: np.ndarray
) -> None:
    """Moves the extensions that are in the beam already from `extended` to `ends_token` of their node."""
    combine = max if prefixes.settings.merge == "max" else _log_add
    row_of = {node: i for i, node in enumerate(nodes)}
    column_of = {token: k for k, token in enumerate(tried.tolist())}
    for i, node in enumerate(nodes):
        origins = [(row_of.get(node.parent) if node.parent else None, column_of.get(node.token))]
        if prefixes.ignores_boundary(node):
            origins.append((i, column_of.get(prefixes.boundary)))
        for j, k in origins:
            if j is not None and k is not None:
                ends_token[i] = combine(float(ends_token[i]), float(extended[j, k]))
                extended[j, k] = NEVER


def _best(scores: np.ndarray, nodes: list[_Node], *, tried: np.ndarray, prefixes: _Prefixes) -> np.ndarray:
    """Indices of the best scores [N + N tried]: of nodes, then of nodes with one more token. Ids break ties."""
    settings = prefixes.settings
    best = np.flatnonzero((scores > NEVER) & (scores >= scores.max() - settings.threshold))
    if len(best) <= settings.beam:
        return best
    last = np.partition(scores[best], -settings.beam)[-settings.beam]
    better, equal = best[scores[best] > last], best[scores[best] == last]
    if len(better) + len(equal) > settings.beam:

        def node(index: int) -> Any:
            i, k = divmod(index - len(nodes), len(tried) or 1)
            return nodes[index] if index < len(nodes) else prefixes.child(nodes[i], int(tried[k]))

        equal = np.array(sorted(equal.tolist(), key=node)[: settings.beam - len(better)])
    return np.concatenate([better, equal])


def _combine(settings: Search, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(a, b) if settings.merge == "max" else np.logaddexp(a, b)


def ranked(hypotheses: Iterable[Hypothesis], boundary: int, count: int) -> list[Hypothesis]:
    """The `count` best with different texts. Repeated boundaries and those at the ends make no different text."""
    texts: dict[tuple[int, ...], Hypothesis] = {}
    for hypothesis in sorted(hypotheses, key=lambda hypothesis: (-hypothesis.score, hypothesis.ids)):
        ids = (boundary, *hypothesis.ids, boundary)
        text = tuple(b for a, b in itertools.pairwise(ids) if (a, b) != (boundary, boundary))
        texts.setdefault(text, hypothesis)
    return list(texts.values())[:count]


def _log_add(a: float, b: float) -> float:
    low, high = (a, b) if a < b else (b, a)
    return high if low == NEVER else high + math.log1p(math.exp(low - high))


def mismatch(lm: NGram, tokens: Sequence[str], unit: str, *, boundary: str = Search.boundary) -> list[str]:
    """The characters (or tokens) of a language model that the alphabet lacks, sorted. boundary: as in `Search`.

    Raises UserError where the alphabet can write less than 2 % of the words: another alphabet, case or unit.
    """
    known, words = set(tokens[1:]), lm.words - {boundary}
    if unit == "word" and boundary in known:
        known, parts_of = set("".join(known)), set
    else:
        parts_of = lambda word: {word}
    missing = sorted({part for word in words for part in parts_of(word)} - known)
    writable = sum(parts_of(word) <= known for word in words)
    if words and writable < 0.02 * len(words):
        shown = ", ".join(map(repr, missing[:10]))
        raise UserError(
            f"the language model's {unit}s cannot be written with the run's alphabet, which lacks {shown}. Do they "
            f"differ in case or script? The run's tokens: {' '.join(tokens[1:21])}"
        )
    return missing
