"""Laws of a k-means model in a folder: what is loaded is what was saved, and it reads what it was fitted to."""

from __future__ import annotations

import json

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.discrete.frame_features import layer_features, mfcc_features
from w2v_jax.discrete.unit_model import SURE_GAP, UnitModel, usage
from w2v_jax.inference.run import open_run


def model_of(features, groups=1, codes=5) -> UnitModel:
    centers = np.random.default_rng(0).normal(size=(groups, codes, features.width // groups)).astype(np.float32)
    return UnitModel(centers, features.identity | dict(inertia=[8.0] * groups, complete=True))


@pytest.fixture(scope="module")
def run(random_run):
    return open_run(random_run())


def test_what_is_loaded_is_what_was_saved(tmp_path):
    model = model_of(mfcc_features(), groups=3)
    model.save(tmp_path)
    loaded = UnitModel.load(tmp_path)
    np.testing.assert_array_equal(loaded.centers, model.centers)
    assert loaded.digest == model.digest == json.loads((tmp_path / "units.json").read_text())["digest"]
    assert (loaded.groups, loaded.codes, loaded.width) == (3, 5, 39)
    assert loaded.margin == [SURE_GAP * 8.0] * 3 and loaded.inertia_per_frame == 24.0


def test_the_digest_names_centres_and_features(run):
    model = model_of(mfcc_features())
    moved = UnitModel(model.centers + np.float32(1e-6), model.about)
    other = UnitModel(model.centers, model.about | {"features": "hidden", "layer": 3})
    longer = UnitModel(model.centers, model.about | {"inertia": [9.0]})
    assert len({model.digest, moved.digest, other.digest}) == 3 and longer.digest == model.digest


def test_a_model_reads_what_it_was_fitted_to(run, random_run):
    model = model_of(layer_features(run, 2))
    features = model.features(run, cut="even")
    assert (features.key, features.layer, features.cut) == ("hidden", 2, "even")
    with pytest.raises(
        UserError, match=rf"reads hidden 2 of a run of wav2vec2 \(step 0, {run.digest}\): name it by --run"
    ):
        model.features()
    other = open_run(random_run("w2v2_base.py:tiny", seed="3", encoder__mlp="40"))
    with pytest.raises(UserError, match=f"fitted to hidden 2 of other parameters .*{run.digest}.*{other.digest}"):
        model.features(other)
    assert model_of(mfcc_features()).features().is_mfcc
    with pytest.raises(UserError, match="reads MFCC and needs no run; leave --run"):
        model_of(mfcc_features()).features(run)


def test_missing_unfinished_and_damaged_models_are_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no k-means model.*no units\.json"):
        UnitModel.load(tmp_path)
    model = model_of(mfcc_features())
    UnitModel(model.centers, model.about | {"complete": False}).save(tmp_path)
    with pytest.raises(UserError, match="the fit is not finished; give its command again"):
        UnitModel.load(tmp_path)
    model.save(tmp_path)
    np.save(tmp_path / "centers.npy", model.centers[:, :3])
    with pytest.raises(UserError, match=r"centers\.npy is not what units\.json describes"):
        UnitModel.load(tmp_path)
    (tmp_path / "centers.npy").write_bytes(b"half")
    with pytest.raises(UserError, match=r"centers\.npy is missing or damaged"):
        UnitModel.load(tmp_path)
    (tmp_path / "units.json").write_text("{")
    with pytest.raises(UserError, match=r"units\.json is not readable"):
        UnitModel.load(tmp_path)


def test_usage_of_even_and_of_single_clusters():
    found = usage(np.array([[5, 5, 5, 5], [20, 0, 0, 0]]))
    assert found["in_use"] == [4, 1]
    assert found["entropy"] == pytest.approx([np.log(4), 0.0])
    assert found["perplexity"] == pytest.approx([4.0, 1.0])
