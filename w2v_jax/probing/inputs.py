"""The features that a probe reads: those of a run, or log-mel features."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from w2v_jax.core.display import short_repr
from w2v_jax.data.index import Source
from w2v_jax.inference.encode import BATCH_SECONDS, MAX_SECONDS, encode
from w2v_jax.inference.run import Run, fixed_run
from w2v_jax.nn.encoders import LogMelEncoder


class Input(NamedTuple):
    """The features that one probe reads.

    name: shown in results. what: the key of the features (local, context or hidden). layer: the number of the hidden
    state, or None. quantizer: the vq-wav2vec whose codes the run reads, or None. batch_seconds and max_seconds: as in
    `encode`.
    """

    name: str
    run: Run
    what: str
    layer: int | None = None
    quantizer: Run | None = None
    batch_seconds: float = BATCH_SECONDS
    max_seconds: float = MAX_SECONDS

    __repr__ = short_repr

    def encode(self, source: Source) -> Iterator[tuple[int, np.ndarray]]:
        """(row, features [F D]) of each recording."""
        encoded = encode(
            self.run,
            source,
            keys=(self.what,),
            layer=self.layer,
            quantizer=self.quantizer,
            batch_seconds=self.batch_seconds,
            max_seconds=self.max_seconds,
        )
        for row, arrays in encoded:
            yield row, arrays[self.what]


@functools.cache
def log_mel_input() -> Input:
    """Log-mel features, as a run without parameters."""
    return Input("log-mel", fixed_run("log-mel", LogMelEncoder()), "local")


def frame_centres(run: Run, frames: int) -> np.ndarray:
    """The 16 kHz sample in the middle of each frame's receptive field [F]."""
    field, hop = run.geometry
    return np.arange(frames) * hop + field / 2
