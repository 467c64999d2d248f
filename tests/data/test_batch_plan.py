"""Laws of the plan: every recording once per epoch, any step from anywhere, few shapes, crops inside the recording."""

import hashlib
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.core.units import unit_rows
from w2v_jax.data import batch_plan
from w2v_jax.data.batch_plan import FILLER, Groups, Permutation, TrainPlan, eval_plan, train_plan
from w2v_jax.data.draws import Augmentation, Noise, random_words
from w2v_jax.data.mixture import ERROR

RATE = 16000
laws = hypothesis.settings(max_examples=25, derandomize=True)


@st.composite
def corpora(draw):
    """Lengths of recordings and the arguments of a plan for them, mostly enough for a batch."""
    seconds = draw(st.lists(st.floats(0.1, 40.0), min_size=1, max_size=120))
    buckets = draw(st.lists(st.sampled_from([1.0, 2.0, 5.0, 10.0, 15.625]), min_size=1, max_size=5, unique=True))
    return np.array([int(s * RATE) for s in seconds]), {
        "bucket_samples": [int(b * RATE) for b in buckets],
        "units": draw(st.integers(1, 4)),
        "unit_seconds": draw(st.sampled_from([3.0, 15.625, 31.25])),
    }


def try_plan(corpus, seed=0):
    num_samples, arguments = corpus
    try:
        return train_plan(num_samples, seed=seed, **arguments)
    except UserError:
        hypothesis.reject()


@laws
@hypothesis.given(corpora(), st.integers(0, 2**40))
def test_every_recording_comes_once_in_each_epoch_of_its_bucket(corpus, seed):
    plan = try_plan(corpus, seed)
    assert sorted(np.concatenate([b.rows for b in plan.buckets])) == list(range(len(corpus[0])))
    seen = {bucket.length: [] for bucket in plan.buckets}
    for step in range(60):
        batch = plan.step(step)
        seen[batch.length].extend(batch.rows.tolist())
    for bucket in plan.buckets:
        size = len(bucket.rows)
        for first in range(0, len(seen[bucket.length]) - size + 1, size):
            assert sorted(seen[bucket.length][first : first + size]) == bucket.rows.tolist()


@laws
@hypothesis.given(corpora(), st.integers(0, 10**6))
def test_plan_resumes_without_repeat_or_gap(corpus, first):
    walked, fresh = try_plan(corpus), try_plan(corpus)
    steps = [walked.step(step) for step in range(first, first + 8)]
    for step in (first + 7, first, first + 3):
        for a, b in zip(steps[step - first], fresh.step(step), strict=True):
            np.testing.assert_array_equal(a, b)


@laws
@hypothesis.given(corpora())
def test_batches_have_the_fixed_shapes_and_crops_lie_inside_the_recording(corpus):
    num_samples, arguments = corpus
    plan = try_plan(corpus)
    assert len(plan.shapes) <= len(arguments["bucket_samples"])
    for step in range(40):
        batch = plan.step(step)
        assert (len(batch.rows), batch.length) in plan.shapes
        assert len(batch.rows) == arguments["units"] * unit_rows(arguments["unit_seconds"], batch.length)
        lengths = num_samples[batch.rows]
        assert (batch.starts >= 0).all()
        assert (batch.starts + np.minimum(lengths, batch.length) <= lengths).all()
        assert (batch.starts[lengths <= batch.length] == 0).all()


@laws
@hypothesis.given(corpora())
def test_too_few_recordings_for_a_batch_get_advice_that_works(corpus):
    num_samples, arguments = corpus
    try:
        train_plan(num_samples, seed=0, **arguments)
    except UserError as error:
        text = str(error)
        assert f"{len(num_samples)} recordings" in text
        advice = dict(re.findall(r"--config\.data\.(\w+)=(\S+)", text))
        seconds = float(advice.get("unit_seconds", arguments["unit_seconds"]))
        units = round(float(advice["batch_hours"]) * 3600 / seconds)
        train_plan(num_samples, seed=0, **{**arguments, "unit_seconds": seconds, "units": units})


def corpus_of(count=300, longest=20.0, seed=0):
    return (np.random.default_rng(seed).uniform(1.0, longest, count) * RATE).astype(np.int64)


ARGUMENTS = {"bucket_samples": [2 * RATE, 5 * RATE, 10 * RATE], "units": 2, "unit_seconds": 10.0}


def test_each_bucket_gets_steps_in_proportion_to_its_recordings():
    plan = train_plan(corpus_of(2000), seed=3, **ARGUMENTS)
    lengths = [plan.step(step).length for step in range(3 * round(plan.steps_per_epoch))]
    for bucket in plan.buckets:
        epochs = lengths.count(bucket.length) * bucket.batch / len(bucket.rows)
        assert epochs == pytest.approx(3.0, rel=0.05)


def test_a_rare_bucket_is_not_heard_more_often_than_the_others():
    num_samples = np.concatenate([np.full(20000, RATE), np.full(8, 10 * RATE)])
    plan = train_plan(num_samples, seed=0, bucket_samples=[RATE, 10 * RATE], units=1, unit_seconds=10.0)
    assert plan.shapes == ((10, RATE), (1, 10 * RATE))
    steps = 10 * round(plan.steps_per_epoch)
    rare = sum(plan.step(step).length == 10 * RATE for step in range(steps))
    assert 78 <= rare <= 82


def test_order_and_crops_depend_on_seed_and_epoch():
    num_samples = np.full(8, 60 * RATE)
    arguments = {"bucket_samples": [10 * RATE], "units": 8, "unit_seconds": 10.0}
    plan, other = (train_plan(num_samples, seed=seed, **arguments) for seed in (0, 1))
    first, second = plan.step(0), plan.step(1)  # a step is an epoch here
    assert sorted(first.rows) == sorted(second.rows) == list(range(8))
    assert first.rows.tolist() != second.rows.tolist()
    assert first.rows.tolist() != other.step(0).rows.tolist()
    starts = [dict(zip(s.rows.tolist(), s.starts.tolist(), strict=True)) for s in (first, second, other.step(0))]
    for row in range(8):
        assert len({s[row] for s in starts}) == 3


def test_crops_are_uniform_over_the_whole_recording():
    spare = 9
    plan = train_plan(np.full(1000, RATE + spare), seed=0, bucket_samples=[RATE], units=10, unit_seconds=10.0)
    starts = np.concatenate([plan.step(step).starts for step in range(100)])
    counts = np.bincount(starts, minlength=spare + 1)
    assert len(counts) == spare + 1
    assert counts.min() > 850
    assert counts.max() < 1150


def test_the_plan_of_a_seed_never_changes():
    plan = train_plan((np.arange(50) * 37 % 40 + 1) * RATE // 2, seed=7, **ARGUMENTS)
    steps = [plan.step(step) for step in (0, 1, 1000)]
    assert [(s.length, s.rows.tolist(), s.starts.tolist()) for s in steps] == GOLDEN, (
        "The order of the data of a seed changed: every resumed run would repeat or miss recordings. "
        "If that is meant, say so in CHANGELOG.md as **numerics** and put the new values here."
    )


@laws
@hypothesis.given(st.integers(1, 300), st.integers(0, 2**32), st.integers(1, 50), st.booleans(), st.booleans())
def test_a_permutation_has_at_each_place_what_a_stable_sort_of_all_keys_has(count, seed, size, has_ties, many):
    keys = random_words(count, seed)
    keys = (keys >> np.uint64(61)) * np.uint64(1 << 46) if has_ties else keys
    rows = np.arange(count) * 3
    expected = rows[np.argsort(keys, kind="stable")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_plan, "SORTED_AT_ONCE", 0 if many else 1 << 16)
        found = Permutation(rows, keys)
    for first in range(0, count, size):
        positions = np.arange(first, min(first + size, count))
        np.testing.assert_array_equal(found.rows_at(positions), expected[positions])


GOLDEN = [
    (160000, [28, 20], [102932, 4292]),
    (160000, [29, 1], [76468, 39859]),
    (160000, [35, 18], [0, 17888]),
]


def digest(plan) -> str:
    """Of all that many steps of a plan hold."""
    found = hashlib.sha256()
    for number in (*range(150), *range(10_000, 10_040), 1_234_567):
        step = plan.step(number)
        for column in (step.rows, step.starts, step.speeds, *(step.mix or ())[:7]):
            found.update(np.ascontiguousarray(column).tobytes())
        found.update(f"{step.length} {step.epoch!r}".encode())
    return found.hexdigest()[:16]


NOISE = Noise(np.array([300, 400_000, 16_000]), prob=0.4, decibels=(-5.0, 20.0))
DIGESTS = {
    "2cb18c38dc093ef1": dict(seed=3),
    "b025c4d4d1c50e3c": dict(seed=2**40 + 1, augment=Augmentation(speeds=(0.9, 1.1))),
    "1d2dd48fef6cd00c": dict(seed=4, crop=False),
    "72e51f514483be8e": dict(seed=5, augment=Augmentation(mix_prob=0.3, mix_decibels=(-5.0, 5.0), noise=NOISE)),
    "f9e0c379ab14fdb6": dict(seed=6, bucket_samples=[12345], units=3, unit_seconds=4.0),
}
"""Recorded before corpora could be mixed, of the columns that a step had then."""


@pytest.mark.parametrize("expected", DIGESTS)
def test_a_plan_of_one_corpus_is_what_it_was_before_corpora_could_be_mixed(expected):
    changes = DIGESTS[expected]
    num_samples = (np.random.default_rng(0).gamma(2.0, 4.0, 700) * RATE).astype(np.int64) + 800
    if "crop" in changes:
        num_samples = np.minimum(num_samples, 10 * RATE)
    assert digest(train_plan(num_samples, **{**ARGUMENTS, **changes})) == expected


# Corpora in given shares


@st.composite
def mixtures(draw):
    """A corpus, and the groups of its recordings with their shares."""
    num_samples, arguments = draw(corpora())
    count = draw(st.integers(1, 5))
    of = np.array(draw(st.lists(st.integers(0, count - 1), min_size=len(num_samples), max_size=len(num_samples))))
    present, of = np.unique(of, return_inverse=True)
    weights = np.array([draw(st.floats(0.05, 1.0)) for _ in present])
    return num_samples, arguments | {"groups": Groups(of, weights / weights.sum())}


def shares_of_bucket(plan, bucket, groups):
    """What a bucket has to give of each group: its rows there, as often as the group is heard."""
    filled = lambda b: np.bincount(
        groups.of[b.rows], np.minimum(plan.num_samples[b.rows], b.length), len(groups.shares)
    )
    rates = groups.shares / sum(map(filled, plan.buckets))
    wanted = rates * np.bincount(groups.of[bucket.rows], minlength=len(groups.shares))
    return wanted / wanted.sum()


@laws
@hypothesis.given(mixtures(), st.integers(0, 2**40))
def test_every_recording_comes_once_in_each_epoch_of_its_corpus(mixture, seed):
    plan, of = try_plan(mixture, seed), mixture[1]["groups"].of
    seen = {}
    for step in range(80):
        batch = plan.step(step)
        for row in batch.rows.tolist():
            seen.setdefault((batch.length, int(of[row])), []).append(row)
    for bucket in plan.buckets:
        for group in set(of[bucket.rows].tolist()):
            members = bucket.rows[of[bucket.rows] == group]
            heard = seen.get((bucket.length, group), [])
            for first in range(0, len(heard) - len(members) + 1, len(members)):
                assert sorted(heard[first : first + len(members)]) == members.tolist()


@laws
@hypothesis.given(mixtures())
def test_shares_are_within_one_row_of_what_was_asked_at_every_step(mixture):
    """In each bucket, whose share of a corpus is that of its rows there."""
    plan, groups = try_plan(mixture), mixture[1]["groups"]
    asked = {bucket.length: shares_of_bucket(plan, bucket, groups) for bucket in plan.buckets}
    counts = {bucket.length: np.zeros(len(groups.shares)) for bucket in plan.buckets}
    for step in range(80):
        batch = plan.step(step)
        counts[batch.length] += np.bincount(groups.of[batch.rows], minlength=len(groups.shares))
        heard = counts[batch.length]
        wanted = heard.sum() * asked[batch.length]
        assert (np.abs(heard - wanted) <= 1 + np.minimum(1e-4 * heard.sum(), ERROR * wanted)).all()


@laws
@hypothesis.given(mixtures(), st.integers(0, 10**6))
def test_a_mixture_resumes_without_repeat_or_gap_and_keeps_its_buckets(mixture, first):
    walked, fresh, num_samples = try_plan(mixture), try_plan(mixture), mixture[0]
    steps = [walked.step(step) for step in range(first, first + 8)]
    for step in (first + 7, first, first + 3):
        for a, b in zip(steps[step - first], fresh.step(step), strict=True):
            np.testing.assert_array_equal(a, b)
    for batch in steps:
        (bucket,) = (b for b in fresh.buckets if b.length == batch.length)
        assert np.isin(batch.rows, bucket.rows).all() and len(batch.rows) == bucket.batch
        assert (batch.starts + np.minimum(num_samples[batch.rows], batch.length) <= num_samples[batch.rows]).all()


@laws
@hypothesis.given(mixtures(), st.integers(0, 500))
def test_what_was_heard_is_told_without_the_steps_before(mixture, step):
    plan, groups = try_plan(mixture), mixture[1]["groups"]
    count, of = len(groups.shares), groups.of
    rows, seconds = np.zeros(count), np.zeros(count)
    for number in range(step):
        batch = plan.step(number)
        rows += np.bincount(of[batch.rows], minlength=count)
        seconds += np.bincount(of[batch.rows], np.minimum(plan.num_samples[batch.rows], batch.length) / RATE, count)
    told, epochs = plan.heard(step)
    np.testing.assert_allclose(epochs * np.bincount(of), rows, atol=1e-6)
    partial = 40.0 * len(mixture[0])  # an epoch that is not complete counts by its mean
    assert np.abs(told - seconds).max() <= partial
    assert step or not told.any()


def test_audio_is_heard_in_the_shares_that_were_asked_for_whatever_the_lengths():
    """A corpus of short rows and one of long ones, cropped or not, by seconds and not by rows."""
    rng = np.random.default_rng(0)
    num_samples = np.concatenate([rng.integers(RATE, 3 * RATE, 900), rng.integers(4 * RATE, 20 * RATE, 100)])
    of = np.repeat([0, 1], (900, 100))
    for asked in ([0.5, 0.5], [0.9, 0.1]):
        plan = train_plan(num_samples, seed=0, groups=Groups(of, np.array(asked)), **ARGUMENTS)
        seconds, epochs = plan.heard(20_000)
        np.testing.assert_allclose(seconds / seconds.sum(), asked, atol=2e-3)
        once = [np.minimum(num_samples[of == group], 10 * RATE).sum() / RATE for group in (0, 1)]
        np.testing.assert_allclose(epochs, seconds / once, rtol=0.01)


def test_a_plan_tells_the_shares_that_it_has_in_the_long_run():
    rng = np.random.default_rng(1)
    num_samples, of = rng.integers(RATE, 9 * RATE, 900), np.repeat([0, 1, 2], (500, 300, 100))
    plan = train_plan(num_samples, seed=0, groups=Groups(of, np.array([0.979, 0.02, 0.001])), **ARGUMENTS)
    seconds, _ = plan.heard(10_000_000)
    np.testing.assert_allclose(plan.shares, seconds / seconds.sum(), rtol=1e-3)
    np.testing.assert_allclose(plan.shares, [0.979, 0.02, 0.001], rtol=0.01)
    one_bucket = ARGUMENTS | dict(bucket_samples=[10 * RATE])
    rare = train_plan(num_samples, seed=0, groups=Groups(of, np.array([0.5, 0.5, 3e-7])), **one_bucket)
    seconds, _ = rare.heard(1_000_000_000)
    np.testing.assert_allclose(rare.shares, seconds / seconds.sum(), rtol=1e-2)
    assert rare.shares[2] > 6e-7, "one row of each cycle, and not what was asked for"


def test_a_small_corpus_of_many_epochs_does_not_cost_the_permutations_of_a_large_one(monkeypatch):
    made, permutation = [], TrainPlan._permutation

    def counted(plan, number, group, epoch):
        made.append((group, epoch))
        return permutation(plan, number, group, epoch)

    monkeypatch.setattr(TrainPlan, "_permutation", counted)
    groups = Groups(np.repeat([0, 1], (4000, 10)), np.array([0.5, 0.5]))
    arguments = dict(bucket_samples=[RATE], units=20, unit_seconds=10.0, groups=groups)
    plan = train_plan(np.full(4010, RATE), seed=0, **arguments)
    for step in range(30):
        plan.step(step)
    assert [epoch for group, epoch in made if group == 0] == [0]
    assert sorted(epoch for group, epoch in made if group == 1) == list(range(300)), "ten in each step, once each"


def test_natural_shares_hear_every_recording_equally_often():
    num_samples, of = corpus_of(600), np.repeat([0, 1, 2], (100, 200, 300))
    natural = np.bincount(of, np.minimum(num_samples, 10 * RATE))
    plan = train_plan(num_samples, seed=0, groups=Groups(of, natural / natural.sum()), **ARGUMENTS)
    steps = round(3 * plan.steps_per_epoch)
    np.testing.assert_allclose(plan.heard(steps)[1], 3, rtol=0.02)
    assert plan.epoch(steps) == pytest.approx(3, rel=0.01)


def test_small_buckets_join_the_next_longer_one():
    num_samples = np.concatenate([np.full(3, RATE), np.full(40, 4 * RATE), np.full(40, 9 * RATE)])
    plan = train_plan(num_samples, seed=0, **ARGUMENTS)
    assert [(b.length, len(b.rows)) for b in plan.buckets] == [(5 * RATE, 43), (10 * RATE, 40)]


def test_too_few_long_recordings_are_cropped_into_the_next_shorter_bucket():
    num_samples = np.concatenate([np.full(40, 4 * RATE), np.full(1, 9 * RATE)])
    plan = train_plan(num_samples, seed=0, **ARGUMENTS)
    assert [(b.length, len(b.rows)) for b in plan.buckets] == [(5 * RATE, 41)]
    starts = {int(s) for k in range(80) for r, s in zip(*plan.step(k)[:2], strict=True) if r == 40}
    assert len(starts) > 5
    assert max(starts) <= 4 * RATE


def test_a_recording_with_a_transcript_is_never_cropped():
    """The longest bucket is filled with the longest of the others, not emptied into a shorter one."""
    num_samples = np.concatenate([np.arange(1, 41) * RATE // 20 + 2 * RATE, np.full(1, 9 * RATE)])
    plan = train_plan(num_samples, seed=0, crop=False, **ARGUMENTS)
    assert [(b.length, b.rows.tolist()) for b in plan.buckets[-2:]] == [
        (5 * RATE, list(range(39))),
        (10 * RATE, [39, 40]),
    ]
    few = train_plan(num_samples[[0, 1, 2, 40]], seed=0, crop=False, **ARGUMENTS)
    assert [(b.length, b.rows.tolist()) for b in few.buckets] == [(10 * RATE, [0, 1, 2, 3])]


@laws
@hypothesis.given(corpora())
def test_without_crops_every_row_is_whole_in_one_bucket(corpus):
    num_samples, arguments = corpus
    num_samples = np.minimum(num_samples, max(arguments["bucket_samples"]))
    plan = try_plan((num_samples, arguments | {"crop": False}))
    assert sorted(row for bucket in plan.buckets for row in bucket.rows) == list(range(len(num_samples)))
    for bucket in plan.buckets:
        assert num_samples[bucket.rows].max() <= bucket.length and len(bucket.rows) >= bucket.batch


def test_padding_share_is_the_padded_part_of_the_rectangles():
    plan = train_plan(
        np.array([5 * RATE, 10 * RATE, 30 * RATE]), seed=0, bucket_samples=[10 * RATE], units=1, unit_seconds=20.0
    )
    assert plan.padding_share == pytest.approx(5 / 30)


def test_epoch_counts_the_audio_that_was_heard():
    plan = train_plan(np.full(40, RATE), seed=0, bucket_samples=[RATE], units=1, unit_seconds=10.0)
    assert plan.steps_per_epoch == 4.0
    assert [plan.step(step).epoch for step in (0, 2, 4)] == [0.0, 0.5, 1.0]


def test_no_recordings_at_all_is_a_clear_error():
    with pytest.raises(UserError, match="0 recordings"):
        train_plan(np.zeros(0), seed=0, **ARGUMENTS)


@laws
@hypothesis.given(corpora())
def test_evaluation_reads_every_recording_once(corpus):
    num_samples, arguments = corpus
    plan = eval_plan(num_samples, max_hours=0, **arguments)
    steps = [plan.step(step) for step in range(plan.steps)]
    rows = np.concatenate([s.rows for s in steps])
    assert sorted(rows[rows != FILLER]) == list(range(len(num_samples)))
    assert all((len(s.rows), s.length) in plan.shapes for s in steps)
    for s in steps:
        lengths = num_samples[s.rows[s.rows != FILLER]]
        starts = s.starts[s.rows != FILLER]
        assert (starts >= 0).all()
        assert (starts + np.minimum(lengths, s.length) <= lengths).all()


def test_evaluation_hears_at_most_max_hours_and_always_something():
    num_samples = corpus_of(500)
    for hours in (1e-9, 0.05, 0.2, 100.0):
        plan = eval_plan(num_samples, max_hours=hours, **ARGUMENTS)
        rows = np.concatenate([plan.step(step).rows for step in range(plan.steps)])
        rows = rows[rows != FILLER]
        heard = np.minimum(num_samples[rows], 10 * RATE).sum() / RATE / 3600
        assert len(rows) >= 1
        assert heard <= hours or len(rows) == 1
        again = eval_plan(num_samples, max_hours=hours, **ARGUMENTS)
        np.testing.assert_array_equal(plan.step(0).rows, again.step(0).rows)


def test_evaluation_of_nothing_has_no_steps():
    assert eval_plan(np.zeros(0), max_hours=1.0, **ARGUMENTS).steps == 0
