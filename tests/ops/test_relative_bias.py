"""The bias of the distance: its buckets and its spread over positions against loops, its gradient, its gate."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.ops.relative_bias import add_gated, bucket_of, by_distance, by_position, gate

F, H = 5, 2


@pytest.mark.parametrize(("buckets", "max_distance"), [(320, 800), (32, 40), (4, 2)])
def test_buckets_hold_one_distance_each_and_then_grow_with_its_logarithm(buckets, max_distance):
    half, exact = buckets // 2, buckets // 4
    distances = np.arange(-max_distance - 3, max_distance + 4)
    ours = bucket_of(distances, buckets, max_distance)
    for distance, bucket in zip(distances, ours, strict=True):
        expected, size = 0.0 + abs(distance), abs(distance)
        if size >= exact:
            expected = min(half - 1, exact + math.log(size / exact) / math.log(max_distance / exact) * (half - exact))
        # a whole number may be rounded down to the one before
        assert bucket - half * (distance > 0) in (math.floor(expected), math.floor(expected - 1e-4))
    assert ours.min() == 0 and ours.max() == buckets - 1
    assert (np.diff(ours[distances < 0]) <= 0).all() and (np.diff(ours[distances > 0]) >= 0).all()


def test_bias_of_a_position_is_that_of_the_distance_to_the_key():
    bias = np.random.default_rng(0).normal(size=(H, 2 * F - 1)).astype(np.float32)
    ours = by_position(jnp.asarray(bias))
    for h, i, j in np.ndindex(H, F, F):
        assert ours[h, i, j] == bias[h, j - i + F - 1]
    np.testing.assert_array_equal(by_position(jnp.ones((1, 1))), np.ones((1, 1, 1)))


def test_bias_by_distance_reads_the_table():
    table = jnp.arange(8.0 * H).reshape(8, H)
    ours = by_distance(table, F, 3)
    np.testing.assert_array_equal(ours, np.asarray(table)[bucket_of(np.arange(1 - F, F), 8, 3)].T)


def test_gate_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    numbers, scale = rng.normal(size=(3, H, 8)), rng.normal(size=H)
    logistic = lambda x: 1 / (1 + math.exp(-x))
    ours = gate(jnp.asarray(numbers), jnp.asarray(scale))
    assert ours.dtype == jnp.float32
    for i, h in np.ndindex(3, H):
        a, b = logistic(numbers[i, h, :4].sum()), logistic(numbers[i, h, 4:].sum())
        assert ours[i, h] == pytest.approx(a * (b * scale[h] - 1) + 2, rel=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_gated_bias_and_its_gradients_are_those_of_the_plain_sum(shared):
    """For one bias of all utterances and for a bias of each."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    logits, gates, target = normal(3, H, F, F), normal(3, H, F), normal(3, H, F, F)
    bias = normal(H, 2 * F - 1) if shared else normal(3, H, 2 * F - 1)
    places = np.arange(F)[None] - np.arange(F)[:, None] + F - 1

    def plain(logits, gates, bias):
        return logits + gates[..., None] * bias[..., places]

    found, back = jax.vjp(add_gated, logits, gates, bias)
    expected, expected_back = jax.vjp(plain, logits, gates, bias)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for ours, theirs in zip(back(target), expected_back(target), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
