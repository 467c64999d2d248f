"""Opens one recording of a file for reading: with libsndfile where it can seek, otherwise with FFmpeg.

libsndfile reads most formats by seek. FFmpeg reads MP3, because libsndfile takes its length from a header or guesses
it. FFmpeg also reads, from the front, what libsndfile cannot open, cannot seek in, or does not know the length of.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO, Protocol

import numpy as np

from w2v_jax.data.index import ReadError
from w2v_jax.data.io.containers import UNKNOWN_LENGTH, Part, PartFile

INTEGER_SCALES = {"uint8": (128.0, 128.0), "int16": (0.0, 32768.0), "int32": (0.0, 2147483648.0)}
"""(value of silence, full scale) of the integer types that audio files hold."""

LOSSY_SLACK = 2 * 1152
"""Samples by which an OGG file may be shorter than its pages say: two blocks of the encoder."""

LAST_PAGE_SECONDS = 4
"""The last seconds of an OGG file, which are read from their beginning rather than by seek."""

MP3_LEAD = 32
"""MP3 frames to decode before a crop. A frame takes bits from earlier ones, at 8 kbit/s from up to 24 of them."""

NAMES = (".flac", ".wav", ".ogg", ".oga", ".opus")
"""Endings of names by which libsndfile decides nothing."""

NEEDS_FFMPEG = "FFmpeg has to read it: pip install av"

_FFMPEG_FORMATS = frozenset("aac aiff amr asf au caf flac matroska mov mp3 ogg w64 wav webm".split())


class Decoder(Protocol):
    """An open recording: its sampling rate in Hz, its channels, and the samples that may be missing at its end.

    is_bounded: its samples are integers in the file, so that each is a number between -1 and 1.
    A decoder is asked for one thing: for the length, or for one crop.
    """

    rate: int
    channels: int
    slack: int
    is_bounded: bool

    def length(self) -> int:
        """The length in samples, of what is there. Raises ReadError where the recording was cut."""
        ...

    def read(self, start: int, count: int) -> np.ndarray:
        """float32 [at most count, channels] from sample `start`: the same wherever the read begins."""
        ...

    def close(self) -> None: ...


def open_decoder(file: BinaryIO, part: Part, path: str | None = None) -> Decoder:
    """The decoder of a part of an open file, which stays open. Raises ReadError.

    A `path` says that the part is the whole file at this path, which libsndfile reads faster. It must have one of
    NAMES: of others, libsndfile lets the name decide.
    """
    import soundfile

    if part.is_mp3:
        return _Mp3(file, part)
    try:
        decoder = _SoundFile(path or _ForCallbacks(file, part))
        if decoder.can_seek:
            return decoder
        decoder.close()
        reason = "corrupt audio: it has no length, or it cannot be sought in"
    except (soundfile.SoundFileError, OSError, ValueError, RuntimeError) as error:
        reason = reason_of(error)
    try:
        decoder = _FFmpeg(file, part)
    except ReadError as error:
        raise (error if str(error) == NEEDS_FFMPEG else ReadError(reason)) from None
    if decoder.container.format.name != "mp3":
        return decoder
    decoder.close()
    return _Mp3(file, part._replace(is_mp3=True))  # frames after bytes that are none


def open_first(file: str | BinaryIO, total: int | None) -> Decoder | None:
    """libsndfile's decoder of the recording that a FLAC or WAV file begins with; None where it cannot read that.

    `file` is a path with one of NAMES, or a file in memory; others give None. So does a recording of other than `total`
    samples, if that is given: who seeks needs it, because a seek in joined FLAC files may end in another one.
    """
    import soundfile

    if not (file.lower().endswith(NAMES) if isinstance(file, str) else isinstance(file, io.BytesIO)):
        return None
    try:
        decoder = _SoundFile(file)
    except (soundfile.SoundFileError, OSError, RuntimeError):
        return None
    is_it = decoder.can_seek and decoder.file.format in ("FLAC", "WAV") and not decoder.file.subtype.startswith("MPEG")
    if is_it and total in (None, decoder.file.frames):
        return decoder
    decoder.close()
    return None


def reason_of(error: Exception) -> str:
    """What an error of a decoder means, without the path."""
    text = re.sub(r"^Error opening .*?: ", "", getattr(error, "error_string", str(error))).strip(" .:")
    return f"{'not audio' if 'recognised' in text else 'corrupt audio'}: {text}"


def scaled(samples: np.ndarray) -> np.ndarray:
    """float32, -1 .. 1, of samples of a type in INTEGER_SCALES or of floats."""
    if samples.dtype.name not in INTEGER_SCALES:
        return samples.astype(np.float32)
    silence, full_scale = INTEGER_SCALES[samples.dtype.name]
    return (samples.astype(np.float32) - np.float32(silence)) / np.float32(full_scale)


class _ForCallbacks(PartFile):
    """A part for libsndfile, whose callbacks cannot raise: an error ends the file, and `error` has it."""

    error: Exception | None = None

    def readinto(self, buffer) -> int:
        try:
            return super().readinto(buffer)
        except Exception as error:
            self.error = self.error or error
            return 0


class _SoundFile:
    """A recording that libsndfile reads. Raises soundfile's errors where it cannot be opened."""

    def __init__(self, content: Any):
        import soundfile

        self.content = content
        with self._raising():
            self.file = soundfile.SoundFile(content)
        self.rate, self.channels = self.file.samplerate, self.file.channels
        self.slack = LOSSY_SLACK if self.file.format == "OGG" else 0
        self.is_bounded = self.file.subtype.startswith("PCM_")
        self.can_seek = self.file.seekable() and self.file.frames < 1 << 48

    @contextlib.contextmanager
    def _raising(self) -> Iterator[None]:
        """Raises the error that ended the file, in place of what libsndfile made of its end."""
        try:
            yield
        finally:
            if isinstance(self.content, _ForCallbacks) and self.content.error is not None:
                raise self.content.error from None

    def close(self) -> None:
        self.file.close()

    def length(self) -> int:
        """Reads the end as well, which a file that was cut does not have."""
        frames, seconds = self.file.frames, self.file.frames / self.rate
        mismatch = re.search(r"\bdata *: (\d+) \(should be (\d+)\)", self.file.extra_info)  # a WAV that was cut
        if mismatch:
            declared, present = map(int, mismatch.groups())
            if 0.1 < seconds * (declared / max(present, 1) - 1) and declared < UNKNOWN_LENGTH:
                raise ReadError(f"truncated: {seconds:.2f} s are left of {seconds * declared / present:.2f} s")
        tail = min(frames, max(1, 2 * self.slack))
        with self._raising():
            try:
                self.file.seek(frames - tail)
                num_read = len(self.file.read(tail, dtype="float32", always_2d=True))
            except RuntimeError:  # soundfile's errors are of this kind
                num_read = 0
        if frames and not num_read:
            raise ReadError(f"truncated: the header says {seconds:.2f} s, and the end cannot be read")
        return frames

    def read(self, start: int, count: int) -> np.ndarray:
        first = min(start, self.file.frames)
        if self.slack:  # a seek into the last page of Vorbis is up to 192 samples off
            first = min(first, max(0, self.file.frames - LAST_PAGE_SECONDS * self.rate))
        with self._raising():
            if first:
                self.file.seek(first)
            return self.file.read(start - first + count, dtype="float32", always_2d=True)[start - first :]


class _FFmpeg:
    """A recording that FFmpeg reads from the front. Raises ReadError where it cannot be opened."""

    slack, is_bounded = 0, False

    def __init__(self, file: BinaryIO, part: Part):
        try:
            import av
        except ImportError:
            raise ReadError(NEEDS_FFMPEG) from None
        try:
            self.container: Any = av.open(PartFile(file, part), format="mp3" if part.is_mp3 else None)
            self.stream: Any = self.container.streams.audio[0]
        except (av.FFmpegError, IndexError) as error:
            raise ReadError(f"corrupt audio: {getattr(error, 'strerror', 'no audio stream')}") from None
        is_known = self.stream.codec_context is not None
        if not is_known or _FFMPEG_FORMATS.isdisjoint(self.container.format.name.split(",")):
            self.close()
            raise ReadError(
                "corrupt audio: its codec is unknown" if not is_known else "not audio: its format is unknown"
            )
        self.rate, self.channels = self.stream.rate, self.stream.codec_context.layout.nb_channels
        if not self.rate:  # FFmpeg opens a recording whose header is lost
            self.close()
            raise ReadError("corrupt audio: it does not say its sampling rate")

    def close(self) -> None:
        self.container.close()

    def length(self) -> int:
        return sum(len(block) for block in self._blocks())

    def read(self, start: int, count: int) -> np.ndarray:
        blocks, position = [], 0
        for block in self._blocks():
            blocks.append(block[max(0, start - position) : max(0, start + count - position)])
            position += len(block)
            if position >= start + count:
                break
        return np.concatenate(blocks or [np.zeros((0, 1), np.float32)])

    def _blocks(self) -> Iterator[np.ndarray]:
        """float32 [samples, channels] of the recording from where the container is, block by block."""
        import av

        position = 0
        try:
            for frame in self.container.decode(self.stream):
                position += frame.samples
                yield _samples(frame)
        except av.FFmpegError as error:
            seconds = position / self.rate
            raise ReadError(f"corrupt audio: {error.strerror} after {seconds:.2f} s; keep what is before it") from None


class _Mp3(_FFmpeg):
    """An MP3 recording. The frames before a sample give its number; FFmpeg counts them when it seeks."""

    slack = LOSSY_SLACK

    def __init__(self, file: BinaryIO, part: Part):
        super().__init__(file, part)
        self.num_frames = part.num_mp3_frames
        ratio = self.stream.time_base * self.rate  # samples per unit of the stream's times
        self.numerator, self.denominator = ratio.numerator, ratio.denominator
        self.delay = self._samples_at(self.stream.start_time or 0)

    def length(self) -> int:
        """Counts the frames without decoding them."""
        last, count = None, 0
        for packet in self.container.demux(self.stream):
            if packet.pts is not None:
                last, count = packet, count + 1
        if last is None or last.pts is None:
            raise ReadError("no samples")
        length = self._samples_at(last.pts + (last.duration or 0)) - self.delay - _discarded(last)
        if self.num_frames and count < self.num_frames - 2:
            seconds = length / self.rate
            raise ReadError(f"truncated: {seconds:.2f} s are left of {seconds * self.num_frames / count:.2f} s")
        return length

    def read(self, start: int, count: int) -> np.ndarray:
        """Frames that cannot be decoded are silent, as in a player."""
        import av

        before = start + self.delay - MP3_LEAD * self.stream.codec_context.frame_size
        if before > 0:
            self.container.seek(int(Fraction(before, self.rate) / self.stream.time_base), stream=self.stream)
        pieces, end = [], 0
        for packet in self.container.demux(self.stream):
            with contextlib.suppress(av.FFmpegError):
                for frame in packet.decode():
                    first = self._samples_at(frame.pts) - self.delay - start
                    end = first + frame.samples
                    if end > 0:
                        pieces.append((max(0, first), _samples(frame)[max(0, -first) :]))
            if end >= count:
                break
        wave = np.zeros((max(0, min(end, count)), max([s.shape[1] for _, s in pieces], default=1)), np.float32)
        for first, samples in pieces:
            wave[first : first + len(samples)] = samples[: len(wave) - first]
        return wave

    def _samples_at(self, time: int) -> int:
        """A time in the stream's units, in samples, rounded."""
        return (2 * time * self.numerator // self.denominator + 1) // 2


def _discarded(packet: Any) -> int:
    """The samples at the end of a packet that the encoder has added."""
    skipped = [bytes(side) for side in packet.iter_sidedata() if side.data_type == "skip_samples"]
    return int.from_bytes(skipped[0][4:8], "little") if skipped else 0


def _samples(frame: Any) -> np.ndarray:
    """float32 [samples, channels] of a frame of FFmpeg's."""
    if frame.format.name == "fltp":  # as below, in a third of the time: MP3 has many small frames
        channels = [np.frombuffer(plane, np.float32, frame.samples) for plane in frame.planes]
        return np.stack(channels, axis=1) if len(channels) > 1 else channels[0][:, None]
    samples = frame.to_ndarray()
    return scaled(samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels))
