"""The k-means quantizer, one codebook for several groups, and what keeps codes alive."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.nn.quantizers import (
    GumbelQuantizer,
    KMeansQuantizer,
    Quantized,
    commitment,
    distances,
    first_life,
    k_means,
    revive,
)
from w2v_jax.ops import random as noises

B, F, C, G, V, E = 2, 9, 8, 2, 6, 4
VALID = jnp.asarray(np.arange(F) < np.asarray([[F], [6]]))
X = jax.random.normal(jax.random.key(0), (B, F, C))


@pytest.fixture(params=[True, False], ids=["shared", "own"])
def fitted(request):
    """(quantizer, params with codes of the inputs' size, what it makes of X)."""
    quantizer = KMeansQuantizer(groups=G, codes=V, dim=G * E, shared=request.param)
    params = nn.unbox(quantizer.init(jax.random.key(2), X, VALID))["params"]
    params["codebook"] = 100 * params["codebook"]
    return quantizer, params, quantizer.apply({"params": params}, X, VALID)


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
    through = jax.grad(lambda p: (quantizer.apply({"params": p}, X, VALID).vectors * weight).sum())(params)
    direct = jax.grad(lambda p: (quantizer.apply({"params": p}, X, VALID).inputs * weight).sum())(params)
    assert not np.any(through["codebook"])
    np.testing.assert_allclose(through["projection"], direct["projection"], rtol=1e-5)
    loss = lambda p: commitment(quantizer.apply({"params": p}, X, VALID), VALID, 0.25).sum()
    assert np.any(jax.grad(loss)(params)["codebook"])


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
    return revive(life, quantized, book, valid=VALID, noise=noise, step=jnp.int32(step), **law), inputs, book


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
