"""Laws of shares and turns: temperatures as the papers write them, and no group ever a row ahead or behind."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from w2v_jax.data.mixture import ERROR, SMALLEST, powers, temperature_shares, turns

laws = hypothesis.settings(max_examples=25, derandomize=True, deadline=None)
weights = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 1.0)), min_size=1, max_size=12).filter(any)

HOURS = np.array([900.0, 80.0, 20.0, 10.0])
CORPORA = ["read", "many", "many", "many"]


def test_an_exponent_of_one_keeps_proportions_and_zero_makes_all_alike():
    np.testing.assert_allclose(powers(HOURS, 1.0), HOURS / HOURS.sum())
    np.testing.assert_allclose(powers(HOURS, 0.0), 0.25)


def test_shares_are_those_of_the_formula_on_both_levels():
    shares = temperature_shares(HOURS, CORPORA, exponents=(0.5, 0.3))
    corpora = np.array([900 / 1010, 110 / 1010]) ** 0.5
    languages = (np.array([80.0, 20.0, 10.0]) / 110) ** 0.3
    expected = [corpora[0], *(corpora[1] * languages / languages.sum())]
    np.testing.assert_allclose(shares, np.array(expected) / corpora.sum())
    np.testing.assert_allclose(temperature_shares(HOURS, CORPORA, exponents=(1.0, 1.0)), HOURS / HOURS.sum())


def test_weights_take_the_place_of_hours():
    weighted = temperature_shares(HOURS, CORPORA, exponents=(0.5, 0.0), corpus_weights=[3, 1, 1, 1])
    np.testing.assert_allclose(weighted, [3 / 4, 1 / 12, 1 / 12, 1 / 12])
    both = temperature_shares(
        HOURS, CORPORA, exponents=(1.0, 1.0), corpus_weights=[1, 1, 1, 1], language_weights=[None, 1, 1, 2]
    )
    np.testing.assert_allclose(both, [1 / 2, 1 / 8, 1 / 8, 1 / 4])


@laws
@hypothesis.given(weights)
def test_every_group_has_its_share_to_within_one_row_after_any_number_of_rows(weights):
    dealt = turns(np.array(weights))
    size, asked = len(dealt.cycle), np.array(weights) / sum(weights)
    shares = dealt.counts / size
    np.testing.assert_allclose(shares, asked, atol=1e-4)
    np.testing.assert_allclose(shares, asked, rtol=ERROR)
    assert ((shares > 0) == (asked > 0)).all()
    for group in range(len(weights)):
        ahead = np.cumsum(dealt.cycle == group) - shares[group] * np.arange(1, size + 1)
        assert np.abs(ahead).max() < 1


@laws
@hypothesis.given(weights, st.integers(0, 10**9), st.integers(1, 300))
def test_turns_are_found_from_anywhere_and_count_on(weights, first, count):
    dealt = turns(np.array(weights))
    groups, earlier = dealt.rows(first, count)
    before = dealt.rows_before(first)
    for group, number in zip(groups, earlier, strict=True):
        assert number == before[group]
        before[group] += 1
    np.testing.assert_array_equal(before, dealt.rows_before(first + count))
    assert before.sum() == first + count


def test_a_rare_group_has_its_share_and_one_group_has_all():
    dealt = turns(np.array([1.0, 1e-4, 0.0]))
    assert dealt.counts[1] >= 1 and dealt.counts[2] == 0
    assert dealt.counts[1] / len(dealt.cycle) == pytest.approx(1e-4, rel=ERROR)
    groups, earlier = turns(np.array([2.0])).rows(7, 5)
    assert groups.tolist() == [0] * 5 and earlier.tolist() == [7, 8, 9, 10, 11]


@pytest.mark.parametrize("rare", [[0.001], [SMALLEST], [0.0021, 0.00345, 0.0104], [0.01, 0.0107, 0.0131, 0.0159]])
def test_shares_above_the_smallest_are_kept_to_within_the_error(rare):
    asked = np.array([1 - sum(rare), *rare])
    counts = turns(asked).counts
    np.testing.assert_allclose(counts / counts.sum(), asked, rtol=ERROR)
