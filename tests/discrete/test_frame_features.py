"""Laws of the frames that k-means reads: cuts as the recipe makes them, MFCC the same in pieces, identities."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from waves import Waves

from w2v_jax.core.cli import UserError
from w2v_jax.discrete import frame_features
from w2v_jax.discrete.frame_features import FrameFeatures, layer_features, mfcc_features
from w2v_jax.inference.encode import encode
from w2v_jax.inference.run import open_run
from w2v_jax.ops import mfcc


@pytest.fixture(scope="module")
def run(random_run):
    return open_run(random_run())


def frames_of(features: FrameFeatures, source, **reading) -> dict[int, np.ndarray]:
    found = features.encode(source, np.arange(len(source.index)), **reading)
    return {row: arrays["features"] for row, arrays in found}


def test_mfcc_are_the_same_in_one_piece_as_in_several(monkeypatch):
    source, features = Waves([16_000 * 7 + 123, 400, 16_000 * 4 + 79]), mfcc_features()
    whole = frames_of(features, source)
    monkeypatch.setattr(frame_features, "MAX_SECONDS", 2.0)
    cut = frames_of(features, source)
    for row, x in whole.items():
        assert x.shape == (features.num_frames(source.index.num_samples)[row], 39)
        np.testing.assert_allclose(cut[row], x, rtol=0, atol=2e-4)
    alone = jax.jit(mfcc.mfcc)(source.waves[0][None], np.array([len(source.waves[0])]))[0]
    np.testing.assert_allclose(whole[0], alone, rtol=0, atol=2e-4)


def test_a_run_is_fed_pieces_as_the_recipe_feeds_them(run, monkeypatch):
    """Each piece is as a recording of its own; what is left at the end of less than a frame is dropped."""
    monkeypatch.setattr(frame_features, "RECIPE_SAMPLES", 32_000)
    lengths = [2 * 32_000 + 10_000, 32_000, 32_000 + 399, 5_000]
    source, features = Waves(lengths), layer_features(run, 1)
    found = frames_of(features, source)
    pieces = Waves([32_000, 32_000, 10_000])
    pieces.waves = [source.waves[0][i : i + 32_000] for i in range(0, lengths[0], 32_000)]
    alone = dict(encode(run, pieces, keys=("hidden",), layer=1))
    expected = np.concatenate([alone[i]["hidden"] for i in range(3)])
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=2e-5)
    counts = features.num_frames(source.index.num_samples)
    assert [len(found[row]) for row in range(4)] == counts.tolist()
    assert len(found[2]) == len(found[1]) == 99
    assert features.cutting == dict(cut="recipe", max_samples=32_000)
    even = layer_features(run, 1, cut="even")
    counts = even.num_frames(source.index.num_samples)
    assert [len(x) for _, x in sorted(frames_of(even, source).items())] == counts.tolist()
    assert counts.tolist() == [1 + (n - 400) // 320 for n in lengths]


def test_what_follows_on_the_device_takes_the_place_of_the_features(run):
    source = Waves([8_000, 16_000])
    whole = frames_of(layer_features(run, 2), source)
    rows = np.arange(2)
    sums = dict(layer_features(run, 2).encode(source, rows, then=lambda x: {"sum": x.sum(axis=-1, keepdims=True)}))
    for row, x in whole.items():
        assert sums[row].keys() == {"sum"}
        np.testing.assert_allclose(sums[row]["sum"][:, 0], x.sum(axis=1), rtol=0, atol=1e-4)


def test_features_are_named_by_what_they_depend_on(run):
    assert mfcc_features().identity == dict(features="mfcc", layer=None, method=None, run=None, step=None)
    assert mfcc_features().geometry == (400, 160) and mfcc_features().width == 39
    hidden, context = layer_features(run, 2), layer_features(run, None, key="context")
    expected = dict(features="hidden", layer=2, method="wav2vec2", run=run.digest, step=0)
    assert hidden.identity == expected and hidden.geometry == (400, 320)
    assert context.identity["layer"] is None and context.width == 32
    assert "layer 2 of" in hidden.name and mfcc_features().name == "MFCC"


def test_a_model_computes_in_float32_whatever_it_was_trained_in(run, random_run):
    """The random parameters of both are the same."""
    source, half = Waves([8_000]), open_run(random_run(train__dtype="bfloat16"))
    one, other = (frames_of(layer_features(each, 2), source)[0] for each in (run, half))
    np.testing.assert_array_equal(one, other)
    ((_, plain),) = encode(half, source, keys=("hidden",), layer=2)
    assert np.abs(plain["hidden"] - one).max() > 1e-3


def test_features_that_do_not_exist_are_refused(run):
    with pytest.raises(UserError, match="layer 7: .* has 3 hidden states, 0 to 2"):
        layer_features(run, 7)
    with pytest.raises(UserError, match="needs --layer N"):
        layer_features(run, None)
    codes = Waves([8_000])
    codes.form = codes.form._replace(name="codes")
    with pytest.raises(UserError, match="MFCC are made of audio, but the source holds codes"):
        mfcc_features().check_source(codes)
