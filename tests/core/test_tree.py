"""Parameters as nested dicts and by their paths."""

from __future__ import annotations

from w2v_jax.core.tree import by_path, differences, nest

NESTED = {"encoder": {"projection": {"kernel": 1, "bias": 2}, "mask_vector": 3}, "head": 4}
FLAT = {"encoder/projection/kernel": 1, "encoder/projection/bias": 2, "encoder/mask_vector": 3, "head": 4}


def test_every_leaf_has_the_path_of_its_keys():
    assert by_path(NESTED) == FLAT


def test_paths_are_nested_again_in_any_order():
    assert nest(FLAT) == nest(dict(reversed(FLAT.items()))) == NESTED


def test_differences_name_each_value_that_is_another_and_count_the_rest():
    first, second = dict(a=1, b=2, c=3), dict(b=2, c=4, d=5)
    lines = differences(first, second, "{name}: {first} there, {second} here")
    assert lines == "\n  a: 1 there, nothing here\n  c: 3 there, 4 here\n  d: nothing there, 5 here"
    many = differences(dict.fromkeys("abcdefghijkl", 1), {}, "{name}")
    assert many == "".join(f"\n  {name}" for name in "abcdefghij") + "\n  and 2 more"
    assert differences(first, first, "{name}") == ""
