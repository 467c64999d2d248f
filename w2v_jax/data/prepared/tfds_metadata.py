"""dataset_info.json and features.json, which make a folder of shards a dataset of TensorFlow Datasets."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax.data.io.tf_import import import_tensorflow, quiet_tfds

NAME, SPLIT = "recordings", "train"
SHARD_NAME = f"{NAME}-{SPLIT}.array_record-{{:05d}}-of-{{:05d}}"
"""The name of a shard, by its number and by how many there are, as TensorFlow Datasets wants it."""


def write_metadata(folder: pathlib.Path, shards: Sequence[dict[str, Any]]) -> bool:
    """Writes both files by TensorFlow Datasets. Returns whether it is installed.

    shards: "records" and "bytes" of each, in the order of their numbers.
    """
    try:
        import_tensorflow()
        import tensorflow_datasets as tfds
        from etils import epath
    except ImportError:
        return False
    with quiet_tfds():
        template = tfds.core.ShardedFileTemplate(
            data_dir=epath.Path(folder), dataset_name=NAME, split=SPLIT, filetype_suffix="array_record"
        )
        split = tfds.core.SplitInfo(
            name=SPLIT,
            shard_lengths=[shard["records"] for shard in shards],
            num_bytes=sum(shard["bytes"] for shard in shards),
            filename_template=template,
        )
        audio = tfds.features.Audio(file_format="flac", dtype=np.int32, lazy_decode=True)
        features = {
            "id": tfds.features.Text(),
            "audio": audio,
            "sampling_rate": tfds.features.Scalar(np.int64),
            "text": tfds.features.Text(),
            "speaker": tfds.features.Text(),
            "language": tfds.features.Text(),
        }
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=tfds.features.FeaturesDict(features),
            split_infos=[split],
            version="1.0.0",
            filename_template=template,
            check_data=False,
            description="Recordings as FLAC, written by `python -m w2v_jax.prepare --shards`.",
        )
    return True
