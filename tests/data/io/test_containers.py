"""The recordings in a file are all that its bytes hold: joined, tagged, or with a wrong length in its header."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import FORMATS, encoded, id3_tag, tone, with_flac_length, with_wav_length, without_mp3_header

from w2v_jax.data.index import ReadError
from w2v_jax.data.io import containers
from w2v_jax.data.io.containers import JOINED, NO_END, SIZE_TOO_SMALL, Part, PartFile, find_parts


def pcm(name, odd=False):
    """The bytes of a file of 16 bits of one of libsndfile's containers, or of 8 bits and an odd length."""
    memory = io.BytesIO()
    subtype = {"AIFF": "PCM_S8", "AU": "PCM_S8", "CAF": "PCM_S8"}.get(name, "PCM_U8") if odd else "PCM_16"
    soundfile.write(memory, tone(1)[: 15_999 if odd else None], 16_000, format=name, subtype=subtype)
    return memory.getvalue()


pieces = {kind: [encoded(tone(0.7 + 0.6 * i, seed=i), kind) for i in range(3)] for kind in FORMATS}


def found(content):
    return find_parts(io.BytesIO(content))


def bytes_of(content, parts):
    return [content[part.start : part.stop] for part in parts]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_plain_file_is_one_recording_as_it_is(kind):
    for content in pieces[kind]:
        parts = found(content)
        assert parts.is_whole_file and parts.note == ""
        assert bytes_of(content, parts.parts) == [content]


@settings(max_examples=25)
@given(kind=st.sampled_from(sorted(FORMATS)), order=st.lists(st.integers(0, 2), min_size=2, max_size=4))
def test_joined_files_are_found_whatever_is_joined_to_what(kind, order):
    content = b"".join(pieces[kind][i] for i in order)
    parts = found(content)
    assert parts.note == JOINED and not parts.is_whole_file
    assert bytes_of(content, parts.parts) == [pieces[kind][i] for i in order]


def test_tags_before_joined_mp3_belong_to_neither():
    first, second = pieces["mp3"][:2]
    content = id3_tag(300) + first + id3_tag(5000) + second
    assert bytes_of(content, found(content).parts) == [id3_tag(300) + first, id3_tag(5000) + second]


def test_an_mp3_says_how_many_bytes_or_frames_it_has_or_nothing():
    first = pieces["mp3"][0]
    assert found(first).parts[0].num_mp3_frames is None, "it says how many bytes"
    at = max(first.find(name) for name in (b"Xing", b"Info")) + 7
    frames_only = first[:at] + b"\1" + first[at + 1 :]
    assert found(frames_only).parts[0].num_mp3_frames == 0.7 * 16000 // 576 + 3  # and the delay of both coders
    assert found(without_mp3_header(first)).parts[0].num_mp3_frames is None
    with pytest.raises(ReadError, match=r"truncated: [\d,]+ of [\d,]+ bytes of MP3 are left"):
        found(first[: len(first) * 3 // 4])


@pytest.mark.parametrize("kind", ["flac", "ogg", "wav"])
def test_other_files_after_a_wav_are_named(kind):
    content = pieces["wav"][0] + (pieces[kind][0] if kind != "wav" else b".snd" + bytes(9000))
    with pytest.raises(ReadError, match="a WAV file and another file in one, which begins at byte 22,4"):
        found(content)


OTHERS = {name: pcm(name) for name in ("AIFF", "AU", "CAF", "W64", "RF64")}


@pytest.mark.parametrize("name", OTHERS)
def test_other_containers_are_checked_against_what_they_say(name):
    content = OTHERS[name]
    for whole in (content, content + b"TAG" + bytes(125), content + bytes(9000), pcm(name, odd=True)):
        assert found(whole).is_whole_file
    with pytest.raises(ReadError, match="truncated: [0-9,]+ of [0-9,]+ bytes are left"):
        found(content[: len(content) // 2])
    with pytest.raises(ReadError, match="longer than its header says: it ends at byte [0-9,]+ of [0-9,]+;"):
        found(content + content)


def test_zeros_after_an_ogg_file_are_no_cut():
    assert found(pieces["ogg"][0] + bytes(300_000)).note == ""


def test_flac_after_a_tag_begins_after_it():
    flac = pieces["flac"][0]
    (part,) = found(id3_tag(2000) + flac).parts
    assert (part.start, part.stop) == (2010, 2010 + len(flac))


@settings(max_examples=25)
@given(num_bytes=st.integers(0, 2 * 16000))
def test_wav_goes_on_after_the_size_in_its_header_where_audio_does(num_bytes):
    content = pieces["wav"][1]
    size = len(content) - 44
    parts = found(with_wav_length(content, num_bytes))
    if size - num_bytes > 3200:
        assert parts.note == SIZE_TOO_SMALL
        assert (parts.parts[0].start, parts.parts[0].stop) == (44, len(content))
    else:
        assert parts.is_whole_file


@pytest.mark.parametrize(
    "ending",
    [b"LIST\x04\0\0\0INFO" + b"id3 \x0a\0\0\0" + bytes(10), bytes(9000), b"TAG" + b"x" * 9000, b"ab"],
    ids=["chunks", "zeros", "tag", "few bytes"],
)
def test_what_is_no_audio_after_a_wav_file_is_no_audio(ending):
    content = pieces["wav"][0] + ending
    assert found(content).is_whole_file and found(content).note == ""


@pytest.mark.parametrize("padding", [b"", b"\0"], ids=["without", "with"])
def test_chunks_after_odd_audio_are_found_with_and_without_its_even_byte(padding):
    odd = with_wav_length(pieces["wav"][0] + b"x", len(pieces["wav"][0]) - 43)
    content = odd + padding + b"bext" + (9000).to_bytes(4, "little") + b"text" * 2250
    assert found(content).is_whole_file and found(content).note == ""


def test_a_pattern_is_found_once_wherever_blocks_end(monkeypatch):
    monkeypatch.setattr(containers, "_BLOCK", 4)
    for pattern in (b"a", b"ab", b"abcab"):
        content = b"abcababcabcabaab"
        places = [i for i in range(len(content)) if content.startswith(pattern, i)]
        assert list(containers._find(io.BytesIO(content), pattern, start=0, stop=len(content))) == places


@settings(max_examples=25)
@given(length=st.integers(1, 20_000))
def test_flac_goes_on_after_the_length_in_its_header_where_frames_do(length):
    content = pieces["flac"][1]
    parts = found(with_flac_length(content, length))
    assert (parts.note == SIZE_TOO_SMALL) == (length < 1.3 * 16000)


@pytest.mark.parametrize("number", [0, 100])
def test_audio_that_looks_like_the_head_of_a_flac_frame_is_audio(number):
    """Noise stands in FLAC as it is, so that its samples can be the bytes of a head."""
    noise = np.random.default_rng(0).integers(-(2**15), 2**15, 20_000, dtype=np.int16)
    head = bytes([0xFF, 0xF8, 0xC9, 0x08, number])  # of a frame of 4,096 samples
    head += bytes([containers._crc8(head)])
    for place in (5_000, 10_000, 19_000):  # the windows that are looked at
        noise[place : place + 3] = np.frombuffer(head, ">i2")
    memory = io.BytesIO()
    soundfile.write(memory, noise, 16_000, format="FLAC")
    assert memory.getvalue().count(head) == 3
    assert found(memory.getvalue()).is_whole_file and found(memory.getvalue()).note == ""


@settings(max_examples=25)
@given(kind=st.sampled_from(["ogg", "opus"]), share=st.floats(0.3, 0.99))
def test_an_ogg_file_that_was_cut_is_named(kind, share):
    content = pieces[kind][2]
    cut = content[: int(share * len(content))]
    last = content.rindex(b"OggS\0", 0, len(cut))
    if not cut.endswith((b"O", b"Og", b"Ogg", b"OggS")):
        with pytest.raises(ReadError, match="truncated: the last page"):
            found(cut)
    assert found(cut[:last]).note == NO_END, "all pages are whole, but none is the last"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"\n <!DOCTYPE html>\n<html>", "not audio: an HTML or XML page; download the file itself"),
        (b"\xef\xbb\xbf<HTML>", "not audio: an HTML or XML page; download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n", "not audio: a pointer of Git LFS"),
        (b"\x1f\x8b\x08\0" + bytes(99), "not audio: compressed by gzip"),
        (b"PK\x03\x04" + bytes(99), "not audio: a ZIP archive"),
    ],
)
def test_other_content_is_called_what_it_is(content, reason):
    with pytest.raises(ReadError, match=f"^{reason}"):
        found(content)


def test_any_bytes_end_in_parts_or_in_a_reason():
    for kind in FORMATS:
        for cut in (4, 12, 30, 42, 50, 200):
            content = pieces[kind][0][:cut]
            try:
                assert found(content).parts
            except ReadError as error:
                assert "truncated" in str(error)


def test_a_part_is_a_file_of_its_own():
    file = PartFile(io.BytesIO(b"0123456789"), Part(2, 8, header=b"head"))
    assert file.read() == b"head234567"
    assert (file.seek(-3, io.SEEK_END), file.read(2), file.tell(), file.read(), file.read()) == (7, b"56", 9, b"7", b"")
    assert (file.seek(2), file.read(4), file.seek(1, io.SEEK_CUR), file.read(1)) == (2, b"ad23", 7, b"5")
    with pytest.raises(OSError, match="before the beginning"):
        file.seek(-1)
