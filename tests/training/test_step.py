"""One update, on a method of a few numbers: the gradient of a mean, whatever the micro-batches; fresh draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from w2v_jax.core.types import Mean, Method, State
from w2v_jax.training import step
from w2v_jax.training.optimizer import AverageState

KEY = jax.random.key(0)


def loss(params, extra, batch, key, step, *, train):
    """Squared products of each row with the parameters; `extra` counts the rows, and each call draws a number."""
    total, weight = (batch["weight"] * (batch["wave"] @ params["w"]) ** 2).sum(), batch["weight"].sum()
    metrics = {"loss": Mean(total, weight), "draw": Mean(jax.random.normal(key), jnp.float32(1.0))}
    return Mean(total, weight), ({"rows": extra["rows"] + weight}, metrics | {"train": Mean(1.0 * train, 1.0)})


def nothing(*_):
    raise NotImplementedError


TOY = Method(None, loss, nothing, nothing, nothing, None)
DOWNHILL = optax.GradientTransformationExtraArgs(
    lambda params: (), lambda gradient, opt, params, **_: (jax.tree.map(jnp.negative, gradient), opt)
)
"""Goes against the gradient, with a learning rate of 1."""


@pytest.fixture
def state() -> State:
    return State(jnp.int32(0), {"w": jnp.asarray([0.5, -1.0, 2.0])}, {"rows": jnp.float32(0.0)}, ())


def batches_of(parts: int) -> dict[str, jax.Array]:
    """Six rows, of which one does not count, in micro-batches [A B ...]."""
    wave = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    weight = np.asarray([1, 0, 1, 1, 1, 1], np.float32)
    return dict(wave=jnp.asarray(wave.reshape(parts, -1, 3)), weight=jnp.asarray(weight.reshape(parts, -1)))


def update(state: State, parts: int = 1):
    return step.train_step(state, batches_of(parts), KEY, method=TOY, tx=DOWNHILL, rate=lambda n: 0.25 * (n + 1))


def gradient_of_the_mean(state: State) -> np.ndarray:
    wave, weight = (np.asarray(batches_of(1)[name][0], np.float64) for name in ("wave", "weight"))
    return (2 * weight * (wave @ np.asarray(state.params["w"]))) @ wave / weight.sum()


def test_an_update_follows_the_gradient_of_the_mean_over_what_counts(state):
    new, metrics = update(state)
    gradient = gradient_of_the_mean(state)
    np.testing.assert_allclose(new.params["w"], state.params["w"] - gradient, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
    assert (new.step, metrics["learning_rate"], metrics["skipped"], metrics["train"]) == (1, 0.25, 0, 1)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_micro_batches_make_the_update_of_the_whole_batch(parts, state):
    """Also where they count unequally many rows, and one of them none; each sees the `extra` of the one before."""
    (whole, metrics), (cut, cut_metrics) = update(state), update(state, parts)
    np.testing.assert_allclose(cut.params["w"], whole.params["w"], rtol=1e-5)
    np.testing.assert_allclose(cut_metrics["grad_norm"], metrics["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(cut_metrics["loss"], metrics["loss"], rtol=1e-5)
    assert cut.extra["rows"] == whole.extra["rows"] == 5


def test_every_step_draws_anew_and_the_same_when_it_is_done_again(state):
    """The draws of a step depend on its number and the key of the run alone."""
    draws = [float(update(state.replace(step=jnp.int32(n)))[1]["draw"]) for n in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]
    np.testing.assert_allclose(update(state, parts=3)[1]["draw"], draws[0], rtol=1e-6)


def test_an_evaluation_is_no_training_and_draws_the_same_at_every_step(state):
    first, later = (step.eval_step(state.replace(step=jnp.int32(n)), batches_of(1), KEY, method=TOY) for n in (0, 7))
    assert first["train"].value() == 0 and first["objective"].weight == 5
    assert first["draw"].value() == later["draw"].value() == jax.random.normal(KEY)


def test_an_evaluation_is_one_of_the_running_mean_where_there_is_one(state):
    mean = {"w": jnp.asarray([3.0, 0.0, 1.0])}
    averaged = state.replace(opt=((), AverageState(jnp.int32(1), mean)))
    found, expected = (
        step.eval_step(s, batches_of(1), KEY, method=TOY) for s in (averaged, state.replace(params=mean))
    )
    assert found["loss"].value() == expected["loss"].value()


def test_a_batch_of_zeros_has_the_shapes_and_types_of_the_given_one():
    shapes = dict(wave=jax.ShapeDtypeStruct((2, 3), jnp.float32), row=jax.ShapeDtypeStruct((2,), jnp.int32))
    found = step.zeros_like(shapes)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in shapes.items()
    }
    assert not any(np.any(leaf) for leaf in found.values())


def test_early_updates_have_the_loss_of_their_own(state):
    """Two pairs and the usual loss: updates 1 and 2, 3, and those after."""

    def scaled(by):
        def scaled_loss(*args, train):
            total, rest = loss(*args, train=train)
            return Mean(by * total.total, total.weight), rest

        return scaled_loss

    method = TOY._replace(early=((2, scaled(3.0)), (3, scaled(2.0))))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    program = step.updates(method, DOWNHILL, lambda n: 0.25 * (n + 1), state=one)
    expected = gradient_of_the_mean(state)
    for n, by in ((1, 3.0), (2, 3.0), (3, 2.0), (4, 1.0), (100, 1.0)):
        new, _ = program(n)(jax.tree.map(jnp.copy, state), batches_of(1), KEY)
        np.testing.assert_allclose(state.params["w"] - new.params["w"], by * expected, rtol=1e-5)
