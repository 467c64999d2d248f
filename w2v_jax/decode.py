"""From the log-probabilities of one utterance to words: the best path, and prefix beam search with language models.

`beam_search` is the prefix search of Graves (2012, section 7.5.3) and Hannun et al. (2014): hypotheses are token
sequences, each with the summed (or, with merge="max", the best) probability of its alignments. A score is

    acoustic + lm_weight * lm + word_score * words

with the acoustic part in nats and the language model in log10, as in flashlight, so that published weights apply.
`flashlight_search` is flashlight-text (extra `decode`) with the same options: its results are equal where both can say
the same, which is with a lexicon, or without any word language model.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.config import UserError
from w2v_jax.lm import NGram, write_arpa

NEVER = -math.inf
UNITS = ("word", "token")


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
    a frame are tried at most. merge: "sum" over the alignments of a hypothesis, or their "max". unknown_score is added
    for a word that the language model lacks.
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


def greedy(log_probs: np.ndarray) -> tuple[int, ...]:
    """The best path of log_probs [F A] without repeats and blanks (id 0)."""
    _check(log_probs)
    best = log_probs.argmax(axis=1) if len(log_probs) else np.zeros(0, int)
    keep = (best != 0) & (best != np.concatenate([[0], best[:-1]]))
    return tuple(best[keep].tolist())


def _check(log_probs: np.ndarray) -> None:
    if log_probs.ndim != 2 or np.isnan(log_probs).any():
        raise UserError(f"log-probabilities must be [frames tokens] without NaN, got shape {log_probs.shape}")


class _Node:
    """A token sequence: the last token and what came before, with what the language model says about it."""

    __slots__ = ("acoustic", "children", "ids", "lm", "said", "state", "token", "trie", "word", "words")

    def __init__(self, ids, token, word, words, lm, said, state, trie):
        self.ids, self.token, self.word, self.words = ids, token, word, words
        self.lm, self.said, self.state, self.trie = lm, said, state, trie
        self.children: dict[int, _Node | None] = {}


class _Prefixes:
    """The tree of hypotheses; `said` is lm_weight * lm + the scores of words."""

    def __init__(self, tokens: Sequence[str], law: Search):
        self.tokens, self.law = tokens, law
        self.boundary = tokens.index(law.boundary) if law.boundary in tokens else -1
        self.trie = _trie(law.lexicon)
        self.scores_tokens = law.lm is not None and law.lm_unit == "token"
        state = law.lm.start() if law.lm else ()
        self.root = _Node((), self.boundary, "", 0, 0.0, 0.0, state, self.trie)

    def child(self, node: _Node, token: int) -> _Node | None:
        """The node with one more token; None where the lexicon forbids it."""
        if token not in node.children:
            node.children[token] = self._grow(node, token)
        return node.children[token]

    def _grow(self, node: _Node, token: int) -> _Node | None:
        text = self.tokens[token]
        if token == self.boundary and not node.word:
            if not self.scores_tokens:
                return node  # a second boundary says nothing new
            grown = _Node((*node.ids, token), token, "", node.words, node.lm, node.said, node.state, self.trie)
        elif token == self.boundary or self.boundary < 0:
            done = self._with_word(node, node.word if token == self.boundary else text)
            if done is None:
                return None
            words, lm, said, state = done
            grown = _Node((*node.ids, token), token, "", words, lm, said, state, self.trie)
        else:
            trie = node.trie
            if trie is not None:
                trie = trie.get(text)
                if trie is None:
                    return None
            grown = _Node((*node.ids, token), token, node.word + text, node.words, node.lm, node.said, node.state, trie)
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
        if node.word:
            done = self._with_word(node, node.word)
            if done is None:
                return None
            words, lm, said, state = done
        if law.lm:
            score = law.lm.end(state)
            if score > NEVER:
                lm, said = lm + score, said + law.lm_weight * score
        return words, lm, said


def _trie(lexicon: Iterable[str] | None) -> dict[str, Any] | None:
    """Nested {character: ...} of the words; None without a lexicon."""
    if lexicon is None:
        return None
    root: dict[str, Any] = {}
    for word in lexicon:
        node = root
        for character in word:
            node = node.setdefault(character, {})
    return root


def beam_search(log_probs: np.ndarray, tokens: Sequence[str], law: Search) -> list[Hypothesis]:
    """The n_best hypotheses, best first, of log_probs [F A] in nats; `tokens` [A], of which the first is the blank.

    Ties are broken by the ids, so that a result never depends on the order of a dict. Raises UserError.
    """
    _check(log_probs)
    _check_law(log_probs, tokens, law)
    prefixes = _Prefixes(tokens, law)
    combine = max if law.merge == "max" else _log_add
    beams: dict[_Node, tuple[float, float]] = {prefixes.root: (NEVER, 0.0)}  # as after a boundary
    for frame in log_probs.astype(np.float64):
        tried = np.argsort(-frame, kind="stable")[: law.tokens]
        tried = [(int(t), float(frame[t])) for t in tried if t and frame[t] >= frame.max() - law.threshold]
        blank, after = float(frame[0]), {}
        for node, (ends_blank, ends_token) in beams.items():
            whole = combine(ends_blank, ends_token)
            _add(after, node, whole + blank, NEVER, combine)
            for token, p in tried:
                repeats = token == node.token
                if repeats:
                    _add(after, node, NEVER, ends_token + p, combine)
                child = prefixes.child(node, token)
                if child is not None:
                    _add(after, child, NEVER, (ends_blank if repeats else whole) + p, combine)
        beams = _pruned(after, law, combine)
        if not beams:
            return []
    found = []
    for node, parts in beams.items():
        done = prefixes.finished(node)
        if done is not None:
            words, lm, said = done
            acoustic = combine(*parts)
            found.append(Hypothesis(node.ids, acoustic + said, acoustic, lm, words))
    return sorted(found, key=lambda hypothesis: (-hypothesis.score, hypothesis.ids))[: law.n_best]


def _add(after: dict, node: _Node, ends_blank: float, ends_token: float, combine: Any) -> None:
    before = after.get(node)
    if before is not None:
        ends_blank, ends_token = combine(before[0], ends_blank), combine(before[1], ends_token)
    after[node] = (ends_blank, ends_token)


def _pruned(after: dict, law: Search, combine: Any) -> dict:
    scored = [(combine(*parts) + node.said, node, parts) for node, parts in after.items()]
    scored = [entry for entry in scored if entry[0] > NEVER]
    if not scored:
        return {}
    bound = max(entry[0] for entry in scored) - law.threshold
    scored = sorted((e for e in scored if e[0] >= bound), key=lambda e: (-e[0], e[1].ids))
    return {node: parts for _, node, parts in scored[: law.beam]}


def _log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == NEVER else a + math.log1p(math.exp(b - a))


def _check_law(log_probs: np.ndarray, tokens: Sequence[str], law: Search) -> None:
    if log_probs.shape[1] != len(tokens):
        raise UserError(f"{log_probs.shape[1]} log-probabilities per frame, and an alphabet of {len(tokens)} tokens")
    if law.merge not in ("sum", "max") or law.lm_unit not in UNITS:
        raise UserError(f"merge={law.merge!r} is 'sum' or 'max'; lm_unit={law.lm_unit!r} is 'word' or 'token'")
    if law.beam < 1 or law.tokens < 1 or law.n_best < 1:
        raise UserError(f"beam={law.beam}, tokens={law.tokens} and n_best={law.n_best} must be at least 1")


def mismatch(lm: NGram, tokens: Sequence[str], unit: str, boundary: str = "|") -> list[str]:
    """The characters (or tokens) of a language model that the alphabet lacks, most frequent words first.

    Raises UserError where they share next to nothing: another alphabet, another case, words for tokens.
    """
    known = set(tokens[1:])
    words = lm.words - {boundary}
    if unit == "token":
        missing = sorted(words - known)
        shared = len(words) - len(missing)
    else:
        spell = (lambda word: word) if boundary in known else (lambda word: [word])
        missing = sorted({c for word in words for c in spell(word)} - known)
        shared = sum(all(c in known for c in spell(word)) for word in words)
    if words and shared < 0.02 * len(words):
        shown = ", ".join(map(repr, missing[:10]))
        raise UserError(
            f"the language model's {unit}s cannot be written with the alphabet of the run: it lacks {shown}. Another "
            f"case or script? The run's tokens: {' '.join(tokens[1:21])}"
        )
    return missing


# flashlight-text


def flashlight_search(log_probs: np.ndarray, tokens: Sequence[str], law: Search) -> list[Hypothesis]:
    """`beam_search` by flashlight-text; needs a lexicon with a word language model, and merges as `law.merge` says.

    With a lexicon, a frame in which the last word may end is added, because flashlight ends words with the boundary.
    """
    _check(log_probs)
    _check_law(log_probs, tokens, law)
    return Flashlight(tokens, law).search(log_probs)


class Flashlight:
    """A decoder of flashlight-text that is built once and searches many utterances. Raises UserError."""

    def __init__(self, tokens: Sequence[str], law: Search):
        try:
            from flashlight.lib.text import decoder
            from flashlight.lib.text.dictionary import Dictionary
        except ImportError:
            raise UserError("the flashlight decoder is not installed: pip install 'w2v-jax[decode]'") from None
        if law.boundary not in tokens:
            raise UserError(f"flashlight needs a boundary between words, and the alphabet has no {law.boundary!r}")
        if law.lm and law.lm_unit == "word" and law.lexicon is None:
            raise UserError("flashlight with a language model of words needs a lexicon; the own decoder does not")
        self.tokens, self.law, self.boundary = tokens, law, tokens.index(law.boundary)
        options = dict(beam_size=law.beam, beam_size_token=law.tokens, beam_threshold=law.threshold)
        options |= dict(lm_weight=law.lm_weight, sil_score=0.0, log_add=law.merge == "sum")
        options |= dict(criterion_type=decoder.CriterionType.CTC)
        if law.lexicon is None:
            lm = self._language_model(decoder, Dictionary(list(tokens)))
            free = decoder.LexiconFreeDecoderOptions(**options)
            self.decoder = decoder.LexiconFreeDecoder(free, lm, self.boundary, 0, [])
            return
        names = [*sorted(law.lexicon), "<unk>"]
        dictionary = Dictionary(names if law.lm_unit == "word" else list(tokens))
        lm = self._language_model(decoder, dictionary)
        trie = decoder.Trie(len(tokens), self.boundary)
        start = lm.start(False)
        for number, word in enumerate(names[:-1]):
            spelling = [tokens.index(c) for c in word] if all(c in tokens for c in word) else []
            if spelling:
                score = lm.score(start, number)[1] if law.lm_unit == "word" else 0.0
                trie.insert([*spelling, self.boundary], number, score)
        trie.smear(decoder.SmearingMode.MAX)
        full = decoder.LexiconDecoderOptions(**options, word_score=law.word_score, unk_score=NEVER)
        self.decoder = decoder.LexiconDecoder(
            full, trie, lm, self.boundary, 0, len(names) - 1, [], law.lm_unit == "token"
        )

    def _language_model(self, decoder: Any, dictionary: Any) -> Any:
        if self.law.lm is None:
            return decoder.ZeroLM()
        from flashlight.lib.text.decoder.kenlm import KenLM

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "lm.arpa")
            write_arpa(path, self.law.lm)
            return KenLM(path, dictionary)

    def search(self, log_probs: np.ndarray) -> list[Hypothesis]:
        """The n_best hypotheses of log_probs [F A], best first."""
        emissions = np.maximum(log_probs, -1e9).astype(np.float32)
        if self.law.lexicon is not None:
            last = np.full((1, len(self.tokens)), -1e9, np.float32)
            last[0, [0, self.boundary]] = 0.0
            emissions = np.concatenate([emissions, last])
        emissions = np.ascontiguousarray(emissions)
        results = self.decoder.decode(emissions.ctypes.data, *emissions.shape)
        found: dict[tuple[int, ...], Hypothesis] = {}
        for result in results:
            ids = greedy(np.eye(len(self.tokens))[np.array(result.tokens[1:-1], int)])
            if self.law.lexicon is not None and ids and ids[-1] == self.boundary:
                ids = ids[:-1]
            words = sum(word >= 0 for word in result.words)
            if ids not in found:
                acoustic = float(result.emittingModelScore)
                found[ids] = Hypothesis(ids, float(result.score), acoustic, float(result.lmScore), words)
        return sorted(found.values(), key=lambda h: (-h.score, h.ids))[: self.law.n_best]
