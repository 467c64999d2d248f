"""A recording has the length of what is there, and a read gives the same samples wherever it begins."""

import io
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import FORMATS, encoded, id3_tag, muxed, tone, with_flac_length, with_wav_length, without_mp3_header

from w2v_jax.data.index import ReadError
from w2v_jax.data.io.audio import probe_content, read_frames
from w2v_jax.data.io.containers import NO_END
from w2v_jax.data.io.decoders import scaled

WAVE = tone(5.0)
TOLERANCE = {"opus": 5e-3}  # a seek starts its decoder anew: not to the last bit


def gsm(wave):
    memory = io.BytesIO()
    soundfile.write(memory, wave, 16000, format="WAV", subtype="GSM610")
    return memory.getvalue()


UNSEEKABLE = {
    "mp3": lambda: encoded(WAVE, "mp3"),
    "mp3 without a length": lambda: without_mp3_header(encoded(WAVE, "mp3")),
    "mp3 after a tag": lambda: id3_tag(3000) + encoded(WAVE, "mp3"),
    "mp3 in wav": lambda: muxed(WAVE, "mp3", "wav"),
    "flac without a length": lambda: with_flac_length(encoded(WAVE, "flac"), 0),
    "flac with a length that is too small": lambda: with_flac_length(encoded(WAVE, "flac"), 1000),
    "flac after a tag": lambda: id3_tag(3000) + encoded(WAVE, "flac"),
    "flac in ogg": lambda: muxed(WAVE, "flac", "ogg"),
    "gsm in wav": lambda: gsm(WAVE),
    "wav with a size that is too small": lambda: with_wav_length(encoded(WAVE, "wav"), 2000),
}
"""Files in which libsndfile cannot seek or whose length it does not know, as functions that make their bytes."""


@pytest.mark.parametrize("name", UNSEEKABLE)
def test_length_and_samples_are_what_is_there(name):
    content = UNSEEKABLE[name]()
    header = probe_content(io.BytesIO(content))
    assert header.rate == 16000
    delay = 0 if "mp3" not in name else 3 * 576  # of encoder and decoder, where no header says what to leave out
    assert abs(header.frames - len(WAVE) - (delay if "without" in name or " in wav" in name else 0)) <= 576
    whole = read_frames(io.BytesIO(content), 0, header.frames, rate=16000)
    shift = max(range(0, 3 * 576), key=lambda s: np.dot(whole[s : s + 8000], WAVE[:8000])) if delay else 0
    count = min(len(WAVE), len(whole) - shift)
    assert np.corrcoef(whole[shift : shift + count], WAVE[:count])[0, 1] > 0.95
    for start in (0, 1, 5000, 40_000, header.frames - 3000):
        crop = read_frames(io.BytesIO(content), start, 3000, rate=16000)
        np.testing.assert_allclose(crop, whole[start : start + 3000], atol=1e-6)


def whole(content, header):
    return read_frames(io.BytesIO(content), 0, header.frames, rate=header.rate)


pieces = {kind: [encoded(tone(0.7 + 0.6 * i, seed=i), kind) for i in range(3)] for kind in FORMATS}


@pytest.mark.parametrize("total", [None, "all"])
def test_no_seek_in_joined_flac_files_ends_in_another_one(tmp_path, total):
    """Frames of all of them have the same numbers, among which libFLAC searches."""
    order = [0, 1, 2]
    content = b"".join(pieces["flac"][i] for i in order)
    (tmp_path / "joined.flac").write_bytes(content)
    expected = np.concatenate([whole(pieces["flac"][i], probe_content(io.BytesIO(pieces["flac"][i]))) for i in order])
    total = total and len(expected)
    for start in range(0, len(expected) - 10, 97):
        for file in (io.BytesIO(content), str(tmp_path / "joined.flac")):
            np.testing.assert_array_equal(read_frames(file, start, 10, rate=16000, total=total), expected[start:][:10])


@settings(max_examples=25)
@given(kind=st.sampled_from(sorted(FORMATS)), order=st.lists(st.integers(0, 2), min_size=2, max_size=4), data=st.data())
def test_joined_recordings_follow_one_another(kind, order, data):
    content = b"".join(pieces[kind][i] for i in order)
    parts = [whole(pieces[kind][i], probe_content(io.BytesIO(pieces[kind][i]))) for i in order]
    header = probe_content(io.BytesIO(content))
    assert header.frames == sum(map(len, parts)) and header.rate == 16000
    start = data.draw(st.integers(0, header.frames - 1))
    count = data.draw(st.integers(1, header.frames - start))
    crop = read_frames(io.BytesIO(content), start, count, rate=16000)
    np.testing.assert_allclose(crop, np.concatenate(parts)[start : start + count], atol=TOLERANCE.get(kind, 1e-6))


@settings(max_examples=40)
@given(kind=st.sampled_from(["wav", "flac", "ogg", "opus", "mp3"]), share=st.floats(0.1, 0.9))
def test_a_recording_that_was_cut_is_never_taken_for_whole(kind, share):
    content = encoded(WAVE, kind)
    check_cut(content, int(share * len(content)))


def test_an_ogg_stream_that_was_cut_near_the_edge_of_a_page_is_never_taken_for_whole():
    content = encoded(WAVE, "opus")
    edge = content.index(b"OggS", len(content) // 2)
    for size in range(edge - 3, edge + 8):
        check_cut(content, size)


def check_cut(content, size):
    """Between two pages of an OGG stream nothing is missing but its end mark, and a note says so."""
    if content[size:].startswith(b"OggS"):
        assert probe_content(io.BytesIO(content[:size])).note == NO_END
    else:
        with pytest.raises(ReadError, match="truncated"):
            probe_content(io.BytesIO(content[:size]))


def test_a_cut_recording_without_a_length_is_named_or_has_what_is_there():
    content = without_mp3_header(encoded(WAVE, "mp3"))
    assert 0.4 < probe_content(io.BytesIO(content[: len(content) // 2])).frames / len(WAVE) < 0.6
    content = with_flac_length(encoded(WAVE, "flac"), 0)
    with pytest.raises(ReadError, match=r"corrupt audio: .* after 2\.\d\d s"):
        probe_content(io.BytesIO(content[: len(content) // 2]))


@pytest.mark.parametrize("place", [0.3, 0.999])
def test_damage_in_an_mp3_is_silence_and_moves_nothing(place):
    """A frame that cannot be decoded takes its time all the same, as in a player."""
    content = without_mp3_header(encoded(WAVE, "mp3"))
    at = int(place * len(content))
    damaged = content[:at] + np.random.default_rng(0).bytes(2000) + content[at:]
    header = probe_content(io.BytesIO(damaged))
    intact = whole(content, probe_content(io.BytesIO(content)))
    assert abs(header.frames - len(intact)) <= 4 * 576
    early = int(0.2 * len(WAVE))
    np.testing.assert_allclose(whole(damaged, header)[:early], intact[:early], atol=1e-6)


def test_recordings_of_two_rates_in_one_file_are_refused():
    content = encoded(tone(1), "flac") + encoded(tone(1, rate=8000), "flac", 8000)
    with pytest.raises(ReadError, match="recordings of 8000 and 16000 Hz in one file: write a file of each"):
        probe_content(io.BytesIO(content))


@pytest.mark.parametrize("content", [b"text " * 500, np.random.default_rng(0).bytes(9000), b"RIFF" + bytes(400)])
def test_what_no_decoder_knows_is_not_audio(content):
    with pytest.raises(ReadError, match="^(not|corrupt) audio: "):
        probe_content(io.BytesIO(content))


def test_without_ffmpeg_only_what_it_must_read_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # import av fails
    assert probe_content(io.BytesIO(encoded(tone(1), "flac"))).frames == 16_000
    with pytest.raises(ReadError, match="FFmpeg has to read it: pip install av"):
        probe_content(io.BytesIO(encoded(tone(1), "mp3")))


def test_a_codec_that_nobody_knows_is_named():
    content = bytearray(encoded(tone(1), "wav"))
    content[20:22] = b"\x99\x77"
    with pytest.raises(ReadError, match="^corrupt audio: "):
        probe_content(io.BytesIO(bytes(content)))


def test_a_recording_without_its_header_is_corrupt():
    """FFmpeg opens this one, and finds no sampling rate."""
    content = pieces["flac"][0]
    with pytest.raises(ReadError, match="^corrupt audio: "):
        probe_content(io.BytesIO(content[:4] + b"\0" + content[5:8] + content[1346:]))


@settings(max_examples=60)
@given(kind=st.sampled_from(sorted(FORMATS)), data=st.data())
def test_damage_of_any_kind_ends_in_samples_or_in_a_reason(kind, data):
    content = bytearray(pieces[kind][0])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    first, second = sorted(data.draw(st.tuples(st.integers(0, len(content)), st.integers(0, len(content)))))
    content = bytes(content[:first] + content[second:])
    try:
        header = probe_content(io.BytesIO(content))
        assert len(whole(content, header)) <= header.frames
    except ReadError as error:
        assert str(error)


def test_decoders_print_nothing(capfd):
    for name in UNSEEKABLE:
        content = UNSEEKABLE[name]()
        read_frames(io.BytesIO(content), 30_000, 9000, rate=16000)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("uint8", 0, 255), ("int16", -(2**15), 2**15 - 1), ("float64", -1, 1)]
)
def test_integers_are_scaled_as_files_are(kind, low, high):
    samples = scaled(np.array([low, high], kind))
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, [-1, 1], atol=1 / 127)
