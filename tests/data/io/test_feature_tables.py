"""Laws of features in tables: every reader finds the frames and their utterance, and equal content is equal bytes."""

import sys

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data.io import feature_tables
from w2v_jax.data.io.feature_files import FORMATS, Utterance, part_path, part_size

pyarrow_parquet = pytest.importorskip("pyarrow.parquet")
h5py = pytest.importorskip("h5py")
WIDTH = 3
LENGTHS = (4, 0, 2)


def pairs():
    rng = np.random.default_rng(0)
    about = [Utterance(f"u{i}", 0, n, n / 50, f"s{i}", f"SÌ {i}") for i, n in enumerate(LENGTHS)]
    return [(rng.normal(size=(n, WIDTH)).astype(np.float32), u) for n, u in zip(LENGTHS, about, strict=True)]


def write(folder, form):
    path = part_path(folder, 0, FORMATS[form])
    if form == "parquet":
        feature_tables.write_parquet(path, pairs(), dtype="float32")
    else:
        feature_tables.write_hdf5(path, pairs(), width=WIDTH, dtype="float32")
    return path


def test_a_row_of_parquet_is_an_utterance_with_all_its_frames(tmp_path):
    table = pyarrow_parquet.read_table(write(tmp_path, "parquet"))
    for row, (frames, utterance) in zip(table.to_pylist(), pairs(), strict=True):
        found = np.array(row.pop("features"), np.float32).reshape(-1, WIDTH)
        np.testing.assert_array_equal(found, frames)
        expected = utterance._asdict()
        del expected["first"]
        assert row == expected


def test_a_large_part_of_parquet_has_several_row_groups(tmp_path, monkeypatch):
    whole = pyarrow_parquet.read_table(write(tmp_path, "parquet"))
    monkeypatch.setattr(feature_tables, "GROUP_BYTES", 4 * WIDTH * LENGTHS[0])
    path = write(tmp_path, "parquet")
    assert pyarrow_parquet.ParquetFile(path).num_row_groups == 2
    assert pyarrow_parquet.read_table(path).equals(whole)


def test_first_and_frames_of_hdf5_cut_an_utterance_out(tmp_path):
    with h5py.File(write(tmp_path, "hdf5")) as file:
        assert file["features"].shape == (sum(LENGTHS), WIDTH)
        for i, (frames, utterance) in enumerate(pairs()):
            first, count = file["first"][i], file["frames"][i]
            np.testing.assert_array_equal(file["features"][first : first + count], frames)
            texts = [file[name][i].decode() for name in feature_tables.TEXTS]
            assert texts == [utterance.id, utterance.speaker, utterance.transcript]
            assert file["seconds"][i] == utterance.seconds


@pytest.mark.parametrize("form", ["parquet", "hdf5"])
def test_equal_content_gives_equal_bytes(tmp_path, form):
    one = write(tmp_path, form).read_bytes()
    assert write(tmp_path, form).read_bytes() == one


@pytest.mark.parametrize("form", ["parquet", "hdf5"])
def test_a_part_tells_its_size_or_what_is_wrong_with_it(tmp_path, form):
    path = write(tmp_path, form)
    assert feature_tables.table_size(path) == part_size(path) == (len(LENGTHS), sum(LENGTHS))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"is truncated or not what its name says.*delete {path.name}"):
        feature_tables.table_size(path)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is missing"):
        feature_tables.table_size(path)


@pytest.mark.parametrize(("form", "package"), [("parquet", "pyarrow.parquet"), ("hdf5", "h5py")])
def test_a_missing_package_is_named_only_for_its_format(monkeypatch, form, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"--format {form} needs .*w2v-jax\[features\]"):
        feature_tables.check_installed(form)
    feature_tables.check_installed("numpy")
    feature_tables.check_installed("hdf5" if form == "parquet" else "parquet")
