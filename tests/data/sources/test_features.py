"""Laws of the feature source: rows are the written frames, and folders of different models do not mix."""

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.index import Form
from w2v_jax.data.io.feature_files import Utterance, part_path, write_metadata, write_part

HOP = 160


def write_features(folder, lengths=((40, 75), (120,)), *, width=5, dtype="<f2", **changes):
    """A folder of features, one tuple of utterance lengths per part."""
    rng, number, written = np.random.default_rng(0), 0, []
    folder.mkdir(parents=True)
    for part, frames in enumerate(lengths):
        found = []
        for n in frames:
            features = rng.normal(size=(n, width)).astype(dtype)
            found.append((features, Utterance(f"u{number}", 0, 0, n * HOP / 16000, "s", f"text {number}")))
            number += 1
        write_part(part_path(folder, part), found, width=width, dtype=dtype)
        written += [features for features, _ in found]
    about = dict(what="hidden", layer=2, model="abc", hop=HOP, parts=len(lengths), complete=True)
    write_metadata(folder, about | changes)
    return written


def test_rows_are_the_written_frames_as_float32(tmp_path):
    written = write_features(tmp_path / "a")
    source = open_source("features", tmp_path / "a")
    assert source.form == Form("features", "float32", HOP, "abc hidden 2", 5)
    assert source.index.ids.tolist() == ["u0", "u1", "u2"]
    assert source.index.transcripts.tolist() == ["text 0", "text 1", "text 2"]
    assert source.index.num_samples.tolist() == [n * HOP for n in (40, 75, 120)]
    for row, features in enumerate(written):
        found = source.read(row, 0, 10**9)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, features)
        np.testing.assert_array_equal(source.read(row, 10 * HOP + 7, 5 * HOP + 150), features[10:15])
        assert source.read(row, len(features) * HOP, HOP).shape == (0, 5)


def test_folders_of_one_model_and_layer_are_one_source(tmp_path):
    write_features(tmp_path / "a")
    write_features(tmp_path / "b", ((50,),))
    source = open_source("features", (tmp_path / "a", tmp_path / "b"))
    assert source.index.ids.tolist() == ["u0", "u1", "u2", "u0#2"]
    assert len(source.read(3, 0, 10**9)) == 50


@pytest.mark.parametrize("changes", [{"model": "xyz"}, {"layer": 3}, {"what": "context"}, {"hop": 320}])
def test_features_of_different_models_or_layers_do_not_mix(tmp_path, changes):
    write_features(tmp_path / "a")
    write_features(tmp_path / "b", **changes)
    with pytest.raises(UserError, match="features of different models or layers"):
        open_source("features", (tmp_path / "a", tmp_path / "b"))


def test_folders_without_one_width_are_refused(tmp_path):
    write_features(tmp_path / "a")
    write_features(tmp_path / "b", width=6)
    with pytest.raises(UserError, match=r"several widths \[5, 6\]"):
        open_source("features", (tmp_path / "a", tmp_path / "b"))
    write_features(tmp_path / "none", ((),))
    with pytest.raises(UserError, match="holds no utterance"):
        open_source("features", tmp_path / "none")


def test_codes_are_no_features(tmp_path):
    write_features(tmp_path / "a", what="codes")
    with pytest.raises(UserError, match=r"holds codes, and data\.name=features needs features"):
        open_source("features", tmp_path / "a")


def test_short_utterances_are_skipped_and_named(tmp_path):
    write_features(tmp_path / "a")
    source = open_source("features", tmp_path / "a", min_seconds=0.5)
    assert source.index.ids.tolist() == ["u1", "u2"] and len(source.index.skipped) == 1
