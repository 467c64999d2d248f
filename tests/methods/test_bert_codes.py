"""BERT over codes: what is masked, what is asked for, and what a model that only counts would reach."""

from __future__ import annotations

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.core.units import CODE_MASK, CODE_PAD, CODE_UNKNOWN, FIRST_CODE
from w2v_jax.methods import bert_codes
from w2v_jax.nn.encoders import code_encoder
from w2v_jax.training.sharding import bare

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
HOP, KEY = 160, jax.random.key(3)
NOW = jnp.int32(4)


def tiny(**sections):
    config = configs.load(f"{CONFIGS / 'bert_codes_base.py'}:tiny")
    with config.unlocked():
        for name, values in sections.items():
            config[name].update(values)
    return config


def make_batch(frames=(60, 37, 12, 60), total: int = 60, types: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    codes = np.random.default_rng(seed).integers(FIRST_CODE, FIRST_CODE + types, (len(frames), total))
    codes = np.where(np.arange(total) < np.array(frames)[:, None], codes, CODE_PAD).astype(np.int32)
    num_samples = np.array(frames, np.int32) * HOP + HOP - 1  # the last samples make no whole frame
    weight, row = np.ones(len(frames), np.float32), np.arange(len(frames), dtype=np.int32)
    return dict(codes=codes, num_samples=num_samples, weight=weight, row=row)


class Model:
    """The tiny model, its random parameters, and its jitted functions."""

    def __init__(self, config):
        self.config, self.method = config, bert_codes.make(config)
        shapes, extra = jax.eval_shape(lambda: self.method.init(KEY, make_batch()))
        rng = np.random.default_rng(0)
        self.params = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype), bare(shapes))
        self.extra = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), extra)
        self.draw = jax.jit(lambda batch, key=KEY: bert_codes.draw(config, batch, key))
        self.loss = jax.jit(self.method.loss, static_argnames="train")
        self.predict = jax.jit(self.method.predict)

        self._gradient = jax.jit(jax.value_and_grad(self._summed, has_aux=True))

    def _summed(self, params, batch):
        total, (_, metrics) = self.method.loss(params, self.extra, batch, KEY, NOW, train=True)
        return total.total, metrics

    def gradient(self, batch):
        """(summed loss, metrics, its gradient)"""
        (total, metrics), gradient = self._gradient(self.params, batch)
        return total, metrics, gradient

    def score(self, batch, extra=None, train=False, step=NOW):
        """(loss Mean, extra, metrics)"""
        total, (after, metrics) = self.loss(self.params, extra or self.extra, batch, KEY, step, train=train)
        return total, after, metrics


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(tiny())


# Sizes


def sizes(config) -> tuple[int, int]:
    """(parameters, those under "encoder")"""
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make_batch()))
    params = bare(jax.eval_shape(lambda b: bert_codes.make(config).init(KEY, b)[0], batch))
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    return count(params), count(params["encoder"])


@pytest.mark.parametrize(("file", "total"), [("bert_codes_base.py", 98_391_231), ("bert_codes_small.py", 46_593_215)])
def test_parameters_are_those_of_roberta(file, total):
    config = configs.load(str(CONFIGS / file))
    d, m, vocab, places = (config.encoder.width, config.encoder.mlp, config.data.vocab_size, config.encoder.max_frames)
    block = 4 * (d * d + d) + (d * m + m) + (m * d + d) + 2 * 2 * d
    trunk = vocab * d + places * d + 2 * d + config.encoder.layers * block
    head = (d * d + d) + 2 * d + vocab  # the matrix of the output is that of the input
    assert sizes(config) == (trunk + head, trunk)
    assert trunk + head == total


def test_conv_positions_take_the_place_of_the_learned_ones():
    config = configs.load(str(CONFIGS / "bert_codes_base.py"), [("encoder.positions", "conv")])
    d, kernel, groups = 768, 128, 16
    learned = 3072 * d
    assert sizes(config)[0] == 98_391_231 - learned + kernel * d * d // groups + kernel + d


def test_weights_start_with_a_spread_of_two_hundredths():
    params = jax.jit(lambda: bare(bert_codes.make(tiny()).init(KEY, make_batch())[0]))()
    encoder = params["encoder"]
    kernels = [encoder["embedding"], encoder["transformer"]["position_table"]]
    kernels += [encoder["transformer"]["layers"][name]["kernel"] for name in ("query", "mlp_in", "mlp_out")]
    for kernel in [*kernels, params["head"]["dense"]["kernel"]]:
        np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.1)


# Masking


@pytest.mark.parametrize(("seconds", "share"), [(15.36, 0.402), (3.0, 0.405), (1.0, 0.410)])
def test_about_forty_percent_of_the_frames_are_masked(seconds, share):
    """The paper's law without the ends of rows: 5 % of frames start a span of 10, 1 - 0.95 ** 10 = 0.401 masked."""
    config, frames = configs.load(str(CONFIGS / "bert_codes_base.py")), int(seconds * 100)
    batch = make_batch(frames=(frames,) * 512, total=frames)
    masked = jax.jit(lambda b: bert_codes.draw(config, b, KEY).masked)(batch)
    assert abs(np.mean(masked) - share) < 0.005


def test_replacement_is_eighty_ten_ten_by_frame():
    """Independent from frame to frame, the random codes uniform over the real types."""
    types = 40
    config = tiny(data=dict(vocab_size=FIRST_CODE + types))
    batch = make_batch(frames=(400,) * 1024, total=400, types=types)
    draws = jax.tree.map(np.asarray, jax.jit(lambda b: bert_codes.draw(config, b, KEY))(batch))
    codes, given, masked = batch["codes"], draws.codes, draws.masked
    np.testing.assert_array_equal(given[~masked], codes[~masked])
    hidden, kept = (given == CODE_MASK) & masked, (given == codes) & masked
    count = masked.sum()
    assert abs(hidden.sum() / count - 0.8) < 0.005
    assert abs(kept.sum() / count - (0.1 + 0.1 / types)) < 0.005, "a random code is the right one by chance"
    other = given[masked & ~hidden & ~kept]
    shares = np.bincount(other, minlength=FIRST_CODE + types)[FIRST_CODE:] / len(other)
    assert other.min() >= FIRST_CODE and other.max() < FIRST_CODE + types
    np.testing.assert_allclose(shares, 1 / types, rtol=0.2)
    pairs = masked[:, 1:] & masked[:, :-1]
    both = (hidden[:, 1:] & hidden[:, :-1])[pairs].mean()
    assert abs(both - 0.64) < 0.01, "by frame, not by span"


def test_draws_of_a_row_depend_on_nothing_beside_it(model):
    whole = model.draw(make_batch())
    batch = make_batch()
    alone = model.draw({name: x[1:2] for name, x in batch.items()})
    longer = model.draw(batch | dict(codes=np.pad(batch["codes"], ((0, 0), (0, 20)))))
    np.testing.assert_array_equal(alone.codes[0], whole.codes[1])
    np.testing.assert_array_equal(longer.codes[:, :60], whole.codes)
    assert not np.asarray(longer.masked[:, 60:]).any()
    assert (np.asarray(model.draw(batch, jax.random.key(4)).masked) != np.asarray(whole.masked)).any()


# The loss


def norm(x, params):
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * params["scale"] + params["bias"]


def test_loss_is_the_mean_cross_entropy_of_the_masked_frames(model):
    """By NumPy from the encoder's output: head, tied output, and a loop over the masked frames."""
    batch = make_batch()
    batch["weight"][3] = 0
    draws = jax.tree.map(np.asarray, model.draw(batch))
    encoder = code_encoder(model.config, jnp.float32)
    encoded = jax.jit(encoder.apply)({"params": model.params["encoder"]}, draws.codes, batch["num_samples"])
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), model.params)
    head, table = params["head"], params["encoder"]["embedding"]
    x = np.asarray(encoded.context, np.float64) @ head["dense"]["kernel"] + head["dense"]["bias"]
    x = norm(np.asarray(jax.nn.gelu(x, approximate=False), np.float64), head["norm"])
    logits = x @ table.T + head["bias"]
    total, right, count = 0.0, 0, 0
    for row, frame in zip(*np.nonzero(draws.masked[:3]), strict=True):
        line, target = logits[row, frame], batch["codes"][row, frame]
        total += np.log(np.exp(line).sum()) - line[target]
        right += line.argmax() == target
        count += 1
    loss, _, metrics = model.score(batch)
    assert float(loss.weight) == count > 20
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"].total, right)
    np.testing.assert_allclose(metrics["masked_share"].value(), count / (60 + 37 + 12), rtol=1e-6)


def test_what_the_model_says_of_visible_frames_has_no_part_in_the_loss(model):
    """Other codes at visible frames change the input, and with the input held the loss does not see them."""
    batch = make_batch()
    masked = np.asarray(model.draw(batch).masked)
    other = batch | dict(codes=np.where(masked, batch["codes"], make_batch(seed=1)["codes"]))
    draws = model.draw(batch)
    logits = jax.random.normal(KEY, (*draws.slots.shape, model.config.data.vocab_size))
    counts = jnp.zeros(model.config.data.vocab_size)
    total = lambda x, batch: bert_codes.objective(model.config, batch, draws=draws, logits=x, counts=counts)[0].total
    (a, gradient), (b, _) = (jax.jit(jax.value_and_grad(total))(logits, x) for x in (batch, other))
    assert float(a) == float(b)
    np.testing.assert_array_equal(np.any(np.asarray(gradient), axis=-1), draws.used)


def test_output_is_tied_to_the_embedding(model):
    """The vector of a code that no frame is given still gets a gradient, from the output alone."""
    assert set(model.params["head"]) == {"dense", "norm", "bias"}
    batch = make_batch(types=5)
    gradient = jax.grad(lambda p: model.method.loss(p, model.extra, batch, KEY, NOW, train=False)[0].total)
    found = np.asarray(jax.jit(gradient)(model.params)["encoder"]["embedding"])
    assert np.any(found[CODE_UNKNOWN])


def test_dropout_acts_in_training_only(model):
    config = tiny(encoder=dict(dropout=0.3, attention_dropout=0.3))
    noisy, batch = Model(config), make_batch()
    still = noisy.score(batch)[0].total
    assert float(still) == pytest.approx(float(model.score(batch)[0].total), rel=1e-6)
    assert abs(float(noisy.score(batch, train=True)[0].total) - float(still)) > 1e-2


# Counting


def entropy_of(shares):
    return -np.sum(shares * np.log(shares))


def test_unigram_loss_is_that_of_the_steps_before(model):
    """By NumPy; nothing of the present step, whether it comes whole or in micro-batches; evaluation changes nothing."""
    vocab = model.config.data.vocab_size
    batches = [make_batch(seed=seed) for seed in range(3)]
    extra = model.extra
    for step, batch in enumerate(batches):
        seen = sum((np.bincount(b["codes"][b["codes"] > 0], minlength=vocab) for b in batches[:step]), np.zeros(vocab))
        targets = batch["codes"][np.asarray(model.draw(batch).masked)]
        expected = -np.log((seen[targets] + 1) / (seen.sum() + vocab - CODE_UNKNOWN)).mean()
        halves = [{name: x[part] for name, x in batch.items()} for part in (slice(0, 2), slice(2, 4))]
        _, whole, metrics = model.score(batch, extra, train=True, step=jnp.int32(step))
        _, first, one = model.score(halves[0], extra, train=True, step=jnp.int32(step))
        _, extra, two = model.score(halves[1], first, train=True, step=jnp.int32(step))
        np.testing.assert_allclose(metrics["unigram_loss"].value(), expected, rtol=1e-5)
        np.testing.assert_allclose((one["unigram_loss"] + two["unigram_loss"]).value(), expected, rtol=1e-5)
        jax.tree.map(np.testing.assert_array_equal, extra, whole)
    _, after, metrics = model.score(batches[0], extra)
    jax.tree.map(np.testing.assert_array_equal, after, extra)
    seen = sum(np.bincount(b["codes"][b["codes"] > 0], minlength=vocab) for b in batches)
    np.testing.assert_array_equal(extra["seen"] + extra["new"], seen)
    targets = batches[0]["codes"][np.asarray(model.draw(batches[0]).masked)]
    expected = -np.log((seen[targets] + 1) / (seen.sum() + vocab - CODE_UNKNOWN)).mean()
    np.testing.assert_allclose(metrics["unigram_loss"].value(), expected, rtol=1e-5)


def test_unigram_loss_tends_to_the_entropy_of_the_stream(model):
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    codes = FIRST_CODE + np.random.default_rng(0).choice(4, (64, 60), p=shares)
    batch = make_batch(frames=(60,) * 64) | dict(codes=codes.astype(np.int32))
    extra = model.extra
    for step in range(6):
        _, extra, metrics = model.score(batch, extra, train=True, step=jnp.int32(step))
    assert abs(float(metrics["unigram_loss"].value()) - entropy_of(shares)) < 0.05


def test_first_step_counts_nothing_and_is_at_chance(model):
    _, _, metrics = model.score(make_batch(), train=True, step=jnp.int32(0))
    chance = bert_codes.make(model.config).levels()["loss_chance"]
    assert chance == math.log(model.config.data.vocab_size - FIRST_CODE)
    assert abs(float(metrics["unigram_loss"].value()) - chance) < 0.01


def test_unknown_codes_are_counted_and_are_targets(model):
    batch = make_batch(frames=(60, 30))
    batch["codes"][0, :15] = CODE_UNKNOWN
    loss, _, metrics = model.score(batch)
    np.testing.assert_allclose(metrics["unknown_share"].value(), 15 / 90, rtol=1e-6)
    assert float(loss.weight) == np.asarray(model.draw(batch).masked).sum()
    assert np.asarray(model.draw(batch).masked)[0, :15].any() and np.isfinite(loss.total)


# Bad input


def finite(tree) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def test_codes_that_are_all_alike_are_finite(model):
    batch = make_batch()
    batch["codes"] = np.where(batch["codes"] > 0, FIRST_CODE, 0).astype(np.int32)
    assert finite(model.gradient(batch))


def test_rows_of_one_frame_and_of_none_weigh_nothing(model):
    batch = make_batch(frames=(1, 0, 60, 30))
    total, metrics, gradient = model.gradient(batch)
    assert finite((total, metrics, gradient))
    assert float(metrics["too_short_share"].total) == 2
    rest = {name: x[2:] for name, x in batch.items()}
    np.testing.assert_allclose(total, model.gradient(rest)[0], rtol=1e-5)


def test_batch_of_one_frame_is_finite(model):
    total, metrics, gradient = model.gradient(make_batch(frames=(1, 1), total=1))
    assert finite((total, metrics, gradient))
    assert total == 0 and metrics["loss"].weight == 0


@pytest.mark.parametrize("code", [-1, 256, 2**30])
def test_a_code_outside_the_vocabulary_is_never_silently_another_one(model, code):
    """As an input and as a target; in padding it does not matter."""
    batch = make_batch()
    masked = np.asarray(model.draw(batch).masked)
    for frames in (np.flatnonzero(masked[0]), np.flatnonzero(~masked[0])):
        bad = batch | dict(codes=batch["codes"].copy())
        bad["codes"][0, frames] = code
        assert not np.isfinite(model.gradient(bad)[0])
    padded = batch | dict(codes=np.where(np.arange(60) < np.array([60, 37, 12, 60])[:, None], batch["codes"], code))
    np.testing.assert_allclose(model.gradient(padded)[0], model.gradient(batch)[0], rtol=1e-6)
    assert not np.isfinite(model.predict(model.params, model.extra, bad)["context"][0]).any()


def test_rows_longer_than_the_learned_positions_are_an_error(model):
    batch = make_batch(frames=(300,), total=300)
    with pytest.raises(UserError, match="300 frames are longer than encoder.max_frames=256"):
        model.predict(model.params, model.extra, batch)
    conv = Model(tiny(encoder=dict(positions="conv")))
    assert np.isfinite(conv.predict(conv.params, conv.extra, batch)["context"]).all()


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("encoder", dict(positions="sine"), "encoder.positions is 'sine'; it is 'learned' or 'conv'"),
        ("encoder", dict(heads=5), "encoder.heads=5 does not divide encoder.width=32"),
        ("encoder", dict(positions="conv", pos_groups=3), "encoder.pos_groups=3 does not divide encoder.width"),
        ("data", dict(vocab_size=3), "data.vocab_size=3: needs 3 special ids and at least one code"),
    ],
)
def test_settings_that_cannot_be_are_named(section, values, message):
    with pytest.raises(UserError, match=message):
        bert_codes.make(tiny(**{section: values})).init(KEY, make_batch())


# Features


def test_learned_positions_tell_equal_frames_apart_and_conv_positions_do_in_the_middle_not(model):
    batch = make_batch(frames=(60,)) | dict(codes=np.full((1, 60), FIRST_CODE, np.int32))
    first = np.asarray(model.predict(model.params, model.extra, batch)["hidden"])[0, 0]
    assert np.abs(first[20] - first[21]).max() > 0.1
    conv = Model(tiny(encoder=dict(positions="conv")))
    first = np.asarray(conv.predict(conv.params, conv.extra, batch)["hidden"])[0, 0]
    np.testing.assert_allclose(first[20], first[21], atol=1e-5)


def test_input_of_the_blocks_is_the_normed_sum_of_vector_and_position(model):
    batch = make_batch()
    found = model.predict(model.params, model.extra, batch)
    params = jax.tree.map(np.asarray, model.params["encoder"])
    vectors = params["embedding"][batch["codes"]]
    np.testing.assert_allclose(found["local"], vectors, rtol=1e-6)
    expected = norm(vectors + params["transformer"]["position_table"][:60], params["transformer"]["norm"])
    valid = np.asarray(found["valid"])
    np.testing.assert_allclose(found["hidden"][0][valid], expected[valid], atol=1e-4)
    np.testing.assert_array_equal(valid.sum(axis=1), [60, 37, 12, 60])
    np.testing.assert_array_equal(found["hidden"][-1], found["context"])


@pytest.mark.parametrize("positions", ["learned", "conv"])
def test_features_of_a_row_depend_on_nothing_beside_it(positions):
    model, batch = Model(tiny(encoder=dict(positions=positions))), make_batch()
    together = model.predict(model.params, model.extra, batch)
    alone = {name: x[1:2] for name, x in batch.items()} | dict(codes=batch["codes"][1:2, :37])
    single = model.predict(model.params, model.extra, alone)
    np.testing.assert_allclose(single["context"][0], together["context"][1, :37], atol=1e-4)
    np.testing.assert_allclose(single["hidden"][:, 0], together["hidden"][:, 1, :37], atol=1e-4)
