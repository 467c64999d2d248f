"""Laws of labelling: units are those of the model, alone or in any batch where the gap says so."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from waves import Waves

from w2v_jax.discrete.clustering import nearest
from w2v_jax.discrete.fit import NOT_FINITE
from w2v_jax.discrete.frame_features import layer_features, mfcc_features
from w2v_jax.discrete.labelling import labelled, make_labelling
from w2v_jax.discrete.unit_model import UnitModel
from w2v_jax.inference.run import open_run
from w2v_jax.training.sharding import row_mesh

LENGTHS = [40_000, 16_000, 23_456, 400]


def model_of(features, source, codes=24, groups=1) -> UnitModel:
    """Centres among the frames themselves: as near to each other as those of a fit."""
    x = np.concatenate([a["features"] for _, a in features.encode(source, np.arange(len(LENGTHS)))])
    rng = np.random.default_rng(0)
    split = x.reshape(len(x), groups, -1)
    centers = np.stack([split[rng.choice(len(x), codes, replace=False), g] for g in range(groups)])
    model = UnitModel(centers, features.identity | dict(inertia=[1.0] * groups, complete=True))
    inertia = np.asarray(nearest(x, model.centers).distance).mean(axis=0).tolist()
    return UnitModel(centers, model.about | dict(inertia=inertia))


def label(model, features, source, rows=(0, 1, 2, 3), **reading):
    skipped: dict[int, str] = {}
    found = labelled(model, features, source, rows=np.array(rows), on_skip=skipped.__setitem__, **reading)
    return {row: (codes, tally) for row, codes, tally in found}, skipped


@pytest.fixture(scope="module")
def source():
    return Waves(LENGTHS)


@pytest.fixture(scope="module", params=["mfcc", "layer"])
def features(request, random_run):
    return (
        mfcc_features() if request.param == "mfcc" else layer_features(open_run(random_run(train__dtype="bfloat16")), 2)
    )


@pytest.mark.parametrize("groups", [1, "several"])
def test_units_are_equal_alone_and_in_any_batch_where_the_gap_exceeds_the_margin(features, source, groups):
    groups = 1 if groups == 1 else 3 if features.is_mfcc else 2
    model = model_of(features, source, groups=groups)
    together, _ = label(model, features, source)
    for row in range(len(LENGTHS)):
        alone, _ = label(model, features, source, [row], batch_seconds=1.0)
        ((_, arrays),) = features.encode(source, np.array([row]))
        best = nearest(arrays["features"], model.centers)
        sure = np.asarray(best.gap) > model.margin
        assert together[row][0].shape == sure.shape and sure.mean() > 0.97
        np.testing.assert_array_equal(alone[row][0][sure], together[row][0][sure])
        np.testing.assert_array_equal(np.asarray(best.codes)[sure], together[row][0][sure])


@pytest.mark.skipif(jax.device_count() != 8, reason="needs the eight CPU devices of conftest.py")
def test_units_of_eight_devices_are_those_of_one_where_the_gap_exceeds_the_margin(features, source):
    model = model_of(features, source)
    one, _ = label(model, features, source)
    eight, skipped = label(model, features.over(row_mesh(jax.local_devices())), source)
    assert sorted(eight) == sorted(one) and not skipped
    for row, (units, _) in one.items():
        ((_, arrays),) = features.encode(source, np.array([row]))
        sure = np.asarray(nearest(arrays["features"], model.centers).gap) > model.margin
        np.testing.assert_array_equal(eight[row][0][sure], units[sure])


def test_the_tally_counts_what_was_labelled(features, source):
    model = model_of(features, source)
    together, skipped = label(model, features, source)
    total = sum(codes.shape[0] for codes, _ in together.values())
    counts = sum(tally.counts for _, tally in together.values())
    assert not skipped and counts.sum() == total == features.num_frames(np.array(LENGTHS)).sum()
    inertia = sum(tally.inertia for _, tally in together.values()) / total
    assert inertia.sum() == pytest.approx(model.inertia_per_frame, rel=1e-3)
    assert all(0 <= tally.unsure <= 0.05 * len(codes) + 1 for codes, tally in together.values())


def test_recordings_whose_features_are_not_finite_are_named(source):
    features = mfcc_features()
    model = model_of(features, source)
    broken = Waves(LENGTHS)
    broken.waves[1] = np.float32(1e30) * broken.waves[1]  # its power overflows
    found, skipped = label(model, features, broken)
    assert skipped == {1: NOT_FINITE} and sorted(found) == [0, 2, 3]


def test_the_metadata_say_what_training_needs_to_know(features, source, tmp_path):
    model = model_of(features, source)
    about = dict(form="numpy", collapse=False, part_hours=0.5, about_source=dict(source="folder"))
    settings = make_labelling(model, features, source, out=tmp_path, **about).work.settings
    field, hop = features.geometry
    expected = dict(what="units", model=model.digest, hop=hop, field=field, groups=1, codes=24, dtype="uint16")
    assert settings.items() >= (expected | features.identity | features.cutting).items()
    assert settings["margin"] == model.margin and settings["fingerprint"] == source.index.fingerprint()
