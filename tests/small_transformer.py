"""The sizes of a small Transformer, for tests of its laws; its input and parameters are fixtures of tests/nn."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

B, F, D, H, L = 2, 12, 8, 2, 2
LENGTHS = jnp.asarray([F, 7])
VALID = np.arange(F)[None] < np.asarray(LENGTHS)[:, None]
PLAIN = dict(layers=L, heads=H, mlp=16, pos_kernel=4, pos_groups=2, dropout=0.0, attention_dropout=0.0)
PLAIN |= dict(mlp_dropout=0.0, layer_drop=0.0, pre_norm=False, attention="xla", positional="grouped", stack="scan")
"""The fields of a `Transformer` that computes nothing at random."""
