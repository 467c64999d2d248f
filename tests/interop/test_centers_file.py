"""Laws of k-means files of others: their centres as scikit-learn has them, and nothing in them is run."""

from __future__ import annotations

import os
import pathlib
import pickle

import joblib
import joblib.numpy_pickle
import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.interop.centers_file import read_centers


@pytest.fixture(scope="module")
def fitted():
    from sklearn.cluster import MiniBatchKMeans

    x = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    return MiniBatchKMeans(7, n_init=1, batch_size=100, random_state=np.random.RandomState(3)).fit(x)


def test_centres_of_joblib_are_scikit_learns(fitted, tmp_path):
    joblib.dump(fitted, tmp_path / "km.bin")
    found = read_centers(tmp_path / "km.bin")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, fitted.cluster_centers_)


@pytest.mark.parametrize("order", ["C", "F"])
def test_files_of_older_versions_have_no_alignment(fitted, tmp_path, order):
    """Released HuBERTs have such files: the numbers follow their description at once."""

    class Older(joblib.numpy_pickle.NumpyPickler):
        def _create_array_wrapper(self, array):
            wrapper = super()._create_array_wrapper(array)
            vars(wrapper).pop("numpy_array_alignment_bytes", None)
            return wrapper

    centers = np.array(fitted.cluster_centers_, np.float64, order=order)
    with open(tmp_path / "km.bin", "wb") as file:
        Older(file, protocol=2).dump({"labels_": np.arange(5), "cluster_centers_": centers, "n": 7})
    np.testing.assert_array_equal(read_centers(tmp_path / "km.bin"), centers.astype(np.float32))


def test_arrays_of_numpy_are_read_too(tmp_path):
    np.save(tmp_path / "km.npy", np.eye(3))
    np.testing.assert_array_equal(read_centers(tmp_path / "km.npy"), np.eye(3, dtype=np.float32))


class Attack:
    def __init__(self, target: pathlib.Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    joblib.dump({"cluster_centers_": np.eye(3), "x": Attack(tmp_path / "made")}, tmp_path / "km.bin")
    with pytest.raises(UserError, match=r"contains code that uses (posix|os)\.mkdir"):
        read_centers(tmp_path / "km.bin")
    assert not (tmp_path / "made").exists()


class Unknown:
    def __setstate__(self, state):
        raise AssertionError("run")


def test_classes_that_are_not_known_are_not_made(tmp_path):
    unknown = Unknown()
    unknown.x = 3  # type: ignore
    joblib.dump({"cluster_centers_": np.eye(3), "y": unknown}, tmp_path / "km.bin")
    assert read_centers(tmp_path / "km.bin").shape == (3, 3)


def test_files_without_centres_are_named(fitted, tmp_path):
    path = tmp_path / "km.bin"
    path.write_bytes(pickle.dumps({"weights": 3}))
    with pytest.raises(UserError, match="holds dict without cluster_centers_"):
        read_centers(path)
    joblib.dump({"cluster_centers_": np.array([[1.0, np.nan]])}, path)
    with pytest.raises(UserError, match="not finite"):
        read_centers(path)
    joblib.dump({"cluster_centers_": np.array(["a", "b"], object)}, path)
    with pytest.raises(UserError, match="type|damaged|array"):
        read_centers(path)
    np.save(tmp_path / "km.npy", np.zeros(4))
    with pytest.raises(UserError, match=r"not an array of \[clusters, numbers of a frame\]"):
        read_centers(tmp_path / "km.npy")
    with pytest.raises(UserError, match="cannot be read"):
        read_centers(tmp_path / "none")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_damaged_files_are_named(fitted, tmp_path, share):
    path = tmp_path / "km.bin"
    joblib.dump(fitted, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"km\.bin"):
        read_centers(path)
