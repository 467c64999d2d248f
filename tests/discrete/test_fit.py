"""Laws of the fit: as good as scikit-learn's, the same after a stop, in pools as in one, with what cannot be used."""

from __future__ import annotations

import types

import numpy as np
import pytest
from waves import Waves

from w2v_jax.core.cli import UserError
from w2v_jax.data.index import Row, make_index
from w2v_jax.discrete.fit import NOT_FINITE, Pools, Progress, Settings, begin, measured, passes, some_share
from w2v_jax.discrete.frame_features import mfcc_features

LENGTHS = [40_000] * 6
FAST = Settings(clusters=8, batch=200, starts=4, passes=4, patience=60)


def pools(source, *, size=10**6, on_skip=lambda row, reason: None, rows=None) -> Pools:
    rows = np.arange(len(source.index)) if rows is None else rows
    return Pools(mfcc_features(), source, rows, size=size, on_skip=on_skip)


def fitted(own: Pools, settings: Settings) -> Progress:
    progress = begin(own, settings)
    for _ in passes(own, settings, progress):
        pass
    return progress


@pytest.fixture(scope="module")
def source():
    return Waves(LENGTHS)


@pytest.fixture(scope="module")
def whole(source):
    """All in one pool, which keeps its frames."""
    own = pools(source)
    own.load(0)
    return own


def test_inertia_is_within_one_percent_of_scikit_learns(whole):
    from sklearn.cluster import MiniBatchKMeans

    settings = Settings(clusters=20, batch=500, passes=30)
    progress = fitted(whole, settings)
    ours, counts = measured(whole, settings, np.asarray(progress.clusters.centers))
    frames = whole.load(0)
    theirs = MiniBatchKMeans(
        20, n_init=20, batch_size=500, max_iter=30, max_no_improvement=100, reassignment_ratio=0.0, random_state=0
    ).fit(frames)
    inertia = -theirs.score(frames) / len(frames)
    assert ours.sum() < 1.01 * inertia
    assert counts.sum() == len(frames) == whole.total
    same, _ = measured(whole, settings, theirs.cluster_centers_[None].astype(np.float32))
    assert same.sum() == pytest.approx(inertia, rel=1e-4)


def test_a_fit_of_several_pools_is_as_good_as_one_of_all_frames(source, whole):
    """Of pools that hold a recording or two, each computed anew in each pass."""
    several = pools(source, size=400)
    assert len(several) > 2 and several.total == whole.total
    np.testing.assert_allclose(np.concatenate([several.load(i) for i in range(len(several))]), whole.load(0), atol=1e-3)
    centers = [np.asarray(fitted(own, FAST).clusters.centers) for own in (several, whole)]
    ours, theirs = (measured(whole, FAST, c)[0].sum() for c in centers)
    assert ours < 1.05 * theirs
    assert measured(several, FAST, centers[0])[0].sum() == pytest.approx(ours, rel=1e-4)


def test_a_fit_that_was_stopped_anywhere_ends_with_the_same_centres(source):
    expected = np.asarray(fitted(pools(source, size=400), FAST).clusters.centers)
    own = pools(source, size=400)
    progress = begin(own, FAST)
    for number, _ in enumerate(passes(own, FAST, progress)):
        if number == 3:
            saved = {name: array.copy() for name, array in progress.arrays().items()}
            break
    again = Progress.of(saved)
    assert (again.pass_number, again.place) != (0, 0) and again.batches == progress.batches
    own = pools(source, size=400)
    for _ in passes(own, FAST, again):
        pass
    np.testing.assert_array_equal(again.clusters.centers, expected)


def test_the_seed_decides(whole):
    one, same = (np.asarray(begin(whole, FAST).clusters.centers) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, begin(whole, FAST._replace(seed=1)).clusters.centers)


def test_codebooks_are_fits_of_their_own_numbers(whole):
    settings = FAST._replace(codebooks=3)
    progress = fitted(whole, settings)
    assert progress.clusters.centers.shape == (3, 8, 13)
    inertia, counts = measured(whole, settings, np.asarray(progress.clusters.centers))
    assert counts.shape == (3, 8) and (counts.sum(axis=1) == whole.total).all()
    x = whole.load(0).reshape(-1, 3, 13)
    assert (inertia > 0).all() and (inertia < x.var(axis=0).sum(axis=1)).all()


def test_the_fit_ends_when_nothing_gets_better(whole):
    settings = FAST._replace(passes=200, patience=5)
    progress = fitted(whole, settings)
    assert progress.pass_number < 200 and progress.is_over(settings)
    assert progress.stale is not None and progress.stale.min() == 5


def test_smoothed_inertia_is_scikit_learns():
    """Their formula: the weight of a batch is twice its share of all frames; the first batch is left out."""
    progress = Progress(None)  # type: ignore
    values, expected = [9.0, 4.0, 2.0, 3.0], None
    for value in values:
        progress.note(np.array([value]), 10, 99)
    for value in values[1:]:
        expected = value if expected is None else 0.8 * expected + 0.2 * value
    assert progress.smoothed == pytest.approx([expected]) and progress.batches == 4
    assert progress.stale is not None and progress.stale.tolist() == [0]


def test_more_clusters_than_frames_are_refused(whole):
    with pytest.raises(UserError, match=r"5,000 clusters need as many frames, but there are 1,4\d\d: lower --clusters"):
        begin(whole, FAST._replace(clusters=5_000))


def test_recordings_that_cannot_be_used_are_counted_and_left_out():
    """Unreadable ones, ones without a frame, and ones whose features are not numbers."""
    source, skipped = Waves([16_000, 300, 8_000, 12_000], bad=(2,)), {}
    own = pools(source, on_skip=skipped.__setitem__)
    real = own.features.encode

    def broken(source, rows, **named):
        for row, arrays in real(source, rows, **named):
            yield row, {"features": np.where(row == 3, np.nan, arrays["features"])}

    own.features = types.SimpleNamespace(width=39, encode=broken)  # type: ignore
    frames = own.load(0)
    assert len(frames) == 98 and np.isfinite(frames).all()
    assert skipped == {1: "too short for one frame: 300 samples of 400", 2: "bad file", 3: NOT_FINITE}


def test_a_share_is_random_nested_and_the_same_whatever_the_order():
    ids = [f"r{i}" for i in range(1_000)]
    index = make_index(Row(id, id, 0, 16_000, 16_000) for id in ids)
    some, more = (some_share(index, share, 0) for share in (0.1, 0.3))
    assert len(some) == 100 and set(some) < set(more) and len(some_share(index, 1.0, 0)) == 1_000
    assert set(some) != set(some_share(index, 0.1, 1))
    turned = index.select(np.arange(999, -1, -1))
    assert turned.ids[some_share(turned, 0.1, 0)].tolist() == index.ids[some].tolist()
    assert abs(some.mean() - 500) < 100
    assert len(some_share(index.select(np.arange(3)), 0.01, 0)) == 1
