"""wav2vec 2.0: what is drawn and for whom, what chance is, and the encoder alone.

Its maths is compared with fairseq's arrays in tests/test_golden_wav2vec2.py.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import wave_batch
from commands import ROOT

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.methods import wav2vec2

SAMPLES, KEY = 8_000, jax.random.key(3)
BATCH = wave_batch([8_000, 5_000, 8_000, 8_000], SAMPLES, weight=[1, 1, 0, 1])


def config_of(**changes):
    """The tiny config with units of two rows; `section__key=value` changes it."""
    config = configs.load(f"{ROOT / 'configs' / 'w2v2_base.py'}:tiny")
    changes = {"data__unit_seconds": 2 * SAMPLES / 16_000} | changes
    return configs.changed(config, {key.replace("__", "."): value for key, value in changes.items()})


def draws_of(*, train: bool, **changes) -> wav2vec2.Draws:
    return jax.jit(functools.partial(wav2vec2.draw, config_of(**changes), train=train))(BATCH, KEY)


def test_used_slots_are_the_masked_frames_and_rows_of_weight_0_have_none():
    draws = jax.tree.map(np.asarray, draws_of(train=True))
    for row, weight in enumerate(BATCH["weight"]):
        frames = np.flatnonzero(draws.masked[row]) if weight else []
        np.testing.assert_array_equal(draws.slots[row][draws.used[row]], frames)
    assert draws.used[0].any()


def test_noise_of_the_codes_is_drawn_in_training_only():
    shapes = {train: jax.eval_shape(functools.partial(draws_of, train=train)) for train in (True, False)}
    assert shapes[True].gumbel.shape == (*shapes[True].slots.shape, 2, 16) and shapes[False].gumbel is None
    assert shapes[True]._replace(gumbel=None) == shapes[False]


def test_codebook_distractors_are_codes_of_every_group():
    codes = draws_of(train=True, loss__codebook_negatives=50, quantizer__codes=5).codebook
    assert codes.shape[2:] == (50, 2)
    assert all(set(np.unique(codes[..., group])) == set(range(5)) for group in range(2))


def test_rows_too_short_for_a_distractor_are_refused():
    with pytest.raises(UserError, match="rows of 700 samples have 1 frames; raise data.bucket_seconds"):
        wav2vec2.draw(config_of(), wave_batch([700], 700), KEY, train=True)


def test_chance_counts_every_candidate_of_a_frame():
    config = config_of(loss__negatives=10, loss__cross_negatives=4, loss__codebook_negatives=5)
    levels = wav2vec2.make(config).levels()
    assert levels["loss_chance"] == math.log(20) and levels["accuracy_chance"] == 1 / 20
    assert (levels["perplexity_floor"], levels["perplexity_max"]) == (2.0, 32.0)


def test_an_encoder_alone_has_features_and_no_loss():
    """It is what a quantizer without groups means."""
    method = wav2vec2.make(config_of(quantizer__groups=0))
    params, extra = jax.eval_shape(method.init, KEY, BATCH)
    assert params.keys() == {"encoder"} and not extra
    found = jax.eval_shape(method.predict, params, extra, BATCH)
    assert found.keys() == {"local", "context", "hidden", "valid"}
    with pytest.raises(UserError, match="an encoder alone, which has no loss"):
        method.loss(params, extra, BATCH, KEY, jnp.int32(0), train=True)
