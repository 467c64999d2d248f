"""The law of span masking, held to its NumPy oracle and to the published statistics."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.ops import random as noises
from w2v_jax.ops.masking import masked_slots, num_slots, num_spans, span_mask, span_mask_oracle

LAW = dict(prob=0.65, length=10, min_spans=2)
SHORT = (0, 1, 2, 9, 10, 11, 12)
LENGTHS = (*SHORT, 13, 20, 31, 49)


@functools.partial(jax.jit, static_argnames=("total", "prob", "length", "min_spans"))
def jitted(key, num_frames, total, prob, length, min_spans):
    noise = noises.row_noise(key, jnp.arange(len(num_frames)))
    return span_mask(noise, num_frames, total, prob=prob, length=length, min_spans=min_spans)


def draw(num_frames, total: int, seed: int = 0, **law) -> np.ndarray:
    """Masks [B F] of rows 0 .. B - 1."""
    return np.asarray(jitted(jax.random.key(seed), jnp.asarray(num_frames), total, **(LAW | law)))


def runs(row: np.ndarray) -> np.ndarray:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return edges[1::2] - edges[::2]


@pytest.fixture(scope="module")
def short_rows() -> dict[int, np.ndarray]:
    """Masks [1500 60] for each of LENGTHS."""
    masked = draw(np.repeat(LENGTHS, 1500), 60)
    return dict(zip(LENGTHS, np.split(masked, len(LENGTHS)), strict=True))


@pytest.fixture(scope="module")
def long_rows() -> np.ndarray:
    """Masks [1500 749] of Base's longest crop."""
    return draw(np.full(1500, 749), 749)


def test_mask_has_the_published_statistics(long_rows):
    spans = np.concatenate([runs(row) for row in long_rows])
    assert abs(long_rows.mean() - 0.491) < 0.002
    assert abs(spans.mean() - 14.63) < 0.1
    assert np.median(spans) == 10
    assert spans.min() == 10


def test_mask_follows_the_oracle_in_distribution(long_rows):
    oracle = span_mask_oracle(np.random.default_rng(0), np.full(1500, 749), 749, **LAW)
    ours, theirs = long_rows.sum(axis=1), oracle.sum(axis=1)
    error = np.sqrt(2 * theirs.var() / 1500)
    assert abs(ours.mean() - theirs.mean()) < 5 * error
    assert abs(ours.std() / theirs.std() - 1) < 0.1
    quantiles = [5, 25, 50, 75, 95]
    assert np.abs(np.percentile(ours, quantiles) - np.percentile(theirs, quantiles)).max() <= 3
    ours, theirs = (np.concatenate([runs(row) for row in masks]) for masks in (long_rows, oracle))
    for length in (10, 11, 15, 20, 30):
        assert abs((ours <= length).mean() - (theirs <= length).mean()) < 0.01, f"spans up to {length}"
    ours, theirs = long_rows.mean(axis=0), oracle.mean(axis=0)  # by position, edges included
    assert np.abs(ours - theirs).max() < 5 * np.sqrt(2 * 0.25 / 1500)


@pytest.mark.parametrize("frames", LENGTHS)
def test_short_rows_follow_the_oracle_position_by_position(short_rows, frames):
    ours, count = short_rows[frames], len(short_rows[frames])
    theirs = span_mask_oracle(np.random.default_rng(1), np.full(count, frames), 60, **LAW)
    assert np.abs(ours.mean(axis=0) - theirs.mean(axis=0)).max() < 5 * np.sqrt(2 * 0.25 / count)
    ours, theirs = ours.sum(axis=1), theirs.sum(axis=1)
    assert abs(ours.mean() - theirs.mean()) <= 5 * np.sqrt(2 * theirs.var() / count)


@pytest.mark.parametrize("frames", LENGTHS)
def test_short_rows_keep_a_visible_frame_and_are_masked_where_they_can(short_rows, frames):
    counts = short_rows[frames].sum(axis=1)
    assert counts.max() <= max(frames - 1, 0)
    assert (counts > 0).all() == (frames >= 2)


def test_last_valid_frame_and_padding_are_never_masked(long_rows):
    assert not long_rows[:, -1].any()
    frames = np.tile(np.arange(158), 8)
    masked = draw(frames, 157, seed=157)
    for n, row in zip(frames, masked, strict=True):
        assert not row[max(n - 1, 0) :].any(), f"{n} frames"


@pytest.mark.parametrize("total", [1, 2, 10, 11])
def test_mask_works_when_all_rows_are_short(total):
    masked = draw(np.arange(total + 1), total)
    slots, used = masked_slots(jnp.asarray(masked), num_slots(total, **LAW))
    np.testing.assert_array_equal(used.sum(axis=1), masked.sum(axis=1))
    assert masked.sum(axis=1).max(initial=0) <= total - 1


@pytest.mark.parametrize("law", [LAW, dict(prob=0.9, length=3, min_spans=0), dict(prob=0.2, length=25, min_spans=4)])
def test_count_never_exceeds_the_slots(law):
    for total in (33, 157):
        frames = np.tile(np.arange(total + 1), 8)
        counts = draw(frames, total, seed=total, **law).sum(axis=1)
        for n in range(total + 1):
            assert counts[frames == n].max() <= num_slots(n, **law), f"{n} frames of {total}"
        assert counts.max() <= num_slots(total, **law)


def test_slots_hold_even_the_largest_draw():
    """The greatest rounding, and spans that never overlap."""
    for n in range(2, 1000):
        spans = max(LAW["min_spans"], int(np.floor(LAW["prob"] * n / LAW["length"] + (1 - 2**-24))))
        assert spans <= num_spans(n, **LAW)
        assert min(n - 1, spans * LAW["length"]) <= num_slots(n, **LAW)


def test_every_row_gets_the_least_number_of_spans():
    """Spans of one frame do not merge into fewer frames: the masked frames count the distinct starts."""
    for least in (0, 1, 5):
        counts = draw(np.full(500, 30), 30, prob=0.001, length=1, min_spans=least).sum(axis=1)
        assert counts.min() == least
    assert draw(np.full(500, 30), 30, prob=0.0, length=10, min_spans=0).sum() == 0


def test_number_of_spans_is_rounded_at_random_without_bias():
    counts = draw(np.full(4000, 45), 45, prob=0.1, length=1, min_spans=0).sum(axis=1)
    assert set(counts) == {4, 5}
    assert abs(counts.mean() - 4.5) < 0.05


def test_mask_of_a_row_does_not_depend_on_padding_or_other_rows():
    frames = np.asarray([0, 1, 9, 12, 49, 80, 99])
    short = draw(frames, 99)
    long = draw(frames, 160)
    np.testing.assert_array_equal(long[:, :99], short)
    noise = noises.row_noise(jax.random.key(0), jnp.asarray([5]))  # and the same without jit
    np.testing.assert_array_equal(span_mask(noise, jnp.asarray([80]), 99, **LAW)[0], short[5])


def test_spans_are_whole(long_rows):
    """Rows of different lengths do not fragment each other's spans: no run is shorter than a span."""
    frames = np.repeat([60, 100, 333, 749, 749], 300)
    masked = draw(frames, 749)
    for row in masked:
        assert runs(row).min() >= 10
    np.testing.assert_array_equal(masked[frames == 749], long_rows[frames == 749])


def test_masked_slots_list_the_masked_frames_in_order():
    masked = draw([0, 12, 40, 49], 49)
    index, used = (np.asarray(x) for x in masked_slots(jnp.asarray(masked), num_slots(49, **LAW)))
    for row in range(4):
        np.testing.assert_array_equal(index[row][used[row]], np.flatnonzero(masked[row]))
        assert not masked[row][index[row][~used[row]]].any()
