"""Laws of files of arrays: what was written comes back, and a file that is not what was written is named so."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_jax.data.kept import array_file
from w2v_jax.data.kept.array_file import Damaged, read_arrays, write_arrays

ARRAYS = {"a": np.arange(1000), "b": np.arange(7, dtype=np.uint8), "none": np.zeros(0, np.int32)}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("arrays") / "file"
    write_arrays(path, ARRAYS, {"of": "ä"})
    return path.read_bytes()


def test_a_file_that_is_replaced_while_it_is_read_gives_what_was_checked(tmp_path, monkeypatch):
    path, blocks = tmp_path / "file", array_file._blocks
    write_arrays(path, ARRAYS, {})

    def replacing(*given):
        write_arrays(path, {"a": ARRAYS["a"][:3] * 7}, {})
        return blocks(*given)

    monkeypatch.setattr(array_file, "MAPPED_FROM", 0)
    monkeypatch.setattr(array_file, "_blocks", replacing)
    found, _ = read_arrays(path)
    np.testing.assert_array_equal(found["a"], ARRAYS["a"])


@pytest.mark.parametrize("is_mapped", [False, True])
def test_arrays_come_back_with_what_they_are_about(tmp_path, monkeypatch, is_mapped):
    monkeypatch.setattr(array_file, "_BLOCK", 64)
    monkeypatch.setattr(array_file, "MAPPED_FROM", 0 if is_mapped else 1 << 30)
    write_arrays(tmp_path / "file", ARRAYS, {"of": "ä"})
    found, about = read_arrays(tmp_path / "file")
    assert about == {"of": "ä"} and list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_flipped_bit_and_a_cut_are_noticed_wherever_they_are(content, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged"
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    is_padding = 8000 <= place < 8000 + 0 or (8007 <= place < 8064)
    path.write_bytes(changed)
    if not is_padding:
        with pytest.raises(Damaged):
            read_arrays(path)
    path.write_bytes(content[:place])
    with pytest.raises(Damaged):
        read_arrays(path)


def test_another_file_is_named_as_such(tmp_path):
    (tmp_path / "file").write_text("this is no file of arrays, although it is long enough to have an end")
    with pytest.raises(Damaged, match="its end is missing"):
        read_arrays(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none")


def test_a_small_file_may_be_cut_in_place_while_its_arrays_are_used(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    found, _ = read_arrays(tmp_path / "file")
    os.truncate(tmp_path / "file", 0)
    np.testing.assert_array_equal(found["a"], ARRAYS["a"])
