"""Samples, units of a batch, and the ids of codes and targets that have a meaning of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

SAMPLE_RATE = 16_000
"""Every wave inside the package has this rate, in Hz."""

CODE_PAD, CODE_MASK, CODE_UNKNOWN, FIRST_CODE = 0, 1, 2, 3
"""Ids of a vocabulary of codes: no frame, a hidden frame, a type that the vocabulary lacks, and the first real type."""

NO_TARGET = -1
"""In the targets of a batch: a place without a label."""


def whole_batch(name: str, elements: np.ndarray, num_samples: np.ndarray) -> dict[str, np.ndarray]:
    """A batch (`types.Batch`) whose rows all count: elements [B ...] under `name`, num_samples [B]."""
    count = len(elements)
    numbers = {"num_samples": num_samples.astype(np.int32), "row": np.arange(count, dtype=np.int32)}
    return {name: elements, "weight": np.ones(count, np.float32)} | numbers


def unit_rows(unit_seconds: float, num_samples: int) -> int:
    """Rows of `num_samples` samples in one unit, the smallest piece of a batch.

    The rows of a unit share their statistics (code perplexity, cross-utterance negatives), as the batch of
    one GPU does in the papers. Devices and micro-batches hold whole units, so that neither their number nor
    gradient accumulation changes the loss. At least one row.
    """
    return max(1, int(unit_seconds * SAMPLE_RATE + 0.5) // num_samples)


def batch_units(data: Any) -> int:
    """Units in the batch of one update, by the config's section `data`."""
    return round(data.batch_hours * 3600 / data.unit_seconds)


def num_units(unit_seconds: float, rows: int, num_samples: int) -> int:
    """Units in a batch of `rows` rows of `num_samples` samples. Raises ValueError when a unit would be cut."""
    per_unit = unit_rows(unit_seconds, num_samples)
    if rows % per_unit:
        raise ValueError(f"a batch of {rows} rows cannot be cut into units of {per_unit} (data.unit_seconds)")
    return rows // per_unit
