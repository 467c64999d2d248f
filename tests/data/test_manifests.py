"""Laws of TSV and JSONL manifests: every line is a row or is named with a reason; errors name file and line."""

import json

import numpy as np
import pytest

from w2v_jax.config import UserError
from w2v_jax.data import jsonl, tsv
from w2v_jax.data.index import ReadError


def write_tsv(path, root, lines):
    path.write_text("\n".join([str(root), *lines, ""]), "utf-8")
    return path


def write_jsonl(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
    return path


@pytest.fixture
def corpus(tmp_path, audio):
    audio(tmp_path / "audio" / "x" / "one.wav", 1.0)
    audio(tmp_path / "audio" / "two.flac", 2.0)
    return tmp_path


def test_tsv_lists_files_with_the_lengths_of_their_headers(corpus, section):
    lines = ["x/one.wav\t16000", "two.flac\t31000", "gone.wav\t16000"]
    index = tsv.make(section(), write_tsv(corpus / "train.tsv", corpus / "audio", lines)).index
    assert index.ids.tolist() == ["x/one", "two"]
    assert index.num_samples.tolist() == [16000, 32000]
    assert index.notes == ["1 x a manifest's length differs from the file's, which counts"]
    assert [(s.path, s.reason) for s in index.skipped] == [(str(corpus / "audio" / "gone.wav"), "file does not exist")]


def test_tsv_reads_transcripts_beside_it(corpus, section):
    manifest = write_tsv(corpus / "train.tsv", corpus / "audio", ["x/one.wav\t16000", "two.flac\t32000"])
    (corpus / "train.ltr").write_text("G O | O N |\nY E S |\n")
    assert tsv.make(section(), manifest).index.transcripts.tolist() == ["GO ON", "YES"]
    (corpus / "train.wrd").write_text("go on\nyes\n")
    assert tsv.make(section(), manifest).index.transcripts.tolist() == ["go on", "yes"]


@pytest.mark.parametrize(
    ("words", "message"), [("one\n", r"tsv:3: the transcripts .* end"), ("a\nb\nc\n", "more lines")]
)
def test_tsv_with_another_number_of_transcripts_is_an_error(corpus, section, words, message):
    manifest = write_tsv(corpus / "train.tsv", corpus / "audio", ["x/one.wav\t16000", "two.flac\t32000"])
    (corpus / "train.wrd").write_text(words)
    with pytest.raises(UserError, match=message):
        tsv.make(section(), manifest)


@pytest.mark.parametrize("line", ["x/one.wav", "x/one.wav 16000", "x/one.wav\tmany", "x/one.wav\t-1", "\t16000"])
def test_tsv_errors_name_file_and_line(corpus, section, line):
    manifest = write_tsv(corpus / "train.tsv", corpus / "audio", ["two.flac\t32000", line])
    with pytest.raises(UserError, match=r"train\.tsv:3: needs 'path TAB number of samples'"):
        tsv.make(section(), manifest)


def test_tsv_root_line_must_be_a_directory(corpus, section):
    for first in (corpus / "nowhere", "x/one.wav\t16000"):
        with pytest.raises(UserError, match=r"train\.tsv:1: the first line must be the audio's directory"):
            tsv.make(section(), write_tsv(corpus / "train.tsv", first, ["x/one.wav\t16000"]))
    assert len(tsv.make(section(), write_tsv(corpus / "train.tsv", "audio", ["x/one.wav\t16000"])).index) == 1


def test_manifests_without_rows_are_errors(corpus, section):
    (corpus / "empty.tsv").write_text("")
    with pytest.raises(UserError, match=r"empty\.tsv: empty"):
        tsv.make(section(), corpus / "empty.tsv")
    with pytest.raises(UserError, match="no readable audio"):
        tsv.make(section(), write_tsv(corpus / "root.tsv", corpus / "audio", []))
    (corpus / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no readable audio"):
        jsonl.make(section(), corpus / "empty.jsonl")


@pytest.mark.parametrize("source", [tsv, jsonl])
def test_manifests_must_be_existing_text_files(corpus, section, source):
    extension = f".{source.__name__.split('.')[-1]}"
    with pytest.raises(UserError, match="does not exist"):
        source.make(section(), corpus / f"gone{extension}")
    (corpus / f"train{extension}").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=f"is a directory.*did you mean train{extension} in it"):
        source.make(section(), corpus)
    with pytest.raises(UserError, match=f"train{extension}: not UTF-8 text after line 0"):
        source.make(section(), corpus / f"train{extension}")


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


def test_jsonl_segments_outside_their_file_are_cut_or_named(tmp_path, audio, section):
    audio(tmp_path / "a.wav", 2.0)
    manifest = write_jsonl(
        tmp_path / "m.jsonl",
        [
            {"audio_filepath": "a.wav", "offset": 1.0, "duration": 5.0},
            {"audio_filepath": "a.wav", "offset": 2.0},
            {"audio_filepath": "a.wav", "duration": 0},
            {"audio_filepath": "a.wav", "duration": 2.05},
        ],
    )
    index = jsonl.make(section(), manifest).index
    assert index.durations.tolist() == [1.0, 2.0]
    assert index.notes == ["1 x a manifest's segment reached past the end of its file and was cut there"]
    assert [s.reason.split(": ")[0] for s in index.skipped] == ["segment outside its file", "segment without length"]


def test_jsonl_files_that_were_checked_before_stay_closed(tmp_path, section):
    entry = {"audio_filepath": "gone.wav", "frames": 8000, "rate": 8000, "offset": 0.5}
    source = jsonl.make(section(), write_jsonl(tmp_path / "m.jsonl", [entry, {**entry, "rate": None}]))
    index = source.index
    assert (len(index), index.offsets[0], index.frames[0], index.num_samples[0]) == (1, 4000, 8000, 16000)
    assert [skip.reason for skip in index.skipped] == ["file does not exist"]
    with pytest.raises(ReadError, match="file does not exist"):
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
