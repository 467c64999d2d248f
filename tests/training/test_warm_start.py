"""Starting from another run: what is taken over bit by bit, what starts anew only when named, what is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from parameters import shapes_of

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.core.tree import by_path
from w2v_jax.data.index import WAVE
from w2v_jax.training import checkpoint
from w2v_jax.training.warm_start import warm_params


@pytest.fixture(scope="module")
def pretrained(tiny_run):
    return tiny_run("w2v2_base.py:tiny")


def config_of(name, **changes):
    return configs.load(f"configs/{name}", [(key.replace("__", "."), str(value)) for key, value in changes.items()])


def test_recogniser_takes_the_encoder_over_bit_by_bit(pretrained):
    config = config_of("acoustic_frozen.py:tiny", init__run=pretrained, init__step=1)
    shapes = {"encoder": checkpoint.restore_params(pretrained, step=2).params["encoder"]}
    found = warm_params(config, shapes, WAVE)
    expected = checkpoint.restore_params(pretrained, step=1).params["encoder"]
    assert found.keys() == {"encoder"}
    jax.tree.map(np.testing.assert_array_equal, found["encoder"], expected)
    shapes["encoder"].pop("mask_vector")
    with pytest.raises(UserError, match="mask_vector"):
        warm_params(config, shapes, WAVE)


def test_pretraining_takes_every_parameter_over_but_those_that_start_anew(pretrained):
    config = config_of("w2v2_base.py:tiny", init__run=pretrained)
    there = by_path(checkpoint.restore_params(pretrained).params)
    found = by_path(warm_params(config, shapes_of(config), WAVE))
    assert found.keys() == there.keys()
    for name, array in there.items():
        np.testing.assert_array_equal(found[name], array, name)
    config = config_of("w2v2_base.py:tiny", init__run=pretrained, init__fresh=("^quantizer/", "_proj/"))
    found = by_path(warm_params(config, shapes_of(config), WAVE))
    assert {name.partition("/")[0] for name in found} == {"encoder"}
    assert len(found) == sum(name.startswith("encoder/") for name in there)


@pytest.mark.slow
def test_codes_that_k_means_moved_are_taken_over_where_they_are(tiny_run):
    run = tiny_run("vq_wav2vec.py:kmeans_tiny", quantizer__restart=0.5)
    there = checkpoint.restore_params(run)
    config = config_of("vq_wav2vec.py:kmeans_tiny", init__run=run)
    found = warm_params(config, shapes_of(config), WAVE)
    moved = there.params["quantizer"]["codebook"] + there.extra["moved"]
    np.testing.assert_array_equal(found["quantizer"]["codebook"], moved)


def test_what_does_not_fit_must_be_named_as_fresh(pretrained, tmp_path):
    changes = dict(init__run=pretrained, quantizer__codes=24)
    with pytest.raises(UserError, match=r"quantizer/codebook: \(2, 16, 8\) there, \(2, 24, 8\) here[\s\S]*init.fresh"):
        config = config_of("w2v2_base.py:tiny", **changes)
        warm_params(config, shapes_of(config), WAVE)
    config = config_of("w2v2_base.py:tiny", **changes, init__fresh=("^quantizer/",))
    assert "quantizer" not in warm_params(config, shapes_of(config), WAVE)
    for changes, word in (
        (dict(init__fresh=("(",)), "not a regular expression"),
        (dict(init__fresh=("^quantiser/",)), "'.quantiser/' names no parameter; they are in .*encoder, quantizer"),
        (dict(encoder__pre_norm=True), "encoder.pre_norm: False in"),
        (dict(data__normalize=True), "data.normalize"),
    ):
        config = config_of("w2v2_base.py:tiny", init__run=pretrained, **changes)
        with pytest.raises(UserError, match=word):
            warm_params(config, shapes_of(config), WAVE)
    config = config_of("cpc.py:tiny", init__run=pretrained)
    with pytest.raises(UserError, match="a run of wav2vec2, and this is one of cpc"):
        warm_params(config, shapes_of(config), WAVE)
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    config = config_of("w2v2_base.py:tiny", init__run=tmp_path)
    with pytest.raises(UserError, match="init.run: .*make it a run first"):
        warm_params(config, shapes_of(config), WAVE)


def test_pretraining_goes_on_from_an_imported_encoder_with_fresh_heads(tiny_run, pretrained, tmp_path, capsys):
    from w2v_jax import convert

    convert.main(["--from", str(pretrained), "--to", str(tmp_path / "hf"), "--encoder-only"])
    convert.main(["--from", str(tmp_path / "hf"), "--to", str(tmp_path / "imported")])
    with pytest.raises(UserError, match="context_proj/bias: nothing there"):
        tiny_run("w2v2_base.py:tiny", init__run=tmp_path / "imported")
    run = tiny_run("w2v2_base.py:tiny", init__run=tmp_path / "imported", init__fresh=("^quantizer/", "_proj/"))
    assert "parameters from" in capsys.readouterr().out
    before, after = (by_path(checkpoint.restore_params(p).params) for p in (pretrained, run))
    np.testing.assert_allclose(
        after["encoder/projection/kernel"], before["encoder/projection/kernel"], atol=5e-3
    )  # two small updates away
