"""Running means against the sums that they stand for."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.ops.moving_average import GAMMA, moving_average, rising_decay


def test_a_mean_is_the_weighted_sum_of_all_that_it_was_given():
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    mean = {"w": jnp.asarray(values[0])}
    for value in values[1:]:
        mean = moving_average(mean, {"w": jnp.asarray(value)}, 0.75)
    shares = np.array([0.75**5] + [0.25 * 0.75 ** (5 - i) for i in range(1, 6)])
    np.testing.assert_allclose(mean["w"], shares @ values, rtol=1e-5)


def test_a_mean_of_equal_arrays_is_bit_equal_and_one_of_bfloat16_is_float32():
    value = jnp.asarray([0.1, 1 / 3, 1e-30], jnp.bfloat16)
    mean = moving_average(value, value, 0.999)
    assert mean.dtype == jnp.float32
    np.testing.assert_array_equal(mean, value.astype(jnp.float32))
    small = jnp.asarray([1.0 + 2**-10], jnp.float32)
    assert moving_average(jnp.ones(1), small, 0.5)[0] == 1.0 + 2**-11  # bfloat16 has no such number


def test_the_decay_rises_from_0_to_its_last_value_and_forgets_the_first_parameters():
    assert rising_decay(0.999, jnp.int32(0)) == 0.0
    assert rising_decay(0.999, jnp.int32(10**6)) == pytest.approx(0.999)
    steps = np.arange(1, 100)
    np.testing.assert_allclose(rising_decay(0.999, steps), steps / (steps + 1 + GAMMA), rtol=1e-6)
