"""Laws of what is drawn for rows: by (seed, epoch, row) alone, within limits, each draw apart from the others."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from w2v_jax.data.batch_plan import train_plan
from w2v_jax.data.draws import NO_OTHER, OFF, Augmentation, DrawnFor, Draws, Noise

laws = hypothesis.settings(max_examples=25, derandomize=True, deadline=None)
ALL = Augmentation(
    mix_prob=0.5,
    mix_decibels=(-5.0, 5.0),
    mix_voices=(2, 4),
    noise=Noise(np.array([400, 9_000]), prob=0.3, decibels=(6.0, 20.0)),
    rooms=7,
    rooms_prob=0.4,
    telephone_prob=0.2,
    gain_decibels=(-6.0, 3.0),
)


def many(count=4_000, seed=1):
    return Draws(np.arange(count) % 500, np.arange(count) // 500, seed=seed)


@laws
@hypothesis.given(st.integers(0, 2**40), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 50)), min_size=2))
def test_what_is_done_to_a_row_does_not_depend_on_the_others_of_its_batch(seed, pairs):
    rows, epochs = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    together, alone = Draws(rows, epochs, seed=seed), Draws(rows[-1:], epochs[-1:], seed=seed)
    for ours, single in zip(together.effects(ALL), alone.effects(ALL), strict=True):
        assert ours[-1] == single[0]
    ours, single = together.mix(ALL, 1_000), alone.mix(ALL, 1_000)
    for name in ("lengths", "froms", "tos", "decibels", "noises", "noise_starts"):
        assert getattr(ours, name)[-1] == getattr(single, name)[0]


def test_shares_and_limits_are_those_that_were_asked_for():
    effects, mix = many().effects(ALL), many().mix(ALL, 1_000)
    assert np.mean(effects.rooms != NO_OTHER) == pytest.approx(0.4, abs=0.03)
    assert set(effects.rooms.tolist()) == {NO_OTHER, *range(7)}
    assert np.mean(effects.telephone) == pytest.approx(0.2, abs=0.03)
    assert (
        effects.gains.min() >= -6
        and effects.gains.max() <= 3
        and np.mean(effects.gains) == pytest.approx(-1.5, abs=0.2)
    )
    assert set(mix.voices.tolist()) == {2, 3, 4}
    drawn = np.stack([effects.rooms != NO_OTHER, effects.telephone, effects.gains, mix.decibels, mix.voices])
    assert np.abs(np.corrcoef(drawn)[np.triu_indices(5, 1)]).max() < 0.05, "one draw hangs on another"
    assert (many(seed=2).effects(ALL).rooms != effects.rooms).any()


def test_the_voices_of_babble_are_other_rows_and_none_twice():
    mix = Draws(np.arange(6), np.zeros(6, np.int64), seed=3).mix(ALL._replace(mix_prob=1.0, noise=None), 1_000)
    for number in range(6):
        voices = mix.voices_of(number)
        assert len(voices) == mix.voices[number] == len(set(voices)) and number not in voices
        assert voices[0] == mix.others[number]
    two = Draws(np.arange(2), np.zeros(2, np.int64), seed=3).mix(ALL._replace(mix_prob=1.0, noise=None), 1_000)
    assert [two.voices_of(number) for number in (0, 1)] == [[1], [0]], "no more than there are"
    assert many(4).mix(ALL._replace(mix_prob=1e-12), 1_000).voices_of(0) == []


def test_nothing_is_drawn_where_nothing_is_asked_for():
    assert many().mix(OFF, 1_000) is None and many().effects(OFF) is None
    plan = train_plan(np.full(9, 800), bucket_samples=(800,), units=1, unit_seconds=0.2, seed=1)
    step = plan.step(3)
    assert step.mix is None and step.effects is None and (step.speeds == 1).all()


def test_no_two_things_are_drawn_from_the_same_numbers():
    words = [many(50).words(stream) for stream in DrawnFor]
    assert len({word for row in words for word in row.tolist()}) == 50 * len(DrawnFor)
