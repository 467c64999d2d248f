"""Prefix beam search by flashlight-text (extra `decode`), with the options of `decode.py`.

It refuses those that flashlight lacks. With merge="max" and a beam that is wide enough its best text is that of
`decode.beam_search`; with "sum" it need not be, because flashlight counts the alignments around boundaries otherwise.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax import decode
from w2v_jax.config import UserError
from w2v_jax.decode import Hypothesis, Search
from w2v_jax.lm import UNKNOWN, NGram, write_arpa


class Flashlight:
    """A decoder of flashlight-text that is built once and searches many utterances. Raises UserError for what it lacks.

    With a lexicon, a frame in which the last word may end is added, because flashlight ends words with the boundary.
    Without one, flashlight knows no language model of words and no word_score.
    """

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
        if law.lexicon is None and law.word_score:
            raise UserError(
                f"flashlight without a lexicon cannot add a score per word ({law.word_score:g}): set it to 0 "
                "(--word-score 0), give a lexicon (--lexicon FILE), or take the own decoder"
            )
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
        full = decoder.LexiconDecoderOptions(**options, word_score=law.word_score, unk_score=decode.NEVER)
        self.decoder = decoder.LexiconDecoder(
            full, trie, lm, self.boundary, 0, len(names) - 1, [], law.lm_unit == "token"
        )

    def _language_model(self, decoder: Any, dictionary: Any) -> Any:
        if self.law.lm is None:
            return decoder.ZeroLM()
        from flashlight.lib.text.decoder.kenlm import KenLM

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "lm.arpa")
            write_arpa(path, _with_unknown(self.law.lm, self.law.unknown_score))
            try:
                return KenLM(path, dictionary)
            except RuntimeError as error:
                reason = str(error).splitlines()[-1]
                raise UserError(
                    f"{self.law.lm.path or 'the language model'}: KenLM, which flashlight uses, cannot read it "
                    f"({reason}); the own decoder can"
                ) from None

    def search(self, log_probs: np.ndarray) -> list[Hypothesis]:
        """The n_best hypotheses of log_probs [F A], best first. Raises UserError."""
        decode.check(log_probs, self.tokens)
        emissions = np.maximum(log_probs, -1e9).astype(np.float32)
        if self.law.lexicon is not None:
            last = np.full((1, len(self.tokens)), -1e9, np.float32)
            last[0, [0, self.boundary]] = 0.0
            emissions = np.concatenate([emissions, last])
        emissions = np.ascontiguousarray(emissions)
        results = self.decoder.decode(emissions.ctypes.data, *emissions.shape)
        found: dict[tuple[int, ...], Hypothesis] = {}
        for result in results:
            ids = decode.greedy(np.eye(len(self.tokens))[np.array(result.tokens[1:-1], int)])
            if self.law.lexicon is not None:
                ids = self._whole_words(ids)
            words = len(self._words(ids))
            if ids not in found:
                acoustic = float(result.emittingModelScore)
                found[ids] = Hypothesis(ids, float(result.score), acoustic, float(result.lmScore), words)
        return decode.ranked(found.values(), self.boundary, self.law.n_best)

    def _words(self, ids: Sequence[int]) -> list[str]:
        spaced = (self.tokens[i] if i != self.boundary else "\n" for i in ids)
        return [word for word in "".join(spaced).split("\n") if word]

    def _whole_words(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Without boundaries at the end, nor a last word that the utterance did not finish."""
        last = max((i for i, token in enumerate(ids) if token == self.boundary), default=-1)
        if last < len(ids) - 1 and self._words(ids)[-1] in (self.law.lexicon or ()):
            return ids
        ids = ids[: max(last, 0)]
        return self._whole_words(ids) if ids and ids[-1] == self.boundary else ids


def _with_unknown(lm: NGram, score: float) -> NGram:
    """The model with `score` added to whatever it says of words that it lacks."""
    grams = {gram: (p + score, backoff) for gram, (p, backoff) in lm.grams.items() if gram[-1] == UNKNOWN}
    return dataclasses.replace(lm, grams={**lm.grams, (UNKNOWN,): (score, 0.0), **grams})
