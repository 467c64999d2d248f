"""Stand-ins of labelled recordings: sources without audio, and features in clouds."""

import types

import numpy as np

from w2v_jax.data.index import WAVE, Row, make_index


def source(labels, speakers=None, prefix="r"):
    """A stand-in of a source: rows with transcripts and speakers, no audio."""
    speakers = speakers or ["s"] * len(labels)
    rows = [
        Row(f"{prefix}{i}", "x", 0, 16_000, 16_000, speaker, text)
        for i, (text, speaker) in enumerate(zip(labels, speakers, strict=True))
    ]
    return types.SimpleNamespace(index=make_index(rows), form=WAVE)


def clouds(count=200, classes=3, width=5, seed=0, spread=0.1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(7).normal(size=(classes, width))
    return (centres[labels] + spread * rng.normal(size=(count, width))).astype(np.float32), labels
