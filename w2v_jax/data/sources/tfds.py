"""TensorFlow Datasets: prepared datasets with an audio feature. Random access to TFRecord and ArrayRecord files.

`data.root` is the name of a dataset ("librispeech/lazy_decode", "spoken_digit") that is prepared in TFDS' data
directory (set by TFDS_DATA_DIR), or any prepared folder. "@SPLIT" at the end of a root overrides data.split, so that
evaluation can use another split of the same dataset: data.eval_root="librispeech@dev_clean". Without either, every
split named train* is read.

TFDS leaves encoded audio (FLAC, WAV, ...) as bytes, and this file decodes it. Integer arrays are scaled by their width.
Nothing is downloaded or prepared. Listing reads every record once. No TensorFlow graph runs.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError, did_you_mean, needing, os_error_text
from w2v_jax.core.display import short_repr
from w2v_jax.data.archives.shards import named_split
from w2v_jax.data.archives.texts import role_names
from w2v_jax.data.archives.tfrecord import TFRecords
from w2v_jax.data.index import WAVE, Index, ReadError, Row, Skip, make_index, root_entries, usable
from w2v_jax.data.io.audio import (
    JUDGED_SECONDS,
    Header,
    average_channels,
    check_channels,
    check_samples,
    probe_content,
    read_crop,
    read_frames,
)
from w2v_jax.data.io.listing import usable_rows
from w2v_jax.data.io.tf_import import import_tensorflow, quiet_tfds

RECORDS_AT_ONCE = 256
"""Records that are read before the first of them becomes a row."""


class Dataset(NamedTuple):
    """One prepared dataset.

    `features` are those to read, `audio` is the name of the audio feature, and `names` has the feature of each role.
    `shards` has the records of each file by path. `rate` is None where the encoded audio states it.
    """

    features: Any
    audio: str
    is_encoded: bool
    rate: int | None
    names: Mapping[str, str]
    shards: Mapping[str, Sequence[bytes]]


class RecordRange(NamedTuple):
    """Records first .. last of a file."""

    file: str
    first: int
    last: int


class Records:
    """The source of the records of datasets. A row's path is FILE#NUMBER, where NUMBER counts records from 0."""

    form = WAVE

    __repr__ = short_repr

    def __init__(self, index: Index, datasets: Mapping[str, Dataset]):
        self.index = index
        self.datasets = datasets

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """float32 [at most length], mono, 16 kHz, from sample `start` of the row. Raises ReadError."""
        file, _, number = self.index.paths[row].rpartition("#")
        dataset = self.datasets[file]

        def read(first: int, last: int) -> np.ndarray:
            audio = example(dataset, file, int(number))[dataset.audio]
            if dataset.is_encoded:
                rate, total = int(self.index.rates[row]), int(self.index.frames[row])
                return read_frames(io.BytesIO(audio), first, last - first, rate=rate, total=total)
            return to_float(audio, first, last)

        return read_crop(self.index, row, start=start, length=length, read=read)


def make(data, root) -> Records:
    """The source of one or several prepared datasets. Uses data.split, data.min_seconds, data.workers.

    Raises UserError where a dataset does not exist, is not prepared (the message has the command), or has no audio.
    """
    entries = root_entries(root)
    if not entries:
        raise UserError(
            "data.root is empty: name a prepared TensorFlow dataset or its folder, e.g. --config.data.root=spoken_digit"
        )
    skipped: list[Skip] = []
    results: list[Iterator[tuple[str, Row | str]]] = []
    datasets: dict[str, Dataset] = {}
    with quiet_tfds():
        for entry in entries:
            builder, split = _open_builder(entry, data.split)
            dataset, ranges = _open_dataset(builder, split, entry=entry, skipped=skipped)
            datasets.update(dict.fromkeys(dataset.shards, dataset))
            results.append(_rows(dataset, ranges, data.workers or os.cpu_count() or 1))
        index = make_index(usable_rows(itertools.chain.from_iterable(results), skipped), skipped)
    return Records(usable(index, ", ".join(entries), data.min_seconds), datasets)


# Finding the dataset


def _open_builder(entry: str, split: str) -> tuple[Any, str]:
    """(builder of the prepared dataset, split or "") of one root. Raises UserError."""
    tfds = _import_tfds()
    name, split = named_split(entry, split)
    if "://" in name or os.path.isdir(name):
        return tfds.builder_from_directory(_prepared_folder(name, entry)), split
    try:
        builder = tfds.builder(name)
    except tfds.core.registered.DatasetNotFoundError:
        hint = did_you_mean(name.split("/")[0], tfds.list_builders())
        raise UserError(f"data.root: {entry!r} is neither a folder nor a TensorFlow dataset.{hint}") from None
    except (ValueError, AssertionError, OSError) as error:  # the config or version does not exist
        raise UserError(f"data.root: {entry!r} cannot be opened: {str(error).splitlines()[0]}") from None
    if builder.is_prepared():
        return builder, split
    home = next(folder for folder in builder.data_path.parents if folder.name == builder.name)
    if name == builder.name and home.is_dir() and (folders := _prepared_below(home)):
        return tfds.builder_from_directory(_only(folders, entry)), split
    raise UserError(_how_to_prepare(entry, name, builder))


def _how_to_prepare(entry: str, name: str, builder: Any) -> str:
    """What to run first. Raises UserError where the dataset has no audio, which is known before it is prepared."""
    tfds = _import_tfds()
    feature = builder.info.features[_audio_feature(tfds, builder.info.features, entry)]
    lazy = [config for config in builder.builder_configs if "lazy" in config] if "/" not in name else []
    suggested = f"{name}/{lazy[0]}" if lazy else name
    needed = {  # by TFDS, which does not install them
        "importlib_resources": True,
        "pydub": not (lazy or feature.to_json_content().lazy_decode),
        "apache_beam": isinstance(builder, tfds.core.BeamBasedBuilder),
    }
    missing = [package for package, is_needed in needed.items() if is_needed and not importlib.util.find_spec(package)]
    lines = [f"data.root: {name!r} is not prepared (looked in {builder.data_dir}). Prepare it with"]
    if missing:
        lines.append(f"  pip install {' '.join(missing)}")
    command = f"import tensorflow_datasets as tfds; tfds.builder('{suggested}').download_and_prepare()"
    lines.append(f'  python -c "{command}"')
    if by_hand := builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        lines.append(f"after a download by hand ({' '.join(by_hand.split())})")
    if lazy:
        root = entry.replace(name, suggested, 1)
        lines.append(f"and give {root} as data.root: it keeps the audio encoded and takes an eighth of the space")
    else:
        lines.append("or set TFDS_DATA_DIR to where it is prepared")
    return "\n".join(lines)


def _prepared_folder(folder: str, entry: str) -> str:
    if "://" in folder or os.path.isfile(os.path.join(folder, "dataset_info.json")):
        return folder
    if folders := _prepared_below(pathlib.Path(folder)):
        return _only(folders, entry)
    raise UserError(
        f"data.root: {entry!r} holds no prepared TensorFlow dataset (dataset_info.json is missing); "
        "for a folder of audio files, set data.name=folder"
    )


def _prepared_below(folder: Any) -> list[str]:
    """Folders of prepared datasets below a pathlib or epath folder, as deep as NAME/CONFIG/VERSION."""
    levels = ("*", "*/*", "*/*/*")
    return sorted(str(p.parent) for level in levels for p in folder.glob(f"{level}/dataset_info.json"))


def _only(folders: list[str], entry: str) -> str:
    if len(folders) > 1:
        raise UserError(f"data.root: {entry!r} holds several prepared datasets; choose one of {', '.join(folders)}")
    return folders[0]


# What the dataset holds


def _open_dataset(builder: Any, split: str, *, entry: str, skipped: list[Skip]) -> tuple[Dataset, list[RecordRange]]:
    """The dataset, and the record ranges of the split that exist. Records that are missing join `skipped`."""
    tfds = _import_tfds()
    info = builder.info
    audio = _audio_feature(tfds, info.features, entry)
    feature = info.features[audio]
    is_encoded = feature.to_json_content().lazy_decode
    if not is_encoded and not feature.sample_rate:
        raise UserError(
            f"data.root: {entry!r}: the feature {audio!r} states no sampling rate. Write the right one into "
            f'{builder.data_dir}/features.json ("sampleRate": "48000" in its "audio") and give that folder as data.root'
        )
    names = role_names(info.features)
    features = tfds.features.FeaturesDict({name: info.features[name] for name in (audio, *names.values())})
    split_ranges = _ranges(info.splits, split, entry)
    shards = _shards(tfds, builder, files={part.file for part in split_ranges}, entry=entry, skipped=skipped)
    ranges = []
    for file, first, last in split_ranges:
        if file not in shards:
            continue
        count = len(shards[file])
        if count < last:
            skipped.append(Skip(file, f"shard is cut short: {count:,} of {last:,} records are intact"))
        ranges.append(RecordRange(file, first, min(last, count)))
    return Dataset(features, audio, is_encoded=is_encoded, rate=feature.sample_rate, names=names, shards=shards), ranges


def _audio_feature(tfds: Any, features: Any, entry: str) -> str:
    """The name of the only audio feature. Raises UserError where there is none or several."""
    names = []
    if isinstance(features, tfds.features.FeaturesDict):
        names = [name for name, feature in features.items() if isinstance(feature, tfds.features.Audio)]
    if len(names) == 1:
        return names[0]
    several = f"several audio features ({', '.join(sorted(names))})"
    problem = several if names else f"no audio feature, only {', '.join(sorted(features))}"
    raise UserError(f"data.root: {entry!r} has {problem}; exactly one is needed")


def _ranges(splits: Any, split: str, entry: str) -> list[RecordRange]:
    """The record ranges of a split, which can be a slice or a sum as in TFDS: train[:10%]+test."""
    split = split or "+".join(sorted(name for name in splits if name.startswith("train")))
    try:
        instructions = splits[split].file_instructions
    except (KeyError, ValueError, AssertionError):
        known = ", ".join(sorted(splits))
        problem = f"split {split!r} does not exist" if split else "no split is named train*"
        raise UserError(
            f"data.root: {entry!r}: {problem}; choose with --config.data.split or NAME@SPLIT from {known}"
        ) from None
    return [RecordRange(str(part.filename), part.skip, part.skip + part.take) for part in instructions]


# Records


def example(dataset: Dataset, file: str, number: int) -> dict[str, Any]:
    """The features of one record; encoded audio as bytes. Raises ReadError."""
    tfds = _import_tfds()
    decoders = {dataset.audio: tfds.decode.SkipDecoding()} if dataset.is_encoded else None
    try:
        return dataset.features.deserialize_example_np(dataset.shards[file][number], decoders=decoders)
    except Exception as error:  # a damaged record can fail anywhere in the parser
        raise ReadError(f"corrupt record: {type(error).__name__}: {str(error).splitlines()[0][:200]}") from None


def to_float(samples: np.ndarray, first: int, last: int) -> np.ndarray:
    """float32 [last - first] of samples [T] or [T channels], scaled to -1 .. 1, channels averaged. Raises ReadError.

    Integers of more than 16 bits hold 16-bit audio, or 32-bit audio where a sample of the recording exceeds 16 bits.
    """
    wave = samples[first:last].astype(np.float32)
    if samples.dtype == np.uint8:
        wave = (wave - 128) / 128
    elif np.issubdtype(samples.dtype, np.integer):
        bits = 8 * samples.dtype.itemsize
        if bits > 16:
            bits = 16 if np.abs(samples).max(initial=0) <= 1 << 15 else 32
        wave /= 1 << bits - 1
    wave = average_channels(wave)
    if len(wave) < last - first:
        raise ReadError(f"truncated: ends {last - first - len(wave)} of {last} samples early")
    check_samples(wave)
    return wave


def _rows(dataset: Dataset, ranges: list[RecordRange], workers: int) -> Iterator[tuple[str, Row | str]]:
    """(FILE#NUMBER, row) of each record; the reason as text in place of the row where there is none."""
    records = ((part.file, number) for part in ranges for number in range(part.first, part.last))
    with ThreadPoolExecutor(workers) as pool:
        while block := list(itertools.islice(records, RECORDS_AT_ONCE)):
            rows = pool.map(lambda record: _row(dataset, *record), block)
            yield from ((f"{file}#{number}", row) for (file, number), row in zip(block, rows, strict=True))


def _row(dataset: Dataset, file: str, number: int) -> Row | str:
    """The row of a record; the reason as text where there is none."""
    try:
        features = example(dataset, file, number)
        header = _header(dataset, features[dataset.audio])
    except ReadError as error:
        return str(error)
    texts = {role: _text(dataset.features[name], features[name]) for role, name in dataset.names.items()}
    name = texts.pop("id", "") or f"{os.path.basename(file)}:{number}"
    return Row(
        name,
        f"{file}#{number}",
        offset=0,
        frames=header.frames,
        rate=header.rate,
        speaker=texts.get("speaker", ""),
        transcript=texts.get("transcript", ""),
    )


def _header(dataset: Dataset, audio: Any) -> Header:
    if dataset.is_encoded:
        return probe_content(io.BytesIO(audio))
    if not len(audio):
        raise ReadError("no samples, or a header without a length")
    assert dataset.rate is not None
    beginning = audio[: JUDGED_SECONDS * dataset.rate]
    check_channels(beginning / np.float32(1 if beginning.dtype.kind == "f" else 1 << 15))
    return Header(len(audio), dataset.rate)


def _text(feature: Any, value: Any) -> str:
    """The value of a feature as text: a string, the name of a class, a number, or a sequence of these."""
    if isinstance(value, (np.ndarray, list)):
        return " ".join(_text(getattr(feature, "feature", None), part) for part in value)
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value)) if value >= 0 else ""  # -1: a test split without labels
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


# Files of records


def _shards(tfds: Any, builder: Any, *, files: set[str], entry: str, skipped: list[Skip]) -> dict[str, Sequence[bytes]]:
    """The records of each file. A file that cannot be opened joins `skipped` with the reason."""
    shards: dict[str, Sequence[bytes]] = {}
    kind = builder.info.file_format.value
    if kind == "array_record":
        return {file: records for file, records in _array_records(tfds, builder) if file in files}
    if kind != "tfrecord":
        raise UserError(f"data.root: {entry!r} is stored as {kind}; prepare it with file_format='array_record'")
    for file in sorted(files):
        try:
            shards[file] = TFRecords(file)
        except OSError as error:
            skipped.append(Skip(file, f"unreadable file: {os_error_text(error)}"))
    return shards


class _ShardView(NamedTuple):
    """The records of one file in an ArrayRecord data source of several files."""

    source: Any
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number):
        return self.source[self.first + number]


def _array_records(tfds: Any, builder: Any) -> Iterator[tuple[str, Any]]:
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for name, split in builder.info.splits.items():
        first, source = 0, builder.as_data_source(name, deserialize_method=raw)
        for file, count in zip(split.filepaths, split.shard_lengths, strict=True):
            yield str(file), _ShardView(source, first, count)
            first += count


def _import_tfds() -> Any:
    with needing("data.name=tfds needs TensorFlow Datasets ({error}): pip install tensorflow-cpu tensorflow-datasets"):
        import_tensorflow()
        import tensorflow_datasets
    return tensorflow_datasets
