"""CPC's objective against loops in NumPy, the law of its three kinds of distractors, and inputs without targets."""

from __future__ import annotations

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import wave_batch

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.methods import cpc
from w2v_jax.nn import future_prediction
from w2v_jax.nn.future_prediction import FutureModel
from w2v_jax.ops import losses
from w2v_jax.ops import random as noises
from w2v_jax.ops.frames import num_frames
from w2v_jax.training.sharding import bare

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "cpc.py"
ROWS, UNIT, SAMPLES = 6, 3, 3_600
LENGTHS = np.asarray([3_600, 2_000, 3_600, 900, 3_600, 2_800], np.int32)
KINDS = ("same", "others", "both")


def config_of(**loss):
    """The tiny config with units of UNIT rows; 20 frames per row, S = 4 steps."""
    config = configs.load(f"{CONFIG}:tiny")
    with config.unlocked():
        config.data.unit_seconds = UNIT * SAMPLES / 16_000
        config.loss.update(loss)
    return config


def make_batch(lengths=LENGTHS, weight=None, samples: int = SAMPLES) -> dict[str, np.ndarray]:
    return wave_batch(lengths, samples, weight)


@functools.cache
def case():
    """(parameters, batch, its Encoded, predictions [B F S C]) of the tiny model; some rows are padded."""
    config = config_of()
    batch, model = make_batch(), FutureModel(config, use_bias=False)
    params = bare(jax.jit(lambda: cpc.make(config).init(jax.random.key(0), batch))()[0])
    encoded, predictions = jax.jit(model.apply)({"params": params}, batch)
    return params, batch, jax.tree.map(np.asarray, encoded), np.asarray(predictions)


@functools.lru_cache
def compiled(kind: str, scale: str = "dot"):
    """(loss, metrics) of params and a batch; and the gradient."""
    method = cpc.make(config_of(negatives_from=kind, scale=scale))

    def loss(params, batch):
        total, (_, metrics) = method.loss(params, {}, batch, jax.random.key(3), 0, train=True)
        return total.total, (total, metrics)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def loops(config, batch, params, local, context, index):
    """(summed loss, right [S], pairs [S]): pair by pair, each with a list of its distractors.

    Predictions are made here from the context of the frame k before, k = 1..S.
    """
    frames = num_frames(batch["num_samples"], config.encoder.conv_layers)
    size, steps = local.shape[1], config.loss.steps
    rows_of_block = index.shape[1] // size
    total, right, pairs = 0.0, np.zeros(steps), np.zeros(steps)
    for b in range(len(local)):
        if not batch["weight"][b]:
            continue
        block, inside = divmod(b, rows_of_block)
        for u in range(frames[b]):
            drawn = [divmod(int(i), size) for i in index[block, inside * size + u]]
            drawn = [(block * rows_of_block + row, frame) for row, frame in drawn]
            drawn = [(row, frame) for row, frame in drawn if (row, frame) != (b, u)]
            for k in range(1, steps + 1):
                if u - k < 0 or not drawn:
                    continue
                guess = context[b, u - k].astype(np.float64) @ params["predictor"]["kernel"][k - 1]
                logits = np.asarray([guess @ local[row, frame] for row, frame in [(b, u), *drawn]])
                logits = logits / (local.shape[-1] if config.loss.scale == "mean" else 1.0)
                total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[0]
                right[k - 1] += logits[0] > logits[1:].max()
                pairs[k - 1] += 1
    return total, right, pairs


@pytest.mark.parametrize("scale", ["dot", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_accuracies_equal_loops_over_pairs(kind, scale):
    params, batch, encoded, _ = case()
    config = config_of(negatives_from=kind, scale=scale)
    index = np.asarray(jax.jit(lambda batch, key: cpc.draw(config, batch, key))(batch, jax.random.key(3)))
    (_, (loss, metrics)), _ = compiled(kind, scale)(params, batch)
    total, right, pairs = loops(config, batch, params, encoded.local, encoded.context, index)
    np.testing.assert_allclose(loss.total, total, rtol=2e-5)
    assert loss.weight == pairs.sum() > 100
    for s in range(config.loss.steps):
        found = metrics[f"accuracy_step_{s + 1:02d}"]
        assert (found.total, found.weight) == (right[s], pairs[s]), s
    assert metrics["accuracy"].total == right.sum() > 0
    assert metrics["too_short_share"].value() == 0


def test_gradient_equals_that_of_gathered_distractors():
    """Products with all frames, one step at a time and weighted by counts, against products with drawn frames."""
    _, batch, encoded, predictions = case()
    config = config_of(negatives_from="both", scale="dot")
    index = cpc.draw(config, batch, jax.random.key(3))

    def gathered(local, predictions):
        logits = future_prediction.candidate_logits(predictions, local, index)
        pairs = future_prediction.real_pairs(config, batch)
        return jnp.where(pairs, losses.info_nce(logits).loss, 0.0).sum()

    def counted(local, predictions):
        return cpc.objective(config, batch, local=local, predictions=predictions, distractors=index)[0].total

    ours, theirs = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(encoded.local, predictions) for f in (counted, gathered)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("kind", KINDS)
def test_distractors_stand_where_the_config_says(kind):
    batch = make_batch(weight=[1, 1, 1, 1, 0, 1])
    config = config_of(negatives_from=kind, negatives=200)
    index = np.asarray(jax.jit(lambda batch, key: cpc.draw(config, batch, key))(batch, jax.random.key(0)))
    frames = num_frames(batch["num_samples"], config_of().encoder.conv_layers)
    size = num_frames(SAMPLES, config_of().encoder.conv_layers)
    real = (np.arange(size) < frames[:, None]) & (batch["weight"] > 0)[:, None]
    first = np.arange(ROWS) // UNIT * UNIT if kind != "same" else np.arange(ROWS)
    index = index.reshape(ROWS, size, -1)
    for b, u in zip(*np.nonzero(real), strict=True):
        row, frame = first[b] + index[b, u] // size, index[b, u] % size
        assert real[row, frame].all(), "padding or a row of weight 0 was drawn"
        assert not ((row == b) & (frame == u)).any(), "a frame is its own distractor"
        if kind == "same":
            assert (row == b).all()
        else:
            unit = [r for r in range(first[b], first[b] + UNIT) if real[r].any()]
            assert set(row) == set(unit) - ({b} if kind == "others" else set())


def test_distractors_of_other_utterances_are_uniform_over_their_frames():
    used = np.arange(7) < np.asarray([7, 3, 5])[:, None]
    noise = noises.row_noise(jax.random.key(1), jnp.arange(3))
    draw = jax.jit(lambda *x: losses.draw_cross_distractors(*x, 20_000, rows=3, other_rows=True))
    index = np.asarray(draw(noise, jnp.asarray(used)))
    for row, slot in zip(*np.nonzero(used), strict=True):
        share = np.bincount(index[row, slot], minlength=21).reshape(3, 7) / index.shape[-1]
        expected = used * (np.arange(3) != row)[:, None] / (15 - used[row].sum())
        assert (share[expected == 0] == 0).all()
        assert np.abs(share - expected).max() < 5 * np.sqrt(0.25 / index.shape[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_targets_count_nothing_and_are_told(kind):
    """No sample, less than a frame, one frame; a row with fewer frames than steps still predicts what it can."""
    params = case()[0]
    short = make_batch([3_600, 465, 100, 0, 465 + 160, 3_600], weight=[1, 1, 1, 1, 1, 0])
    (_, (loss, metrics)), gradient = compiled(kind)(params, short)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, metrics, gradient)))
    pairs = sum(20 - k for k in (1, 2, 3, 4)) + 1  # row 0, and the second frame of row 4
    if kind == "others":
        pairs -= 1  # the other rows of its unit have no frame, or no weight
    assert loss.weight == pairs
    assert metrics["too_short_share"].value() == pytest.approx(4 / 5 if kind == "others" else 3 / 5)


def test_batch_in_which_nobody_has_a_target_is_finite():
    params = case()[0]
    (_, (loss, metrics)), gradient = compiled("both")(params, make_batch([465] * ROWS))
    assert loss.total == 0 and loss.weight == 0 and metrics["too_short_share"].value() == 1
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("norm", ["frame", "none"])
def test_silence_is_chance_and_never_right(norm):
    config = config_of()
    with config.unlocked():
        config.encoder.conv_norm = norm
    method, batch = cpc.make(config), make_batch() | dict(wave=np.zeros((ROWS, SAMPLES), np.float32))

    def loss(params):
        total, (_, metrics) = method.loss(params, {}, batch, jax.random.key(0), 0, train=True)
        return total.total, (total, metrics)

    def run():
        return jax.value_and_grad(loss, has_aux=True)(bare(method.init(jax.random.key(1), batch)[0]))

    (_, (total, metrics)), gradient = jax.jit(run)()
    assert total.value() == pytest.approx(cpc.make(config).levels()["loss_chance"], rel=1e-4)
    assert metrics["accuracy"].value() == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_chance_is_that_of_equal_logits():
    ones = jnp.ones((1, 10, 2, 3))
    counts = losses.distractor_counts((jnp.arange(10)[None, :, None] + jnp.arange(1, 5)) % 10, jnp.ones((1, 10), bool))
    contrast = losses.future_info_nce(ones, ones[:, :, 0], counts, scale=1.0)
    levels = cpc.make(config_of(negatives=4)).levels()
    np.testing.assert_allclose(contrast.loss, levels["loss_chance"], rtol=1e-6)
    assert levels == {"loss_chance": pytest.approx(math.log(5)), "accuracy_chance": 0.2}
    np.testing.assert_array_equal(contrast.correct, 0.0)


def test_20480_samples_have_126_frames():
    assert num_frames(20_480, configs.load(str(CONFIG)).encoder.conv_layers) == 126


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(negatives_from="elsewhere"), "loss.negatives_from is 'elsewhere'; it is one of same, others, both"),
        (dict(scale="cosine"), "loss.scale is 'cosine'; it is one of dot, mean"),
    ],
)
def test_unknown_choices_are_named(changes, says):
    with pytest.raises(UserError, match=says):
        cpc.make(config_of(**changes))


def test_units_of_one_row_have_no_other_utterance():
    config = config_of(negatives_from="others")
    with config.unlocked():
        config.data.unit_seconds = SAMPLES / 16_000
    with pytest.raises(UserError, match="needs two utterances per unit.*data.unit_seconds"):
        cpc.draw(config, make_batch(), jax.random.key(0))


def test_rows_too_short_for_any_target_are_refused():
    with pytest.raises(UserError, match="1 frames; raise data.bucket_seconds"):
        cpc.draw(config_of(), make_batch([465], samples=465), jax.random.key(0))
