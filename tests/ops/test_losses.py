"""The contrastive loss against an oracle that gathers every distractor, and the law of the draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.ops import losses
from w2v_jax.ops import random as noises

B, M, P, G, N, X = 6, 7, 5, 2, 9, 4
TEMPERATURE = 0.1
NUM_USED = np.asarray([7, 5, 2, 1, 0, 7])
USED = np.arange(M)[None] < NUM_USED[:, None]

draw = jax.jit(losses.draw_distractors, static_argnums=2)
draw_cross = jax.jit(losses.draw_cross_distractors, static_argnames=("count", "rows"))


@jax.jit
def contrast(context, targets, codes, index, used, extra=None):
    counts = losses.distractor_counts(index, used)
    return losses.contrastive(context, targets, codes, counts=counts, temperature=TEMPERATURE, extra=extra)


@jax.jit
def gradients(context, targets, codes, index, used, extra=None):
    """Gradients of the summed loss of the used slots in context, targets (and the extra vectors)."""

    def total(context, targets, vectors):
        more = None if extra is None else (vectors, extra[1])
        return jnp.where(used, contrast(context, targets, codes, index, used, more).loss, 0.0).sum()

    vectors = jnp.zeros(()) if extra is None else extra[0]
    return jax.grad(total, argnums=(0, 1, 2))(context, targets, vectors)


def cosine(a, b) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-8))


def loop_oracle(context, targets, codes, index, used, extra=None):
    """(loss, correct) [K J]: for each used slot a list of its distractors' vectors, as fairseq has it.

    A lone masked frame has no distractor: its index then points to the slot itself.
    """
    loss, correct = np.zeros(used.shape), np.zeros(used.shape)
    for k, j in zip(*np.nonzero(used), strict=True):
        candidates = [(targets[k, i], codes[k, i]) for i in index[k, j] if i != j]
        if extra is not None:
            candidates += [(extra[0][k, j, x], extra[1][k, j, x]) for x in range(extra[0].shape[2])]
        logits = [cosine(context[k, j], targets[k, j]) / TEMPERATURE]
        for vector, code in candidates:
            same = np.array_equal(code, codes[k, j])
            logits.append(-np.inf if same else cosine(context[k, j], vector) / TEMPERATURE)
        loss[k, j] = np.log(np.exp(logits).sum()) - logits[0]
        dead = len(logits) > 1 and np.argmin(logits) == 0
        correct[k, j] = np.argmax(logits) == 0 and not dead
    return loss, correct


@pytest.fixture(scope="module")
def case():
    """Vectors that are functions of their codes, few codes, so that many distractors equal the positive."""
    rng = np.random.default_rng(0)
    book = rng.normal(size=(3, 3, P)).astype(np.float32)
    codes = rng.integers(0, 3, (B, M, G))
    targets = book[codes[..., 0], codes[..., 1]]
    context = rng.normal(size=(B, M, P)).astype(np.float32)
    extra_codes = rng.integers(0, 3, (B, M, X, G))
    extra = (book[extra_codes[..., 0], extra_codes[..., 1]], extra_codes)
    index = np.asarray(draw(noise(0), jnp.asarray(USED), N))
    return context, targets, codes, index, extra


def noise(seed: int, rows: int = B) -> jax.Array:
    return noises.row_noise(jax.random.key(seed), jnp.arange(rows))


def blocks(x: np.ndarray, rows: int) -> np.ndarray:
    return x.reshape(-1, rows * x.shape[1], *x.shape[2:])


def test_contrastive_equals_the_loop_oracle(case):
    context, targets, codes, index, _ = case
    ours = contrast(context, targets, codes, index, USED)
    loss, correct = loop_oracle(context, targets, codes, index, USED)
    np.testing.assert_allclose(np.asarray(ours.loss)[USED], loss[USED], atol=2e-5)
    np.testing.assert_array_equal(np.asarray(ours.correct)[USED], correct[USED])
    equal = (codes[:, :, None] == np.take_along_axis(codes[:, None], index[..., None], axis=2)).all(-1)
    assert equal[USED].any() and 0 < correct.sum() < USED.sum(), "the case does not test the exclusion"


def test_contrastive_with_codebook_distractors_equals_the_loop_oracle(case):
    context, targets, codes, index, extra = case
    ours = contrast(context, targets, codes, index, USED, extra)
    loss, correct = loop_oracle(context, targets, codes, index, USED, extra)
    np.testing.assert_allclose(np.asarray(ours.loss)[USED], loss[USED], atol=2e-5)
    np.testing.assert_array_equal(np.asarray(ours.correct)[USED], correct[USED])


def test_contrastive_with_cross_utterance_distractors_equals_the_loop_oracle(case):
    context, targets, codes, index, _ = case
    rows = 3
    own = index + (np.arange(B) % rows * M)[:, None, None]
    cross = draw_cross(noise(1), jnp.asarray(USED), N, rows=rows)
    index = blocks(np.concatenate([own, cross], axis=-1), rows)
    args = [blocks(x, rows) for x in (context, targets, codes)]
    used = blocks(USED, rows)
    ours = contrast(*args, index, used)
    loss, correct = loop_oracle(*args, index, used)
    np.testing.assert_allclose(np.asarray(ours.loss)[used], loss[used], atol=2e-5)
    np.testing.assert_array_equal(np.asarray(ours.correct)[used], correct[used])


def test_draws_from_blocks_are_those_of_the_row_and_then_those_of_the_unit(case):
    rows, own, used = 3, case[3], jnp.asarray(USED)
    draws = lambda count: losses.draw_from_blocks(used, own=(noise(0), N), cross=(noise(1), count), rows=rows)
    found, alone = jax.jit(lambda: (draws(X), draws(0)))()
    cross = draw_cross(noise(1), used, X, rows=rows)
    first = (np.arange(B) % rows * M)[:, None, None]
    np.testing.assert_array_equal(found, blocks(np.concatenate([own + first, cross], axis=-1), rows))
    np.testing.assert_array_equal(alone, own)


def test_gradient_equals_that_of_gathered_distractors(case):
    context, targets, codes, index, extra = case

    def gathered(context, targets, vectors):
        unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        block = jnp.arange(B)[:, None, None]
        drawn = jnp.concatenate([targets[block, index], vectors], axis=2)  # [B M N+X P]
        drawn_codes = jnp.concatenate([jnp.asarray(codes)[block, index], extra[1]], axis=2)
        alone = jnp.asarray(NUM_USED <= 1)[:, None, None] & (jnp.arange(N + X) < N)
        leave = (drawn_codes == codes[:, :, None]).all(-1) | alone
        sims = jnp.einsum("bmp,bmnp->bmn", unit(context), unit(drawn)) / TEMPERATURE
        positive = (unit(context) * unit(targets)).sum(-1, keepdims=True) / TEMPERATURE
        logits = jnp.concatenate([positive, jnp.where(leave, -1e9, sims)], axis=-1)
        return jnp.where(USED, -jax.nn.log_softmax(logits)[..., 0], 0.0).sum()

    ours = gradients(context, targets, codes, index, USED, extra)
    theirs = jax.jit(jax.grad(gathered, argnums=(0, 1, 2)))(context, targets, extra[0])
    for a, b, name in zip(ours, theirs, ("context", "targets", "codebook"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), err_msg=name)


def test_equal_logits_give_the_chance_loss():
    shape = (1, 12, 4)
    used = np.ones(shape[:2], bool)
    index = np.asarray(draw(noise(0, 1), jnp.asarray(used), 100))
    codes = np.arange(12).reshape(1, 12, 1)
    result = contrast(np.ones(shape, np.float32), np.ones(shape, np.float32), codes, index, used)
    np.testing.assert_allclose(result.loss, np.log(101), rtol=1e-6)
    np.testing.assert_allclose(np.log(101), 4.615121, atol=1e-6)
    np.testing.assert_array_equal(result.correct, 0.0)  # a dead model is not right


def test_positive_among_excluded_distractors_counts_as_right():
    """As in fairseq, whose excluded distractors are the lowest, so that not all similarities are equal."""
    ones = np.ones((1, 4, 3), np.float32)
    codes = np.asarray([[[0], [0], [1], [2]]])
    index = np.asarray([[[1, 2], [0, 3], [0, 3], [1, 2]]])
    result = contrast(ones, ones, codes, index, np.ones((1, 4), bool))
    np.testing.assert_array_equal(result.correct, [[1, 1, 0, 0]])
    np.testing.assert_allclose(result.loss, np.log([[2, 2, 3, 3]]), rtol=1e-6)


def test_equal_codes_everywhere_give_loss_0_and_a_finite_gradient(case):
    context, targets, codes, index, _ = case
    same = np.zeros_like(codes), index, USED
    targets = np.broadcast_to(targets[:1, :1], targets.shape)
    np.testing.assert_allclose(contrast(context, targets, *same).loss, 0.0, atol=1e-6)
    for gradient in gradients(context, targets, *same):
        np.testing.assert_array_equal(gradient, 0.0)


def test_unused_slots_change_nothing(case):
    context, targets, codes, index, _ = case
    spoil = lambda x, value: np.where(USED[..., None], x, value)
    spoiled = spoil(context, 1e3), spoil(targets, -1e3), spoil(codes, 0), spoil(index, 1)
    a, b = contrast(context, targets, codes, index, USED), contrast(*spoiled, USED)
    np.testing.assert_array_equal(np.asarray(a.loss)[USED], np.asarray(b.loss)[USED])
    np.testing.assert_array_equal(np.asarray(a.correct)[USED], np.asarray(b.correct)[USED])
    for x, y in zip(gradients(context, targets, codes, index, USED), gradients(*spoiled, USED), strict=True):
        if x.ndim:
            np.testing.assert_allclose(x[USED], y[USED], atol=1e-6)
            assert not np.any(np.asarray(y)[~USED])


def test_gradient_is_finite_at_zero_vectors(case):
    _, targets, codes, index, _ = case
    for context, vectors in ((np.zeros_like(targets), targets), (targets, np.zeros_like(targets))):
        result = contrast(context, vectors, codes, index, USED)
        assert np.isfinite(result.loss).all()
        assert all(np.isfinite(g).all() for g in gradients(context, vectors, codes, index, USED))


def test_loss_is_finite_at_the_extremes_of_the_cosine(case):
    _, targets, codes, index, _ = case
    result = contrast(-targets, targets, codes, index, USED)
    assert np.isfinite(result.loss).all() and np.asarray(result.loss).max() > 10


def test_distractors_are_uniform_over_the_other_used_slots():
    used = np.arange(M)[None] < np.asarray([7, 4, 2])[:, None]
    index = np.asarray(draw(noise(5, 3), jnp.asarray(used), 20_000))
    for row in range(3):
        count = used[row].sum()
        for slot in range(count):
            share = np.bincount(index[row, slot], minlength=M) / index.shape[-1]
            expected = np.where(used[row] & (np.arange(M) != slot), 1 / (count - 1), 0.0)
            assert (share[expected == 0] == 0).all(), "the positive or an unused slot was drawn"
            assert np.abs(share - expected).max() < 5 * np.sqrt(0.25 / index.shape[-1])


def test_cross_distractors_are_uniform_over_the_used_slots_of_the_unit():
    rows = 3
    index = np.asarray(draw_cross(noise(6), jnp.asarray(USED), 20_000, rows=rows))
    index, used = blocks(index, rows), blocks(USED, rows)
    for unit, slot in zip(*np.nonzero(used), strict=True):
        share = np.bincount(index[unit, slot], minlength=rows * M) / index.shape[-1]
        expected = np.where(used[unit] & (np.arange(rows * M) != slot), 1 / (used[unit].sum() - 1), 0.0)
        assert (share[expected == 0] == 0).all(), "the positive or an unused slot was drawn"
        assert np.abs(share - expected).max() < 5 * np.sqrt(0.25 / index.shape[-1])


def test_distractors_do_not_depend_on_the_number_of_slots():
    wider = np.pad(USED, ((0, 0), (0, 5)))
    a, b = draw(noise(0), jnp.asarray(USED), N), draw(noise(0), jnp.asarray(wider), N)
    np.testing.assert_array_equal(np.asarray(a)[USED], np.asarray(b)[:, :M][USED])


def test_distractor_counts_add_up():
    index = draw(noise(0), jnp.asarray(USED), N)
    counts = np.asarray(jax.jit(losses.distractor_counts)(index, jnp.asarray(USED)))
    drawing = USED & (NUM_USED > 1)[:, None]
    np.testing.assert_array_equal(counts.sum(axis=2), np.where(drawing, N, 0))
    np.testing.assert_array_equal(np.diagonal(counts, axis1=1, axis2=2), 0)


def test_cosine_is_that_of_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, P)), rng.normal(size=(2, 4, P))
    ours = losses.cosine(jnp.asarray(a), jnp.asarray(b))
    for k, j, i in np.ndindex(2, 3, 4):
        np.testing.assert_allclose(ours[k, j, i], cosine(a[k, j], b[k, i]), atol=1e-6)
