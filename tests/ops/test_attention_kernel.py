"""The TPU kernel of attention, interpreted, beside the other formulation. `test_tpu_programs.py` compiles it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax.ops import random as noises
from w2v_jax.ops.attention import attention

B, H = 2, 2


def test_the_kernel_equals_the_whole_with_its_gradients(monkeypatch):
    """Interpreted: frames that fill no tile, tiles of queries, a row without keys, the same dropout."""
    monkeypatch.setattr("w2v_jax.ops.attention_kernel.SCORES", 1)
    frames, lengths = 300, jnp.asarray([0, 290])
    noise, words = noises.row_noise(jax.random.key(0), jnp.arange(B)), dict(num_frames=lengths, dropout=0.3)
    query, key, value, target = jax.random.normal(jax.random.key(1), (4, B, frames, H, 8))

    def found(name):
        out, back = jax.vjp(lambda *x: attention(*x, **words, noise=noise, implementation=name), query, key, value)
        return out, *back(target)

    for kernel, whole in zip(found("kernel"), found("xla"), strict=True):
        np.testing.assert_allclose(kernel, whole, atol=4e-6)
