"""What the shared types promise: means that add up, and the record of an encoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.core.types import Encoded, Mean


def mean(total: float, weight: float) -> Mean:
    return Mean(jnp.float32(total), jnp.float32(weight))


def test_a_sum_of_means_is_the_mean_of_everything_that_was_counted():
    """Not the mean of the means: parts of other sizes have another say."""
    assert (mean(6.0, 3.0) + mean(1.0, 1.0)).value() == 7.0 / 4.0


def test_a_mean_of_nothing_is_0_and_changes_no_other():
    nothing = mean(0.0, 0.0)
    assert nothing.value() == 0.0
    assert (nothing + mean(6.0, 4.0)).value() == 1.5


def test_a_mean_of_nothing_has_a_finite_gradient():
    gradient = jax.grad(lambda x: Mean(x * 0.0, jnp.float32(0.0)).value())(1.0)
    assert np.isfinite(gradient)


@pytest.fixture
def encoded() -> Encoded:
    """Two rows of four frames, of which four and one are real."""
    local, context = jnp.zeros((2, 4, 3)), jnp.ones((2, 4, 5))
    return Encoded(local, local, context, jnp.stack([context, context]), jnp.asarray([4, 1]))


def test_a_record_marks_the_real_frames_of_each_row(encoded):
    record = encoded.record()
    assert record.keys() == {"local", "context", "hidden", "valid"}
    np.testing.assert_array_equal(record["valid"], [[True] * 4, [True, False, False, False]])


def test_without_layers_the_context_is_the_only_hidden_state(encoded):
    np.testing.assert_array_equal(encoded.record()["hidden"], encoded.hidden)
    bare = encoded._replace(hidden=None).record()
    np.testing.assert_array_equal(bare["hidden"], encoded.context[None])
