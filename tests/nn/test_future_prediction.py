"""Prediction of coming frames: which context predicts which frame, who the distractors are, what counts."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.nn import future_prediction
from w2v_jax.ops import losses

B, F, S, D, C, N, OFFSET = 3, 11, 4, 5, 6, 3, 3
FRAMES = np.asarray([11, 7, 3], np.int32)
SAMPLES = 465 + 160 * (FRAMES - 1)  # a field of 465 samples, one every 160
WAV2VEC = tuple((512, k, s) for k, s in ((10, 5), (8, 4), (4, 2), (4, 2), (4, 2)))


def config(**loss) -> ml_collections.ConfigDict:
    base = dict(kind="bce", balanced=False, steps=S, offset=OFFSET, negatives=N, cross_negatives=0)
    return ml_collections.ConfigDict(
        dict(loss=base | loss, encoder=dict(conv_layers=WAV2VEC), data=dict(unit_seconds=B * SAMPLES[0] / 16_000))
    )


def batch(weight=(1.0, 1.0, 1.0)) -> dict:
    wave = jnp.zeros((B, SAMPLES[0]))
    return dict(wave=wave, num_samples=jnp.asarray(SAMPLES), weight=jnp.asarray(weight), row=jnp.arange(B))


def test_automatic_offset_is_the_first_frame_without_a_common_sample():
    assert future_prediction.first_offset(config(offset=0)) == 3
    assert future_prediction.first_offset(config(offset=1)) == 1


def test_number_of_predicted_pairs_is_the_published_one():
    crop = dict(wave=jnp.zeros((1, 150_000)), num_samples=jnp.asarray([150_000]), weight=jnp.ones(1))
    assert future_prediction.real_pairs(config(steps=12, offset=0), crop).sum() == 11_118


def test_predictions_stand_at_the_frame_that_they_predict():
    context = jax.random.normal(jax.random.key(0), (B, F, D))
    predictor = future_prediction.FuturePredictor(S, C)
    params = nn.unbox(predictor.init(jax.random.key(1), context, OFFSET))["params"]
    found = predictor.apply({"params": params}, context, OFFSET)
    for u, s in np.ndindex(F, S):
        t = u - OFFSET - s
        expected = context[:, t] @ params["kernel"][s] + params["bias"] if t >= 0 else np.zeros((B, C))
        np.testing.assert_allclose(found[:, u, s], expected, atol=1e-5)


def test_predictor_works_on_rows_shorter_than_the_horizon():
    context = jnp.ones((B, 2, D))
    predictor = future_prediction.FuturePredictor(S, C, use_bias=False)
    found, params = predictor.init_with_output(jax.random.key(1), context, OFFSET)
    assert found.shape == (B, 2, S, C) and not np.any(found) and "bias" not in params["params"]


def drawn(law, batch):
    return jax.jit(lambda batch, key: future_prediction.draw(law, batch, key))(batch, jax.random.key(3))


@pytest.mark.parametrize("cross", [0, 4])
def test_distractors_are_other_real_frames_of_the_row_or_unit(cross):
    index = drawn(config(cross_negatives=cross), batch())
    real = np.arange(F) < FRAMES[:, None]
    if cross:
        assert index.shape == (1, B * F, N + cross)
        row, frame = np.divmod(np.asarray(index).reshape(B, F, -1), F)
        assert {tuple(p) for p in zip(row[0, :, N:].ravel(), frame[0, :, N:].ravel(), strict=True)} - {
            (0, f) for f in range(F)
        }, "all from the own row"
    else:
        row, frame = np.broadcast_to(np.arange(B)[:, None, None], index.shape), np.asarray(index)
    for b, u in zip(*np.nonzero(real), strict=True):
        assert (row[b, u, :N] == b).all()
        assert real[row[b, u], frame[b, u]].all(), "a padded frame was drawn"
        assert not ((row[b, u] == b) & (frame[b, u] == u)).any(), "a frame is its own distractor"


def test_rows_of_weight_0_are_nobodys_distractors():
    index = drawn(config(cross_negatives=8), batch((1.0, 0.0, 1.0)))
    rows = np.asarray(index).reshape(B, F, -1)[0, :, N:] // F
    assert set(rows.ravel()) == {0, 2}


def loop_loss(kind, weight, predictions, targets, index):
    """(summed loss, correct, pairs per step) frame by frame."""
    total, right, pairs = 0.0, np.zeros(S), np.zeros(S)
    for b in range(B):
        for s in range(S):
            for u in range(OFFSET + s, FRAMES[b]):
                logits = np.asarray([predictions[b, u, s] @ targets[b, v] for v in (u, *index[b, u])], np.float64)
                if kind == "infonce":
                    total += np.log(np.exp(logits).sum()) - logits[0]
                else:
                    total += np.log1p(np.exp(-logits[0])) + weight * np.log1p(np.exp(logits[1:])).sum()
                right[s] += logits[0] >= logits[1:].max()
                pairs[s] += 1
    return total, right, pairs


@pytest.mark.parametrize(("kind", "balanced"), [("bce", False), ("bce", True), ("infonce", False)])
def test_objective_is_that_of_loops_over_real_frames(kind, balanced):
    rng = np.random.default_rng(0)
    predictions = rng.normal(size=(B, F, S, C)).astype(np.float32)
    targets = rng.normal(size=(B, F, C)).astype(np.float32)
    index = rng.integers(0, FRAMES[:, None, None], (B, F, N))
    law = config(kind=kind, balanced=balanced)
    score = lambda **arrays: future_prediction.objective(law, batch(), **arrays)
    found, metrics = jax.jit(score)(targets=targets, predictions=predictions, distractors=index)
    total, right, pairs = loop_loss(kind, 1 / N if balanced else 1.0, predictions, targets, index)
    np.testing.assert_allclose(found.total, total, rtol=1e-5)
    assert found.weight == pairs.sum()
    for s in range(S):
        assert metrics[f"accuracy_step_{s + 1:02d}"].total == right[s]
        assert metrics[f"accuracy_step_{s + 1:02d}"].weight == pairs[s]
    assert metrics["accuracy"].total == right.sum()
    assert metrics["too_short_share"].value() == pytest.approx(1 / 3)  # the row of three frames


def test_unknown_kind_of_loss_is_named():
    with pytest.raises(UserError, match="loss.kind is 'mse'"):
        future_prediction.objective(
            config(kind="mse"), batch(), targets=jnp.ones((B, F, C)), predictions=jnp.ones((B, F, S, C)),
            distractors=jnp.zeros((B, F, N), int),
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["bce", "infonce"])
@pytest.mark.parametrize("balanced", [True, False])
def test_chance_is_what_the_best_constant_logit_reaches(kind, balanced):
    level = future_prediction.levels(config(kind=kind, balanced=balanced))["loss_chance"]
    weight = 1 / N if balanced else 1.0
    logit = jnp.linspace(-5, 5, 2001)[:, None] * jnp.ones(1 + N)
    contrast = losses.info_nce(logit) if kind == "infonce" else losses.noise_contrastive(logit, weight)
    assert level == pytest.approx(float(contrast.loss.min()), abs=1e-4)


def test_equal_logits_give_the_published_loss_and_are_not_right():
    contrast = losses.noise_contrastive(jnp.zeros(11), 1.0)
    assert contrast.loss == pytest.approx(11 * math.log(2)) and contrast.correct == 0
    assert losses.info_nce(jnp.zeros(11)).loss == pytest.approx(math.log(11))


def test_large_logits_stay_finite_with_finite_gradients():
    logits = jnp.asarray([-300.0, 300.0, 280.0])
    for loss in (lambda x: losses.info_nce(x).loss, lambda x: losses.noise_contrastive(x, 1.0).loss):
        value, gradient = jax.value_and_grad(loss)(logits)
        assert np.isfinite(value) and np.isfinite(gradient).all()
