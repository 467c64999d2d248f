"""Units: the pieces that a batch is dealt in, and the ids that mean something else than a code."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from w2v_jax.core.units import (
    CODE_MASK,
    CODE_PAD,
    CODE_UNKNOWN,
    FIRST_CODE,
    batch_units,
    num_units,
    unit_rows,
    whole_batch,
)


def test_unit_rows_round_to_whole_rows():
    assert unit_rows(87.5, 250_000) == 5
    assert unit_rows(87.5, 32_000) == 43
    assert unit_rows(1.0, 32_000) == 1


def test_rows_of_a_whole_batch_all_count_and_are_numbered():
    batch = whole_batch("codes", np.zeros((3, 5), np.int32), np.array([800, 640, 0]))
    assert list(batch) == ["codes", "weight", "num_samples", "row"]
    assert batch["weight"].tolist() == [1.0] * 3 and batch["row"].tolist() == [0, 1, 2]
    assert batch["num_samples"].dtype == batch["row"].dtype == np.int32 and batch["weight"].dtype == np.float32


def test_a_batch_holds_whole_units_or_is_refused():
    assert num_units(2.0, 12, 8_000) == 3, "four rows of half a second in each"
    with pytest.raises(ValueError, match="10 rows cannot be cut into units of 4"):
        num_units(2.0, 10, 8_000)


def test_units_of_an_update_are_those_nearest_to_its_hours():
    assert batch_units(SimpleNamespace(batch_hours=64 * 87.5 / 3600, unit_seconds=87.5)) == 64
    assert batch_units(SimpleNamespace(batch_hours=1.55, unit_seconds=87.5)) == 64


def test_real_codes_come_after_the_ids_with_a_meaning_of_their_own():
    """Padding is 0, as arrays are padded with zeros."""
    assert {CODE_PAD, CODE_MASK, CODE_UNKNOWN} == set(range(FIRST_CODE)) and CODE_PAD == 0
