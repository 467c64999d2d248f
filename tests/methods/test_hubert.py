"""HuBERT: what chance is, its parameters, what is refused.

What it shares with WavLM is tested in tests/nn/test_unit_prediction.py, and compared with fairseq's arrays in
tests/test_golden_hubert.py.
"""

from __future__ import annotations

import math

import jax
import pytest
from batches import wave_batch
from commands import ROOT

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.methods import hubert
from w2v_jax.nn import unit_prediction

SAMPLES, KEY = 4_000, jax.random.key(3)
TWO = {"loss__classes": (5, 3), "loss__proj": 4}


def config_of(**changes):
    """The tiny config; `section__key=value` changes it."""
    config = configs.load(f"{ROOT / 'configs' / 'hubert_base.py'}:tiny")
    return configs.changed(config, {key.replace("__", "."): value for key, value in changes.items()})


def test_chance_is_that_of_the_clusters():
    levels = hubert.make(config_of(loss__classes=(100, 500))).levels()
    assert levels["loss_chance"] == pytest.approx((math.log(100) + math.log(500)) / 2)
    assert levels["accuracy_chance"] == pytest.approx((1 / 100 + 1 / 500) / 2)


@pytest.mark.parametrize("untied", [True, False])
def test_label_sets_share_a_projection_or_have_one_each(untied):
    method = hubert.make(config_of(loss__untied=untied, **TWO))
    params, extra = jax.eval_shape(method.init, KEY, wave_batch([4_000], SAMPLES))
    assert params["final_proj"]["kernel"].value.shape == (32, 8 if untied else 4) and not extra
    assert params["label_embeddings"].value.shape == (5 + 4 + 3 + 4, 4)


def test_encoder_without_classes_gives_features_and_has_no_loss():
    method = hubert.make(config_of(loss__classes=()))
    batch = wave_batch([4_000], SAMPLES)
    params, extra = jax.eval_shape(method.init, KEY, batch)
    assert params.keys() == {"encoder"} and not extra
    assert "hidden" in jax.eval_shape(method.predict, params, {}, batch)
    with pytest.raises(UserError, match=r"loss.classes=\(\) is an encoder alone, which has no loss; start from it"):
        jax.eval_shape(lambda params: method.loss(params, {}, batch, KEY, 0, train=True), params)


def test_labels_at_a_rate_that_frames_do_not_have_and_classes_that_are_none_are_refused():
    with pytest.raises(UserError, match=r"data.targets_hop=200: labels must be 320 samples apart.*such as 160"):
        hubert.make(config_of(data__targets_hop=200))
    with pytest.raises(UserError, match="needs the number of clusters of each label set"):
        hubert.make(config_of(loss__classes=(1, 500)))
    with pytest.raises(UserError, match="rows of 700 samples have 1 frames; raise data.bucket_seconds"):
        unit_prediction.draw(config_of(), wave_batch([700], 700), KEY)
