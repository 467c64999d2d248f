"""Laws of the fit: as good as scikit-learn's, the same after a stop, in pools as in one, with what cannot be used."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest
from waves import Waves

from w2v_jax.core.cli import UserError
from w2v_jax.data.index import Row, make_index
from w2v_jax.discrete import fit
from w2v_jax.discrete.clustering import nearest
from w2v_jax.discrete.fit import NOT_FINITE, Pools, Progress, Settings, begin, measured, passes, some_share
from w2v_jax.discrete.frame_features import mfcc_features
from w2v_jax.training.sharding import row_mesh

LENGTHS = [40_000] * 6
FAST = Settings(clusters=8, batch=200, starts=4, passes=4, patience=60)


def pools(source, *, size=10**6, on_skip=lambda row, reason: None, rows=None, mesh=None) -> Pools:
    rows = np.arange(len(source.index)) if rows is None else rows
    return Pools(mfcc_features(), source, rows, size=size, on_skip=on_skip, mesh=mesh)


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


@pytest.mark.skipif(jax.device_count() != 8, reason="needs the eight CPU devices of conftest.py")
def test_a_fit_on_eight_devices_is_that_of_one_which_may_take_it_over(source, whole):
    """The same batches: centres differ by rounding, and no unit changes but on a tie."""
    assert whole.mesh.size == 8
    eight, alone = fitted(whole, FAST), pools(source, mesh=row_mesh(jax.devices()[:1]))
    alone._kept = whole.load(0)
    one, took_over = fitted(alone, FAST), begin(whole, FAST)
    next(passes(whole, FAST, took_over))
    took_over = Progress.of(took_over.arrays())
    for _ in passes(alone, FAST, took_over):
        pass
    assert eight.batches == one.batches == took_over.batches
    assert all(x.is_fully_replicated and len(x.devices()) == 8 for x in eight.clusters)
    x = whole.load(0)
    found = [nearest(x, np.asarray(progress.clusters.centers)) for progress in (eight, one, took_over)]
    spread = float(found[0].distance.mean())
    for progress, units in zip((one, took_over), found[1:], strict=True):
        np.testing.assert_allclose(progress.clusters.centers, eight.clusters.centers, rtol=0, atol=1e-3)
        sure = np.asarray(found[0].gap) > 1e-4 * spread
        np.testing.assert_array_equal(np.asarray(units.codes)[sure], np.asarray(found[0].codes)[sure])
    ours, counts = measured(whole, FAST, np.asarray(one.clusters.centers))
    theirs, same = measured(alone, FAST, np.asarray(one.clusters.centers))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert np.abs(counts - same).sum() <= 2 and counts.sum() == same.sum() == len(x)


def test_processes_share_the_recordings_of_a_pool_and_have_all_of_its_frames(whole, monkeypatch):
    """Each computes its own rows; what the others send is put in their places, with what they could not read."""
    source, expected = Waves([16_000, 8_000, 24_000, 9_000, 8_000, 40_000], bad=(4,)), {}
    one = pools(source, on_skip=expected.__setitem__)
    frames = one.load(0)
    sent, owned, heard = {}, [], []
    monkeypatch.setattr(fit, "gather_from_all", lambda value: heard.append(value) or [value])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        own = pools(source, mesh=whole.mesh)
        real = own.features.encode

        def encode(source, rows, *, real=real, **named):
            owned.append(rows.tolist())
            return real(source, rows, **named)

        def send(x, bounds, *, process=process):
            mine = slice(bounds[process], bounds[process + 1])
            sent.setdefault(x.dtype, []).append((mine, x[mine].copy()))

        monkeypatch.setattr(fit, "share_rows", send)
        own.features = types.SimpleNamespace(width=39, encode=encode)  # type: ignore
        own.load(0)
    assert sorted(owned[0] + owned[1]) == [0, 1, 2, 3, 4, 5] and all(owned)
    assert [(row, reason) for own in heard for row, reason in own] == list(expected.items()) == [(4, "bad file")]
    kept = [np.concatenate([x for _, x in sent[kind]]) for kind in (np.dtype(np.float32), np.dtype(bool))]
    assert sent[np.dtype(bool)][0][0].stop == sent[np.dtype(bool)][1][0].start
    np.testing.assert_allclose(kept[0][kept[1]], frames, rtol=0, atol=1e-3)


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
