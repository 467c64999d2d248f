"""Adam, decay, schedules and rules against NumPy copies of fairseq's formulas."""

from __future__ import annotations

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.core.types import State
from w2v_jax.training import optimizer

STEPS = 1000


def settings(**changes) -> SimpleNamespace:
    values = dict(schedule="polynomial", peak=5e-4, start=0.0, end=0.0, warmup=100, power=1.0, stages=(0.1, 0.4, 0.5))
    values |= dict(betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, clip_norm=0.0, average=0.0, rules=())
    return SimpleNamespace(**(values | changes))


def rates(steps, **changes) -> np.ndarray:
    return np.asarray(jax.vmap(optimizer.schedule(settings(**changes), STEPS))(jnp.asarray(steps)))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    leaf = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    encoder = {"frontend": {"kernel": leaf(3, 4), "bias": leaf(4)}, "norm": {"scale": leaf(4)}}
    return {"encoder": encoder, "head": leaf(4, 2)}


def gradient(params, step: int, scale: float = 1.0):
    rng = np.random.default_rng(step)
    leaf = lambda p: jnp.asarray(scale * rng.normal(size=p.shape) * 10.0 ** rng.integers(-5, 2), jnp.float32)
    return jax.tree.map(leaf, params)


def updated(params, tx, steps: int, scale: float = 1.0):
    """The parameters after `steps` updates."""
    opt = tx.init(params)
    update = jax.jit(lambda g, opt, p, n: tx.update(g, opt, p, count=n))
    for step in range(steps):
        updates, opt = update(gradient(params, step, scale), opt, params, jnp.int32(step))
        params = optax.apply_updates(params, updates)
    return params


def reference_adam(p, grads, rates, decay, beta1=0.9, beta2=0.98, eps=1e-6):
    """fairseq's loop: decay first, then a step whose eps stands beside the uncorrected root."""
    p = np.asarray(p, np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        step_size = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        p = p - lr * decay * p
        p = p - step_size * m / (np.sqrt(v) + eps)
    return p


def test_adam_and_decay_equal_the_references_formula(params):
    """Large learning rate and tiny gradients, so that eps, its place and the decay are visible."""
    steps, rate = 12, 0.02
    tx = optimizer.optimizer(settings(weight_decay=0.1), lambda n: rate / (1 + n), params)
    ours = updated(params, tx, steps)
    grads = [jax.tree.map(np.asarray, gradient(params, n)) for n in range(steps)]
    lrs = [rate / (1 + n) for n in range(steps)]
    for leaf, start, *history in zip(*map(jax.tree.leaves, (ours, params, *grads)), strict=True):
        np.testing.assert_allclose(leaf, reference_adam(start, history, lrs, 0.1), rtol=2e-5, atol=2e-6)


def test_eps_stands_before_the_bias_correction():
    tx = optimizer.adam(0.9, 0.98, 1e-6)
    params = {"w": jnp.zeros(1)}
    update, _ = tx.update({"w": jnp.asarray([1e-6])}, tx.init(params))
    expected = 1e-7 / (math.sqrt(0.02) * 1e-6 + 1e-6) * math.sqrt(0.02) / 0.1
    np.testing.assert_allclose(update["w"], expected, rtol=1e-5)
    assert abs(expected - 0.5) > 0.1  # what eps after the correction would give


def test_weight_decay_is_decoupled_and_falls_on_every_parameter(params):
    """With zero gradients only the decay moves the parameters: biases and norms too."""
    tx = optimizer.optimizer(settings(weight_decay=0.5), lambda n: 0.1, params)
    opt = tx.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, opt, params, count=jnp.int32(0))
    for u, p in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(u, -0.05 * p, rtol=1e-6)


def test_clip_norm_limits_the_gradient_and_0_never_clips(params):
    def first_moments(clip_norm, scale):
        tx = optimizer.optimizer(settings(clip_norm=clip_norm), lambda n: 1e-3, params)
        grads = gradient(params, 0, scale)
        _, opt = tx.update(grads, tx.init(params), params, count=jnp.int32(0), norm=optax.tree.norm(grads))
        return next(s for s in opt if isinstance(s, optimizer.AdamState)).mu

    raw = optax.tree.norm(gradient(params, 0, 1.0))
    np.testing.assert_allclose(optax.tree.norm(first_moments(0.5, 1.0)), 0.1 * min(0.5, raw), rtol=1e-5)
    np.testing.assert_allclose(optax.tree.norm(first_moments(0.0, 1e3)), 0.1 * 1e3 * raw, rtol=1e-5)


def test_the_mean_of_the_weights_follows_them_and_changes_no_update(params):
    without, tx = (optimizer.optimizer(settings(average=x), lambda n: 0.1, params) for x in (0.0, 0.5))
    opt, weights, mean = tx.init(params), params, {}
    for step in range(4):
        updates, opt = tx.update(gradient(params, step), opt, weights, count=jnp.int32(step))
        weights = optax.apply_updates(weights, updates)
        share = 1 - min(0.5, step / (step + 9))
        mean = optax.incremental_update(weights, mean or weights, share)
    state = State(jnp.int32(4), weights, {}, opt)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), optimizer.weights(state), mean)
    expected = updated(params, without, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), weights, expected)
    assert optimizer.weights(State(jnp.int32(4), weights, {}, without.init(params))) is weights


def test_an_update_that_is_not_finite_leaves_the_mean_as_it_is(params):
    tx = optimizer.optimizer(settings(average=0.5), lambda n: 0.1, params)
    opt = tx.init(params)
    broken = jax.tree.map(lambda p: p * jnp.nan, params)
    _, after = tx.update(broken, opt, params, count=jnp.int32(0), finite=jnp.bool_(False))
    jax.tree.map(np.testing.assert_array_equal, after[-1], opt[-1])


def test_polynomial_schedule_at_its_key_points():
    values = rates([0, 1, 50, 100, 550, 1000, 2000])
    first = 5e-4 / 100  # the first update moves, as in fairseq
    np.testing.assert_allclose(values, [first, first, 2.5e-4, 5e-4, 2.5e-4, 0, 0], rtol=1e-5, atol=1e-10)
    values = rates([100, 550, 1000], power=2.0, end=1e-4)
    np.testing.assert_allclose(values, [5e-4, 1e-4 + 4e-4 / 4, 1e-4], rtol=1e-5)


def test_cosine_schedule_at_its_key_points():
    values = rates([1, 50, 100, 325, 550, 1000, 2000], schedule="cosine", start=1e-7, end=1e-5)
    quarter = 1e-5 + 0.5 * (5e-4 - 1e-5) * (1 + math.cos(math.pi / 4))
    rising = [1e-7 + 4.999e-6, 0.5 * (5e-4 + 1e-7), 5e-4]
    np.testing.assert_allclose(values, [*rising, quarter, 2.55e-4, 1e-5, 1e-5], rtol=1e-4)


def test_tri_stage_schedule_at_its_key_points():
    """Stages of 100 and 400 updates, then an exponential decay down to a twentieth of the peak."""
    peak = 5e-4
    law = dict(schedule="tri_stage", start=0.01 * peak, end=0.05 * peak)
    values = rates([1, 50, 100, 300, 500, 750, 1000, 1500], **law) / peak
    np.testing.assert_allclose(values, [0.01 + 0.99 / 100, 0.505, 1, 1, 1, math.sqrt(0.05), 0.05, 0.05], rtol=1e-4)


@pytest.mark.parametrize("schedule", optimizer.SCHEDULES)
def test_schedules_never_exceed_the_peak_nor_jump(schedule):
    values = rates(np.arange(STEPS + 1), schedule=schedule, end=1e-5)
    assert values.max() <= 5e-4 * (1 + 1e-6)
    assert np.abs(np.diff(values)).max() < 1.01 * 5e-4 / 100


def test_schedule_of_base_at_full_length():
    rate = optimizer.schedule(settings(warmup=32_000), 400_000)
    np.testing.assert_allclose(rate(jnp.int32(16_000)), 2.5e-4, rtol=1e-6)
    np.testing.assert_allclose(rate(jnp.int32(32_000)), 5e-4, rtol=1e-6)
    np.testing.assert_allclose(rate(jnp.int32(399_999)), 5e-4 / 368_000, rtol=0.05)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(schedule="linear"), "optim.schedule is 'linear'"),
        (dict(warmup=STEPS), "optim.warmup"),
        (dict(schedule="tri_stage"), "optim.end must be above 0"),
    ],
)
def test_impossible_schedules_are_errors_for_people(changes, words):
    with pytest.raises(UserError, match=words):
        optimizer.schedule(settings(**changes), STEPS)


def test_first_matching_rule_decides(params):
    rules = (("frontend/bias", 0.5, 0.2), ("encoder/", 0.1, 0.0), ("bias", 9.0, 9.0))
    scale, decay = optimizer.apply_rules(params, rules[:2], 0.01)
    assert scale == {"encoder": {"frontend": {"kernel": 0.1, "bias": 0.5}, "norm": {"scale": 0.1}}, "head": 1.0}
    assert decay == {"encoder": {"frontend": {"kernel": 0.0, "bias": 0.2}, "norm": {"scale": 0.0}}, "head": 0.01}


def test_rules_scale_the_learning_rate_and_the_decay(params):
    rule = (("head", 0.25, 0.3),)
    plain = updated(params, optimizer.optimizer(settings(weight_decay=0.3), lambda n: 0.01, params), 1)
    ruled = updated(params, optimizer.optimizer(settings(weight_decay=0.3, rules=rule), lambda n: 0.01, params), 1)
    moved = plain["head"] - params["head"]
    np.testing.assert_allclose(ruled["head"] - params["head"], 0.25 * moved, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(ruled["encoder"]["norm"]["scale"], plain["encoder"]["norm"]["scale"])


def test_frozen_parameters_stay_bit_equal(params):
    tx = optimizer.optimizer(settings(rules=(("encoder/frontend/", 0.0, 0.0),)), lambda n: 0.1, params)
    after = updated(params, tx, 5)
    jax.tree.map(np.testing.assert_array_equal, after["encoder"]["frontend"], params["encoder"]["frontend"])
    assert np.abs(after["head"] - params["head"]).min() > 1e-3


def test_rule_that_matches_nothing_is_an_error_with_the_names(params):
    with pytest.raises(UserError, match="'encodr' matches no parameter.*encoder/frontend/bias"):
        optimizer.apply_rules(params, (("encodr", 0.0, 0.0),), 0.01)
