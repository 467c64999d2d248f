"""Speed: a tone played faster is shorter and higher, and speeds never make a recording longer than its row."""

import numpy as np
import pytest

from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.augment import at_speed
from w2v_jax.data.batch_plan import eval_plan, train_plan
from w2v_jax.data.io.arrays import Arrays
from w2v_jax.data.pipeline import batches

SECOND = 2 * np.pi * np.arange(SAMPLE_RATE) / SAMPLE_RATE


@pytest.mark.parametrize("speed", [0.85, 1.0, 1.1])
def test_a_tone_at_another_speed_has_another_length_and_pitch(speed):
    wave = at_speed(np.sin(440 * SECOND), speed)
    assert wave.dtype == np.float32 and abs(len(wave) - SAMPLE_RATE / speed) <= 1
    expected = np.sin(2 * np.pi * 440 * speed * np.arange(len(wave)) / SAMPLE_RATE)
    inside = slice(800, -800)  # the resampler sees zeros beyond the ends
    np.testing.assert_allclose(wave[inside], expected[inside], atol=2e-3)


LENGTHS = np.array([7_000, 8_000, 9_999, 10_000, 25_000, 26_000, 31_000])


def plan(speeds, seed=1, lengths=LENGTHS):
    settings = dict(bucket_samples=(10_000, 20_000), units=1, unit_seconds=2 * 20_000 / SAMPLE_RATE)
    return train_plan(lengths, seed=seed, speeds=speeds, **settings)


def test_speeds_are_drawn_anew_each_epoch_within_limits_that_fit_the_row():
    seen = {}
    for n in range(400):
        step = plan((0.8, 1.25)).step(n)
        for row, speed in zip(step.rows, step.speeds, strict=True):
            seen.setdefault(int(row), set()).add(float(speed))
            assert LENGTHS[row] / speed <= step.length + 1e-6 or LENGTHS[row] > step.length
    assert all(0.8 <= min(seen[row]) and max(seen[row]) <= 1.25 for row in (0, 1))
    assert min(seen[0]) < 0.85 and max(seen[0]) > 1.2 and len(seen[0]) > 20
    assert min(seen[3]) >= 1.0 and seen[4] == seen[5] == seen[6] == {1.0}, "one that is cropped keeps its speed"
    again = plan((0.8, 1.25)).step(7)
    np.testing.assert_array_equal(plan((0.8, 1.25)).step(7).speeds, again.speeds)
    assert set(plan((1.0, 1.0)).step(7).speeds) == {1.0}


def test_a_row_is_read_at_its_speed_and_evaluation_is_not():
    waves = [np.sin(440 * SECOND[:n]).astype(np.float32) for n in LENGTHS[:4]]
    source, drawn = Arrays(waves, SAMPLE_RATE), plan((0.8, 1.25), lengths=LENGTHS[:4])
    for loader in ("threads", "tfdata"):
        rows = batches(source, drawn, stop=3, loader=loader)
        for batch, info in rows:
            step = drawn.step(info.step)
            for wave, count, row, speed in zip(
                batch["wave"], batch["num_samples"], step.rows, step.speeds, strict=True
            ):
                expected = at_speed(waves[row], speed)[: info.length]
                assert count == len(expected)
                np.testing.assert_array_equal(wave[:count], expected)
    scored = eval_plan(LENGTHS[:4], bucket_samples=(10_000,), units=1, unit_seconds=1.25, max_hours=0)
    assert {int(n) for batch, _ in batches(source, scored, loader="threads") for n in batch["num_samples"]} == set(
        LENGTHS[:4].tolist()
    )
