"""Running means of parameters: of a model whose last updates are noisy, or of a teacher that follows its student."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from w2v_jax.core.types import PyTree

GAMMA = 8
"""The first means span about an eighth of the updates so far."""


def moving_average(mean: PyTree, new: PyTree, decay: Any) -> PyTree:
    """decay * mean + (1 - decay) * new, array by array, in float32. Equal arrays stay bit-equal."""

    def between(old: jax.Array, x: jax.Array) -> jax.Array:
        old = old.astype(jnp.float32)
        return old + (1.0 - decay) * (x.astype(jnp.float32) - old)

    return jax.tree.map(between, mean, new)


def rising_decay(decay: float, step: jax.Array) -> jax.Array:
    """The decay of a mean after `step` earlier updates: 0 for the first, and up to `decay` later.

    step / (step + 1 + GAMMA) is the polynomial-decay averaging of Shamir and Zhang 2013 (arXiv 1212.1824), which
    forgets the first parameters, however many updates there have been.
    """
    n = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, n / (n + 1.0 + GAMMA))
