"""TensorFlow Datasets: prepared data with an audio feature, read at random from TFRecord or ArrayRecord files.

`data.root` is a name ("librispeech/lazy_decode", "spoken_digit") that is prepared in TFDS' data directory (set by
TFDS_DATA_DIR), or any prepared folder. "@SPLIT" at the end of a root overrides data.split, so that
data.eval_root="librispeech@dev_clean" can stand beside training data; without either, every split named train* is read.

Encoded audio (FLAC, WAV, ...) is left as bytes by TFDS and decoded here; arrays of integers are scaled by their width.
Nothing is downloaded or prepared. Listing reads every record once; no TensorFlow graph runs.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError
from w2v_jax.data.audio import Header, probe_content, read_frames, resample_crop
from w2v_jax.data.index import WAVE, Index, ReadError, Row, Skip, make_index, usable
from w2v_jax.data.listing import Progress
from w2v_jax.data.tfrecord import TFRecords

ROLES = {
    "id": ("id", "utterance_id", "filename", "audio/filename"),
    "transcript": ("text", "transcript", "transcription", "sentence", "label"),
    "speaker": ("speaker_id", "speaker", "client_id"),
}
"""The features that fill the index, the first that exists of each line."""

BLOCK = 256
"""Records that are listed at once."""


class Dataset(NamedTuple):
    """What is needed of one prepared dataset.

    `features` are those that are read, `names` the feature of each role that exists, `shards` the records of each
    file by its path. `rate` is None when encoded audio states it.
    """

    features: Any
    audio: str
    is_encoded: bool
    rate: int | None
    names: Mapping[str, str]
    shards: Mapping[str, Sequence[bytes]]


class Part(NamedTuple):
    """Records first .. last of a file."""

    file: str
    first: int
    last: int


class Records:
    """The source of rows whose path is SHARD#NUMBER, the number counting the records of the file from 0."""

    form = WAVE

    def __init__(self, index: Index, datasets: Mapping[str, Dataset]):
        self.index = index
        self.datasets = datasets

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """float32 [at most length], mono, 16 kHz, from sample `start` of the row. Raises ReadError."""
        index = self.index
        rate, frames = int(index.rates[row]), int(index.frames[row])
        start = max(0, start)
        length = min(length, int(index.num_samples[row]) - start)
        if length <= 0:
            return np.zeros(0, np.float32)
        file, _, number = index.paths[row].rpartition("#")
        dataset = self.datasets[file]
        audio = example(dataset, file, int(number))[dataset.audio]

        def crop(first: int, last: int) -> np.ndarray:
            if dataset.is_encoded:
                return read_frames(io.BytesIO(audio), first, last - first, rate)
            return to_float(audio, first, last)

        if rate == SAMPLE_RATE:
            return crop(start, start + length)
        return resample_crop(crop, frames, rate, start, length)


def make(data, root) -> Records:
    """The source of one or several prepared datasets. Uses data.split, data.min_seconds, data.workers.

    Raises UserError when a dataset does not exist, is not prepared (it names the command), or holds no audio.
    """
    given = (root,) if isinstance(root, (str, os.PathLike)) else tuple(root)
    given = [os.fspath(entry) for entry in given if os.fspath(entry)]
    if not given:
        raise UserError(
            "data.root is empty: name a prepared TensorFlow dataset or its folder, e.g. --config.data.root=spoken_digit"
        )
    skipped: list[Skip] = []
    rows: list[Iterator[Row]] = []
    datasets: dict[str, Dataset] = {}
    with _quiet():
        for entry in given:
            builder, split = _open_builder(entry, data.split)
            dataset, parts = _open_dataset(builder, split, entry, skipped)
            datasets.update(dict.fromkeys(dataset.shards, dataset))
            rows.append(_rows(dataset, parts, data.workers or os.cpu_count() or 1, skipped))
        index = make_index(itertools.chain.from_iterable(rows))
        index.skipped.extend(skipped)
    return Records(usable(index, ", ".join(given), data.min_seconds), datasets)


# Finding the dataset


def _open_builder(entry: str, split: str) -> tuple[Any, str]:
    """(builder of prepared data, split or "") of one root."""
    tfds = _import_tfds()
    name = os.path.expanduser(entry)
    if "@" in name and not os.path.exists(name):
        name, _, split = name.rpartition("@")
    if "://" in name or os.path.isdir(name):
        return tfds.builder_from_directory(_prepared_folder(name, entry)), split
    try:
        builder = tfds.builder(name)
    except tfds.core.registered.DatasetNotFoundError:
        near = difflib.get_close_matches(name.split("/")[0], tfds.list_builders(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"data.root: {entry!r} is neither a folder nor a TensorFlow dataset.{hint}") from None
    except (ValueError, AssertionError, OSError) as error:  # no such config or version
        raise UserError(f"data.root: {entry!r} cannot be opened: {str(error).splitlines()[0]}") from None
    if builder.is_prepared():
        return builder, split
    home = next(folder for folder in builder.data_path.parents if folder.name == builder.name)
    if name == builder.name and home.is_dir() and (found := _prepared_below(home)):
        return tfds.builder_from_directory(_only(found, entry)), split
    raise UserError(_how_to_prepare(name, builder))


def _how_to_prepare(name: str, builder: Any) -> str:
    lazy = [config for config in builder.builder_configs if "lazy" in config] if "/" not in name else []
    wanted = f"{name}/{lazy[0]}" if lazy else name
    text = f"data.root: {name!r} is not prepared (looked in {builder.data_dir}). Prepare it by\n"
    text += f"  python -c \"import tensorflow_datasets as tfds; tfds.builder('{wanted}').download_and_prepare()\"\n"
    if lazy:
        return text + f"and set data.root={wanted}, which keeps the audio encoded, in an eighth of the space"
    return text + "(many datasets need `pip install pydub` for that), or set TFDS_DATA_DIR to where it is prepared"


def _prepared_folder(folder: str, entry: str) -> str:
    if "://" in folder or os.path.isfile(os.path.join(folder, "dataset_info.json")):
        return folder
    if found := _prepared_below(pathlib.Path(folder)):
        return _only(found, entry)
    raise UserError(
        f"data.root: {entry!r} holds no prepared TensorFlow dataset (dataset_info.json is missing); "
        "a folder of audio files is read by data.name=folder"
    )


def _prepared_below(folder: Any) -> list[str]:
    """Folders with prepared data up to NAME/CONFIG/VERSION below a pathlib or epath folder."""
    levels = ("*", "*/*", "*/*/*")
    return sorted(str(p.parent) for level in levels for p in folder.glob(f"{level}/dataset_info.json"))


def _only(found: list[str], entry: str) -> str:
    if len(found) > 1:
        raise UserError(f"data.root: {entry!r} holds several prepared datasets; choose one of {', '.join(found)}")
    return found[0]


# What the dataset holds


def _open_dataset(builder: Any, split: str, entry: str, skipped: list[Skip]) -> tuple[Dataset, list[Part]]:
    """The dataset, and the parts of its files that make up the split and are there."""
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
    names = {role: name for role, choices in ROLES.items() for name in choices[::-1] if name in info.features}
    kept = tfds.features.FeaturesDict({name: info.features[name] for name in (audio, *names.values())})
    wanted = _instructions(info.splits, split, entry)
    shards = _shards(tfds, builder, {part.file for part in wanted}, entry, skipped)
    parts = []
    for file, first, last in wanted:
        if file not in shards:
            continue
        there = len(shards[file])
        if there < last:
            skipped.append(Skip(file, f"shard is cut short: {there:,} of {last:,} records are whole"))
        parts.append(Part(file, first, min(last, there)))
    return Dataset(kept, audio, is_encoded, feature.sample_rate, names, shards), parts


def _audio_feature(tfds: Any, features: Any, entry: str) -> str:
    found = []
    if isinstance(features, tfds.features.FeaturesDict):
        found = [name for name, feature in features.items() if isinstance(feature, tfds.features.Audio)]
    if len(found) == 1:
        return found[0]
    several = f"several audio features ({', '.join(sorted(found))})"
    has = several if found else f"no audio feature, only {', '.join(sorted(features))}"
    raise UserError(f"data.root: {entry!r} has {has}; exactly one is needed")


def _instructions(splits: Any, split: str, entry: str) -> list[Part]:
    """The parts of files of the split, which may be sliced or added up as TFDS allows: train[:10%]+test."""
    split = split or "+".join(sorted(name for name in splits if name.startswith("train")))
    try:
        chosen = splits[split].file_instructions
    except (KeyError, ValueError, AssertionError):
        known = ", ".join(sorted(splits))
        problem = f"split {split!r} does not exist" if split else "no split is named train*"
        raise UserError(
            f"data.root: {entry!r}: {problem}; choose by --config.data.split or NAME@SPLIT from {known}"
        ) from None
    return [Part(str(part.filename), part.skip, part.skip + part.take) for part in chosen]


# Records


def example(dataset: Dataset, file: str, number: int) -> dict[str, Any]:
    """The features of one record, encoded audio as bytes. Raises ReadError."""
    tfds = _import_tfds()
    skip = {dataset.audio: tfds.decode.SkipDecoding()} if dataset.is_encoded else None
    try:
        return dataset.features.deserialize_example_np(dataset.shards[file][number], decoders=skip)
    except Exception as error:  # a damaged record fails in any part of the parser
        raise ReadError(f"corrupt record: {type(error).__name__}: {str(error).splitlines()[0][:200]}") from None


def to_float(samples: np.ndarray, first: int, last: int) -> np.ndarray:
    """float32 [last - first] of samples [T] or [T channels], scaled to -1 .. 1, channels averaged. Raises ReadError.

    Wide integers hold 16-bit audio unless a sample of the recording is larger, then 32-bit.
    """
    wave = samples[first:last].astype(np.float32)
    if samples.dtype == np.uint8:
        wave = (wave - 128) / 128
    elif np.issubdtype(samples.dtype, np.integer):
        bits = 8 * samples.dtype.itemsize
        if bits > 16:
            bits = 16 if np.abs(samples).max(initial=0) <= 1 << 15 else 32
        wave /= 1 << bits - 1
    if wave.ndim > 1:
        wave = wave.mean(axis=1, dtype=np.float32)
    if len(wave) < last - first:
        raise ReadError(f"truncated: ends {last - first - len(wave)} of {last} samples early")
    if not np.isfinite(wave).all():
        raise ReadError("NaN or infinite samples")
    return wave


def _rows(dataset: Dataset, parts: list[Part], workers: int, skipped: list[Skip]) -> Iterator[Row]:
    progress = Progress()
    waiting = ((part.file, number) for part in parts for number in range(part.first, part.last))
    with ThreadPoolExecutor(workers) as pool:
        while block := list(itertools.islice(waiting, BLOCK)):
            for (file, number), row in zip(block, pool.map(lambda at: _row(dataset, *at), block), strict=True):
                progress.count(row)
                if isinstance(row, str):
                    skipped.append(Skip(f"{file}#{number}", row))
                else:
                    yield row
    progress.finish()


def _row(dataset: Dataset, file: str, number: int) -> Row | str:
    """The row of a record, or why there is none."""
    try:
        found = example(dataset, file, number)
        header = _header(dataset, found[dataset.audio])
    except ReadError as error:
        return str(error)
    texts = {role: _text(dataset.features[name], found[name]) for role, name in dataset.names.items()}
    name = texts.pop("id", "") or f"{os.path.basename(file)}:{number}"
    return Row(name, f"{file}#{number}", 0, header.frames, header.rate, **texts)


def _header(dataset: Dataset, audio: Any) -> Header:
    if dataset.is_encoded:
        if not audio:
            raise ReadError("empty file")
        return probe_content(io.BytesIO(audio))
    if not len(audio):
        raise ReadError("no samples, or a header without a length")
    assert dataset.rate is not None
    return Header(len(audio), dataset.rate)


def _text(feature: Any, value: Any) -> str:
    """Text, a class by its name, a number, or a sequence of these."""
    if isinstance(value, (np.ndarray, list)):
        return " ".join(_text(getattr(feature, "feature", None), part) for part in value)
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value)) if value >= 0 else ""  # -1: a test split without labels
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


# Files of records


def _shards(tfds: Any, builder: Any, files: set[str], entry: str, skipped: list[Skip]) -> dict[str, Sequence[bytes]]:
    """The records of each file; a file that cannot be opened is skipped with its reason."""
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
            skipped.append(Skip(file, f"unreadable file: {error.strerror or error}"))
    return shards


class _Stretch(NamedTuple):
    """One file of an ArrayRecord data source that spans several."""

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
            yield str(file), _Stretch(source, first, count)
            first += count


def _import_tfds() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # or its notice stands at the head of every run
    try:
        import tensorflow as tf  # noqa: F401
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"data.name=tfds needs TensorFlow Datasets ({error}): pip install tensorflow-cpu tensorflow-datasets"
        ) from None
    return tensorflow_datasets


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS' warnings: about its own parts, and about what is not prepared, which is said here in words."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
