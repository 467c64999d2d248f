"""Laws of lhotse manifests: every entry is a row or is named with a reason.

The lines are those that lhotse 1.33 writes.
"""

import gzip
import json

import numpy as np
import pytest
import soundfile

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source

ONE = """{"id": "one", "sources": [{"type": "file", "channels": [0], "source": "audio/one.wav"}], \
"sampling_rate": 16000, "num_samples": 32000, "duration": 2.0, "channel_ids": [0]}"""
TWO = """{"id": "two", "sources": [{"type": "file", "channels": [0, 1], "source": "audio/two.wav"}], \
"sampling_rate": 16000, "num_samples": 32000, "duration": 2.0, "channel_ids": [0, 1]}"""
SUPERVISIONS = """
{"id": "one-a", "recording_id": "one", "start": 0.25, "duration": 0.5, "channel": 0, "text": "go on", \
"language": "en", "speaker": "anna"}
{"id": "two-b", "recording_id": "two", "start": 1.0, "duration": 0.75, "channel": 1, "text": "stop", "speaker": "bert"}
{"id": "two-ab", "recording_id": "two", "start": 0.0, "duration": 1.0, "channel": [0, 1], "text": "both"}
"""
CUTS = f"""
{{"id": "one-0", "start": 0, "duration": 2.0, "channel": 0, "supervisions": [{{"id": "one-a", "recording_id": "one", \
"start": 0.25, "duration": 0.5, "channel": 0, "text": "go on", "language": "en", "speaker": "anna"}}], \
"recording": {ONE}, "type": "MonoCut"}}
{{"id": "two-1", "start": 0, "duration": 2.0, "channel": [0, 1], "supervisions": [{{"id": "two-b", "recording_id": \
"two", "start": 1.0, "duration": 0.75, "channel": 1, "text": "stop", "speaker": "bert"}}, {{"id": "two-ab", \
"recording_id": "two", "start": 0.0, "duration": 1.0, "channel": [0, 1], "text": "both"}}], "recording": {TWO}, \
"type": "MultiCut"}}
{{"id": "two-b", "start": 1.0, "duration": 0.75, "channel": 1, "supervisions": [{{"id": "two-b", "recording_id": \
"two", "start": 0.0, "duration": 0.75, "channel": 1, "text": "stop", "speaker": "bert"}}], "recording": {TWO}, \
"type": "MonoCut"}}
"""
SPEED = ONE[:-1] + ', "transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}'
ODD = f"""
{{"id": "padded", "tracks": [{{"cut": {{"id": "one-0", "start": 0, "duration": 2.0, "channel": 0, "recording": {ONE}, \
"type": "MonoCut"}}, "type": "MonoCut", "offset": 0.0}}, {{"cut": {{"id": "25d", "duration": 3.0, \
"sampling_rate": 16000, "feat_value": -23.0, "num_samples": 48000, "type": "PaddingCut"}}, "type": "PaddingCut", \
"offset": 2.0}}], "type": "MixedCut"}}
{{"id": "fast", "start": 0.0, "duration": 1.8181875, "channel": 0, "recording": {SPEED}, "type": "MonoCut"}}
{{"id": "features alone", "start": 0.0, "duration": 1.0, "channel": 0, "type": "MonoCut"}}
{{"id": "third", "start": 0.0, "duration": 1.0, "channel": 2, "recording": {TWO}, "type": "MonoCut"}}
"""


@pytest.fixture
def waves(tmp_path):
    draw = np.random.default_rng(0)
    waves = {"one": 0.1 * draw.standard_normal((32000, 1)), "two": 0.1 * draw.standard_normal((32000, 2))}
    (tmp_path / "audio").mkdir()
    for name, wave in waves.items():
        soundfile.write(tmp_path / "audio" / f"{name}.wav", wave, 16000, subtype="FLOAT")
    return {name: wave.astype(np.float32) for name, wave in waves.items()}


def write(path, text):
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.write(text.strip() + "\n")
    return path


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_supervisions_are_rows_of_their_channels(tmp_path, waves, ending):
    write(tmp_path / f"corpus_recordings_train.{ending}", f"{ONE}\n{TWO}")
    write(tmp_path / f"corpus_supervisions_train.{ending}", SUPERVISIONS)
    for root in (tmp_path, tmp_path / f"corpus_recordings_train.{ending}"):
        source = open_source("lhotse", root)
        assert source.index.ids.tolist() == ["one-a", "two-b", "two-ab"] and source.index.skipped == []
        assert source.index.transcripts.tolist() == ["go on", "stop", "both"]
        assert source.index.speakers.tolist() == ["anna", "bert", ""]
        np.testing.assert_array_equal(source.read(0, 0, 10**6), waves["one"][4000:12000, 0])
        np.testing.assert_array_equal(source.read(1, 0, 10**6), waves["two"][16000:28000, 1])
        np.testing.assert_allclose(source.read(2, 0, 10**6), waves["two"][:16000].mean(axis=1), atol=1e-7)


def test_recordings_alone_are_rows(tmp_path, waves):
    source = open_source("lhotse", write(tmp_path / "recordings.jsonl.gz", f"{ONE}\n{TWO}"))
    assert source.index.ids.tolist() == ["one", "two"] and source.index.num_samples.tolist() == [32000, 32000]


def test_cuts_are_rows_with_the_texts_of_their_supervisions(tmp_path, waves):
    source = open_source("lhotse", write(tmp_path / "cuts.jsonl", CUTS))
    assert source.index.ids.tolist() == ["one-0", "two-1", "two-b"] and source.index.skipped == []
    assert source.index.transcripts.tolist() == ["go on", "stop both", "stop"]
    assert source.index.speakers.tolist() == ["anna", "", "bert"]
    np.testing.assert_array_equal(source.read(2, 0, 10**6), waves["two"][16000:28000, 1])
    assert source.index.num_samples.tolist() == [32000, 32000, 12000]


def test_cuts_that_lhotse_would_mix_pad_or_change_are_refused_with_the_reason(tmp_path, waves):
    path = write(tmp_path / "cuts.jsonl", CUTS + ODD.strip())
    index = open_source("lhotse", path).index
    assert len(index) == 3
    assert [skip.path for skip in index.skipped] == [
        f"{path}:4 (padded)",
        f"{path}:5 (fast)",
        f"{path}:6 (features alone)",
        f"{path}:7 (third)",
    ]
    assert [skip.kind for skip in index.skipped] == [
        "a MixedCut",
        "a recording with transforms, which only lhotse applies",
        "no recording",
        "no such channel",
    ]


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        ([{"type": "command", "channels": [0], "source": "cat x"}], "a source of type command: only files are read"),
        ([{"type": "url", "channels": [0], "source": "http://x"}], "a source of type url"),
        ([{"type": "memory", "channels": [0], "source": "QUJD"}], "a source of type memory"),
        (
            [{"type": "file", "channels": [c], "source": f"{c}.wav"} for c in (0, 1)],
            "its channels lie in several files",
        ),
        ([{"type": "file", "channels": [0], "source": "gone.wav"}], "file does not exist"),
        ([{"type": "file", "channels": [0], "source": "\ud800.wav"}], "file name is not UTF-8"),
    ],
)
def test_sources_that_are_no_files_are_refused_with_the_reason(tmp_path, waves, sources, reason):
    other = json.dumps(json.loads(ONE) | {"id": "other", "sources": sources})
    index = open_source("lhotse", write(tmp_path / "recordings.jsonl", f"{ONE}\n{other}")).index
    assert index.ids.tolist() == ["one"] and len(index.skipped) == 1
    assert index.skipped[0].reason.startswith(reason)


def test_a_channel_in_a_file_of_its_own_is_that_file(tmp_path, waves):
    for channel in (0, 1):
        soundfile.write(tmp_path / f"{channel}.wav", waves["two"][:, channel], 16000, subtype="FLOAT")
    sources = [{"type": "file", "channels": [c], "source": f"{c}.wav"} for c in (0, 1)]
    write(tmp_path / "recordings.jsonl", json.dumps(json.loads(TWO) | {"sources": sources}))
    write(tmp_path / "supervisions.jsonl", SUPERVISIONS.strip().split("\n")[1])
    source = open_source("lhotse", tmp_path)
    np.testing.assert_array_equal(source.read(0, 0, 10**6), waves["two"][16000:28000, 1])


def test_supervisions_without_recording_and_the_other_way_round_are_named(tmp_path, waves):
    recordings = write(tmp_path / "recordings.jsonl", f"{ONE}\n{ONE}\n{TWO}")
    supervisions = write(
        tmp_path / "supervisions.jsonl", SUPERVISIONS.split("\n")[1] + '\n{"id": "x", "recording_id": "y"}'
    )
    index = open_source("lhotse", tmp_path).index
    assert index.ids.tolist() == ["one-a"]
    assert [(skip.path, skip.kind) for skip in index.skipped] == [
        (f"{recordings}:2", "repeated recording"),
        (f"{supervisions}:2 (x)", "no recording"),
        (f"{recordings} (two)", "recording without supervision"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "needs a JSON object"),
        ('{"id": "a", "recording": {"id": "a"}, "start": 0, "duration": 1}', "not an entry of lhotse's: KeyError"),
        (CUTS.strip().split("\n")[0].replace('"start": 0,', '"start": "x",'), "not an entry of lhotse's"),
        (CUTS.strip().split("\n")[0].replace('"start": 0,', '"start": -1,'), "not an entry of lhotse's: .*-1"),
        (CUTS.strip().split("\n")[0].replace('"start": 0,', f'"start": {10**400},'), "not an entry of lhotse's"),
    ],
)
def test_lines_of_another_form_are_errors_with_file_and_line(tmp_path, waves, line, message):
    path = write(tmp_path / "cuts.jsonl", CUTS.strip().split("\n")[0] + "\n" + line)
    with pytest.raises(UserError, match=rf"cuts\.jsonl:2: {message}"):
        open_source("lhotse", path)


def test_a_folder_of_several_manifests_and_a_file_of_another_name_are_refused(tmp_path, waves):
    write(tmp_path / "cuts.jsonl", CUTS)
    write(tmp_path / "recordings.jsonl.gz", ONE)
    with pytest.raises(UserError, match=r"must hold one manifest .* or name one: cuts\.jsonl, recordings\.jsonl\.gz"):
        open_source("lhotse", tmp_path)
    with pytest.raises(UserError, match="must hold one of the words recordings, cuts"):
        open_source("lhotse", write(tmp_path / "supervisions.jsonl", SUPERVISIONS))
    damaged = tmp_path / "x_cuts.jsonl.gz"
    damaged.write_bytes(gzip.compress(CUTS.encode())[:-20])
    with pytest.raises(UserError, match="gzip file is damaged or cut short"):
        open_source("lhotse", damaged)
