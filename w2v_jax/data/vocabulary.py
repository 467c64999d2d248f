"""The words of a code stream: every combination of group codes that occurs, numbered by how often it does.

vq-wav2vec (Baevski et al. 2020, section 4) gives each frame one code per group; BERT reads the combination as one
token. A combination that did not occur in the pretraining data is unknown. NumPy only.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from w2v_jax.config import CODE_UNKNOWN, FIRST_CODE, UserError

FILE = "vocabulary.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """`types` [K G] the combinations by falling `counts` [K] (ties by code), of G groups of `codes` codes each.

    model: the digest of the parameters that made the codes, those of a checkpoint at `step`.
    """

    types: np.ndarray
    counts: np.ndarray
    codes: int
    model: str
    step: int = 0

    @property
    def groups(self) -> int:
        return self.types.shape[1]

    @property
    def size(self) -> int:
        """Ids: all combinations, and those of padding, masked and unknown frames."""
        return FIRST_CODE + len(self.types)

    @property
    def entropy(self) -> float:
        """Entropy of the combinations in nats: the loss of a model that knows how often each occurs, and no more."""
        share = self.counts / max(self.counts.sum(), 1)
        return abs(float(np.sum(share * np.log(np.maximum(share, 1e-300)))))

    @property
    def digest(self) -> str:
        """16 hex digits that name model and types: ids of one digest mean the same."""
        text = f"{self.model} {self.codes} {self.types.shape} ".encode()
        return hashlib.sha256(text + np.ascontiguousarray(self.types, "<i8").tobytes()).hexdigest()[:16]

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """Ids int32 [... F] of codes [... F G]; CODE_UNKNOWN where the combination is not in the vocabulary."""
        if codes.shape[-1] != self.groups:
            raise ValueError(f"codes of {codes.shape[-1]} groups, the vocabulary has {self.groups}")
        known, order = self._sorted
        keys = _keys(codes, self.codes)
        if not len(known):
            return np.full(keys.shape, CODE_UNKNOWN, np.int32)
        place = np.searchsorted(known, keys).clip(max=len(known) - 1)
        outside = ((codes < 0) | (codes >= self.codes)).any(axis=-1)
        return np.where((known[place] == keys) & ~outside, FIRST_CODE + order[place], CODE_UNKNOWN).astype(np.int32)

    @functools.cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        keys = _keys(self.types, self.codes)
        order = np.argsort(keys)
        return keys[order], order

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON; the file appears whole or not at all."""
        about: dict[str, Any] = dict(
            vocabulary=FORMAT, model=self.model, step=self.step, groups=self.groups, codes=self.codes
        )
        about |= dict(size=self.size, entropy=self.entropy)
        about |= dict(counts=self.counts.tolist(), types=self.types.tolist())
        partial = pathlib.Path(f"{os.fspath(path)}.partial")
        partial.write_text(json.dumps(about) + "\n", encoding="utf-8")
        os.replace(partial, path)

    @staticmethod
    def load(path: str | os.PathLike) -> Vocabulary:
        """What `save` wrote. Raises UserError when it is missing, cut short or of another kind."""
        try:
            about = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
            if about["vocabulary"] != FORMAT:
                raise UserError(f"{path}: vocabulary format {about['vocabulary']}, this version reads {FORMAT}")
            types = np.array(about["types"], np.int64).reshape(-1, about["groups"])
            found = Vocabulary(
                types, np.array(about["counts"], np.int64), about["codes"], about["model"], about["step"]
            )
        except OSError as error:
            raise UserError(f"{path}: the vocabulary cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a vocabulary of w2v_jax ({error})") from None
        if len(found.counts) != len(types) or found.size != about["size"]:
            raise UserError(f"{path}: the vocabulary was cut short or edited; make it anew with --build-vocabulary")
        return found


class Counter:
    """Counts the combinations of many arrays of codes; `vocabulary` gives what was found."""

    def __init__(self, groups: int, codes: int):
        if codes**groups >= 2**63:
            raise UserError(f"{groups} groups of {codes} codes have more combinations than can be numbered")
        self.groups, self.codes = groups, codes
        self.counts: dict[int, int] = {}

    def add(self, codes: np.ndarray) -> None:
        """codes [F G], each from 0 to `codes` - 1."""
        keys, counts = np.unique(_keys(codes, self.codes), return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            self.counts[key] = self.counts.get(key, 0) + count

    def vocabulary(self, model: str, step: int = 0) -> Vocabulary:
        """The combinations by falling count, those of equal count by their codes."""
        pairs = sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))
        keys = np.array([key for key, _ in pairs], np.int64)
        powers = self.codes ** np.arange(self.groups - 1, -1, -1, dtype=np.int64)
        types = keys[:, None] // powers % self.codes
        return Vocabulary(types, np.array([count for _, count in pairs], np.int64), self.codes, model, step)


def text(codes: np.ndarray) -> str:
    """The tokens of codes [F G] as the reference writes them: "i-j k-l ..."."""
    return " ".join("-".join(map(str, frame)) for frame in codes.tolist())


def _keys(codes: np.ndarray, size: int) -> np.ndarray:
    """One int64 per combination [... G] -> [...], in the order of the codes."""
    keys = np.zeros(codes.shape[:-1], np.int64)
    for group in range(codes.shape[-1]):
        keys = keys * size + codes[..., group]
    return keys
