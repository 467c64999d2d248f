"""Mixing as a loop over samples: the oracle of `data/augment.py`, and of what batches hold."""

from __future__ import annotations

import numpy as np

from w2v_jax.data.draws import NO_OTHER


def mixed_by_loop(wave, other, length, start, place, decibels):
    """Sample by sample, from the definition."""
    most = min(len(wave) // 2, len(other))
    count = next(n for n in range(most + 1) if length * (most + 1) < n + 1)
    first = next(n for n in range(len(other) - count + 1) if start * (len(other) - count + 1) < n + 1)
    here = next(n for n in range(len(wave) - count + 1) if place * (len(wave) - count + 1) < n + 1)
    powers = [sum(float(x) ** 2 for x in each) / len(each) for each in (wave, other)]
    scale = (powers[0] / (powers[1] * 10 ** (decibels / 10))) ** 0.5
    return [x + scale * other[first + t - here] if here <= t < here + count else x for t, x in enumerate(wave)]


def rows_of(step, waves, noises) -> list[np.ndarray]:
    """The rows of a step of a plan, as it says, from whole recordings of speech and of noise."""
    crops = [waves[row][start : start + step.length] for row, start in zip(step.rows, step.starts)]
    found = []
    for number, crop in enumerate(crops):
        mix = {name: column[number] for name, column in step.mix._asdict().items()}
        other = None if mix["others"] == NO_OTHER else crops[mix["others"]]
        if mix["noises"] != NO_OTHER:
            other = noises[mix["noises"]][mix["noise_starts"] :][: step.length]
        shares = [mix[name] for name in ("lengths", "froms", "tos", "decibels")]
        found.append(crop if other is None else np.array(mixed_by_loop(crop, other, *shares), np.float32))
    return found
