"""Arithmetic of frames: how many a convolutional encoder makes, what each of them sees, which are real."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

ConvSpec = Sequence[tuple[int, int, int]]
"""(channels, kernel, stride) of each convolution, first to last."""


def num_frames(num_samples: Any, layers: ConvSpec) -> Any:
    """Frames that `layers` make of `num_samples` samples (an int or an array): floor((n - k) / s) + 1 per layer.

    The count is never below 0: an input that is too short has no frame. A symbolic length, as exported programs have,
    is long enough by its constraints. Arrays are divided once, by the hop of all layers, which gives the same count:
    compilers repeat this arithmetic wherever the count is used.
    """
    if hasattr(num_samples, "clip"):
        field, hop = receptive_field(layers)
        return (num_samples - field + hop).clip(0) // hop
    for _, kernel, stride in layers:
        num_samples = (num_samples - kernel) // stride + 1
        if isinstance(num_samples, int):
            num_samples = max(num_samples, 0)
    return num_samples


def receptive_field(layers: ConvSpec) -> tuple[int, int]:
    """(samples that one frame sees, samples between two frames)."""
    field, hop = 1, 1
    for _, kernel, stride in layers:
        field += (kernel - 1) * hop
        hop *= stride
    return field, hop


def valid_frames(num: jax.Array, total: int) -> jax.Array:
    """[B F] bool, True on the first num [B] of `total` frames."""
    return jnp.arange(total)[None] < num[:, None]
