"""Laws of JSONL manifests: every line is a row or is named with a reason; errors name file and line."""

import json

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data.index import ReadError
from w2v_jax.data.sources import jsonl


def write_jsonl(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
    return path


def test_jsonl_segments_of_a_long_file_are_read_at_their_place(tmp_path, audio, section):
    wave = audio(tmp_path / "long.wav", 10.0, subtype="FLOAT")
    manifest = write_jsonl(
        tmp_path / "m.jsonl",
        [
            {"audio_filepath": "long.wav", "offset": 1.5, "duration": 2.0, "text": "a", "speaker": 7, "id": "first"},
            {"audio_filepath": str(tmp_path / "long.wav"), "offset": 8, "lang": "ignored"},
            {"audio_filepath": "long.wav", "duration": 0.5},
        ],
    )
    source = jsonl.make(section(), manifest)
    index = source.index
    assert index.ids.tolist() == ["first", f"{tmp_path / 'long'}:8", "long"]
    assert (index.transcripts[0], index.speakers[0]) == ("a", "7")
    assert index.num_samples.tolist() == [32000, 32000, 8000]
    np.testing.assert_array_equal(source.read(0, 100, 10**6), wave[24100:56000])
    np.testing.assert_array_equal(source.read(1, 0, 10**6), wave[128000:])


def test_manifests_of_nemo_are_read_as_they_are(tmp_path, audio, section):
    """With the keys of its recognition and of its diarisation, under the name that its scripts give."""
    audio(tmp_path / "wavs" / "a.wav", 2.0)
    lines = [
        {"audio_filepath": "wavs/a.wav", "duration": 2.0, "text": "go on", "lang": "en", "pnc": "no"},
        {"audio_filepath": "wavs/a.wav", "offset": 0.5, "duration": 1.0, "text": "", "label": "infer"},
        {"audio_filepath": "wavs/a.wav", "offset": 0, "duration": None, "text": None, "rttm_filepath": None},
    ]
    index = jsonl.make(section(), write_jsonl(tmp_path / "train_manifest.json", lines)).index
    assert index.num_samples.tolist() == [32000, 16000, 32000] and index.skipped == []
    assert index.transcripts.tolist() == ["go on", "", ""]


def test_jsonl_files_that_were_checked_before_stay_closed(tmp_path, section):
    entry = {"audio_filepath": "gone.wav", "frames": 8000, "rate": 8000, "offset": 0.5}
    source = jsonl.make(section(), write_jsonl(tmp_path / "m.jsonl", [entry, {**entry, "rate": None}]))
    index = source.index
    assert (len(index), index.offsets[0], index.frames[0], index.num_samples[0]) == (1, 4000, 8000, 16000)
    assert [skip.reason for skip in index.skipped] == ["file does not exist"]
    with pytest.raises(ReadError, match="file does not exist"):
        source.read(0, 0, 100)


def test_a_file_of_another_size_than_in_the_manifest_is_named_when_it_is_read(tmp_path, audio, section):
    """Whenever it was written: copies have other times."""
    audio(tmp_path / "a.wav", 1.0)
    size = (tmp_path / "a.wav").stat().st_size
    entry = {"audio_filepath": "a.wav", "frames": 16000, "rate": 16000, "size": size}
    source = jsonl.make(section(), write_jsonl(tmp_path / "m.jsonl", [entry]))
    assert len(source.read(0, 0, 10**6)) == 16000
    audio(tmp_path / "a.wav", 1.5)
    with pytest.raises(ReadError, match=rf"changed after listing: {size:,} bytes then, .* write its manifest anew"):
        source.read(0, 0, 100)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "needs a JSON object"),
        ("{}", "'audio_filepath' is missing"),
        ('{"audio_filepath": 1.5}', "'audio_filepath' must be text"),
        ('{"audio_filepath": "a.wav", "duration": "2"}', "'duration' must be seconds"),
        ('{"audio_filepath": "a.wav", "duration": NaN}', "'duration' must be seconds"),
        ('{"audio_filepath": "a.wav", "offset": -1}', "'offset' must be seconds"),
        ('{"audio_filepath": "a.wav", "offset": true}', "'offset' must be seconds"),
        ('{"audio_filepath": "a.wav", "frames": 1.5, "rate": 16000}', "'frames' must be a whole number above 0"),
        ('{"audio_filepath": "a.wav", "frames": 1, "rate": 0}', "'rate' must be a whole number above 0"),
        ('{"audio_filepath": "\\ud800.wav"}', "'audio_filepath' holds half of a surrogate pair"),
    ],
)
def test_jsonl_errors_name_file_and_line(tmp_path, audio, section, line, message):
    audio(tmp_path / "a.wav")
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=rf"m\.jsonl:3: {message}"):
        jsonl.make(section(), tmp_path / "m.jsonl")


def test_bad_files_of_a_manifest_are_skipped_and_repeated_ids_kept(tmp_path, audio, section):
    audio(tmp_path / "a.wav")
    (tmp_path / "zero.wav").write_bytes(b"")
    names = ["a.wav", "zero.wav", "a.wav", "nul\0.wav"]
    manifest = write_jsonl(tmp_path / "m.jsonl", [{"audio_filepath": name} for name in names])
    index = jsonl.make(section(), manifest).index
    assert index.ids.tolist() == ["a", "a#2"]
    assert [s.reason for s in index.skipped] == ["empty file", "file does not exist"]


def test_several_manifests_make_one_source(corpus, section):
    one = write_jsonl(corpus / "1.jsonl", [{"audio_filepath": "audio/two.flac"}])
    two = write_jsonl(corpus / "2.jsonl", [{"audio_filepath": "audio/x/one.wav"}])
    assert jsonl.make(section(), (two, one)).index.ids.tolist() == ["audio/x/one", "audio/two"]


def test_jsonl_without_rows_is_an_error(corpus, section):
    (corpus / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no readable audio"):
        jsonl.make(section(), corpus / "empty.jsonl")
