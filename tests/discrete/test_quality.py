"""Laws of purities and mutual information, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from w2v_jax.discrete.quality import histogram, mean_run, pnmi, purities, quality


def test_figures_of_a_small_histogram_are_those_by_hand():
    counts = np.array([[4, 0, 1], [0, 3, 2]])
    assert purities(counts) == pytest.approx(((4 + 3 + 2) / 10, (4 + 3) / 10))
    joint = counts / 10
    expected = sum(p * np.log(p / (joint[a].sum() * joint[:, k].sum())) for (a, k), p in np.ndenumerate(joint) if p > 0)
    assert pnmi(counts) == pytest.approx(expected / np.log(2))


def test_mutual_information_is_scikit_learns():
    from sklearn.metrics import homogeneity_score

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 4_000)
    units = (labels * 3 + rng.integers(0, 12, 4_000)) % 40
    counts = histogram(labels, units)
    assert counts.sum() == 4_000 and counts[2, 5] == ((labels == 2) & (units == 5)).sum()
    assert pnmi(counts) == pytest.approx(homogeneity_score(labels, units))


def test_units_that_are_the_labels_tell_all_and_units_at_random_tell_nothing():
    rng = np.random.default_rng(1)
    labels = [rng.integers(0, 5, 5_000)]
    same = quality(labels, [7 - labels[0]])
    assert (same.phone_purity, same.cluster_purity) == (1, 1) and same.pnmi == pytest.approx(1)
    assert same.pnmi_by_chance < 0.01
    random = quality(labels, [rng.integers(0, 5, 5_000)])
    assert random.pnmi < 0.01 and abs(random.pnmi - random.pnmi_by_chance) < 0.005


def test_frames_without_a_label_do_not_count():
    labels, units = np.array([0, 0, -1, -1, 1, 1]), np.array([3, 3, 9, 8, 4, 4])
    found = quality([labels], [units])
    assert (found.labels, found.units) == (2, 2) and found.pnmi == pytest.approx(1)
    assert quality([labels[:2], labels[4:]], [units[:2], units[4:]]) == found


def test_runs_end_with_the_recording():
    assert mean_run([np.array([1, 1, 2]), np.array([2, 2, 2, 2])]) == pytest.approx(7 / 3)
    assert mean_run([]) == 0.0


def test_a_single_label_has_no_information():
    assert pnmi(np.array([[5, 3]])) == 0.0
