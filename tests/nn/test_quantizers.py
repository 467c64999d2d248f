"""Both quantizers: codes, gradients and perplexities, one codebook for several groups, what keeps codes alive."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.nn.quantizers import (
    GumbelQuantizer,
    KMeansQuantizer,
    Quantized,
    code_perplexity,
    code_usage,
    commitment,
    distances,
    first_life,
    k_means,
    perplexity,
    prob_perplexity,
    revive,
    temperature,
)
from w2v_jax.ops import random as noises

B, M, F, C, G, V, E = 2, 5, 9, 8, 2, 6, 4
TAU = jnp.float32(0.7)
QUANTIZER = GumbelQuantizer(groups=G, codes=V, dim=G * E)
VALID = jnp.asarray(np.arange(F) < np.asarray([[F], [6]]))
X = jax.random.normal(jax.random.key(0), (B, F, C))


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


# k-means


@pytest.fixture(params=[True, False], ids=["shared", "own"])
def fitted(request):
    """(quantizer, params with codes of the inputs' size, what it makes of X)."""
    quantizer = KMeansQuantizer(groups=G, codes=V, dim=G * E, shared=request.param)
    params = nn.unbox(jax.jit(quantizer.init)(jax.random.key(2), X, VALID))["params"]
    params["codebook"] = 100 * params["codebook"]
    return quantizer, params, jax.jit(quantizer.apply)({"params": params}, X, VALID)


def test_every_frame_gets_its_nearest_code(fitted):
    quantizer, params, found = fitted
    inputs, book = np.asarray(found.inputs).reshape(B, F, G, E), np.asarray(params["codebook"])
    for b, f, g in np.ndindex(B, F, G):
        own = book[0 if quantizer.shared else g]
        nearest = np.argmin(((inputs[b, f, g] - own) ** 2).sum(-1))
        assert found.codes[b, f, g] == nearest
        np.testing.assert_array_equal(found.vectors[b, f].reshape(G, E)[g], own[nearest])
    assert book.shape == (1 if quantizer.shared else G, V, E)


def test_inputs_are_a_grouped_projection_with_a_norm_over_the_real_frames_of_each_group(fitted):
    _, params, found = fitted
    x = np.asarray(X).reshape(B, F, G, C // G)
    projected = np.einsum("bfgc,gce->bfge", x, params["projection"])
    for b, g in np.ndindex(B, G):
        real = projected[b, np.asarray(VALID)[b], g]
        expected = (projected[b, :, g] - real.mean()) / np.sqrt(real.var() + 1e-5)
        np.testing.assert_allclose(found.inputs[b].reshape(F, G, E)[:, g], expected, atol=1e-5)


def test_distances_differ_from_the_full_ones_by_the_length_of_the_input_alone():
    x, book = jax.random.normal(jax.random.key(1), (B, F, G, E)), jax.random.normal(jax.random.key(2), (G, V, E))
    full = jnp.square(x[:, :, :, None] - book).sum(-1)
    np.testing.assert_allclose(distances(x, book) + jnp.square(x).sum(-1)[..., None], full, atol=1e-5)


def test_gradient_passes_straight_through_and_the_codebook_learns_from_commitment_alone(fitted):
    quantizer, params, found = fitted
    weight = jax.random.normal(jax.random.key(3), (B, F, G * E))
    gradient = lambda loss: jax.jit(jax.grad(lambda p: loss(quantizer.apply({"params": p}, X, VALID))))(params)
    through = gradient(lambda found: (found.vectors * weight).sum())
    direct = gradient(lambda found: (found.inputs * weight).sum())
    assert not np.any(through["codebook"])
    np.testing.assert_allclose(through["projection"], direct["projection"], rtol=1e-5)
    assert np.any(gradient(lambda found: commitment(found, VALID, 0.25).sum())["codebook"])


def test_commitment_is_the_mean_over_real_frames_once_for_the_codes_and_gamma_for_the_features(fitted):
    _, _, found = fitted
    square = np.square(np.asarray(found.inputs) - np.asarray(found.entries))
    expected = [1.25 * square[b, np.asarray(VALID)[b]].mean() for b in range(B)]
    np.testing.assert_allclose(commitment(found, VALID, 0.25), expected, rtol=1e-5)
    none = commitment(found, jnp.zeros_like(VALID), 0.25)
    np.testing.assert_array_equal(none, 0.0)


def test_padding_changes_no_code(fitted):
    quantizer, params, found = fitted
    longer = jnp.pad(X, ((0, 0), (0, 3), (0, 0)), constant_values=7.0)
    again = quantizer.apply({"params": params}, longer, jnp.pad(VALID, ((0, 0), (0, 3))))
    np.testing.assert_array_equal(np.asarray(again.codes)[:, :F][VALID], np.asarray(found.codes)[VALID])


def test_one_gumbel_codebook_serves_all_groups():
    quantizer = GumbelQuantizer(G, V, G * E, inputs=C, shared=True)
    params = nn.unbox(quantizer.init(jax.random.key(1), X, jnp.float32(1.0), None))["params"]
    assert params["codebook"].shape == (1, V, E)
    assert params["hidden"]["kernel"].shape == (C, 2 * C) and params["weight_proj"]["kernel"].shape == (2 * C, G * V)
    found = quantizer.apply({"params": params}, X, jnp.float32(1.0), None)
    expected = np.asarray(params["codebook"])[0][np.asarray(found.codes)].reshape(B, F, G * E)
    np.testing.assert_array_equal(found.vectors, expected)


def life_of(codes, usage, *, step=1, threshold=0.5, iterations=0, groups=G):
    """(the state after `revive`, the inputs, the codebook) with every frame of X on the given codes."""
    inputs = jax.random.normal(jax.random.key(5), (B, F, G * E))
    chosen = jnp.broadcast_to(jnp.asarray(codes), (B, F, G))
    book = jax.random.normal(jax.random.key(6), (groups, V, E)) * 5
    life = first_life(groups, V, E) | {"usage": jnp.asarray(usage, jnp.float32)}
    noise = noises.row_noise(jax.random.key(7), jnp.arange(B))
    quantized = Quantized(inputs, chosen, chosen, None, inputs, inputs)
    law = dict(threshold=threshold, iterations=iterations)
    revived = jax.jit(lambda *x: revive(*x, valid=VALID, noise=noise, step=jnp.int32(step), **law))
    return revived(life, quantized, book), inputs, book


def test_a_dead_code_is_moved_onto_a_real_frame_and_the_others_stay():
    usage = np.full((G, V), 1 / V)
    usage[0, 3] = usage[1, 5] = 1e-4
    life, inputs, book = life_of([0, 1], usage)
    frames = np.asarray(inputs).reshape(B, F, G, E)[np.asarray(VALID)]
    moved = np.asarray(book + life["moved"])
    for g, v in np.ndindex(G, V):
        if (g, v) in ((0, 3), (1, 5)):
            assert np.abs(frames[:, g] - moved[g, v]).max(-1).min() < 1e-5, "not on a real frame"
            assert life["usage"][g, v] == pytest.approx(1 / V)
        else:
            np.testing.assert_array_equal(moved[g, v], book[g, v])
    np.testing.assert_allclose(life["usage"][0, 0], 0.99 / V + 0.01, rtol=1e-5)  # all frames were on it


def test_codes_are_left_alone_without_a_threshold_or_a_real_frame():
    life, _, _ = life_of([0, 0], np.full((G, V), 1e-6), threshold=0.0)
    assert not np.any(life["moved"])


def test_a_shared_codebook_is_revived_from_all_groups():
    life, inputs, book = life_of([0, 1], np.full((1, V), 1e-6), groups=1)
    frames = np.asarray(inputs).reshape(-1, E)
    near = [np.abs(frames - code).max(-1).min() for code in np.asarray(book + life["moved"])[0]]
    assert max(near[2:]) < 1e-5


def test_at_step_0_all_codes_become_centres_of_the_batch():
    life, inputs, book = life_of([0, 1], np.full((G, V), 1 / V), step=0, iterations=10)
    x = np.asarray(inputs).reshape(B, F, G, E)[np.asarray(VALID)]
    error = lambda centres: np.square(x[:, :, None] - np.asarray(centres)).sum(-1).min(-1).mean()
    assert error(book + life["moved"]) < 0.5 * error(book)
    later, _, _ = life_of([0, 1], np.full((G, V), 1 / V), step=1, iterations=10, threshold=0.0)
    assert not np.any(later["moved"])


def test_k_means_finds_separate_clouds_and_keeps_a_centre_without_points():
    rng = np.random.default_rng(0)
    centres = np.asarray([[[0.0, 0.0], [10.0, 10.0]]], np.float32)
    points = np.concatenate([centres[0, i] + 0.1 * rng.normal(size=(50, 2)) for i in range(2)]).astype(np.float32)
    start = jnp.asarray([[[1.0, 1.0], [7.0, 9.0], [99.0, 99.0]]])
    found = np.asarray(k_means(jnp.asarray(points[:, None]), jnp.ones(100), start, iterations=5))
    np.testing.assert_allclose(found[0, :2], centres[0], atol=0.1)
    np.testing.assert_array_equal(found[0, 2], 99.0)
