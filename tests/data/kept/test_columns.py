"""Laws of columns: they are what an array of the same values would be, however they were selected or joined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_jax.data.kept import columns
from w2v_jax.data.kept.columns import Builder, Column, Joined, Placed, Texts

TEXTS = st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), min_size=1, max_size=12)


def text_array(texts):
    return np.array(texts, np.dtypes.StringDType())


@st.composite
def selections(draw, size):
    """Row numbers, a mask or a slice of `size` rows."""
    kind = draw(st.sampled_from(["rows", "mask", "slice"]))
    if kind == "rows":
        return np.array(draw(st.lists(st.integers(-size, size - 1), max_size=8)), np.int64)
    if kind == "mask":
        return np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    return slice(draw(st.integers(0, size)), draw(st.integers(0, size)), draw(st.sampled_from([1, 2])))


@given(st.data(), TEXTS)
@settings(max_examples=60, deadline=None)
def test_a_selection_of_a_selection_is_that_of_an_array(data, texts):
    column, expected = Column.of(texts), text_array(texts)
    for _ in range(3):
        if not len(expected):
            break
        rows = data.draw(selections(len(expected)))
        column, expected = column[rows], expected[rows]
        assert column.tolist() == list(column) == expected.tolist() and len(column) == len(expected)
        assert b"".join(column.lines()) == "".join(f"{text}\n" for text in expected).encode()
        assert np.asarray(column).tolist() == expected.tolist()
        np.testing.assert_array_equal(column == "", expected == "")
    for row in range(-len(expected), len(expected)):
        assert column[row] == expected[row]


@given(st.data(), st.lists(TEXTS, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_joined_columns_are_their_values_one_after_the_other(data, parts):
    prefixes = [f"{number}/" for number in range(len(parts))]
    joined = Column(Joined([Column.of(part) for part in parts], prefixes))
    expected = [prefix + text for prefix, part in zip(prefixes, parts, strict=True) for text in part]
    assert joined.tolist() == expected and joined.dtype == np.dtypes.StringDType()
    rows = data.draw(selections(len(expected)))
    assert joined[rows].tolist() == text_array(expected)[rows].tolist()
    assert b"".join(joined[rows].lines()) == "".join(f"{text}\n" for text in joined[rows]).encode()
    numbers = Column(Joined([Column(np.arange(len(part))) for part in parts]))
    assert numbers.tolist() == [row for part in parts for row in range(len(part))] and numbers.dtype == np.int64


@given(st.lists(TEXTS, max_size=4))
@settings(max_examples=30, deadline=None)
def test_parts_make_the_same_store_as_the_whole(parts):
    builder = Builder(is_text=True)
    for part in parts:
        builder.add(part)
    assert Column(builder.store()).tolist() == [text for part in parts for text in part]


def test_values_are_made_in_blocks(monkeypatch):
    monkeypatch.setattr(columns, "AT_ONCE", 3)
    column = Column.of("abcdefgh")[np.arange(7, -1, -1)]
    assert list(column.blocks()) == [list("hgf"), list("edc"), list("ba")]
    assert b"".join(column.lines()) == b"h\ng\nf\ne\nd\nc\nb\na\n"
    assert b"".join(Column(Joined([column])).lines()) == b"h\ng\nf\ne\nd\nc\nb\na\n"


def test_columns_of_one_selection_share_its_row_numbers():
    one, two, shared = Column.of("abc"), Column(np.arange(3)), {}
    rows = np.array([2, 0])
    assert one.select(rows, shared).rows is two.select(rows, shared).rows
    assert two[rows].tolist() == [2, 0] and np.asarray(two[rows], np.float32).dtype == np.float32


def test_rows_that_are_not_there_are_an_error_and_columns_have_no_hash():
    for row in (3, -4):
        with pytest.raises(IndexError):
            Column.of("abc")[row]
    with pytest.raises(TypeError):
        hash(Column.of("abc"))
    assert repr(Column.of("abc")) == "Column(['a', 'b', 'c'])"
    assert repr(Column(np.arange(10**6))) == "Column([0, 1, 2, 3, 4, 5, 6] and 999,993 more)"


def test_a_nul_stands_for_the_folder():
    texts = Column.of(["\0/a.wav", "/elsewhere/b.wav", ""]).store
    assert isinstance(texts, Texts)
    column = Column(Placed(texts, "/data"))
    assert column.tolist() == ["/data/a.wav", "/elsewhere/b.wav", ""] and len(column) == 3
    assert column.dtype == np.dtypes.StringDType()
