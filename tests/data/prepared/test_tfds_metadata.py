"""Laws of the metadata: TensorFlow Datasets opens the folder, and without it the corpus is written all the same."""

import sys

from w2v_jax.data.prepared.tfds_metadata import SHARD_NAME, write_metadata


def test_without_the_package_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert not write_metadata(tmp_path, [{"records": 1, "bytes": 1}])
    assert not list(tmp_path.iterdir())


def test_names_of_shards_are_those_of_a_dataset():
    assert SHARD_NAME.format(3, 12) == "recordings-train.array_record-00003-of-00012"
