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
from mixing import rows_of

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.data.batch_plan import train_plan
from w2v_jax.data.draws import Augmentation, Noise
from w2v_jax.data.io.arrays import Arrays
from w2v_jax.data.pipeline import batches
from w2v_jax.methods import hubert, wavlm
from w2v_jax.nn import unit_prediction
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
    params = bare(jax.jit(method.init)(KEY, batch)[0])
    table = params["encoder"]["transformer"].pop("relative_bias")
    layers = params["encoder"]["transformer"]["layers"]
    gate = layers.pop("gate")
    assert table.shape == (32, 4)
    assert jax.tree.map(jnp.shape, gate) == {"kernel": (2, 8, 8), "bias": (2, 8), "scale": (2, 4)}
    plain = hubert.make(configs.changed(config, {"method": "hubert", "encoder.relative_buckets": 0}))
    assert jax.tree.structure(bare(jax.eval_shape(plain.init, KEY, batch)[0])) == jax.tree.structure(params)
    expected = jax.jit(lambda params: plain.loss(params, {}, batch, KEY, 0, train=True)[0])(params)

    @jax.jit
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


class RowLabels:
    """Stands for `Targets`: the label at a sample is a function of the recording and the time."""

    def shape(self, length):
        return 1, length // 320

    def read(self, row, start, length):
        return (7 * row + (start // 320 + np.arange(length // 320))[None]) % 21


def test_the_loss_of_mixed_rows_is_that_of_a_loop_with_the_labels_of_the_clean_audio():
    """From recordings, noise and the draws of the plan: mixing as a loop, cross-entropy of the logits in NumPy."""
    rng, config = np.random.default_rng(0), config_of(encoder__dropout=0.0, encoder__layer_drop=0.0)
    config = configs.changed(config, {"encoder.input_dropout": 0.0, "encoder.attention_dropout": 0.0})
    waves = [(1 + i % 3) * rng.normal(size=n).astype(np.float32) for i, n in enumerate([SAMPLES, 6_000] * 4)]
    noises = [rng.normal(size=n).astype(np.float32) for n in (3_000, 9_000)]
    plan = train_plan(
        np.array([len(wave) for wave in waves]),
        bucket_samples=(SAMPLES,),
        units=3,
        unit_seconds=2 * SAMPLES / 16_000,
        seed=1,
        augment=Augmentation(
            mix_prob=0.8,
            mix_decibels=(-5.0, 5.0),
            noise=Noise(np.array([3_000, 9_000]), prob=0.5, decibels=(-5.0, 20.0)),
        ),
    )
    ((batch, _),) = batches(
        Arrays(waves, 16_000), plan, targets=RowLabels(), noise=Arrays(noises, 16_000), stop=1, loader="threads"
    )
    step = plan.step(0)
    assert (step.mix.noises >= 0).any() and (step.mix.others >= 0).any(), "both kinds are to be mixed"
    method = wavlm.make(config)
    params = bare(jax.jit(method.init)(KEY, batch)[0])
    found = jax.jit(lambda params: method.loss(params, {}, batch, KEY, 0, train=True)[0])(params)

    clean = batch | dict(wave=np.stack(rows_of(step, waves, noises)))
    assert np.abs(clean["wave"] - batch["wave"]).max() < 1e-5 < np.abs(batch["wave"] - waves[step.rows[0]][0]).max()
    masked = np.asarray(jax.jit(lambda batch: unit_prediction.draw(config, batch, KEY))(clean))
    model = unit_prediction.UnitPredictor(config)
    prediction = jax.jit(model.apply)({"params": params}, clean, jnp.asarray(masked))
    logits = np.asarray(prediction.logits, np.float64)[:, :, 0]
    total, penalty = 0.0, np.square(np.asarray(prediction.encoded.features, np.float64)).mean(axis=(1, 2))
    for i, (row, start) in enumerate(zip(step.rows, step.starts)):
        for f in np.flatnonzero(masked[i]):
            right = 4 + (7 * row + start // 320 + f) % 21
            total += np.log(np.exp(logits[i, f]).sum()) - logits[i, f, right] + config.loss.penalty_weight * penalty[i]
    assert found.weight == masked.sum() and masked.any(axis=1).all()
    np.testing.assert_allclose(found.total, total, rtol=1e-4)
