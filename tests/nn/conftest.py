"""The input and the parameters of the small Transformer (tests/small_transformer.py)."""

import jax
import pytest
from parameters import random_params
from small_transformer import LENGTHS, PLAIN, B, D, F

from w2v_jax.nn.transformer import Transformer


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (B, F, D))


@pytest.fixture(scope="module")
def params(x):
    """Parameters that fit every Transformer of the plain sizes."""
    return random_params(Transformer(**PLAIN), x, LENGTHS, scale=0.3)
