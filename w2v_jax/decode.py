"""From the log-probabilities of one utterance to words: the best path, and prefix beam search with language models.

`beam_search` is the prefix search of Graves (2012, section 7.5.3) and Hannun et al. (2014): hypotheses are token
sequences, each with the summed (or, with merge="max", the best) probability of its alignments. A score is

    acoustic + lm_weight * lm + word_score * words

with the acoustic part in nats and the language model in log10, as in flashlight, so that published weights apply.
`flashlight_decoder.py` is flashlight-text with the same options.
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

from w2v_jax.config import UserError
from w2v_jax.lm import NGram

NEVER = -math.inf
UNITS = ("word", "token")
MERGES = ("sum", "max")


class Hypothesis(NamedTuple):
    """ids of the tokens without blanks; score and its parts: acoustic (nats), lm (log10), how many words."""

    ids: tuple[int, ...]
    score: float
    acoustic: float
    lm: float
    words: int


@dataclasses.dataclass(frozen=True)
class Search:
    """How to search. `lm_unit`: the model's words are "word"s, or "token"s of the alphabet.

    boundary is the token between words; without it (phonemes) every token is a word. lexicon: the only words that may
    be said. threshold: hypotheses and tokens so far (nats) below the best of a frame are dropped; tokens: how many of
    a frame are tried at most. merge: "sum" over the alignments of a hypothesis, or their "max". unknown_score (log10,
    and weighted as the rest of lm) is added to that of <unk> for a word, or a token, that the language model lacks.
    Raises UserError.
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

    def __post_init__(self):
        if self.merge not in MERGES or self.lm_unit not in UNITS:
            raise UserError(f"merge={self.merge!r} is 'sum' or 'max'; lm_unit={self.lm_unit!r} is 'word' or 'token'")
        if self.beam < 1 or self.tokens < 1 or self.n_best < 1:
            raise UserError(f"beam={self.beam}, tokens={self.tokens} and n_best={self.n_best} must be at least 1")
        if not self.threshold >= 0:
            raise UserError(f"threshold={self.threshold} must be at least 0 nats")
        if not all(map(math.isfinite, weights := (self.lm_weight, self.word_score, self.unknown_score))):
            raise UserError(f"lm_weight, word_score and unknown_score must be finite numbers, not {weights}")


def greedy(log_probs: np.ndarray) -> tuple[int, ...]:
    """The best path of log_probs [F A] without repeats and blanks (id 0)."""
    check(log_probs)
    best = log_probs.argmax(axis=1) if len(log_probs) else np.zeros(0, int)
    keep = (best != 0) & (best != np.concatenate([[0], best[:-1]]))
    return tuple(best[keep].tolist())


def check(log_probs: np.ndarray, tokens: Sequence[str] | None = None) -> None:
    """Raises UserError for what cannot be searched: other shapes than [F A], NaN, +inf."""
    if log_probs.ndim != 2 or not (log_probs < math.inf).all():
        raise UserError(f"log-probabilities of shape {log_probs.shape}: must be [frames tokens], without NaN or +inf")
    if tokens is not None and log_probs.shape[1] != len(tokens):
        raise UserError(f"{log_probs.shape[1]} log-probabilities per frame, and an alphabet of {len(tokens)} tokens")


class _Node:
    """A token sequence: the last token and the node of those before, with what the language model says about it."""

    __slots__ = ("__weakref__", "depth", "lm", "parent", "said", "state", "token", "trie", "words")

    def __init__(self, parent, token, words, lm, said, state, trie):
        self.parent: _Node | None = parent
        self.depth: int = parent.depth + 1 if parent else 0
        self.token, self.words, self.lm, self.said = token, words, lm, said
        self.state, self.trie = state, trie

    def ids(self) -> tuple[int, ...]:
        node, found = self, []
        while node.parent is not None:
            found.append(node.token)
            node = node.parent
        return tuple(reversed(found))

    def __lt__(self, other: _Node) -> bool:
        """Whether `ids` come first, found without them: by the tokens after the last node that both share."""
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
    """The tree of hypotheses; `said` is lm_weight * lm + the scores of words.

    A node holds its parent and nothing holds the node but the beam and what grew from it, so that the tree is what the
    beam stands on. `alive` finds a node again as long as anything grew from it: no two nodes are the same sequence.
    """

    def __init__(self, tokens: Sequence[str], law: Search):
        self.tokens, self.law = tokens, law
        self.boundary = tokens.index(law.boundary) if law.boundary in tokens else -1
        self.trie = _trie(law.lexicon)
        self.spelt: dict[int, np.ndarray] = {}  # of each node of the trie, which tokens may follow [A]
        self.longest = math.inf if law.lexicon is not None else law.lm.longest if law.lm else 0
        self.scores_tokens = law.lm is not None and law.lm_unit == "token"
        state = law.lm.start() if law.lm else ()
        self.root = _Node(None, self.boundary, 0, 0.0, 0.0, state, self.trie)
        self.alive: weakref.WeakValueDictionary[tuple[_Node, int], _Node] = weakref.WeakValueDictionary()

    def child(self, node: _Node, token: int) -> _Node | None:
        """The node with one more token; None where the lexicon forbids it."""
        found = self.alive.get((node, token))
        if found is None:
            found = self.grown(node, token)
            if found is not None and found is not node:
                self.alive[node, token] = found
        return found

    def returns(self, node: _Node) -> bool:
        """Whether a boundary leads from the node to itself: a second boundary says nothing new."""
        return node.token == self.boundary >= 0 and not self.scores_tokens

    def inside(self, node: _Node) -> bool:
        """Whether the last word may go on."""
        return node.token != self.boundary >= 0

    def word(self, node: _Node) -> str:
        """The last word, if it may go on; no more than its end where that is longer than all words that are known."""
        texts, left = [], self.longest
        while self.inside(node) and left >= 0 and node.parent:
            texts.append(self.tokens[node.token])
            left -= len(texts[-1])
            node = node.parent
        return "".join(reversed(texts))

    def without_word(self, node: _Node) -> _Node:
        while self.inside(node) and node.parent:
            node = node.parent
        return node

    def said_after(self, node: _Node) -> np.ndarray:
        """`said` with one more token [A]: -inf where the lexicon forbids it, NaN where only `grown` tells."""
        if self.scores_tokens or self.boundary < 0:
            return np.full(len(self.tokens), np.nan)
        said = np.full(len(self.tokens), node.said)
        if node.trie is not None:
            if id(node.trie) not in self.spelt:
                self.spelt[id(node.trie)] = np.array([_spell(node.trie, text) is not None for text in self.tokens])
            said[~self.spelt[id(node.trie)]] = NEVER
        said[self.boundary] = np.nan
        return said

    def grown(self, node: _Node, token: int) -> _Node | None:
        """As `child`, but of no place in the tree yet."""
        text = self.tokens[token]
        if self.returns(node) and token == self.boundary:
            return node
        words, lm, said, state, trie = node.words, node.lm, node.said, node.state, node.trie
        if self.boundary < 0 or (token == self.boundary and self.inside(node)):
            done = self._with_word(node, text if self.boundary < 0 else self.word(node))
            if done is None:
                return None
            (words, lm, said, state), trie = done, self.trie
        elif token != self.boundary and trie is not None:
            trie = _spell(trie, text)
            if trie is None:
                return None
        grown = _Node(node, token, words, lm, said, state, trie)
        if self.scores_tokens:
            score, grown.state = self._scored(node.state, text)
            grown.lm, grown.said = grown.lm + score, grown.said + self.law.lm_weight * score
        return grown

    def _with_word(self, node: _Node, word: str) -> tuple[int, float, float, Any] | None:
        """(words, lm, said, state) after a word is complete; None if the lexicon lacks it."""
        law = self.law
        if law.lexicon is not None and word not in law.lexicon:
            return None
        score, state = 0.0, node.state
        if law.lm and law.lm_unit == "word":
            score, state = self._scored(node.state, word)
        return node.words + 1, node.lm + score, node.said + law.lm_weight * score + law.word_score, state

    def _scored(self, state: Any, word: str) -> tuple[float, Any]:
        assert self.law.lm is not None
        score, after = self.law.lm.score(state, word)
        if (word,) not in self.law.lm.grams:
            score = (0.0 if score == NEVER else score) + self.law.unknown_score
        return score, after

    def finished(self, node: _Node) -> tuple[int, float, float] | None:
        """(words, lm, said) if the utterance ends here; None if it must not."""
        law, words, lm, said, state = self.law, node.words, node.lm, node.said, node.state
        if self.inside(node):
            done = self._with_word(node, self.word(node))
            if done is None:
                return None
            words, lm, said, state = done
        if law.lm:
            score = law.lm.end(state)
            if score > NEVER:
                lm, said = lm + score, said + law.lm_weight * score
        return words, lm, said


@functools.lru_cache(maxsize=2)
def _trie(lexicon: frozenset[str] | None) -> dict[str, Any] | None:
    """Nested {character: ...} of the words; None without a lexicon. Kept for the next utterance."""
    if lexicon is None:
        return None
    root: dict[str, Any] = {}
    for word in lexicon:
        node = root
        for character in word:
            node = node.setdefault(character, {})
    return root


def _spell(trie: dict[str, Any], text: str) -> dict[str, Any] | None:
    """The node of a trie after the characters of a token; None if no word goes on like this."""
    found: dict[str, Any] | None = trie
    for character in text:
        found = found.get(character) if found is not None else None
    return found


def beam_search(log_probs: np.ndarray, tokens: Sequence[str], law: Search) -> list[Hypothesis]:
    """The n_best texts, best first, of log_probs [F A] in nats; `tokens` [A], of which the first is the blank.

    The search starts as if a boundary had just been said (as flashlight's), so that one in the first frames repeats it.
    Ties are broken by the ids, so that a result never depends on the order of a dict. There is always a hypothesis:
    where all that the beam holds stop inside a word that the lexicon lacks, they lose that word; where the
    log-probabilities rule out everything, it is empty with a score of -inf. Raises UserError.
    """
    check(log_probs, tokens)
    prefixes = _Prefixes(tokens, law)
    beam = _Beam([prefixes.root], np.array([NEVER]), np.array([0.0]))  # as after a boundary
    rows: dict[_Node, np.ndarray] = {}
    for frame in log_probs.astype(np.float64):
        rows = {node: rows[node] if node in rows else prefixes.said_after(node) for node in beam.nodes}
        beam = _advanced(beam, frame, prefixes, rows)
    acoustic = _combined(law, beam.ends_blank, beam.ends_token).tolist()
    pairs = list(zip(beam.nodes, acoustic, strict=True))
    found = _hypotheses(prefixes, pairs) or _hypotheses(
        prefixes, [(prefixes.without_word(node), a) for node, a in pairs]
    )
    return ranked(found, prefixes.boundary, law.n_best) or [Hypothesis((), NEVER, NEVER, 0.0, 0)]


class _Beam(NamedTuple):
    """nodes [N], and log-probabilities [N] of their alignments that end with a blank, or with the last token."""

    nodes: list[_Node]
    ends_blank: np.ndarray
    ends_token: np.ndarray


def _advanced(beam: _Beam, frame: np.ndarray, prefixes: _Prefixes, rows: dict[_Node, np.ndarray]) -> _Beam:
    """The beam after one more frame [A]."""
    law, nodes = prefixes.law, beam.nodes
    if not nodes:
        return beam
    tried = np.argsort(-frame, kind="stable")[: law.tokens]
    tried = tried[(tried != 0) & (frame[tried] >= frame.max() - law.threshold)]
    heard = np.full(len(frame) + 1, NEVER)  # one more, so that -1, no token, has a place
    heard[tried] = frame[tried]
    whole = _combined(law, beam.ends_blank, beam.ends_token)
    last = np.array([node.token for node in nodes])
    ends_blank, ends_token = whole + frame[0], beam.ends_token + heard[last]
    grown = np.where(last[:, None] == tried, beam.ends_blank[:, None], whole[:, None]) + frame[tried]  # [N tried]
    _merge(nodes, tried, prefixes, ends_token, grown)
    said = np.stack([rows[node] for node in nodes])[:, tried]
    for i, k in np.argwhere(np.isnan(said) & (grown > NEVER)).tolist():
        child = prefixes.grown(nodes[i], int(tried[k]))
        said[i, k] = rows[nodes[i]][tried[k]] = NEVER if child is None else child.said
    staying = _combined(law, ends_blank, ends_token) + np.array([node.said for node in nodes])
    new = np.where(grown > NEVER, grown + said, NEVER)
    kept = _kept(np.concatenate([staying, new.ravel()]), nodes, tried, prefixes)
    old, pairs = kept[kept < len(nodes)], np.divmod(kept[kept >= len(nodes)] - len(nodes), max(len(tried), 1))
    children = [prefixes.child(nodes[i], int(tried[k])) for i, k in zip(*(each.tolist() for each in pairs))]
    return _Beam(
        [nodes[i] for i in old.tolist()] + [child for child in children if child is not None],
        np.concatenate([ends_blank[old], np.full(len(children), NEVER)]),
        np.concatenate([ends_token[old], grown[pairs]]),
    )


def _merge(nodes: list[_Node], tried: np.ndarray, prefixes: _Prefixes, ends_token: np.ndarray, grown: np.ndarray):
    """Moves what grows into a node that the beam holds already from `grown` to that node's `ends_token`."""
    combine = max if prefixes.law.merge == "max" else _log_add
    place = {node: i for i, node in enumerate(nodes)}
    column = {token: k for k, token in enumerate(tried.tolist())}
    for i, node in enumerate(nodes):
        ways = [(place.get(node.parent) if node.parent else None, column.get(node.token))]
        if prefixes.returns(node):
            ways.append((i, column.get(prefixes.boundary)))
        for j, k in ways:
            if j is not None and k is not None:
                ends_token[i] = combine(float(ends_token[i]), float(grown[j, k]))
                grown[j, k] = NEVER


def _kept(scores: np.ndarray, nodes: list[_Node], tried: np.ndarray, prefixes: _Prefixes) -> np.ndarray:
    """Places of the best scores [N + N tried]: old nodes, then old nodes with one more token. Ties: by the ids."""
    law = prefixes.law
    kept = np.flatnonzero((scores > NEVER) & (scores >= scores.max() - law.threshold))
    if len(kept) <= law.beam:
        return kept
    last = np.partition(scores[kept], -law.beam)[-law.beam]
    better, even = kept[scores[kept] > last], kept[scores[kept] == last]
    if len(better) + len(even) > law.beam:

        def node(place: int) -> Any:
            i, k = divmod(place - len(nodes), max(len(tried), 1))
            return nodes[place] if place < len(nodes) else prefixes.child(nodes[i], int(tried[k]))

        even = np.array(sorted(even.tolist(), key=node)[: law.beam - len(better)])
    return np.concatenate([better, even])


def _combined(law: Search, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(a, b) if law.merge == "max" else np.logaddexp(a, b)


def _hypotheses(prefixes: _Prefixes, pairs: Iterable[tuple[_Node, float]]) -> list[Hypothesis]:
    """Those of (node, acoustic) at which the utterance may end; of equal nodes the best."""
    best: dict[_Node, float] = {}
    for node, acoustic in pairs:
        best[node] = max(acoustic, best.get(node, NEVER))
    found = []
    for node, acoustic in best.items():
        if (done := prefixes.finished(node)) is not None:
            words, lm, said = done
            found.append(Hypothesis(node.ids(), acoustic + said, acoustic, lm, words))
    return found


def ranked(found: Iterable[Hypothesis], boundary: int, count: int) -> list[Hypothesis]:
    """The `count` best with different texts: boundaries at the ends, or several in a row, do not make another one."""
    texts: dict[tuple[int, ...], Hypothesis] = {}
    for hypothesis in sorted(found, key=lambda hypothesis: (-hypothesis.score, hypothesis.ids)):
        ids = (boundary, *hypothesis.ids, boundary)
        text = tuple(b for a, b in itertools.pairwise(ids) if (a, b) != (boundary, boundary))
        texts.setdefault(text, hypothesis)
        if len(texts) == count:
            break
    return list(texts.values())


def _log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == NEVER else a + math.log1p(math.exp(b - a))


def mismatch(lm: NGram, tokens: Sequence[str], unit: str, boundary: str = "|") -> list[str]:
    """The characters (or tokens) of a language model that the alphabet lacks, in the order of their code points.

    Raises UserError where they share next to nothing: another alphabet, another case, words for tokens.
    """
    known = set(tokens[1:])
    words = lm.words - {boundary}
    if unit == "token":
        missing = sorted(words - known)
        shared = len(words) - len(missing)
    else:
        spell = (lambda word: word) if boundary in known else (lambda word: [word])
        known = set("".join(known)) if boundary in known else known
        missing = sorted({c for word in words for c in spell(word)} - known)
        shared = sum(all(c in known for c in spell(word)) for word in words)
    if words and shared < 0.02 * len(words):
        shown = ", ".join(map(repr, missing[:10]))
        raise UserError(
            f"the language model's {unit}s cannot be written with the alphabet of the run: it lacks {shown}. Another "
            f"case or script? The run's tokens: {' '.join(tokens[1:21])}"
        )
    return missing
