"""Laws of a plan in stages: no row longer than its stage allows, known shapes, any step from anywhere."""

import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data.batch_plan import Groups, train_plan
from w2v_jax.data.curriculum import Curriculum, curriculum
from w2v_jax.data.index import TooFew

RATE = 16_000
LENGTHS = [RATE, 2 * RATE, 4 * RATE]
SAMPLES = (np.random.default_rng(0).uniform(0.3, 9.0, 120) * RATE).astype(np.int64)
OF = np.arange(120) % 3


def staged(steps, **changes):
    def make(lengths):
        settings = dict(seed=3, units=2, unit_seconds=4.0) | changes
        return train_plan(SAMPLES, bucket_samples=lengths, **settings)

    return curriculum(make, LENGTHS, steps)


def test_a_row_is_as_long_as_its_stage_allows_and_the_whole_is_used_at_last():
    plan = staged((5, 40))
    lengths = [plan.step(step).length for step in range(200)]
    assert set(lengths[:5]) == {RATE} and set(lengths[5:40]) == {RATE, 2 * RATE} and set(lengths[40:]) == set(LENGTHS)
    assert plan.shapes == ((8, RATE), (4, 2 * RATE), (2, 4 * RATE))
    assert {(len(plan.step(step).rows), plan.step(step).length) for step in range(200)} == set(plan.shapes)


def test_each_stage_is_the_plan_of_its_lengths():
    plan, last = staged((5, 40)), staged(())
    assert isinstance(plan, Curriculum) and not isinstance(last, Curriculum)
    for step in (40, 77, 10**6):
        for ours, theirs in zip(plan.step(step)[:3], last.step(step)[:3], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert plan.units == last.units and plan.padding_share == last.padding_share


@hypothesis.settings(max_examples=25, derandomize=True, deadline=None)
@hypothesis.given(st.integers(0, 300), st.integers(1, 60))
def test_epochs_and_what_was_heard_grow_without_a_jump(step, more):
    plan = staged((5, 40), groups=Groups(OF, np.array([0.2, 0.3, 0.5])))
    assert plan.step(step).epoch == pytest.approx(plan.epoch(step))
    least = min(stage.steps_per_epoch for stage in plan.stages)
    assert 0 < plan.epoch(step + more) - plan.epoch(step) <= more / least + 1e-9
    before, after = plan.heard(step), plan.heard(step + more)
    grown = after[0] - before[0]
    assert (grown >= 0).all() and (after[1] >= before[1]).all()
    longest = 2 * 4.0 * more
    assert 0 < grown.sum() <= longest * 1.3, "partial epochs count by their mean"


def test_recordings_with_transcripts_wait_for_their_stage():
    plan = staged((30, 60), crop=False)
    for first, last, longest in ((0, 30, RATE), (30, 60, 2 * RATE), (60, 200, 4 * RATE)):
        rows = np.concatenate([plan.step(step).rows for step in range(first, last)])
        assert SAMPLES[rows].max() <= longest
    rows = np.concatenate([plan.step(step).rows for step in range(60, 300)])
    assert sorted(set(rows.tolist())) == np.flatnonzero(SAMPLES <= 4 * RATE).tolist()


def test_a_group_without_short_rows_is_heard_when_its_stage_comes():
    of = (SAMPLES > RATE).astype(np.int64)
    plan = staged((20, 40), crop=False, groups=Groups(of, np.array([0.5, 0.5])))
    assert plan.heard(20)[0][1] == 0 and plan.heard(40)[0][1] > 0


@pytest.mark.parametrize("steps", [(5, 5), (9, 4), (0, 4), (1, 2, 3)])
def test_stages_that_cannot_be_are_refused(steps):
    with pytest.raises(UserError, match=r"data.curriculum=\(.*needs rising numbers of updates"):
        staged(steps)


def test_a_stage_with_too_few_recordings_is_named_with_advice_that_helps():
    """Of 120 recordings with transcripts, those of the first stage do not fill a batch."""
    few = int((SAMPLES <= RATE).sum())
    with pytest.raises(TooFew, match=rf"^data.curriculum: its stage up to 1 s: data: {few} recordings") as error:
        staged((30, 60), crop=False, units=20)
    assert str(error.value).endswith("; or leave out the first number of data.curriculum")
    (hours,) = re.findall(r"batch_hours=(\S+);", str(error.value))
    units = round(float(hours) * 3600 / 4.0)
    assert 0 < units < 20
    assert staged((30, 60), crop=False, units=units).stages
    with pytest.raises(TooFew, match=r"^data: 120 recordings"):
        staged((), units=50_000)
