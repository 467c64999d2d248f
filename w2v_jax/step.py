"""One update and one evaluation step: generic and pure. They know neither the method nor the data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from w2v_jax import optim, sharding
from w2v_jax.api import Batch, Mean, Method, PyTree, State
from w2v_jax.optim import Schedule

Metrics = dict[str, jax.Array]


def make_optimizer(
    config: Any, method: Method, key: jax.Array, batch: PyTree
) -> tuple[optax.GradientTransformationExtraArgs, Schedule]:
    """(the optimizer, its rules matched to the method's parameters; the learning rate). batch: one micro-batch."""
    params, _ = jax.eval_shape(lambda: method.init(key, zeros_like(batch)))
    rate = optim.schedule(config.optim, config.train.steps)
    return optim.optimizer(config.optim, rate, sharding.bare(params)), rate


def init_state(method: Method, tx: optax.GradientTransformationExtraArgs, key: jax.Array, batch: Batch) -> State:
    """The state before the first update; leaves are boxed with logical axis names. batch is one micro-batch."""
    params, extra = method.init(key, batch)
    return State(jnp.zeros((), jnp.int32), params, extra, tx.init(params))


def create_state(
    method: Method, tx: optax.GradientTransformationExtraArgs, key: jax.Array, batch: PyTree, mesh: Mesh | AbstractMesh
) -> tuple[Callable[[], State], PyTree]:
    """(a function that makes the state, born sharded; the state's ShapeDtypeStructs with shardings)."""
    abstract = jax.eval_shape(lambda: init_state(method, tx, key, zeros_like(batch)))
    places = sharding.shardings(abstract, mesh)
    make = jax.jit(lambda: sharding.bare(init_state(method, tx, key, zeros_like(batch))), out_shardings=places)
    shapes = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), sharding.bare(abstract), places
    )
    return make, shapes


def zeros_like(batch: PyTree) -> PyTree:
    """A batch of zeros with the shapes of `batch`."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)


def gradients(method: Method, state: State, batches: Batch, key: jax.Array) -> tuple[PyTree, PyTree, dict[str, Mean]]:
    """(gradient of the summed loss, extra, metrics) over A micro-batches: leaves of batches are [A B ...].

    Divided by the weight of metrics["objective"], summed as well, it is the gradient of the mean: exact, however
    unevenly frames are masked.
    """

    def micro(extra: PyTree, batch: Batch):
        def summed(params):
            total, (new_extra, metrics) = method.loss(params, extra, batch, key, state.step, train=True)
            return total.total, (new_extra, {"objective": total} | metrics)

        return jax.grad(summed, has_aux=True)(state.params)

    def body(carry, batch):
        grads, (extra, metrics) = micro(carry[1], batch)
        return (jax.tree.map(jnp.add, carry[0], grads), extra), metrics

    if jax.tree.leaves(batches)[0].shape[0] == 1:
        grads, (extra, metrics) = micro(state.extra, jax.tree.map(lambda x: x[0], batches))
    else:
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (grads, extra), metrics = jax.lax.scan(body, (zeros, state.extra), batches)
        metrics = jax.tree.map(lambda x: x.sum(axis=0), metrics)
    return grads, extra, metrics


def train_step(
    method: Method,
    tx: optax.GradientTransformationExtraArgs,
    rate: Schedule,
    state: State,
    batches: Batch,
    key: jax.Array,
) -> tuple[State, Metrics]:
    """One update from micro-batches [A B ...] and the run's key. Step n's randomness is fold_in(key, n).

    A loss or gradient that is not finite leaves params, extra and optimizer as they were; "skipped" is then 1.
    The norm is that of the summed gradient, scaled: XLA would keep a scaled gradient that is reduced, too, in memory.
    """
    grads, extra, metrics = gradients(method, state, batches, jax.random.fold_in(key, state.step))
    objective = metrics["objective"]
    with jax.named_scope("optimizer"):
        share = 1.0 / jnp.maximum(objective.weight, 1e-8)
        norm = optax.tree.norm(grads) * share
        finite = jnp.isfinite(norm) & jnp.isfinite(objective.total)
        mean = jax.tree.map(lambda g: g * share, grads)
        updates, opt = tx.update(mean, state.opt, state.params, count=state.step, norm=norm, finite=finite)
        params = optax.apply_updates(state.params, updates)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        new = State(state.step + 1, keep(params, state.params), keep(extra, state.extra), opt)
    values = {name: mean.value() for name, mean in metrics.items()}
    values |= {"grad_norm": norm, "learning_rate": rate(state.step), "skipped": 1.0 - finite.astype(jnp.float32)}
    return new, values


def jitted(
    method: Method, tx: optax.GradientTransformationExtraArgs, rate: Schedule, state: PyTree
) -> Callable[[State, Batch, jax.Array], tuple[State, Metrics]]:
    """`train_step` as one program, which takes the memory of the state it is given. state: as `create_state` says."""
    places = jax.tree.map(lambda shape: shape.sharding, state)
    return jax.jit(functools.partial(train_step, method, tx, rate), donate_argnums=0, out_shardings=(places, None))


def eval_step(method: Method, state: State, batches: Batch, key: jax.Array) -> dict[str, Mean]:
    """Metrics of one evaluation batch [1 B ...] as Means; the caller adds them up. No dropout, fixed draws."""
    batch = jax.tree.map(lambda x: x[0], batches)
    total, (_, metrics) = method.loss(state.params, state.extra, batch, key, state.step, train=False)
    return {"objective": total} | metrics
