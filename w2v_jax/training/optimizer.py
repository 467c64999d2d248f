"""Optimizer: Adam with fairseq's details, learning-rate schedules, per-parameter rules, and a mean of the weights.

One optax transformation per run. Learning rate, decay and freezing of a parameter are decided by the first rule
whose regular expression matches its path, e.g. ("encoder/frontend/", 0.0, 0.0) freezes the convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.types import PyTree, State
from w2v_jax.ops.moving_average import moving_average, rising_decay

Schedule = Callable[[jax.Array], jax.Array]

SCHEDULES = ("polynomial", "cosine", "tri_stage")


def schedule(optim: Any, steps: int) -> Schedule:
    """The learning rate as a function of the update number, for the config's optim section.

    polynomial: linear warm-up over `warmup` updates, then end + (peak - end) * (1 - progress) ** power.
    cosine: linear warm-up from `start`, then half a cosine down to `end`.
    tri_stage: warm-up, hold and decay as shares `stages` of the run; the decay is exponential down to `end`.
    `start`, `end` are learning rates.
    """
    if optim.schedule not in SCHEDULES:
        raise UserError(f"optim.schedule is {optim.schedule!r}; it is one of {', '.join(SCHEDULES)}")
    peak, start, end = optim.peak, optim.start, optim.end
    warmup, hold = optim.warmup, 0
    if optim.schedule == "tri_stage":
        warmup, hold = (int(share * steps) for share in optim.stages[:2])
        if end <= 0:
            raise UserError("optim.end must be above 0 for tri_stage: its decay is exponential")
    if warmup + hold >= steps:
        raise UserError(f"optim.warmup ({warmup}) must be below train.steps ({steps}): the peak would never be reached")

    def rate(step: jax.Array) -> jax.Array:
        n = jnp.asarray(step, jnp.float32)
        rising = start + (peak - start) * jnp.maximum(n, 1.0) / max(warmup, 1)  # the first update moves, too
        progress = jnp.clip((n - warmup - hold) / (steps - warmup - hold), 0.0, 1.0)
        if optim.schedule == "polynomial":
            falling = end + (peak - end) * (1.0 - progress) ** optim.power
        elif optim.schedule == "cosine":
            falling = end + 0.5 * (peak - end) * (1.0 + jnp.cos(jnp.pi * progress))
        else:
            falling = peak * (end / peak) ** progress
        return jnp.where(n < warmup, rising, falling)

    return rate


class AdamState(NamedTuple):
    """count of updates, first and second moments (float32, like the parameters)."""

    count: jax.Array
    mu: PyTree
    nu: PyTree

    __repr__ = short_repr


def adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Adam whose eps is added before the bias correction, as in fairseq (optim/adam.py).

    update = m * sqrt(1 - beta2^t) / (1 - beta1^t) / (sqrt(v) + eps). Differs from `optax.scale_by_adam`, which adds
    eps after the correction: the effective eps is larger in the first updates.

    With `finite` False (a scalar) the state stays as it is and the update has no meaning. Deciding this here lets XLA
    write the new moments over the old ones; a choice made afterwards would copy the old ones first.
    """

    def init(params: PyTree) -> AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: Any, params: Any = None, *, finite: Any = True, **_: Any) -> tuple[Any, Any]:
        t = (state.count + 1).astype(jnp.float32)
        correction = jnp.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
        kept = lambda new, old: jnp.where(finite, new, old)
        mu = jax.tree.map(lambda m, g: kept(beta1 * m + (1.0 - beta1) * g, m), state.mu, grads)
        nu = jax.tree.map(lambda v, g: kept(beta2 * v + (1.0 - beta2) * g * g, v), state.nu, grads)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, AdamState(kept(state.count + 1, state.count), mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def clip(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scales a gradient whose norm is above max_norm down to it. Its update is given the gradient's `norm`."""

    def init(params: PyTree) -> optax.EmptyState:
        return optax.EmptyState()

    def update(grads: Any, state: Any, params: Any = None, *, norm: jax.Array, **_: Any) -> tuple[Any, Any]:
        scale = jnp.minimum(1.0, max_norm / norm)
        return jax.tree.map(lambda g: g * scale, grads), state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


class AverageState(NamedTuple):
    """count of updates, and the running mean of the parameters after each (float32)."""

    count: jax.Array
    mean: PyTree

    __repr__ = short_repr


def average(decay: float) -> optax.GradientTransformationExtraArgs:
    """Keeps the running mean of the parameters (`moving_average`), and leaves updates as they are. The last of a chain.

    Without `finite` the mean stays as it is, like the parameters.
    """

    def init(params: PyTree) -> AverageState:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: Any, params: Any = None, *, finite: Any = True, **_: Any) -> tuple[Any, Any]:
        mean = moving_average(state.mean, optax.apply_updates(params, updates), rising_decay(decay, state.count))
        new = AverageState(state.count + 1, mean)
        return updates, jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def weights(state: State) -> PyTree:
    """The parameters that are evaluated and used: their running mean where the optimizer keeps one."""
    return next((part.mean for part in state.opt if isinstance(part, AverageState)), state.params)


def path_name(path: Sequence[Any]) -> str:
    """ "encoder/frontend/conv0/kernel" of a key path."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)


def apply_rules(
    params: PyTree, rules: Sequence[tuple[str, float, float]], weight_decay: float
) -> tuple[PyTree, PyTree]:
    """(learning-rate scale, weight decay) of each parameter: the first (regex, scale, decay) found in its path.

    Without a match scale is 1 and decay `weight_decay`. A rule that matches no parameter is a UserError.
    """
    used: set[str] = set()

    def find(path: Sequence[Any], _: Any) -> tuple[float, float]:
        name = path_name(path)
        for pattern, scale, decay in rules:
            if re.search(pattern, name):
                used.add(pattern)
                return scale, decay
        return 1.0, weight_decay

    rates = jax.tree_util.tree_map_with_path(find, params)
    for pattern, _, _ in rules:
        if pattern not in used:
            names = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
            raise UserError(f"optim.rules: {pattern!r} matches no parameter; there are {', '.join(names[:8])}, ...")
    pairs = dict(is_leaf=lambda x: isinstance(x, tuple))
    return jax.tree.map(lambda x: x[0], rates, **pairs), jax.tree.map(lambda x: x[1], rates, **pairs)


def optimizer(optim: Any, rate: Schedule, params: PyTree) -> optax.GradientTransformationExtraArgs:
    """Clip (optim.clip_norm, 0 = never), Adam, decoupled weight decay of every parameter, learning rate, mean.

    p <- p - lr * scale * (adam + decay * p). Frozen parameters (scale 0) stay bit-equal. params, which may be
    abstract, gives the parameters' paths. Its update is given `count` (of updates before), the gradient's `norm` if it
    clips, and `finite` (see `adam`). optim.average is the decay of a running mean of the parameters, 0 for none.
    """
    scale, decay = apply_rules(params, optim.rules, optim.weight_decay)

    def init(params: Any) -> Any:
        return ()

    def step(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        lr = rate(extra["count"])
        return jax.tree.map(lambda u, p, s, d: -lr * s * (u + d * p), updates, params, scale, decay), state

    first = [clip(optim.clip_norm)] if optim.clip_norm > 0 else []
    beta1, beta2 = optim.betas
    tail = optax.GradientTransformationExtraArgs(init, step)
    last = [average(optim.average)] if optim.average > 0 else []
    return optax.chain(*first, adam(beta1, beta2, optim.eps), tail, *last)
