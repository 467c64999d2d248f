"""Laws of unit files: every format holds the same units, repeats come back from durations, damage is named."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.io import feature_files
from w2v_jax.data.io.feature_files import Utterance
from w2v_jax.data.io.unit_files import UNIT_FORMATS, collapsed, read_units, unit_dtype, units_size, write_units


def rows(groups: int) -> list[tuple[np.ndarray, Utterance]]:
    rng = np.random.default_rng(0)
    units = [rng.integers(0, 3, (frames, groups)).astype("uint16") for frames in (40, 1, 17)]
    return [(x, Utterance(f"id-{i}", 0, len(x), len(x) / 100, "s", "ü b")) for i, x in enumerate(units)]


def write(folder, pairs, form, *, collapse=False):
    path = folder / f"part-00000{UNIT_FORMATS[form]}"
    write_units(path, pairs, groups=pairs[0][0].shape[1], dtype="uint16", form=form, collapse=collapse)
    return path


def numbers(text: str) -> np.ndarray:
    return np.array([[int(n) for n in frame.split("-")] for frame in text.split()])


def read_back(path, form, groups, collapse):
    """[(id, units [F G], durations or None)], read as another program would."""
    lines = lambda file: file.read_text(encoding="utf-8").splitlines()
    if form == "numpy":
        array = np.load(path)
        durations = np.load(path.with_suffix(".durations.npy")) if collapse else None
        found = []
        for line in map(json.loads, lines(path.with_suffix(".jsonl"))):
            own = slice(line["first"], line["first"] + line["frames"])
            found.append((line["id"], array[own], None if durations is None else durations[own]))
        return found
    if form == "text":
        ids = [json.loads(line)["id"] for line in lines(path.with_suffix(".jsonl"))]
        durations = [None] * len(ids)
        if collapse:
            durations = [numbers(line)[:, 0] for line in lines(path.with_suffix(".durations.txt"))]
        return list(zip(ids, map(numbers, lines(path)), durations, strict=True))
    if form == "jsonl":
        objects = map(json.loads, lines(path))
        return [(o["id"], np.array(o["units"]).reshape(-1, groups), o.get("durations")) for o in objects]
    table = pyarrow.parquet.read_table(path).to_pylist()
    return [(row["id"], np.array(row["units"]).reshape(row["frames"], -1), row.get("durations")) for row in table]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("collapse", [False, True])
@pytest.mark.parametrize("form", UNIT_FORMATS)
def test_every_format_holds_the_same_units(tmp_path, form, collapse, groups):
    pairs = rows(groups)
    path = write(tmp_path, pairs, form, collapse=collapse)
    found = read_back(path, form, groups, collapse)
    assert [id for id, _, _ in found] == ["id-0", "id-1", "id-2"]
    for (_, units, durations), (expected, _) in zip(found, pairs, strict=True):
        if collapse:
            assert (units[1:] != units[:-1]).any(axis=1).all()
            units = np.repeat(units, durations, axis=0)
        np.testing.assert_array_equal(units, expected)
    left = sum(len(units) for _, units, _ in found)
    assert units_size(path) == (3, left) and (left < 58 if collapse and groups == 1 else left <= 58)


@given(arrays(np.uint16, st.tuples(st.integers(0, 30), st.integers(1, 2)), elements=st.integers(0, 2)))
def test_repeats_come_back_from_durations(units):
    found, durations = collapsed(units)
    np.testing.assert_array_equal(np.repeat(found, durations, axis=0), units)
    assert (durations > 0).all() and len(found) == len(durations)


def test_the_type_holds_every_cluster():
    assert (unit_dtype(100), unit_dtype(1 << 16), unit_dtype((1 << 16) + 1)) == ("uint16", "uint16", "int32")


def folder_of_units(folder, **metadata):
    write(folder, rows(1), "numpy")
    about = dict(what="units", hop=160, groups=1, codes=3, parts=1, collapse=False, format="numpy", complete=True)
    feature_files.write_metadata(folder, about | metadata)
    return folder


def test_units_are_read_with_their_metadata(tmp_path):
    metadata, found = read_units(folder_of_units(tmp_path))
    assert metadata["codes"] == 3
    for (utterance, units), (expected, written) in zip(found, rows(1), strict=True):
        assert utterance.id == written.id
        np.testing.assert_array_equal(units, expected)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (dict(what="codes"), "holds codes, not units"),
        (dict(collapse=True), "without their repeats"),
        (dict(format="jsonl"), "holds units as jsonl"),
        (dict(complete=False), "is not finished"),
    ],
)
def test_what_cannot_be_read_by_time_is_refused(tmp_path, metadata, message):
    with pytest.raises(UserError, match=message):
        read_units(folder_of_units(tmp_path, **metadata))


@pytest.mark.parametrize(("name", "kind"), [("features", "units"), ("codes", "units")])
def test_units_are_neither_features_nor_codes(tmp_path, name, kind):
    with pytest.raises(UserError, match=f"holds {kind}, and data.name={name} needs {name}"):
        open_source(name, folder_of_units(tmp_path))


@pytest.mark.parametrize("form", UNIT_FORMATS)
def test_a_damaged_part_is_named(tmp_path, form):
    path = write(tmp_path, rows(1), form)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="part-00000"):
        units_size(path)
    path.unlink()
    with pytest.raises(UserError, match="part-00000.* is missing"):
        units_size(path)


def test_units_without_repeats_are_not_aligned_with_audio(tmp_path):
    with pytest.raises(UserError, match="without their repeats; label again without --collapse"):
        feature_files.open_folders(folder_of_units(tmp_path, collapse=True), "units")
    assert feature_files.open_folders(folder_of_units(tmp_path), "units")[0][1]["codes"] == 3
