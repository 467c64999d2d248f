"""The Gumbel quantizer: hard codes forward, soft gradients backward, perplexities, temperature."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.nn.quantizers import (
    GumbelQuantizer,
    code_perplexity,
    code_usage,
    perplexity,
    prob_perplexity,
    temperature,
)
from w2v_jax.ops import random as noises

B, M, C, G, V, E = 2, 5, 8, 2, 6, 3
TAU = jnp.float32(0.7)
QUANTIZER = GumbelQuantizer(groups=G, codes=V, dim=G * E)


class Case:
    """Inputs, parameters, noise, and one noisy and one noiseless pass."""

    def __init__(self):
        self.x = jax.random.normal(jax.random.key(0), (B, M, C))
        self.gumbel = noises.gumbel(noises.row_noise(jax.random.key(1), jnp.arange(B)), M, G, V)
        init = jax.jit(lambda key: nn.unbox(QUANTIZER.init(key, self.x, TAU, None))["params"])
        self.params = init(jax.random.key(2))
        self.params["weight_proj"]["kernel"] *= 0.3  # softer than at the start, so that gradients are visible
        apply = jax.jit(lambda params, x, tau, gumbel: QUANTIZER.apply({"params": params}, x, tau, gumbel))
        self.apply = apply
        self.noisy = apply(self.params, self.x, TAU, self.gumbel)
        self.quiet = apply(self.params, self.x, TAU, None)

    def logits(self, params, x):
        dense = params["weight_proj"]
        return (x @ dense["kernel"] + dense["bias"]).reshape(B, M, G, V)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.mark.parametrize("which", ["noisy", "quiet"])
def test_forward_value_is_exactly_a_code(case, which):
    quantized = getattr(case, which)
    book, chosen = np.asarray(case.params["codebook"]), np.asarray(quantized.chosen)
    expected = np.stack([book[g][chosen[..., g]] for g in range(G)], axis=-2).reshape(B, M, G * E)
    np.testing.assert_array_equal(quantized.vectors, expected)


def test_sample_is_the_arg_max_of_the_noisy_logits(case):
    np.testing.assert_allclose(case.noisy.logits, case.logits(case.params, case.x), atol=1e-5)
    np.testing.assert_array_equal(case.noisy.chosen, jnp.argmax(case.noisy.logits + case.gumbel, axis=-1))
    np.testing.assert_array_equal(case.noisy.codes, jnp.argmax(case.noisy.logits, axis=-1))
    assert np.any(np.asarray(case.noisy.chosen) != np.asarray(case.noisy.codes)), "the case has no noisy choice"


def test_without_noise_the_codes_are_deterministic(case):
    np.testing.assert_array_equal(case.quiet.chosen, case.quiet.codes)
    np.testing.assert_array_equal(case.apply(case.params, case.x, jnp.float32(2.0), None).vectors, case.quiet.vectors)


def test_lookup_gives_the_vectors_of_the_codes(case):
    found = QUANTIZER.apply({"params": case.params}, case.quiet.codes, method=GumbelQuantizer.lookup)
    np.testing.assert_array_equal(found, case.quiet.vectors)


@pytest.fixture(scope="module")
def gradients(case):
    """(ours, those of the soft sample, those of the hard sample) of a random linear function of the vectors."""
    weight = jax.random.normal(jax.random.key(3), (B, M, G * E))
    hard = jax.nn.one_hot(case.noisy.chosen, V)

    def ours(params, x):
        return (case.apply(params, x, TAU, case.gumbel).vectors * weight).sum()

    def mixed(sample, book):
        return (jnp.einsum("bmgv,gve->bmge", sample, book).reshape(B, M, G * E) * weight).sum()

    def soft(params, x):
        sample = jax.nn.softmax((case.logits(params, x) + case.gumbel) / TAU, axis=-1)
        return mixed(sample, params["codebook"])

    both = [jax.jit(jax.grad(f, argnums=(0, 1)))(case.params, case.x) for f in (ours, soft)]
    return *both, jax.grad(lambda book: mixed(hard, book))(case.params["codebook"])


def test_gradient_of_logits_and_input_is_that_of_the_soft_sample(gradients):
    (ours, x), (soft, soft_x), _ = gradients
    assert np.abs(soft_x).max() > 1e-2
    np.testing.assert_allclose(x, soft_x, atol=1e-5)
    for leaf in ("kernel", "bias"):
        np.testing.assert_allclose(ours["weight_proj"][leaf], soft["weight_proj"][leaf], atol=1e-5)


def test_codebook_gets_the_gradient_of_its_chosen_codes(case, gradients):
    (ours, _), (soft, _), hard = gradients
    np.testing.assert_allclose(ours["codebook"], hard, atol=1e-5)
    assert np.abs(ours["codebook"]).max() > 0.1
    assert np.abs(ours["codebook"] - soft["codebook"]).max() > 0.1  # not a mixture of codes
    chosen = np.asarray(case.noisy.chosen)
    for g in range(G):
        idle = np.setdiff1d(np.arange(V), chosen[..., g])
        assert not np.any(np.asarray(ours["codebook"])[g, idle])


def test_indivisible_width_is_an_error():
    with pytest.raises(UserError, match="7 is not divisible by 2"):
        GumbelQuantizer(groups=2, codes=3, dim=7).init(jax.random.key(0), jnp.ones((1, 1, 4)), TAU, None)


def test_perplexity_of_uniform_and_single_codes():
    groups, codes = 2, 320
    uniform = jnp.full((groups, codes), 1 / codes)
    single = jax.nn.one_hot(jnp.asarray([3, 7]), codes)
    np.testing.assert_allclose(perplexity(uniform), groups * codes, rtol=1e-4)
    np.testing.assert_allclose(perplexity(single), groups, rtol=1e-5)
    half = (jax.nn.one_hot(0, codes) + jax.nn.one_hot(1, codes)) / 2
    np.testing.assert_allclose(perplexity(jnp.stack([half, uniform[0]])), 2 + codes, rtol=1e-4)


def test_unit_perplexities_pool_the_used_frames_of_each_unit():
    rng = np.random.default_rng(0)
    rows, units = 6, 3
    logits = rng.normal(size=(rows, M, G, V)).astype(np.float32) * 2
    used = rng.random((rows, M)) < 0.6
    used[4:] = False  # a unit without any frame
    codes = logits.argmax(-1)
    hard = code_perplexity(jnp.asarray(codes), jnp.asarray(used), units, size=V)
    soft = prob_perplexity(jnp.asarray(logits), jnp.asarray(used), units)
    assert np.isfinite(hard).all() and np.isfinite(soft).all()

    def entropy_sum(p):
        return np.exp(-(p * np.log(p + 1e-7)).sum(-1)).sum()

    for unit in range(2):
        pick = slice(2 * unit, 2 * unit + 2)
        values = logits[pick][used[pick]]  # [n G V]
        probs = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
        counts = np.stack([np.bincount(values[:, g].argmax(-1), minlength=V) for g in range(G)]) / len(values)
        np.testing.assert_allclose(hard[unit], entropy_sum(counts), rtol=1e-5)
        np.testing.assert_allclose(soft[unit], entropy_sum(probs.mean(0)), rtol=1e-5)


def test_usage_is_the_share_of_each_code_among_the_used_frames():
    rng = np.random.default_rng(0)
    codes, used = jnp.asarray(rng.integers(V, size=(4, M, G))), jnp.asarray(rng.random((4, M)) < 0.6)
    shares = code_usage(codes, used, size=V).value()
    for g in range(G):
        counts = np.bincount(np.asarray(codes)[..., g][np.asarray(used)], minlength=V)
        np.testing.assert_allclose(shares[g], counts / counts.sum(), rtol=1e-6)
    np.testing.assert_allclose(perplexity(shares), code_perplexity(codes, used, 1, size=V)[0], rtol=1e-6)
    nothing = code_usage(codes, jnp.zeros_like(used), size=V).value()
    np.testing.assert_array_equal(nothing, np.zeros((G, V)))


@pytest.mark.parametrize(
    ("step", "end", "expected"),
    [
        *[(0, 0.5, 2.0), (277_258, 0.5, 0.5), (250_000, 0.5, 0.5730), (400_000, 0.5, 0.5)],
        *[(400_000, 0.1, 0.2707), (599_145, 0.1, 0.1)],
    ],
)
def test_temperature_follows_the_published_law(step, end, expected):
    np.testing.assert_allclose(temperature(jnp.int32(step), (2.0, end, 0.999995)), expected, rtol=5e-4)


def test_temperature_in_float32_keeps_to_the_law_over_a_whole_run():
    steps = np.arange(0, 600_001, 50_000)
    ours = temperature(jnp.asarray(steps), (2.0, 0.0, 0.999995))
    np.testing.assert_allclose(ours, 2.0 * 0.999995**steps, rtol=1e-5)
