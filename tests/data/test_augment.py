"""Speed: a tone played faster is shorter and higher, and speeds never make a recording longer than its row.

Mixing: against a loop in NumPy, drawn alike in both loaders and on any hosts, and only in training. Rooms, telephone,
gain: nothing moves in time, levels are what was asked for, and what cannot be read is named.
"""

import numpy as np
import pytest
from mixing import mixed_by_loop, rows_of

from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.augment import at_speed, babble, by_telephone, in_room, louder_by, mixed
from w2v_jax.data.batch_plan import eval_plan, train_plan
from w2v_jax.data.draws import NO_OTHER, Augmentation, Noise
from w2v_jax.data.index import ReadError
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
    return train_plan(lengths, seed=seed, augment=Augmentation(speeds=speeds), **settings)


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


@pytest.mark.parametrize("share", [0.0, 0.37, 1 - 2.0**-53])
@pytest.mark.parametrize(("size", "of_other"), [(40, 40), (40, 9), (9, 40), (1, 5)])
def test_mixing_is_that_of_a_loop(size, of_other, share):
    rng = np.random.default_rng(0)
    wave, other = rng.normal(size=size).astype(np.float32), 3 * rng.normal(size=of_other).astype(np.float32)
    for length, start, place in ((share, 0.5, 0.9), (0.8, share, 0.1), (0.8, 0.3, share)):
        draws = dict(length=length, start=start, place=place)
        ours = mixed(wave, other, **draws, decibels=-4.0)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, mixed_by_loop(wave, other, **draws, decibels=-4.0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mixed(wave, 0 * other, length=0.8, start=0.3, place=0.1, decibels=0.0), wave)


def mixing_plan(units=2, seed=1):
    return train_plan(
        np.full(60, 1_000),
        bucket_samples=(1_000,),
        units=units,
        unit_seconds=4_000 / SAMPLE_RATE,
        seed=seed,
        augment=Augmentation(mix_prob=0.3, mix_decibels=(-5.0, 5.0)),
    )


def test_what_is_mixed_is_drawn_for_each_row_and_epoch_and_never_a_row_with_itself():
    steps = [mixing_plan(units=5).step(n) for n in range(300)]
    found = np.concatenate([np.stack(step.mix) for step in steps], axis=1)
    others, shares, decibels = found[0], found[1:4], found[4]
    assert np.mean(others != NO_OTHER) == pytest.approx(0.3, abs=0.03)
    assert all((step.mix.others != np.arange(20)).all() for step in steps)
    assert set(others) == {NO_OTHER, *range(20)}
    assert (shares >= 0).all() and (shares < 1).all() and (np.abs(decibels) <= 5).all()
    np.testing.assert_allclose(shares.mean(axis=1), 0.5, atol=0.02)
    assert np.abs(np.corrcoef(found[1:5])[np.triu_indices(4, 1)]).max() < 0.05, "one draw hangs on another"
    again = mixing_plan(units=5).step(77)
    np.testing.assert_array_equal(np.stack(again.mix), np.stack(steps[77].mix))
    assert (np.stack(mixing_plan(units=5, seed=2).step(77).mix) != np.stack(again.mix)).any()
    assert train_plan(np.full(9, 800), bucket_samples=(800,), units=1, unit_seconds=0.05, seed=1).step(0).mix is None
    always = Augmentation(mix_prob=1.0)
    alone = train_plan(np.full(9, 800), bucket_samples=(800,), units=1, unit_seconds=0.05, seed=1, augment=always)
    assert alone.step(0).mix is None, "a batch of one row"


LONG = np.array([300, 1_500, 1_000, 4_000, 900])
"""Lengths of five recordings of noise, some longer than a row."""


def noisy_plan(prob=0.25, units=2, mix_prob=0.6, **changes):
    about = dict(bucket_samples=(1_000,), units=units, unit_seconds=4_000 / SAMPLE_RATE, seed=1)
    augment = Augmentation(mix_prob=mix_prob, mix_decibels=(-5.0, 5.0), noise=Noise(LONG, prob, decibels=(6.0, 20.0)))
    if "noise" in changes:
        augment = augment._replace(noise=changes.pop("noise"))
    return train_plan(np.full(60, 1_000), augment=augment, **about | changes)


def test_some_of_the_mixed_rows_get_noise_and_the_draws_of_the_others_stay():
    steps, plain = ([of.step(n).mix for n in range(300)] for of in (noisy_plan(), noisy_plan(noise=None)))
    noises, others, starts, louder = (
        np.concatenate([getattr(mix, name) for mix in steps])
        for name in ("noises", "others", "noise_starts", "decibels")
    )
    is_noise = noises != NO_OTHER
    assert np.mean(is_noise | (others != NO_OTHER)) == pytest.approx(0.6, abs=0.03)
    assert np.mean(is_noise) == pytest.approx(0.6 * 0.25, abs=0.03) and (others[is_noise] == NO_OTHER).all()
    assert (louder[is_noise] >= 6).all() and (louder[is_noise] <= 20).all() and set(noises) == {NO_OTHER, *range(5)}
    spare = np.maximum(LONG[noises] - 1_000, 0)
    assert (starts[~is_noise] == 0).all() and (starts <= spare).all() and (starts[noises == 3] > 2_000).any()
    for name in ("others", "lengths", "froms", "tos", "decibels"):
        before = np.concatenate([getattr(mix, name) for mix in plain])
        after = np.concatenate([getattr(mix, name) for mix in steps])
        np.testing.assert_array_equal(after[~is_noise], before[~is_noise])
    again = noisy_plan().step(77).mix
    assert all((a == b).all() for a, b in zip(again, steps[77], strict=True)), "a function of (seed, step, row)"
    alone = noisy_plan(units=1, unit_seconds=1_000 / SAMPLE_RATE, mix_prob=1.0)
    found = [alone.step(n).mix for n in range(200)]
    assert np.mean([mix.noises[0] != NO_OTHER for mix in found]) == pytest.approx(0.25, abs=0.1)
    assert all(mix.others[0] == NO_OTHER for mix in found), "a batch of one row has no other"


@pytest.mark.parametrize("loader", ["threads", "tfdata"])
def test_both_loaders_mix_the_noise_that_the_plan_names_as_a_loop_does(loader):
    rng = np.random.default_rng(0)
    waves = [rng.normal(size=1_000).astype(np.float32) for _ in range(60)]
    noises = [rng.normal(size=n).astype(np.float32) for n in LONG]
    plan, seen = noisy_plan(prob=0.6), 0
    found = batches(Arrays(waves, SAMPLE_RATE), plan, noise=Arrays(noises, SAMPLE_RATE), stop=6, loader=loader)
    for batch, info in found:
        step = plan.step(info.step)
        np.testing.assert_allclose(batch["wave"], np.stack(rows_of(step, waves, noises)), rtol=0, atol=1e-5)
        seen += (step.mix.noises != NO_OTHER).sum()
        assert not info.no_noise and not info.failed
    assert seen > 3


@pytest.mark.parametrize("loader", ["threads", "tfdata"])
def test_noise_that_cannot_be_read_is_named_and_the_row_stays(loader):
    class Broken(Arrays):
        def read(self, row, start, length):
            if row in (1, 3):
                raise ReadError("truncated")
            return super().read(row, start, length)

    rng = np.random.default_rng(0)
    waves = [rng.normal(size=1_000).astype(np.float32) for _ in range(60)]
    noises = Broken([rng.normal(size=n).astype(np.float32) for n in LONG], SAMPLE_RATE)
    plan, named = noisy_plan(prob=1.0), 0
    for batch, info in batches(Arrays(waves, SAMPLE_RATE), plan, noise=noises, stop=6, loader=loader):
        step = plan.step(info.step)
        bad = np.isin(step.mix.noises, (1, 3))
        assert [(x.path, x.reason) for x in info.no_noise] == [
            (str(noises.index.paths[row]), "truncated") for row in step.mix.noises[bad]
        ]
        assert not info.failed and (batch["weight"] == 1).all()
        np.testing.assert_array_equal(batch["wave"][bad], np.stack([waves[row] for row in step.rows])[bad])
        named += len(info.no_noise)
    assert named > 3


def test_both_loaders_and_any_host_read_the_same_mix():
    rng = np.random.default_rng(0)
    waves = [rng.normal(size=1_000).astype(np.float32) for _ in range(60)]
    source, plan = Arrays(waves, SAMPLE_RATE), mixing_plan()
    whole = [batch for batch, _ in batches(source, plan, stop=4, loader="threads")]
    assert any((plan.step(n).mix.others != NO_OTHER).any() for n in range(4))
    for n, batch in enumerate(whole):
        step = plan.step(n)
        for i, row in enumerate(step.rows):
            other, length, start, place, decibels = (x[i] for x in step.mix[:5])
            draws = dict(length=length, start=start, place=place)
            expected = waves[row]
            if other != NO_OTHER:
                expected = mixed(expected, waves[step.rows[other]], **draws, decibels=decibels)
            np.testing.assert_array_equal(batch["wave"][i], expected)
    for other, (batch, _) in zip(whole, batches(source, plan, stop=4, loader="tfdata"), strict=True):
        np.testing.assert_array_equal(batch["wave"], other["wave"])
    for other, (batch, _) in zip(whole, batches(source, plan, stop=4, units=[1], loader="threads"), strict=True):
        np.testing.assert_array_equal(batch["wave"], other["wave"][4:])


def test_row_stays_as_it_is_where_the_other_one_cannot_be_read():
    class Broken(Arrays):
        def read(self, row, start, length):
            if row % 2:
                raise OSError("gone")
            return super().read(row, start, length)

    waves = [np.random.default_rng(n).normal(size=1_000).astype(np.float32) for n in range(60)]
    plan, spared = mixing_plan(), 0
    for n, (batch, info) in enumerate(batches(Broken(waves, SAMPLE_RATE), plan, stop=20, loader="threads")):
        step = plan.step(n)
        assert len(info.failed) == (step.rows % 2).sum()
        for i, (row, other) in enumerate(zip(step.rows, step.mix.others, strict=True)):
            if row % 2 == 0 and other != NO_OTHER and step.rows[other] % 2:
                np.testing.assert_array_equal(batch["wave"][i], waves[row])
                spared += 1
    assert spared


def decibels_between(wave, added):
    return 10 * np.log10(np.square(wave, dtype=np.float64).mean() / np.square(added, dtype=np.float64).mean())


@pytest.mark.parametrize("asked", [-5.0, 0.0, 12.5, 20.0])
@pytest.mark.parametrize("size", [16_000, 5_000, 40_000])
def test_noise_over_the_whole_row_has_the_ratio_that_was_asked_for(asked, size):
    """Also where its loudness changes, and where it is shorter than the row and is repeated."""
    rng = np.random.default_rng(0)
    wave = rng.normal(size=16_000).astype(np.float32)
    noise = (rng.normal(size=size) * np.linspace(0.1, 2.0, size)).astype(np.float32)
    found = mixed(wave, noise, length=0.3, start=0.7, place=0.2, decibels=asked, part=(1.0, 1.0))
    assert decibels_between(wave, found - wave) == pytest.approx(asked, abs=0.1)


@pytest.mark.parametrize("size", [16_000, 700])
def test_a_part_of_given_length_covers_that_share_of_the_row(size):
    wave, other = np.ones(16_000, np.float32), np.ones(size, np.float32)
    for length in (0.0, 0.999):
        found = mixed(wave, other, length=length, start=0.5, place=0.5, decibels=0.0, part=(0.5, 0.5))
        assert (found != wave).sum() == 8_000


def test_babble_is_made_of_equally_loud_voices():
    rng = np.random.default_rng(0)
    voices = [scale * rng.normal(size=size) for scale, size in ((0.01, 4_000), (5.0, 8_000), (1.0, 8_000))]
    found = babble(voices)
    assert len(found) == 8_000 and np.mean(np.square(found)) == pytest.approx(3, rel=0.1)
    parts = [np.resize(v, 8_000) / np.sqrt(np.mean(np.square(v))) for v in voices]
    np.testing.assert_allclose(found, sum(parts), atol=1e-5)
    assert babble(voices[:1]) is voices[0] and not babble([np.zeros(9), np.zeros(5)]).any()


def response_of(direct=400, decay=0.05, size=6_000, seed=0):
    """A direct path after `direct` samples, and a tail that fades."""
    tail = np.random.default_rng(seed).normal(size=size) * np.exp(-np.arange(size) / (decay * SAMPLE_RATE))
    response = 0.1 * np.pad(tail, (direct, 0))
    response[direct] = 1.0
    return response.astype(np.float32)


def test_a_room_moves_nothing_in_time_and_keeps_the_power():
    wave = np.random.default_rng(1).normal(size=8_000).astype(np.float32)
    heard = in_room(wave, response_of())
    assert heard.dtype == np.float32 and heard.shape == wave.shape
    assert np.square(heard).mean() == pytest.approx(np.square(wave).mean(), rel=1e-4)
    lags = np.correlate(heard[500:-500], wave, "valid")
    assert int(np.argmax(np.abs(lags))) == 500, "the direct path lies where the wave was"
    only_direct = np.zeros(900, np.float32)
    only_direct[300] = -0.2
    np.testing.assert_allclose(in_room(wave, only_direct), -wave, atol=1e-5)
    loop = np.array([sum(wave[t - k] * h for k, h in enumerate([1.0, 0.5, 0.25]) if t >= k) for t in range(50)])
    found = in_room(wave[:50], np.array([1.0, 0.5, 0.25]))
    np.testing.assert_allclose(found / found[0], loop / loop[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ReadError, match="the impulse response is silent"):
        in_room(wave, np.zeros(100))
    assert not in_room(np.zeros(100, np.float32), response_of()).any()


@pytest.mark.parametrize(
    ("hertz", "lowest", "highest"), [(100, -200, -30), (1_000, -1, 1), (3_000, -3, 1), (6_000, -200, -40)]
)
def test_a_telephone_lets_its_band_through_and_delays_nothing(hertz, lowest, highest):
    tone = np.sin(hertz * SECOND).astype(np.float32)
    heard = by_telephone(tone)
    assert heard.dtype == np.float32 and heard.shape == tone.shape
    inside = slice(2_000, -2_000)
    assert lowest <= decibels_between(heard[inside], tone[inside]) <= highest
    if lowest >= -3:
        scale = heard[inside] @ tone[inside] / (tone[inside] @ tone[inside])
        np.testing.assert_allclose(heard[inside], scale * tone[inside], atol=0.02)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 30, 401])
def test_a_telephone_takes_rows_of_any_length(size):
    heard = by_telephone(np.ones(size, np.float32))
    assert heard.shape == (size,) and np.isfinite(heard).all()


def test_a_gain_is_one_factor_and_clips_nothing():
    wave = np.array([-0.9, 0.5, 1.0], np.float32)
    np.testing.assert_allclose(louder_by(wave, 20.0), 10 * wave, rtol=1e-6)
    np.testing.assert_allclose(louder_by(wave, -6.0), wave / 1.995262, rtol=1e-5)


EVERYTHING = Augmentation(
    mix_prob=0.6,
    mix_decibels=(0.0, 10.0),
    mix_part=(0.3, 1.0),
    mix_voices=(1, 3),
    noise=Noise(LONG, 0.4, decibels=(6.0, 20.0)),
    rooms=3,
    rooms_prob=0.5,
    telephone_prob=0.3,
    gain_decibels=(-6.0, 6.0),
)


def everything(seed=1):
    rng = np.random.default_rng(0)
    plan = train_plan(
        np.full(60, 1_000), bucket_samples=(1_000,), units=2, unit_seconds=0.25, seed=seed, augment=EVERYTHING
    )
    waves = [rng.normal(size=1_000).astype(np.float32) for _ in range(60)]
    noises = Arrays([rng.normal(size=n).astype(np.float32) for n in LONG], SAMPLE_RATE)
    rooms = Arrays([response_of(direct, size=300, seed=direct) for direct in (0, 20, 90)], SAMPLE_RATE)
    return plan, waves, dict(noise=noises, rooms=rooms)


def test_all_of_it_is_the_same_in_both_loaders_on_any_host_and_from_any_step():
    plan, waves, beside = everything()
    read = lambda **how: [b["wave"] for b, _ in batches(Arrays(waves, SAMPLE_RATE), plan, stop=8, **beside, **how)]
    whole = read(loader="threads")
    for other, ours in zip(read(loader="tfdata"), whole, strict=True):
        np.testing.assert_array_equal(other, ours)
    for other, ours in zip(read(loader="threads", start=5, units=[1]), whole[5:], strict=True):
        np.testing.assert_array_equal(other, ours[4:])
    assert any(
        (a != b).any()
        for a, b in zip(
            whole,
            [
                b["wave"]
                for b, _ in batches(
                    Arrays(waves, SAMPLE_RATE), everything(seed=2)[0], stop=8, **beside, loader="threads"
                )
            ],
            strict=True,
        )
    )


def test_each_row_is_changed_as_the_plan_says_and_in_that_order():
    """Room, then other rows or noise, then telephone, then gain; `changes` names them."""
    plan, waves, beside = everything()
    names, untouched = set(), 0
    for batch, info in batches(Arrays(waves, SAMPLE_RATE), plan, stop=8, loader="threads", **beside):
        step = plan.step(info.step)
        for i, row in enumerate(step.rows):
            told, expected = info.changes[i], waves[row]
            names |= told.keys()
            if "room" in told:
                expected = in_room(expected, beside["rooms"].waves[int(told["room"])])
            if told.get("voices") or "noise" in told:
                parts = [waves[int(id)] for id in told.get("voices", [])]
                if "noise" in told:
                    parts = [beside["noise"].read(int(told["noise"]), int(step.mix.noise_starts[i]), 1_000)]
                draws = dict(length=step.mix.lengths[i], start=step.mix.froms[i], place=step.mix.tos[i])
                expected = mixed(expected, babble(parts), **draws, decibels=step.mix.decibels[i], part=(0.3, 1.0))
                assert told["decibels"] == pytest.approx(step.mix.decibels[i], abs=1e-3)
            expected = by_telephone(expected) if "telephone" in told else expected
            np.testing.assert_allclose(batch["wave"][i], louder_by(expected, told["gain"]), atol=5e-3)
            untouched += told.keys() == {"gain"}
    assert names == {"room", "voices", "noise", "decibels", "telephone", "gain"} and untouched


def test_a_clean_row_is_the_recording_and_nothing_is_told():
    plan, waves, beside = everything()
    clean = train_plan(np.full(60, 1_000), bucket_samples=(1_000,), units=2, unit_seconds=0.25, seed=1)
    for batch, info in batches(Arrays(waves, SAMPLE_RATE), clean, stop=4, loader="threads", **beside):
        np.testing.assert_array_equal(batch["wave"], np.stack([waves[row] for row in clean.step(info.step).rows]))
        assert info.changes == []
        np.testing.assert_array_equal(clean.step(info.step).rows, plan.step(info.step).rows)


def test_a_room_that_cannot_be_used_is_named_and_the_row_stays():
    plan, waves, beside = everything()
    plan.augment = EVERYTHING._replace(mix_prob=0.0, telephone_prob=0.0, gain_decibels=(0.0, 0.0))
    rooms = beside["rooms"]
    rooms.waves[1] = np.zeros(300, np.float32)
    named = 0
    for batch, info in batches(Arrays(waves, SAMPLE_RATE), plan, stop=8, loader="threads", rooms=rooms):
        step = plan.step(info.step)
        bad = step.effects.rooms == 1
        assert [(x.path, x.reason) for x in info.no_noise] == [
            ("recording 1", "the impulse response is silent")
        ] * bad.sum()
        np.testing.assert_array_equal(batch["wave"][bad], np.stack([waves[row] for row in step.rows])[bad])
        assert (batch["weight"] == 1).all() and not info.failed
        named += len(info.no_noise)
    assert named
