"""Prefix beam search by flashlight-text (extra `decode`), with the options of `beam_search.py`.

It refuses options that flashlight lacks. With merge="max" and a wide beam its best text equals that of `beam_search`.
With "sum" it may differ, because flashlight counts the alignments around boundaries in another way.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError, needing
from w2v_jax.decoding import beam_search
from w2v_jax.decoding.beam_search import Hypothesis, Search
from w2v_jax.decoding.ngram_lm import UNKNOWN, NGram, write_arpa


class Flashlight:
    """A decoder of flashlight-text, built once for many utterances. Raises UserError for options that it lacks.

    With a lexicon, one frame is added in which the last word may end, because flashlight ends words with a boundary.
    Without a lexicon, flashlight has no language model of words and no word_score. spell: the tokens of a word.
    """

    def __init__(self, tokens: Sequence[str], settings: Search, *, spell: Callable[[str], Sequence[str]] = list):
        with needing("the flashlight decoder is not installed: pip install 'w2v-jax[decode]'"):
            from flashlight.lib.text import decoder
            from flashlight.lib.text.dictionary import Dictionary
        if settings.boundary not in tokens:
            raise UserError(
                f"flashlight needs a boundary between words, but the alphabet has no {settings.boundary!r}; "
                "use --decoder own"
            )
        if settings.lm and settings.lm_unit == "word" and settings.lexicon is None:
            raise UserError("flashlight with a language model of words needs a lexicon; --decoder own does not")
        if settings.lexicon is None and settings.word_score:
            raise UserError(
                f"flashlight without a lexicon cannot add a score per word ({settings.word_score:g}): set it to 0 "
                "(--word-score 0), give a lexicon (--lexicon FILE), or use --decoder own"
            )
        self.tokens, self.settings, self.boundary = tokens, settings, tokens.index(settings.boundary)
        options: dict[str, Any] = dict(beam_size=settings.beam, beam_size_token=settings.tokens)
        options |= dict(beam_threshold=settings.threshold, lm_weight=settings.lm_weight, sil_score=0.0)
        options |= dict(log_add=settings.merge == "sum", criterion_type=decoder.CriterionType.CTC)
        if settings.lexicon is None:
            lm = self._language_model(Dictionary(list(tokens)))
            free_options = decoder.LexiconFreeDecoderOptions(**options)
            self.decoder = decoder.LexiconFreeDecoder(free_options, lm, self.boundary, 0, [])
            return
        names = [*sorted(settings.lexicon), UNKNOWN]
        is_word_lm = settings.lm_unit == "word"
        lm = self._language_model(Dictionary(names if is_word_lm else list(tokens)))
        trie = decoder.Trie(len(tokens), self.boundary)
        start = lm.start(False)
        for number, word in enumerate(names[:-1]):
            if word and set(letters := spell(word)) <= set(tokens):
                score = lm.score(start, number)[1] if is_word_lm else 0.0
                trie.insert([*map(tokens.index, letters), self.boundary], number, score)
        trie.smear(decoder.SmearingMode.MAX)
        options |= dict(word_score=settings.word_score, unk_score=beam_search.NEVER)
        lexicon_options, unknown = decoder.LexiconDecoderOptions(**options), len(names) - 1
        self.decoder = decoder.LexiconDecoder(lexicon_options, trie, lm, self.boundary, 0, unknown, [], not is_word_lm)

    def _language_model(self, dictionary: Any) -> Any:
        from flashlight.lib.text.decoder import ZeroLM

        if self.settings.lm is None:
            return ZeroLM()
        from flashlight.lib.text.decoder.kenlm import KenLM

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "lm.arpa")
            write_arpa(path, _with_unknown(self.settings.lm, self.settings.unknown_score))
            try:
                return KenLM(path, dictionary)
            except RuntimeError as error:
                reason = str(error).splitlines()[-1]
                raise UserError(
                    f"{self.settings.lm.path or 'the language model'}: KenLM, which flashlight uses, cannot read it "
                    f"({reason}); use --decoder own"
                ) from None

    def search(self, log_probs: np.ndarray) -> list[Hypothesis]:
        """The n_best hypotheses of log_probs [F A], best first. Raises UserError."""
        beam_search.check_log_probs(log_probs, self.tokens)
        emissions = np.maximum(log_probs, -1e9).astype(np.float32)
        if self.settings.lexicon is not None:
            end = np.full((1, len(self.tokens)), -1e9, np.float32)
            end[0, [0, self.boundary]] = 0.0
            emissions = np.concatenate([emissions, end])
        emissions = np.ascontiguousarray(emissions)
        hypotheses: dict[tuple[int, ...], Hypothesis] = {}
        for result in self.decoder.decode(emissions.ctypes.data, *emissions.shape):
            ids = beam_search.greedy(np.eye(len(self.tokens))[np.array(result.tokens[1:-1], int)])
            if self.settings.lexicon is not None:
                ids = self._complete_words(ids)
            score, acoustic, lm = float(result.score), float(result.emittingModelScore), float(result.lmScore)
            hypotheses.setdefault(
                ids, Hypothesis(ids, score=score, acoustic=acoustic, lm=lm, words=len(self._words(ids)))
            )
        return beam_search.ranked(hypotheses.values(), self.boundary, self.settings.n_best)

    def _words(self, ids: Sequence[int]) -> list[str]:
        text = "".join(self.tokens[i] if i != self.boundary else "\n" for i in ids)
        return [word for word in text.split("\n") if word]

    def _complete_words(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The ids without boundaries at the end, and without an unfinished last word."""
        last = max((i for i, token in enumerate(ids) if token == self.boundary), default=-1)
        if last < len(ids) - 1 and self._words(ids)[-1] in (self.settings.lexicon or ()):
            return ids
        ids = ids[: max(last, 0)]
        return self._complete_words(ids) if ids and ids[-1] == self.boundary else ids


def _with_unknown(lm: NGram, score: float) -> NGram:
    """The model with `score` added to the probability of <unk>."""
    grams = {gram: (p + score, backoff) for gram, (p, backoff) in lm.grams.items() if gram[-1] == UNKNOWN}
    return dataclasses.replace(lm, grams={**lm.grams, (UNKNOWN,): (score, 0.0), **grams})
