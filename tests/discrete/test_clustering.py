"""Laws of k-means: the nearest centre is scikit-learn's, a centre is the mean of its frames, starts are spread out."""

from __future__ import annotations

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.discrete.clustering import Clusters, nearest, plus_plus, start, updated

GOLDEN = pathlib.Path(os.environ.get("W2V_JAX_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden")
FILES = sorted(GOLDEN.glob("hubert_*kmeans*.npz"))


def clouds(count: int, centers: int, width: int, seed: int = 0, spread: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(centers, width))
    return (means[rng.integers(0, centers, count)] + spread * rng.normal(size=(count, width))).astype(np.float32)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_labels_are_those_of_the_golden_files(path):
    arrays = np.load(path)
    found = nearest(arrays["out/mfcc_deltas"], arrays["param/cluster_centers"][None])
    np.testing.assert_array_equal(found.codes[..., 0], arrays["out/labels"])
    np.testing.assert_allclose(found.gap[..., 0], arrays["out/distance_gap"], rtol=1e-3, atol=2e-2)
    assert float(found.distance.mean()) == pytest.approx(float(arrays["out/inertia_per_frame"]), rel=1e-4)


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_labels_are_scikit_learns_given_the_same_centres(offset):
    """Also where all vectors share a large offset, which would cost the digits of their differences."""
    from sklearn.metrics import pairwise_distances_argmin_min

    x, centers = clouds(2_000, 30, 16), clouds(40, 40, 16, seed=1)
    labels, distance = pairwise_distances_argmin_min(x.astype(np.float64), centers.astype(np.float64))
    found = nearest(jnp.asarray(x + np.float32(offset)), jnp.asarray(centers + np.float32(offset))[None])
    sure = np.asarray(found.gap)[:, 0] > 1e-4 * (1 + offset)
    np.testing.assert_array_equal(np.asarray(found.codes)[sure, 0], labels[sure])
    assert sure.mean() > 0.97
    np.testing.assert_allclose(found.distance[:, 0], distance**2, rtol=0, atol=1e-4 * (1 + offset))


def test_of_centres_at_equal_distance_the_first_is_taken_and_a_single_one_has_no_rival():
    x, centers = jnp.array([[1.0, 0.0], [0.0, 3.0]]), jnp.array([[[5.0, 5.0], [0.0, 0.0], [0.0, 0.0]]])
    found = nearest(x, centers)
    assert found.codes.tolist() == [[1], [1]] and found.gap.tolist() == [[0.0], [0.0]]
    alone = nearest(x, centers[:, 1:2])
    assert alone.codes.tolist() == [[0], [0]] and np.isinf(alone.gap).all()


def test_each_codebook_reads_its_own_group_of_numbers():
    x, centers = clouds(50, 5, 12), clouds(18, 18, 4, seed=1).reshape(3, 6, 4)
    found = nearest(jnp.asarray(x).reshape(5, 10, 12), jnp.asarray(centers))
    assert found.codes.shape == (5, 10, 3)
    for g in range(3):
        one = nearest(jnp.asarray(x[:, 4 * g : 4 * g + 4]), jnp.asarray(centers[g : g + 1]))
        np.testing.assert_array_equal(found.codes[..., g].ravel(), one.codes[:, 0])
        np.testing.assert_allclose(found.distance[..., g].ravel(), one.distance[:, 0], rtol=1e-4, atol=1e-5)


def test_a_centre_is_the_mean_of_all_frames_that_it_was_given():
    """Whatever the number of batches, as long as the labels stay; padding has no weight."""
    x = np.concatenate([clouds(300, 1, 4, seed=s) + 20 * s for s in range(3)])
    first = jnp.asarray(x[[0, 300, 600]])[None]
    clusters = Clusters(first, jnp.zeros((1, 3)))
    order = np.random.default_rng(0).permutation(len(x))
    total = 0.0
    for begin in range(0, 900, 250):
        rows = order[begin : begin + 250]
        batch, weight = np.full((250, 4), 1e6, np.float32), np.zeros(250, np.float32)
        batch[: len(rows)], weight[: len(rows)] = x[rows], 1
        clusters, inertia = updated(clusters, jnp.asarray(batch), jnp.asarray(weight))
        total += float(inertia[0])
    assert clusters.counts.tolist() == [[300.0, 300.0, 300.0]]
    means = np.stack([x[i : i + 300].mean(axis=0) for i in (0, 300, 600)])
    np.testing.assert_allclose(clusters.centers[0], means, rtol=0, atol=1e-3)
    assert 0 < total < 900 * 4


def test_a_centre_without_frames_stays_where_it_is():
    clusters = Clusters(jnp.array([[[0.0, 0.0], [1e3, 1e3]]]), jnp.zeros((1, 2)))
    after, _ = updated(clusters, jnp.ones((5, 2)), jnp.ones(5))
    np.testing.assert_allclose(after.centers[0], [[1.0, 1.0], [1e3, 1e3]])


def test_starts_are_distinct_rows_that_reach_every_cloud():
    x = clouds(3_000, 12, 8, spread=0.01)
    rows = np.asarray(plus_plus(jax.random.key(0), jnp.asarray(x), 12))
    assert len(set(rows.tolist())) == 12
    assert float(nearest(x, x[rows][None]).distance.mean()) < 0.01, "every cloud has a centre"
    again = plus_plus(jax.random.key(0), jnp.asarray(x), 12)
    np.testing.assert_array_equal(again, rows)


def test_a_start_judges_every_codebook_by_itself():
    x = clouds(400, 6, 6)
    centers, inertia = start(jax.random.key(1), jnp.asarray(x), jnp.asarray(x[:100]), count=5, groups=2)
    assert centers.shape == (2, 5, 3) and inertia.shape == (2,)
    np.testing.assert_allclose(inertia, nearest(x[:100], centers).distance.sum(axis=0), rtol=1e-5)
    assert all((centers[0] == x[:, :3][:, None]).all(axis=-1).any(axis=0))


def test_frames_that_are_all_alike_give_finite_starts():
    rows = plus_plus(jax.random.key(0), jnp.ones((50, 3)), 4)
    assert ((rows >= 0) & (rows < 50)).all()
