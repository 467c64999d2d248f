"""Laws of TFDS data: both file formats give what was put in; what is damaged, missing or unprepared is named."""

import io
import json
import pathlib
import sys
import tempfile

import numpy as np
import pytest
import soundfile

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.archives.tfrecord import TFRecords
from w2v_jax.data.index import ReadError
from w2v_jax.data.sources import tfds as source

tfds = pytest.importorskip("tensorflow_datasets")
tfds.disable_progress_bar()
FORMATS = ("tfrecord", "array_record")


@pytest.fixture(autouse=True)
def _temporary_folders_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset of the given features and {split: examples}."""

    name = "tiny"
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def __init__(self, features, splits, **options):
        self.given, self.splits = features, splits
        super().__init__(**options)

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.given))

    def _split_generators(self, dl_manager):
        return {name: enumerate(examples) for name, examples in self.splits.items()}

    def _generate_examples(self):
        raise NotImplementedError


def prepare(folder, features, splits, file_format="tfrecord"):
    splits = {"train": splits} if isinstance(splits, list) else splits
    builder = Builder(features, splits, data_dir=folder, file_format=file_format)
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def flac_features(**audio):
    audio = tfds.features.Audio(dtype=np.int16, file_format="flac", lazy_decode=True, **audio)
    return {"speech": audio, "text": tfds.features.Text(), "id": tfds.features.Text(), "speaker_id": np.int64}


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(-3000, 3000, count).astype(np.int16)


def flac(folder, wave, rate=16000):
    path = folder / f"{abs(hash(wave.tobytes()))}.flac"
    soundfile.write(path, wave, rate)
    return str(path)


def utterance(tmp_path, number, rate=16000):
    wave = noise(4000 * (number + 1), number)
    return {"speech": flac(tmp_path, wave, rate), "text": f"text {number}", "id": f"u{number}", "speaker_id": number}


@pytest.mark.parametrize("file_format", FORMATS)
def test_encoded_audio_comes_back_as_it_was_written(tmp_path, section, file_format):
    folder = prepare(tmp_path, flac_features(), [utterance(tmp_path, n) for n in range(5)], file_format)
    records = source.make(section(split=""), folder)
    index = records.index
    assert sorted(index.ids) == [f"u{n}" for n in range(5)]
    for row, name in enumerate(index.ids):
        number = int(name[1:])
        wave = noise(4000 * (number + 1), number) / np.float32(32768)
        assert index.num_samples[row] == len(wave)
        assert (index.transcripts[row], index.speakers[row]) == (f"text {number}", str(number))
        np.testing.assert_array_equal(records.read(row, 0, 10**6), wave)
        np.testing.assert_array_equal(records.read(row, 1000, 500), wave[1000:1500])
        assert records.read(row, len(wave), 10).shape == (0,)


def test_array_records_of_a_dataset_are_what_the_source_of_array_records_reads(tmp_path, section):
    folder = prepare(tmp_path, flac_features(), [utterance(tmp_path, n) for n in range(3)], "array_record")
    ours, theirs = open_source("arrayrecord", folder), source.make(section(split=""), folder)
    assert ours.index.fingerprint() == theirs.index.fingerprint() and ours.index.lost == []
    assert ours.index.transcripts.tolist() == theirs.index.transcripts.tolist()
    assert ours.index.speakers.tolist() == theirs.index.speakers.tolist()
    np.testing.assert_array_equal(ours.read(2, 100, 500), theirs.read(2, 100, 500))


@pytest.mark.parametrize("file_format", FORMATS)
def test_arrays_of_int64_at_8_khz_are_16_khz_speech(tmp_path, section, file_format):
    """The form of spoken_digit."""
    features = {
        "audio": tfds.features.Audio(file_format="wav", sample_rate=8000),
        "label": tfds.features.ClassLabel(names=["no", "yes"]),
        "audio/filename": tfds.features.Text(),
    }
    tone = (16000 * np.sin(np.arange(8000) * 2 * np.pi * 440 / 8000)).astype(np.int64)
    examples = [{"audio": tone, "label": 1, "audio/filename": "1_a.wav"}]
    records = source.make(section(split="train"), prepare(tmp_path, features, examples, file_format))
    assert (records.index.rates[0], records.index.num_samples[0]) == (8000, 16000)
    assert (records.index.ids[0], records.index.transcripts[0]) == ("1_a.wav", "yes")
    whole = records.read(0, 0, 16000)
    assert whole.dtype == np.float32 and len(whole) == 16000
    expected = 16000 / 32768 * np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000)
    np.testing.assert_allclose(whole[500:-500], expected[500:-500], atol=2e-3)
    np.testing.assert_allclose(records.read(0, 7001, 300), whole[7001:7301], atol=1e-3)


def test_the_header_of_encoded_audio_decides_its_rate(tmp_path, section):
    folder = prepare(tmp_path, flac_features(sample_rate=16000), [utterance(tmp_path, 3, rate=8000)])
    index = source.make(section(split=""), folder).index
    assert (index.rates[0], index.num_samples[0]) == (8000, 32000)


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.int16, [16384, -32768], [0.5, -1]),
        (np.int64, [16384, -32768], [0.5, -1]),
        (np.int64, [2**30, -5], [0.5, -5 / 2**31]),
        (np.int8, [64, -128], [0.5, -1]),
        (np.uint8, [192, 0], [0.5, -1]),
        (np.float32, [0.5, -1], [0.5, -1]),
        (np.int16, [[16384, 0], [0, -32768]], [0.25, -0.5]),
    ],
)
def test_samples_of_every_kind_have_the_same_scale(dtype, values, expected):
    found = source.to_float(np.array(values, dtype), 0, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_scale_of_a_crop_is_that_of_the_whole():
    samples = np.array([2**30, 100, 200], np.int64)
    np.testing.assert_array_equal(source.to_float(samples, 1, 3), source.to_float(samples, 0, 3)[1:])


def test_stereo_is_averaged_and_compressed_arrays_are_read(tmp_path, section):
    features = {"audio": tfds.features.Tensor(shape=(None, 2), dtype=np.int16, encoding="zlib")}
    wave = noise(8000).reshape(-1, 2)
    folder = prepare(tmp_path, features, [{"audio": wave}])
    spec = json.loads((folder / "features.json").read_text())
    audio = {"shape": {"dimensions": ["-1", "2"]}, "dtype": "int16", "encoding": "zlib", "sampleRate": "16000"}
    kind = "tensorflow_datasets.core.features.audio_feature.Audio"
    spec["featuresDict"]["features"]["audio"] = {"pythonClassName": kind, "audio": audio}
    (folder / "features.json").write_text(json.dumps(spec))
    records = source.make(section(split=""), folder)
    np.testing.assert_allclose(records.read(0, 0, 4000), wave.mean(axis=1) / 32768, atol=1e-6)
    assert records.index.ids[0] == "tiny-train.tfrecord-00000-of-00001:0"


@pytest.fixture
def two_splits(tmp_path):
    splits = {"train_a": range(3), "train_b": range(3, 5), "dev": range(5, 9)}
    examples = {name: [utterance(tmp_path, n) for n in numbers] for name, numbers in splits.items()}
    return prepare(tmp_path, flac_features(), examples)


@pytest.mark.parametrize(
    ("split", "root", "count"),
    [("", "", 5), ("dev", "", 4), ("train_a+dev[:50%]", "", 5), ("", "@dev", 4), ("train_a", "@dev[2:]", 2)],
)
def test_splits_are_chosen_by_key_or_root(two_splits, section, split, root, count):
    index = source.make(section(split=split), f"{two_splits}{root}").index
    assert len(index) == count == len(set(index.ids))


def test_unknown_splits_are_answered_with_the_known(two_splits, section):
    with pytest.raises(UserError, match=r"split 'test' does not exist.* dev, train_a, train_b"):
        source.make(section(split="test"), two_splits)


def test_several_roots_and_a_folder_above_the_data_are_read(tmp_path, section):
    one = prepare(tmp_path / "one", flac_features(), [utterance(tmp_path, 0)])
    prepare(tmp_path / "two", flac_features(), [utterance(tmp_path, 1)], "array_record")
    records = source.make(section(split=""), (one, tmp_path / "two"))
    assert records.index.ids.tolist() == ["u0", "u1"]
    assert [len(records.read(row, 0, 10**6)) for row in (0, 1)] == [4000, 8000]
    with pytest.raises(UserError, match="several prepared datasets; choose one of"):
        source.make(section(split=""), tmp_path)


def test_names_are_looked_up_in_the_data_directory(tmp_path, section, monkeypatch):
    monkeypatch.setattr(sys.modules["tensorflow_datasets.core.constants"], "DATA_DIR", str(tmp_path))
    prepare(tmp_path, flac_features(), [utterance(tmp_path, 0)])
    assert source.make(section(split=""), "tiny").index.ids.tolist() == ["u0"]
    with pytest.raises(UserError, match=r"(?s)'speech_commands' is not prepared .*download_and_prepare\(\)"):
        source.make(section(split=""), "speech_commands")
    with pytest.raises(
        UserError, match=r"(?s)builder\('librispeech/lazy_decode'\).*librispeech/lazy_decode@dev_clean "
    ):
        source.make(section(split=""), "librispeech@dev_clean")
    (tmp_path / "librispeech").mkdir()  # the config that is not the default is the one that is there
    (tmp_path / "tiny").rename(tmp_path / "librispeech" / "lazy_decode")
    assert source.make(section(split=""), "librispeech@train").index.ids.tolist() == ["u0"]


@pytest.mark.parametrize(
    ("name", "packages", "unneeded"),
    [
        ("speech_commands", "pip install importlib_resources pydub\n", "by hand"),
        ("librispeech/lazy_decode", "pip install importlib_resources\n", "by hand"),
        ("libritts", "pip install importlib_resources pydub apache_beam\n", "by hand"),
        ("voxceleb", "after a download by hand (manual_dir should contain", "apache_beam"),
    ],
)
def test_advice_on_preparing_names_all_that_it_takes(section, monkeypatch, name, packages, unneeded):
    """TFDS does not install what it imports only there."""
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError) as raised:
        source.make(section(split=""), name)
    assert packages in str(raised.value) and unneeded not in str(raised.value)
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda package: object())
    with pytest.raises(UserError, match="python -c") as raised:
        source.make(section(split=""), name)
    assert "pip install" not in str(raised.value)


def test_a_dataset_without_audio_is_refused_before_it_is_prepared(section):
    with pytest.raises(UserError, match="'mnist' has no audio feature, only image, label"):
        source.make(section(split=""), "mnist")


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("", "data.root is empty"),
        ("librispeach", "neither a folder nor a TensorFlow dataset. Did you mean 'librispeech'"),
        ("librispeech/nope", "cannot be opened: .*nope not found"),
        ("spoken_digit:9.9.9", "cannot be opened: .*9.9.9"),
    ],
)
def test_wrong_names_are_answered_in_words(section, root, message):
    with pytest.raises(UserError, match=message):
        source.make(section(split=""), root)


def test_folders_without_usable_audio_are_answered_in_words(tmp_path, section):
    with pytest.raises(UserError, match="holds no prepared TensorFlow dataset.*data.name=folder"):
        source.make(section(split=""), tmp_path)
    folder = prepare(tmp_path / "a", {"text": tfds.features.Text()}, [{"text": "x"}])
    with pytest.raises(UserError, match="no audio feature, only text"):
        source.make(section(split=""), folder)
    folder = prepare(tmp_path / "b", {"x": tfds.features.Audio(), "y": tfds.features.Audio()}, [{"x": [1], "y": [1]}])
    with pytest.raises(UserError, match=r"several audio features \(x, y\)"):
        source.make(section(split=""), folder)
    folder = prepare(tmp_path / "c", {"voice": tfds.features.Audio()}, [{"voice": [1] * 16000}])
    with pytest.raises(UserError, match="'voice' states no sampling rate"):
        source.make(section(split=""), folder)
    text = (folder / "features.json").read_text().replace('"audio": {', '"audio": {"sampleRate": "16000",')
    (folder / "features.json").write_text(text)
    assert len(source.make(section(split=""), folder).index) == 1


def test_bad_examples_are_skipped_with_their_reason(tmp_path, section):
    good = utterance(tmp_path, 1)
    cut = pathlib.Path(flac(tmp_path, noise(90000))).read_bytes()[:20000]
    contents = [b"", b"hello", cut]
    bad = [{**good, "speech": io.BytesIO(content), "id": f"bad{n}"} for n, content in enumerate(contents)]
    short = {**good, "speech": flac(tmp_path, noise(800)), "id": "short"}
    index = source.make(section(split=""), prepare(tmp_path, flac_features(), [*bad, short, good])).index
    assert index.ids.tolist() == ["u1"]
    kinds = sorted(skip.reason.split(": ")[0] for skip in index.skipped)
    assert kinds == ["empty file", "not audio", "shorter than data.min_seconds", "truncated"]
    assert all(".tfrecord-00000-of-00001#" in skip.path for skip in index.skipped)


def test_damaged_shards_lose_only_what_is_damaged(tmp_path, section):
    folder = prepare(tmp_path, flac_features(), [utterance(tmp_path, n) for n in range(4)])
    shard = folder / "tiny-train.tfrecord-00000-of-00001"
    whole = shard.read_bytes()
    records = source.make(section(split=""), folder)
    ids = records.index.ids.tolist()
    spans = TFRecords(str(shard)).spans
    damage = {
        "cut": whole[: spans[2, 0] + 50],
        "length": whole[: spans[2, 0] - 12] + b"\1" + whole[spans[2, 0] - 11 :],
    }
    for content in damage.values():
        shard.write_bytes(content)
        index = source.make(section(split=""), folder).index
        assert index.ids.tolist() == ids[:2]
        assert index.skipped == [(str(shard), "shard is cut short: 2 of 4 records are intact")]
    shard.write_bytes(whole[: spans[1, 0]] + b"\xff" * 40 + whole[spans[1, 0] + 40 :])
    index = source.make(section(split=""), folder).index
    assert index.ids.tolist() == [ids[0], *ids[2:]]
    assert [skip.reason.split(": ")[0] for skip in index.skipped] == ["corrupt record"]
    with pytest.raises(ReadError, match="corrupt record"):  # damaged after it was listed
        records.read(1, 0, 100)
    shard.unlink()
    with pytest.raises(UserError, match="(?s)no readable audio.*unreadable file"):
        source.make(section(split=""), folder)


def test_without_the_package_the_error_says_what_to_install(section, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install tensorflow-cpu tensorflow-datasets"):
        source.make(section(split=""), "spoken_digit")
