"""Laws of the random numbers: functions of (key, row, position) alone, and random enough."""

from __future__ import annotations

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.ops import random as noises

ROWS = jnp.arange(6)


@pytest.fixture(scope="module")
def words():
    return noises.row_noise(jax.random.key(3), ROWS)


@pytest.fixture(scope="module")
def grid(words):
    """Bits [6 128 256] as a NumPy array."""
    return np.asarray(noises.bits(words, 128, 256))


def test_bits_do_not_depend_on_the_sizes(words, grid):
    np.testing.assert_array_equal(noises.bits(words, 17, 40), grid[:, :17, :40])
    np.testing.assert_array_equal(noises.bits(words, 128), noises.bits(words, 512)[:, :128])


def test_bits_of_a_row_do_not_depend_on_the_other_rows(grid):
    key = jax.random.key(3)
    for rows in ([4], [5, 0, 4], list(range(100))):
        words = noises.row_noise(key, jnp.asarray(rows))
        np.testing.assert_array_equal(noises.bits(words, 128, 256)[rows.index(4)], grid[4])


def test_rows_keys_and_tags_give_different_streams(words):
    other_key = noises.row_noise(jax.random.key(4), ROWS)
    streams = [words, other_key, *(noises.fold(words, tag) for tag in (0, 1, 2, 1 << 16))]
    first = np.concatenate([np.asarray(noises.bits(stream, 4)) for stream in streams]).reshape(-1)
    assert len(np.unique(first)) == first.size
    assert len(np.unique(np.asarray(noises.row_noise(jax.random.key(0), jnp.arange(100_000))))) == 100_000


def test_uses_of_one_owner_have_different_numbers():
    for owner in {use.value[0] for use in noises.Stream}:
        numbers = [use.number for use in noises.Stream.__members__.values() if use.value[0] == owner]
        assert len(set(numbers)) == len(numbers), owner
    assert noises.Stream.NETWORK_INPUT.number > 10_000, "layers fold their index into the words of a network, too"


def test_every_use_of_random_numbers_is_a_stream():
    """No call of `fold` or `fold_in` in the package has a bare number."""
    package = pathlib.Path(noises.__file__).parents[1]
    calls = [
        (file.name, node.lineno, node.args[1])
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("fold", "fold_in")
    ]
    assert len(calls) > 15 and not [call for call in calls if isinstance(call[2], ast.Constant | ast.BinOp)]


def test_no_noise_stays_no_noise():
    assert noises.fold(None, noises.Stream.GUMBEL) is None


def test_fold_takes_a_traced_tag(words):
    traced = jax.jit(noises.fold)(words, jnp.int32(5))
    np.testing.assert_array_equal(traced, noises.fold(words, 5))


def test_bits_are_half_ones_in_every_bit(grid):
    for bit in range(32):
        share = ((grid >> np.uint32(bit)) & 1).mean()
        assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(grid.size), f"bit {bit}: {share}"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbours_are_not_correlated(grid, axis):
    """Correlation of uniforms, and bit by bit agreement, with the next row or position."""
    length = grid.shape[axis]
    for lag in (1, 2, 3):
        a = grid.take(range(length - lag), axis).reshape(-1)
        b = grid.take(range(lag, length), axis).reshape(-1)
        limit = 5 / np.sqrt(a.size)
        assert abs(np.corrcoef(a / 2**32, b / 2**32)[0, 1]) < limit, f"lag {lag}"
        for bit in range(32):
            agree = 1.0 - (((a ^ b) >> np.uint32(bit)) & 1).mean()
            assert abs(agree - 0.5) < limit, f"lag {lag}, bit {bit}: {agree}"


def test_streams_of_one_row_are_not_correlated(words):
    a = np.asarray(noises.uniform(noises.fold(words, 0), 20_000))
    b = np.asarray(noises.uniform(noises.fold(words, 1), 20_000))
    assert np.abs([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]).max() < 5 / np.sqrt(20_000)


def test_uniform_lies_strictly_inside_0_and_1_and_is_flat(words):
    u = np.asarray(noises.uniform(words, 200_000))
    assert 0.0 < u.min() and u.max() < 1.0
    assert u.min() < 1e-4 and u.max() > 1 - 1e-4
    counts, _ = np.histogram(u, bins=100, range=(0, 1))
    expected = u.size / 100
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 99 + 5 * np.sqrt(2 * 99)


def test_uniform_stays_inside_at_the_extreme_words(monkeypatch):
    monkeypatch.setattr(noises, "bits", lambda noise, *sizes: noise)
    u = np.asarray(noises.uniform(jnp.asarray([0, 2**32 - 1], jnp.uint32)))
    assert 0.0 < u[0] < u[1] < 1.0
    assert np.isfinite(noises.gumbel(jnp.asarray([0, 2**32 - 1], jnp.uint32))).all()


def test_gumbel_has_the_standard_moments(words):
    g = np.asarray(noises.gumbel(words, 100_000))
    assert abs(g.mean() - 0.57722) < 0.01
    assert abs(g.var() - np.pi**2 / 6) < 0.03


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(words, rate):
    x = jnp.ones((6, 300, 100))
    y = np.asarray(noises.dropout(x, rate, words))
    sigma = np.sqrt(rate * (1 - rate) / y.size)
    assert abs((y == 0).mean() - rate) < 5 * sigma
    assert abs(y.mean() - 1.0) < 5 * sigma / (1 - rate)
    np.testing.assert_allclose(y[y > 0], 1 / (1 - rate), rtol=1e-6)


def test_dropout_is_a_function_of_its_noise_alone(words):
    x = jax.random.normal(jax.random.key(0), (6, 30, 40))
    y = noises.dropout(x, 0.3, words)
    np.testing.assert_array_equal(jax.jit(noises.dropout, static_argnums=1)(x, 0.3, words), y)
    np.testing.assert_array_equal(noises.dropout(x[:, :20], 0.3, words), y[:, :20])
    assert np.any(np.asarray(noises.dropout(x, 0.3, noises.fold(words, 1))) != np.asarray(y))
    assert noises.dropout(x, 0.3, words).dtype == x.dtype
    assert noises.dropout(x.astype(jnp.bfloat16), 0.3, words).dtype == jnp.bfloat16


def test_dropout_without_noise_or_rate_changes_nothing(words):
    x = jnp.ones((6, 3))
    assert noises.dropout(x, 0.5, None) is x
    assert noises.dropout(x, 0.0, words) is x
