"""The vocabulary of a code stream: every combination of group codes that occurs, numbered by falling frequency.

vq-wav2vec (Baevski et al. 2020, section 4) gives each frame one code per group. BERT reads the combination as one
token. A combination that did not occur in the pretraining data is unknown. NumPy only.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import write_whole
from w2v_jax.core.text import read_text
from w2v_jax.core.units import CODE_UNKNOWN, FIRST_CODE

VOCABULARY_FILE = "vocabulary.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The combinations `types` [K G] of G groups of `codes` codes each, and how often each occurs, `counts` [K].

    They are sorted by falling count, and by code where counts are equal. `model` is the digest of the parameters that
    made the codes, from the checkpoint at `step`.
    """

    types: np.ndarray
    counts: np.ndarray
    codes: int
    model: str
    step: int = 0

    __repr__ = short_repr

    @property
    def groups(self) -> int:
        return self.types.shape[1]

    @property
    def size(self) -> int:
        """Number of ids: one per combination, and those of padding, masked and unknown frames."""
        return FIRST_CODE + len(self.types)

    @property
    def entropy(self) -> float:
        """Entropy of the combinations in nats: the loss of a model that knows only how often each occurs."""
        return float(entropy_of(self.counts / max(self.counts.sum(), 1)))

    @property
    def digest(self) -> str:
        """16 hex digits that identify model and types. Ids mean the same under equal digests."""
        text = f"{self.model} {self.codes} {self.types.shape} ".encode()
        return hashlib.sha256(text + np.ascontiguousarray(self.types, "<i8").tobytes()).hexdigest()[:16]

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """Ids int32 [... F] of codes [... F G]. CODE_UNKNOWN where the combination is not in the vocabulary."""
        if codes.shape[-1] != self.groups:
            raise ValueError(f"the codes have {codes.shape[-1]} groups, and the vocabulary has {self.groups}")
        known_keys, order = self._sorted_keys
        keys = _keys(codes, self.codes)
        if not len(known_keys):
            return np.full(keys.shape, CODE_UNKNOWN, np.int32)
        nearest = np.searchsorted(known_keys, keys).clip(max=len(known_keys) - 1)
        is_known = (known_keys[nearest] == keys) & ((codes >= 0) & (codes < self.codes)).all(axis=-1)
        return np.where(is_known, FIRST_CODE + order[nearest], CODE_UNKNOWN).astype(np.int32)

    @functools.cached_property
    def _sorted_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """(keys of the types in ascending order, the type of each)."""
        keys = _keys(self.types, self.codes)
        order = np.argsort(keys)
        return keys[order], order

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON. The file appears whole or not at all."""
        content: dict[str, Any] = dict(vocabulary=FORMAT, model=self.model, step=self.step, groups=self.groups)
        content |= dict(codes=self.codes, size=self.size, entropy=self.entropy)
        content |= dict(counts=self.counts.tolist(), types=self.types.tolist())
        write_whole(path, json.dumps(content) + "\n")

    @staticmethod
    def load(path: str | os.PathLike) -> Vocabulary:
        """Reads what `save` wrote. Raises UserError where the file is missing, cut short or not a vocabulary."""
        try:
            content = json.loads(read_text(path, f"vocabulary {path}"))
            if content["vocabulary"] != FORMAT:
                raise UserError(
                    f"{path} has vocabulary format {content['vocabulary']}, and this version reads {FORMAT}; "
                    "make it anew with --build-vocabulary"
                )
            types = np.array(content["types"], np.int64).reshape(-1, content["groups"])
            counts = np.array(content["counts"], np.int64)
            vocabulary = Vocabulary(types, counts, codes=content["codes"], model=content["model"], step=content["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a vocabulary of w2v_jax ({error})") from None
        if len(counts) != len(types) or vocabulary.size != content["size"]:
            raise UserError(f"{path}: the vocabulary was cut short or edited; make it anew with --build-vocabulary")
        return vocabulary


class CodeCounter:
    """Counts the combinations in many arrays of codes. `vocabulary` returns them by falling count."""

    def __init__(self, groups: int, codes: int):
        if codes**groups >= 2**63:
            raise UserError(f"{groups} groups of {codes} codes have more combinations than int64 can number")
        self.groups, self.codes = groups, codes
        self.counts: dict[int, int] = {}

    def add(self, codes: np.ndarray) -> None:
        """Counts the combinations of codes [F G], each from 0 to `codes` - 1."""
        keys, counts = np.unique(_keys(codes, self.codes), return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            self.counts[key] = self.counts.get(key, 0) + count

    def vocabulary(self, model: str, step: int = 0) -> Vocabulary:
        """The combinations by falling count, and by code where counts are equal."""
        pairs = sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))
        keys = np.array([key for key, _ in pairs], np.int64)
        powers = self.codes ** np.arange(self.groups - 1, -1, -1, dtype=np.int64)
        types = keys[:, None] // powers % self.codes
        return Vocabulary(
            types, np.array([count for _, count in pairs], np.int64), codes=self.codes, model=model, step=step
        )


def entropy_of(share: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Entropy in nats of shares that sum to 1 along the axis, or all together."""
    return np.abs(np.sum(share * np.log(np.maximum(share, 1e-300)), axis=axis))


def code_text(codes: np.ndarray) -> str:
    """The tokens of codes [F G] as fairseq writes them: "i-j k-l ..."."""
    return " ".join("-".join(map(str, frame)) for frame in codes.tolist())


def _keys(codes: np.ndarray, size: int) -> np.ndarray:
    """One int64 per combination, [... G] -> [...]. Keys sort like the codes."""
    keys = np.zeros(codes.shape[:-1], np.int64)
    for group in range(codes.shape[-1]):
        keys = keys * size + codes[..., group]
    return keys
