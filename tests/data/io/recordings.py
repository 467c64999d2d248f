"""Recordings in memory in any format, whole or as programs and people leave them: joined, cut, without a length."""

import io
import struct

import av
import numpy as np
import soundfile

RATE = 16_000
FORMATS = {
    "wav": dict(format="WAV"),
    "flac": dict(format="FLAC"),
    "ogg": dict(format="OGG", subtype="VORBIS"),
    "opus": dict(format="OGG", subtype="OPUS"),
    "mp3": dict(format="MP3", bitrate_mode="VARIABLE", compression_level=0.9),
}


def tone(seconds, seed=0, rate=RATE):
    """float32 [samples]: a buzz whose loudness goes up and down, so that no two parts of it are alike."""
    draw = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * (110 + 31 * seed) * k * t + draw.uniform(0, 6)) / k for k in range(1, 9))
    wave = wave * (0.6 + 0.4 * np.sin(6 * np.pi * t)) + 0.05 * draw.standard_normal(len(t))
    return (0.2 * wave).astype(np.float32)


def encoded(wave, kind, rate=RATE):
    """The bytes of a file of one of FORMATS."""
    memory = io.BytesIO()
    settings = FORMATS[kind]
    with soundfile.SoundFile(memory, "w", rate, 1, **settings) as file:
        for start in range(0, len(wave), 4096):  # block by block, because libsndfile's Vorbis writer needs it
            file.write(wave[start : start + 4096])
    return memory.getvalue()


def muxed(wave, codec, container, rate=RATE):
    """The bytes of a file that FFmpeg writes, for what libsndfile does not: FLAC in OGG, MP3 in WAV."""
    memory = io.BytesIO()
    with av.open(memory, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        samples = np.round(wave * 32767).astype(np.int16)[None]
        resampler = av.AudioResampler(stream.format, "mono", rate, stream.frame_size or 4096)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = rate
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(piece))
        output.mux([packet for packet in stream.encode(None) if packet.size])
    return memory.getvalue()


def with_flac_length(content, length):
    """A FLAC file whose header says another number of samples; 0 says that it is unknown."""
    content = bytearray(content)
    content[21] &= 0xF0
    content[22:26] = struct.pack(">I", length)
    return bytes(content)


def with_wav_length(content, num_bytes):
    """A WAV file of 44 bytes of header whose header says another number of bytes."""
    return content[:4] + struct.pack("<I", num_bytes + 36) + content[8:40] + struct.pack("<I", num_bytes) + content[44:]


def without_mp3_header(content):
    """An MP3 file without the frame that tells its length."""
    second = content.index(content[:2], 8)
    return content[second:]


def id3_tag(size):
    """An ID3v2 tag of `size` bytes after its head."""
    return b"ID3\3\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127]) + b"\0" * size
