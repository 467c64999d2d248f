"""A stand-in of a source: waves in memory, some of which cannot be read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from w2v_jax.data.index import WAVE, ReadError, Row, make_index


class Waves:
    """Noise of the given lengths, whose loudness and colour change over time; those in `bad` cannot be read."""

    def __init__(self, lengths: Sequence[int], bad: Sequence[int] = (), seed: int = 0):
        rng = np.random.default_rng(seed)
        self.waves = [coloured(rng, n) for n in lengths]
        self.bad, self.form = bad, WAVE
        self.index = make_index(Row(f"id-{i}", f"path-{i}", 0, n, 16000) for i, n in enumerate(lengths))

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        if row in self.bad:
            raise ReadError("bad file")
        return self.waves[row][start : start + length]


def coloured(rng: np.random.Generator, samples: int) -> np.ndarray:
    noise = rng.normal(size=samples + 7)
    smooth = np.convolve(noise, np.ones(8) / 8, "valid")
    time = np.arange(samples) / 16_000
    mix = 0.5 + 0.5 * np.sin(2 * np.pi * 1.5 * time + rng.uniform(0, 6))
    return (0.2 * (mix * noise[:samples] + (1 - mix) * smooth) * (1.1 + np.sin(5 * time))).astype(np.float32)
