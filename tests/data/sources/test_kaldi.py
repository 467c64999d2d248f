"""Laws of Kaldi data folders: every line is a row or is named with a reason, and no pipe is run."""

import os

import numpy as np
import pytest
import soundfile
from formats import Item, content, write_kaldi

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.sources.kaldi import PIPE

ITEMS = [Item(f"u{i}", content(1.0, seed=i), f"text {i}", f"s{i}") for i in range(3)]


def test_segments_are_read_at_their_place_and_in_their_order(tmp_path):
    write_kaldi(tmp_path, ITEMS)
    whole = open_source("kaldi", tmp_path)
    (tmp_path / "segments").write_text("b u1 0.25 0.75\n\na u0 0.5 -1\nc u1 0 0.1\n")
    (tmp_path / "text").write_text("a first words\nb second\nd none\n")
    (tmp_path / "utt2spk").write_text("a anna\nb bert\nc carl\n")
    source = open_source("kaldi", tmp_path)
    assert source.index.ids.tolist() == ["b", "a", "c"]
    assert source.index.transcripts.tolist() == ["second", "first words", ""]
    assert source.index.speakers.tolist() == ["bert", "anna", "carl"]
    assert source.index.num_samples.tolist() == [8000, 8000, 1600]
    np.testing.assert_array_equal(source.read(0, 0, 10**6), whole.read(1, 4000, 8000))
    assert [(skip.path, skip.reason) for skip in source.index.skipped] == [
        (f"{tmp_path / 'text'}:3", "transcript without audio: d")
    ]


def test_a_segment_may_name_a_channel(tmp_path):
    wave = 0.1 * np.random.default_rng(0).standard_normal((16000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "call.wav", wave, 16000, subtype="FLOAT")
    (tmp_path / "wav.scp").write_text("call call.wav\n")
    (tmp_path / "segments").write_text("a call 0 1 1\nb call 0 0.5 0\nc call 0 1 2\nd call 0 1\n")
    source = open_source("kaldi", tmp_path)
    assert source.index.ids.tolist() == ["a", "b", "d"]
    np.testing.assert_array_equal(source.read(0, 0, 10**6), wave[:, 1])
    np.testing.assert_array_equal(source.read(1, 0, 10**6), wave[:8000, 0])
    assert [skip.reason for skip in source.index.skipped] == ["no channel 2: the file has 2, counted from 0"]


def test_pipes_are_refused_row_by_row_and_never_run(tmp_path):
    write_kaldi(tmp_path, ITEMS[:1])
    with open(tmp_path / "wav.scp", "a") as file:
        file.write(f"p touch {tmp_path}/ran; sox x.sph -t wav - |\nq -\n")
    index = open_source("kaldi", tmp_path).index
    assert index.ids.tolist() == ["u0"] and not (tmp_path / "ran").exists()
    assert [(skip.path, skip.reason) for skip in index.skipped] == [
        (f"{tmp_path / 'wav.scp'}:2 (p)", PIPE),
        (f"{tmp_path / 'wav.scp'}:3 (q)", PIPE),
    ]


def test_wav_files_within_an_archive_are_read_at_their_offset(tmp_path):
    wavs = [content(0.3, seed=i, kind="WAV") for i in range(2)]
    archive = b"a " + wavs[0] + b"b " + wavs[1]
    (tmp_path / "w.ark").write_bytes(archive)
    offsets = (2, 4 + len(wavs[0]))
    lines = [f"a w.ark:{offsets[0]}", f"b {tmp_path}/w.ark:{offsets[1]}", "c w.ark:0", "d gone.ark:2"]
    (tmp_path / "wav.scp").write_text("\n".join(lines))
    for i, wav in enumerate(wavs):
        (tmp_path / f"{i}.wav").write_bytes(wav)
    source, alone = open_source("kaldi", tmp_path), open_source("folder", tmp_path)
    assert source.index.ids.tolist() == ["a", "b"]
    for row in range(2):
        np.testing.assert_array_equal(source.read(row, 100, 2000), alone.read(row, 100, 2000))
    assert [skip.kind for skip in source.index.skipped] == [
        f"no WAV file with a length at byte 0 of the archive {tmp_path / 'w.ark'}",
        "unreadable archive",
    ]


def test_paths_are_relative_to_the_folder_and_then_to_the_present_directory(tmp_path, monkeypatch):
    for folder in ("data", "here"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "a.flac").write_bytes(content(0.2))
    (tmp_path / "here" / "a.flac").write_bytes(content(0.3))
    (tmp_path / "here" / "b.flac").write_bytes(content(0.4))
    (tmp_path / "data" / "wav.scp").write_text("a a.flac\nb b.flac\nc c.flac\n")
    monkeypatch.chdir(tmp_path / "here")
    index = open_source("kaldi", tmp_path / "data").index
    assert index.num_samples.tolist() == [3200, 6400]
    assert [skip.path for skip in index.skipped] == [str(tmp_path / "data" / "c.flac")]


def test_segments_without_a_recording_or_outside_of_it_are_named(tmp_path):
    write_kaldi(tmp_path, ITEMS[:1])
    with open(tmp_path / "wav.scp", "a") as file:
        file.write("p cat x |\nu0 audio/0.flac\n")
    (tmp_path / "segments").write_text("a u0 0 0.5\nb gone 0 1\nc p 0 1\nd u0 5 6\ne u0 0.5 0.25\n")
    (tmp_path / "text").unlink()
    index = open_source("kaldi", tmp_path).index
    assert index.ids.tolist() == ["a"]
    assert [(os.path.basename(skip.path), skip.kind) for skip in index.skipped] == [
        ("wav.scp", "repeated recording"),
        ("wav.scp:2 (p)", PIPE.split(": ")[0]),
        ("segments:2 (b)", "segment of a recording that cannot be read"),
        ("segments:3 (c)", "segment of a recording that cannot be read"),
        ("0.flac", "segment outside its file"),
        ("0.flac", "segment without length"),
    ]


@pytest.mark.parametrize("line", ["a u0 0", "a u0 x 1", "a u0 0 nan", "a u0 -1 1", "a u0 0 1 A", "a u0 0 1 1 1", "a"])
def test_lines_of_another_form_are_errors_with_file_and_line(tmp_path, line):
    write_kaldi(tmp_path, ITEMS)
    (tmp_path / "segments").write_text(f"ok u0 0 1\n{line}\n")
    with pytest.raises(UserError, match=r"segments:2: needs 'UTTERANCE RECORDING START END \[CHANNEL\]'"):
        open_source("kaldi", tmp_path)


def test_a_folder_without_wav_scp_and_a_line_without_a_path_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"no data folder of Kaldi's: wav\.scp is missing"):
        open_source("kaldi", tmp_path)
    (tmp_path / "wav.scp").write_text("a\n")
    with pytest.raises(UserError, match=r"wav\.scp:1: needs 'RECORDING PATH'"):
        open_source("kaldi", tmp_path)
    (tmp_path / "wav.scp").write_bytes(b"a \xff.wav\n")
    with pytest.raises(UserError, match=r"wav\.scp:1: is not text in UTF-8"):
        open_source("kaldi", tmp_path)
