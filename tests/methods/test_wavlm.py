"""WavLM: its parameters, an encoder without heads, what is refused.

Its encoder is compared with the reference's arrays in tests/test_golden_wavlm.py, its loss is that of
tests/nn/test_unit_prediction.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import wave_batch
from commands import ROOT

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.methods import hubert, wavlm
from w2v_jax.training.sharding import bare

SAMPLES, KEY = 4_000, jax.random.key(3)


def config_of(**changes):
    """The tiny config with units of two rows; `section__key=value` changes it."""
    config = configs.load(f"{ROOT / 'configs' / 'wavlm_base.py'}:tiny")
    changes = {"data__unit_seconds": 2 * SAMPLES / 16_000} | changes
    return configs.changed(config, {key.replace("__", "."): value for key, value in changes.items()})


def batch_of(rows: int):
    return wave_batch([SAMPLES] * rows, SAMPLES) | dict(targets=jnp.zeros((rows, 1, 12), jnp.int32))


def test_without_its_bias_wavlm_is_hubert():
    """With a table of zeros both have the same loss, whatever the gates are."""
    config = config_of()
    batch = batch_of(2) | dict(wave=jnp.asarray(np.random.default_rng(0).normal(size=(2, SAMPLES)), jnp.float32))
    method = wavlm.make(config)
    params = bare(method.init(KEY, batch)[0])
    table = params["encoder"]["transformer"].pop("relative_bias")
    layers = params["encoder"]["transformer"]["layers"]
    gate = layers.pop("gate")
    assert table.shape == (32, 4)
    assert jax.tree.map(jnp.shape, gate) == {"kernel": (2, 8, 8), "bias": (2, 8), "scale": (2, 4)}
    plain = hubert.make(configs.changed(config, {"method": "hubert", "encoder.relative_buckets": 0}))
    assert jax.tree.structure(bare(plain.init(KEY, batch)[0])) == jax.tree.structure(params)
    expected = plain.loss(params, {}, batch, KEY, 0, train=True)[0]

    def loss(table):
        transformer = params["encoder"]["transformer"] | dict(relative_bias=table, layers=layers | dict(gate=gate))
        both = params | dict(encoder=params["encoder"] | dict(transformer=transformer))
        return method.loss(both, {}, batch, KEY, 0, train=True)[0]

    np.testing.assert_allclose(loss(jnp.zeros_like(table)).total, expected.total, rtol=1e-6)
    assert abs(float(loss(10 * table).total) - float(expected.total)) > 1e-3


def test_encoder_without_classes_gives_features_and_has_no_loss():
    method = wavlm.make(config_of(loss__classes=()))
    params, _ = jax.eval_shape(method.init, KEY, batch_of(1))
    assert params.keys() == {"encoder"}
    assert "hidden" in jax.eval_shape(method.predict, bare(params), {}, batch_of(1))
    with pytest.raises(UserError, match=r"loss.classes=\(\) is an encoder alone, which has no loss; start from it"):
        method.loss(params, {}, batch_of(1), KEY, 0, train=True)


def test_no_bias_and_classes_that_are_none_are_refused():
    with pytest.raises(UserError, match='encoder.relative_buckets=0: .*method="hubert"'):
        wavlm.make(config_of(encoder__relative_buckets=0))
    with pytest.raises(UserError, match="needs the number of clusters of each label set"):
        wavlm.make(config_of(loss__classes=(1, 500)))
