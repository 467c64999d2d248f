"""One update and one evaluation step: generic and pure. They know neither the method nor the data."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from w2v_jax.core.config import Config
from w2v_jax.core.types import Batch, Mean, Method, PyTree, State
from w2v_jax.training import optimizer, sharding
from w2v_jax.training.optimizer import Schedule

Metrics = dict[str, jax.Array]


def make_optimizer(
    config: Config, method: Method, key: jax.Array, *, batch: PyTree
) -> tuple[optax.GradientTransformationExtraArgs, Schedule]:
    """(the optimizer, its rules matched to the method's parameters; the learning rate). batch: one micro-batch."""
    params, _ = initial_shapes(method, key, batch=batch)
    rate = optimizer.schedule(config.optim, config.train.steps)
    return optimizer.optimizer(config.optim, rate, sharding.bare(params)), rate


def initial_shapes(method: Method, key: jax.Array, *, batch: PyTree) -> tuple[PyTree, PyTree]:
    """Shapes of what `method.init` returns, boxed with logical axis names. JAX traces it once per method and batch."""
    return jax.eval_shape(method.init, key, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch))


def init_state(method: Method, tx: optax.GradientTransformationExtraArgs, key: jax.Array, *, batch: Batch) -> State:
    """The state before the first update; leaves are boxed with logical axis names. batch is one micro-batch."""
    return _state_of(tx, *method.init(key, batch))


def _state_of(tx: optax.GradientTransformationExtraArgs, params: PyTree, extra: PyTree) -> State:
    """The state around these parameters before the first update."""
    return State(jnp.zeros((), jnp.int32), params, extra, opt=tx.init(params))


def create_state(
    method: Method,
    tx: optax.GradientTransformationExtraArgs,
    key: jax.Array,
    *,
    batch: PyTree,
    mesh: Mesh | AbstractMesh,
) -> tuple[Callable[[], State], PyTree]:
    """(a function that makes the state, born sharded; the state's ShapeDtypeStructs with shardings)."""
    abstract = jax.eval_shape(functools.partial(_state_of, tx), *initial_shapes(method, key, batch=batch))
    places = sharding.shardings(abstract, mesh)
    make = jax.jit(lambda: sharding.bare(init_state(method, tx, key, batch=zeros_like(batch))), out_shardings=places)
    shapes = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), sharding.bare(abstract), places
    )
    return make, shapes


def zeros_like(batch: PyTree) -> PyTree:
    """A batch of zeros with the shapes of `batch`."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)


def gradients(
    method: Method, state: State, batch: Batch, *, extra: PyTree, key: jax.Array
) -> tuple[PyTree, PyTree, dict[str, Mean]]:
    """(gradient of the summed loss, extra, metrics) of one micro-batch, whose leaves are [B ...].

    Divided by the weight of metrics["objective"], it is the gradient of the mean.
    """
    loss = lambda params: method.loss(params, extra, batch, key, state.step, train=True)
    objective, pullback, (extra, metrics) = jax.vjp(loss, state.params, has_aux=True)
    (grads,) = pullback(Mean(jnp.ones_like(objective.total), jnp.zeros_like(objective.weight)))
    return grads, extra, {"objective": objective} | metrics


def accumulated_gradients(
    method: Method, state: State, batches: Batch, *, key: jax.Array
) -> tuple[PyTree, PyTree, dict[str, Mean]]:
    """The sum of `gradients` and of their metrics over A micro-batches [A B ...], one after the other.

    The mean is exact, however unevenly frames are masked.
    """

    def add(carry: tuple[PyTree, PyTree], batch: Batch) -> tuple[tuple[PyTree, PyTree], dict[str, Mean]]:
        grads, extra, metrics = gradients(method, state, batch, extra=carry[1], key=key)
        return (jax.tree.map(jnp.add, carry[0], grads), extra), metrics

    start = jax.tree.map(jnp.zeros_like, state.params), state.extra
    (grads, extra), metrics = jax.lax.scan(add, start, batches)
    return grads, extra, jax.tree.map(lambda x: x.sum(axis=0), metrics)


def train_step(
    state: State,
    batches: Batch,
    key: jax.Array,
    *,
    method: Method,
    tx: optax.GradientTransformationExtraArgs,
    rate: Schedule,
) -> tuple[State, Metrics]:
    """One update from micro-batches [A B ...] and the run's key. Step n's randomness is fold_in(key, n).

    A loss or gradient that is not finite leaves params, extra and optimizer as they were; "skipped" is then 1.
    """
    key = jax.random.fold_in(key, state.step)
    if jax.tree.leaves(batches)[0].shape[0] == 1:
        batch = jax.tree.map(lambda x: x[0], batches)
        grads, extra, metrics = gradients(method, state, batch, extra=state.extra, key=key)
    else:
        grads, extra, metrics = accumulated_gradients(method, state, batches, key=key)
    objective = metrics["objective"]
    with jax.named_scope("optimizer"):
        share = 1.0 / jnp.maximum(objective.weight, 1e-8)
        norm = optax.tree.norm(grads) * share  # not the norm of `mean`: XLA would materialise a scaled copy for it
        finite = jnp.isfinite(norm) & jnp.isfinite(objective.total)
        mean = jax.tree.map(lambda g: g * share, grads)
        updates, opt = tx.update(mean, state.opt, state.params, count=state.step, norm=norm, finite=finite)
        params = optax.apply_updates(state.params, updates)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        new = State(state.step + 1, keep(params, state.params), keep(extra, state.extra), opt=opt)
    values = {name: mean.value() for name, mean in metrics.items()}
    values |= {"grad_norm": norm, "learning_rate": rate(state.step), "skipped": 1.0 - finite.astype(jnp.float32)}
    return new, values


def jitted(
    method: Method, tx: optax.GradientTransformationExtraArgs, rate: Schedule, *, state: PyTree
) -> Callable[[State, Batch, jax.Array], tuple[State, Metrics]]:
    """`train_step` as one program, which takes the memory of the state it is given. state: as `create_state` says."""
    places = jax.tree.map(lambda shape: shape.sharding, state)
    update = functools.partial(train_step, method=method, tx=tx, rate=rate)
    return jax.jit(update, donate_argnums=0, out_shardings=(places, None))


def updates(
    method: Method, tx: optax.GradientTransformationExtraArgs, rate: Schedule, *, state: PyTree
) -> Callable[[int], Callable[[State, Batch, jax.Array], tuple[State, Metrics]]]:
    """A function from the number of an update, from 1, to its program: `jitted` of the loss that it has."""
    early = [(last, jitted(method._replace(loss=loss), tx, rate, state=state)) for last, loss in method.early]
    usual = jitted(method, tx, rate, state=state)
    return lambda n: next((program for last, program in early if n <= last), usual)


def eval_step(state: State, batches: Batch, key: jax.Array, *, method: Method) -> dict[str, Mean]:
    """Metrics of one evaluation batch [1 B ...] as Means; the caller adds them up. No dropout, fixed draws.

    They are those of the running mean of the parameters where the optimizer keeps one.
    """
    batch = jax.tree.map(lambda x: x[0], batches)
    total, (_, metrics) = method.loss(optimizer.weights(state), state.extra, batch, key, state.step, train=False)
    return {"objective": total} | metrics
