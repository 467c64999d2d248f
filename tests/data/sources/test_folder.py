"""Laws of listing a folder: every file is a row or is named with a reason, and no file ends the listing."""

import contextlib
import gzip
import os
import shutil

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source, source_names
from w2v_jax.data.index import Skip
from w2v_jax.data.sources import folder


def kinds(index):
    return {os.path.basename(skip.path): skip.reason.split(": ")[0] for skip in index.skipped}


def test_any_tree_of_any_format_rate_and_channel_count_is_listed(tmp_path, audio, section):
    audio(tmp_path / "a" / "one.flac", 1.0)
    audio(tmp_path / "a" / "deep" / "two.WAV", 2.0, 8000, channels=2, format="WAV")
    audio(tmp_path / "b" / "three.ogg", 1.0, 44100, format="OGG", subtype="VORBIS")
    audio(tmp_path / "b" / "four.mp3", 1.0, 22050, format="MP3")
    audio(tmp_path / "b" / "five.opus", 1.5, 48000, format="OGG", subtype="OPUS")
    source = folder.make(section(), (tmp_path / "b", tmp_path / "a"))
    index = source.index
    assert index.ids.tolist() == ["five", "four", "three", "one", "deep/two"]
    np.testing.assert_allclose(index.durations, [1.5, 1.0, 1.0, 1.0, 2.0], atol=0.1)
    assert index.rates.tolist() == [48000, 22050, 44100, 16000, 8000]
    assert index.skipped == []
    for row in range(len(index)):
        wave = source.read(row, 0, 10**6)
        assert (wave.dtype, len(wave)) == (np.float32, index.num_samples[row])
        assert 0.01 < wave.std() < 1


def test_librispeech_layout_gives_ids_transcripts_and_speakers(tmp_path, audio, section):
    chapter = tmp_path / "train-clean-100" / "84" / "121123"
    for i in range(2):
        audio(chapter / f"84-121123-000{i}.flac", 0.5)
    audio(chapter / "extra.flac", 0.5)
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO ON\n84-121123-0001 È VERO\n", "utf-8-sig")
    index = folder.make(section(), tmp_path).index
    assert index.ids.tolist() == ["84-121123-0000", "84-121123-0001", "train-clean-100/84/121123/extra"]
    assert index.transcripts.tolist() == ["GO ON", "È VERO", ""]
    assert index.speakers.tolist() == ["84", "84", ""]
    assert index.skipped == []


def test_libri_light_is_a_folder_and_its_labelled_part_has_transcripts(tmp_path, audio, section):
    """small/SPEAKER/BOOK/NAME.flac with NAME.json beside it; 1h/0/clean/SPEAKER/CHAPTER as in LibriSpeech."""
    book = tmp_path / "small" / "100" / "sea_fairies_0812_librivox_64kb_mp3"
    for name in ("01_baum_sea_fairies_64kb", "02_baum_sea_fairies_64kb"):
        audio(book / f"{name}.flac", 0.5)
        (book / f"{name}.json").write_text('{"speaker": "100"}')
    index = folder.make(section(), tmp_path / "small").index
    assert index.ids.tolist()[1] == "100/sea_fairies_0812_librivox_64kb_mp3/02_baum_sea_fairies_64kb"
    assert len(index) == 2 and index.lost == [] and len(index.skipped) == 2
    assert index.speakers.tolist() == ["100", "100"]
    (book / "01_baum_sea_fairies_64kb.json").write_text("{")
    assert folder.make(section(), tmp_path / "small").index.speakers.tolist() == ["", ""]
    chapter = tmp_path / "1h" / "0" / "clean" / "2416" / "152139"
    audio(chapter / "2416-152139-0000.flac", 0.5)
    (chapter / "2416-152139.trans.txt").write_text("2416-152139-0000 GO ON\n")
    index = folder.make(section(), tmp_path / "1h").index
    assert (index.ids[0], index.speakers[0], index.transcripts[0]) == ("2416-152139-0000", "2416", "GO ON")


@pytest.mark.parametrize(("form", "extension"), [("mp4", ".mp4"), ("matroska", ".mkv")])
def test_a_video_is_left_out_by_its_name_and_its_sound_is_read_under_the_name_of_audio(
    tmp_path, section, form, extension
):
    av = pytest.importorskip("av")
    film = tmp_path / f"film{extension}"
    with av.open(str(film), "w", format=form) as container:
        pictures, sound = container.add_stream("mpeg4", rate=10), container.add_stream("aac", rate=16000, layout="mono")
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        for shade in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * shade, np.uint8), format="rgb24")
            container.mux(pictures.encode(frame))
        wave = (0.1 * np.sin(np.arange(15 * 1024) / 10)).astype(np.float32)
        for start in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(sound.encode(frame))
        container.mux([*pictures.encode(), *sound.encode()])
    shutil.copy(film, tmp_path / "named.flac")
    source = folder.make(section(), tmp_path)
    assert source.index.ids.tolist() == ["named"]
    assert [skip.path for skip in source.index.skipped] == [str(film)] and extension in source.index.skipped[0].reason
    assert np.abs(source.read(0, 2000, 12000) - wave[2000:14000]).max() < 0.02


def test_transcripts_without_audio_and_repeated_ones_are_named_with_their_lines(tmp_path, audio, section):
    audio(tmp_path / "1-2-0000.flac", 0.5)
    first, second = tmp_path / "1-2.trans.txt", tmp_path / "more.trans.txt"
    first.write_text("1-2-0000 ONE\n\n1-2-0001 NO FILE\n1-2-0000 TWO\n")
    second.write_text("1-2-0000 THREE\n")
    index = folder.make(section(), tmp_path).index
    assert index.transcripts.tolist() == ["THREE"]
    assert index.skipped == [
        Skip(f"{first}:1", f"repeated transcript: 1-2-0000, whose text in {first}:4 counts"),
        Skip(f"{first}:4", f"repeated transcript: 1-2-0000, whose text in {second}:1 counts"),
        Skip(f"{first}:3", "transcript without audio: 1-2-0001"),
    ]
    assert "2 x repeated transcript" in index.report() and "1 x transcript without audio" in index.report()


def test_white_space_of_any_kind_separates_ids_from_texts(tmp_path, audio, section):
    texts = ["GO ON", "GO\tON", "GO\u2028ON\x0cAND", "\ufeffON", ""]
    for i, separator in enumerate(["\t", "   ", " \t ", "\u3000", ""]):
        audio(tmp_path / f"1-2-000{i}.flac", 0.5)
        with open(tmp_path / "1-2.trans.txt", "a", encoding="utf-8", newline="") as file:
            file.write(f"\ufeff1-2-000{i}{separator}{texts[i]} \r\n")
    index = folder.make(section(), tmp_path).index
    assert index.ids.tolist() == [f"1-2-000{i}" for i in range(5)]
    assert index.transcripts.tolist() == texts and index.skipped == []


def test_transcripts_that_are_no_text_are_named_as_what_they_are(tmp_path, audio, section):
    audio(tmp_path / "1-2-0000.flac", 0.5)
    for content, reason in (
        (gzip.compress(b"1-2-0000 ONE\n"), r"1-2.trans.txt:1: is compressed by gzip"),
        ("1-2-0000 ONE\n".encode("utf-16"), r"1-2.trans.txt:1: is UTF-16"),
        ("1-2-0000 ONE\n1-2-0001 È\n".encode("latin-1"), r"1-2.trans.txt:2: is not text in UTF-8 (byte 0xC8"),
        (b"1-2-0000 ONE\0\n", r"1-2.trans.txt:1: holds a null byte"),
    ):
        (tmp_path / "1-2.trans.txt").write_bytes(content)
        index = folder.make(section(), tmp_path).index
        assert index.transcripts.tolist() == [""]
        assert [skip.kind for skip in index.skipped] == ["unreadable transcripts"] and reason in index.skipped[0].reason


def test_speaker_is_the_directory_above_the_chapter_where_the_name_does_not_say(tmp_path, audio, section):
    audio(tmp_path / "anna" / "book" / "first.flac", 0.5)
    (tmp_path / "anna" / "book" / "book.trans.txt").write_text("first HELLO\n")
    index = folder.make(section(), tmp_path).index
    assert (index.ids[0], index.speakers[0], index.transcripts[0]) == ("first", "anna", "HELLO")


def test_files_that_are_no_readable_audio_are_skipped_with_path_and_reason(tmp_path, audio, section):
    audio(tmp_path / "good.wav")
    whole = (tmp_path / "good.wav").read_bytes()
    audio(tmp_path / "cut.flac", 2.0)
    flac = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is a text")
    (tmp_path / "noise.flac").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "song.dat").write_bytes(flac)
    (tmp_path / "film.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0")
    (tmp_path / "._good.wav").write_bytes(b"\0\5\x16\7")
    (tmp_path / "._good.trans.txt").write_bytes(b"\0\5\x16\7")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    os.mkfifo(tmp_path / "pipe.dat")
    audio(tmp_path / "short.wav", 0.05)
    index = folder.make(section(), tmp_path).index
    assert index.ids.tolist() == ["good"]
    assert kinds(index) == {
        "cut.flac": "truncated",
        "cut.wav": "truncated",
        "zero.wav": "empty file",
        "text.wav": "not audio",
        "noise.flac": "not audio",
        "notes.txt": "extension .txt is not an audio extension",
        "song.dat": "extension .dat is not an audio extension",
        "film.m4a": "extension .m4a is not an audio extension",
        "._good.wav": "Mac resource file",
        "._good.trans.txt": "Mac resource file",
        "gone.wav": "file does not exist",
        "pipe.wav": "not a regular file",
        "pipe.dat": "extension .dat is not an audio extension",
        "short.wav": "shorter than data.min_seconds",
    }
    assert all(skip.path.startswith(str(tmp_path)) for skip in index.skipped)
    reasons = {os.path.basename(skip.path): skip.reason for skip in index.skipped}
    assert "looks like FLAC; rename it" in reasons["song.dat"]
    assert "looks like MP4; convert it" in reasons["film.m4a"]


def test_audio_under_the_name_of_another_format_is_read(tmp_path, audio, section):
    wave = audio(tmp_path / "a.wav", format="FLAC")
    source = folder.make(section(), tmp_path)
    np.testing.assert_allclose(source.read(0, 0, 16000), wave, atol=1e-4)


def test_many_files_that_are_not_audio_are_counted_rather_than_listed(tmp_path, audio, section, monkeypatch):
    monkeypatch.setattr(folder, "LISTED_PER_EXTENSION", 3)
    audio(tmp_path / "a.wav")
    for i in range(10):
        (tmp_path / f"{i}.lab").write_text("label")
    skipped = folder.make(section(), tmp_path).index.skipped
    assert len(skipped) == 4
    assert skipped[-1] == Skip(str(tmp_path), "extension .lab is not an audio extension: 7 more")


def test_unreadable_directories_are_skipped_with_a_reason(tmp_path, audio, section, monkeypatch):
    audio(tmp_path / "open" / "a.wav")
    audio(tmp_path / "shut" / "b.wav")
    scandir = os.scandir

    def deny(path):  # chmod does not keep root out
        if os.path.basename(path) == "shut":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    index = folder.make(section(), tmp_path).index
    assert index.ids.tolist() == ["open/a"]
    assert index.skipped == [Skip(str(tmp_path / "shut"), "unreadable directory: Permission denied")]


@pytest.mark.parametrize("number", range(0, 20, 3))
def test_an_entry_that_cannot_be_read_loses_only_itself(tmp_path, audio, section, monkeypatch, number):
    """Whatever the order in which the file system gives the entries."""
    for i in range(20):
        audio(tmp_path / f"{i:02}.wav", 0.2)
    (tmp_path / f"{number:02}a").symlink_to(tmp_path / f"{number:02}a")
    scandir = os.scandir

    @contextlib.contextmanager
    def in_order(path):
        with scandir(path) as entries:
            yield sorted(entries, key=lambda entry: entry.name)

    monkeypatch.setattr(os, "scandir", in_order)
    index = folder.make(section(), tmp_path).index
    assert len(index) == 20
    assert [(skip.path, skip.kind) for skip in index.skipped] == [
        (str(tmp_path / f"{number:02}a"), "unreadable directory entry")
    ]


def test_equal_names_in_two_roots_keep_both_rows(tmp_path, audio, section):
    for root in ("one", "two"):
        audio(tmp_path / root / "a.wav")
    audio(tmp_path / "one" / "a.flac")
    index = folder.make(section(), (tmp_path / "one", tmp_path / "two")).index
    assert index.ids.tolist() == ["a", "a#2", "a#3"]
    assert "2 repeated ids" in index.notes[0]


def test_a_directory_that_is_reached_twice_is_listed_once(tmp_path, audio, section):
    audio(tmp_path / "a" / "one.wav")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    index = folder.make(section(), (tmp_path / "a", tmp_path)).index
    assert index.ids.tolist() == ["one"]
    assert {skip.reason for skip in index.skipped} == {"directory listed already"}


def test_links_to_directories_are_followed(tmp_path, audio, section):
    audio(tmp_path / "elsewhere" / "one.wav")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "disk").symlink_to(tmp_path / "elsewhere")
    assert folder.make(section(), tmp_path / "root").index.ids.tolist() == ["disk/one"]


def test_file_names_that_are_not_utf_8_are_skipped(tmp_path, audio, section):
    audio(tmp_path / "a.wav")
    shutil.copy(tmp_path / "a.wav", os.fsencode(tmp_path) + b"/b\xff.wav")
    index = folder.make(section(), tmp_path).index
    assert index.ids.tolist() == ["a"]
    assert [skip.reason for skip in index.skipped] == ["file name is not UTF-8"]
    assert all(skip.path.encode() for skip in index.skipped), "the report can be written"


def test_transcripts_that_cannot_be_read_leave_the_audio_in(tmp_path, audio, section):
    audio(tmp_path / "a.wav")
    (tmp_path / "x.trans.txt").write_bytes(b"a \xff\xfe")
    index = folder.make(section(), tmp_path).index
    assert index.ids.tolist() == ["a"]
    assert kinds(index) == {"x.trans.txt": "unreadable transcripts"}


def test_roots_without_audio_are_clear_errors(tmp_path, audio, section):
    with pytest.raises(UserError, match="does not exist"):
        folder.make(section(), (tmp_path / "missing",))
    with pytest.raises(UserError, match="is empty"):
        folder.make(section(), ())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no readable audio in .*empty: it holds no audio files"):
        folder.make(section(), tmp_path / "empty")
    audio(tmp_path / "short" / "a.wav", 0.5)
    with pytest.raises(UserError, match=r"all 1 recordings .* shorter than data\.min_seconds=2 "):
        folder.make(section(min_seconds=2.0), tmp_path / "short")
    with pytest.raises(UserError, match="is a file; data.name=folder needs directories"):
        folder.make(section(), tmp_path / "short" / "a.wav")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"(?s)skipped 1:.*1 x empty file.*x\.wav"):
        folder.make(section(), tmp_path / "bad")


def test_a_source_is_listed_from_python_by_its_name(tmp_path, audio):
    audio(tmp_path / "a.wav", 0.01)
    source = open_source("folder", str(tmp_path))
    assert source.index.ids.tolist() == ["a"]
    with pytest.raises(UserError, match=r"'foldr' is not a source. Did you mean 'folder'\? There are: .*folder.*tsv"):
        open_source("foldr", tmp_path)
    with pytest.raises(UserError, match="'seconds' is not an option"):
        open_source("folder", tmp_path, seconds=1)
    assert {"folder", "jsonl", "tsv"} <= set(source_names())
    assert not {"index", "plan", "pipeline", "audio", "listing"} & set(source_names())
