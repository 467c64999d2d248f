"""Finds the recordings in a file of audio: what its bytes hold, whatever its name and its header say.

Most files are one recording. Some are several that were joined, some have a tag before the audio, and some have a
header whose size is too small for the file. Only headers and a few pages are read here, except of MP3 files and of OGG
files that were joined: these are searched through. Nothing is decoded.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from w2v_jax.core.text import kind_of
from w2v_jax.data.index import ReadError

JOINED = "a file holds several recordings that were joined; they are read one after the other"
SIZE_TOO_SMALL = "a file is longer than the size in its header; it is read to its end"
NO_END = "an OGG stream has no end mark and may have been cut; what there is of it is read"

UNKNOWN_LENGTH = 0x7FFF0000
"""Lengths in the header of a WAV file from here on say that it was written to a pipe."""

_UNKNOWN_SIZE = b"\xff\xff\xff\xff"
_MPEG_IN_WAV = (0x50, 0x55)  # of the format tags of WAV
_BLOCK = 1 << 20
_SAMPLED_PAGES = 16
_SAMPLED_FRAMES = 4
_STREAMINFO = (b"\0\0\0\x22", b"\x80\0\0\x22")  # the head of the first block of a FLAC file
_MAX_PAGE = 27 + 255 + 255 * 255
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")  # what programs for music append to audio
_FILES = (b"fLaC", b"OggS", b"FORM", b".snd", b"caff", b"RF64")  # how other files of audio begin


class Part(NamedTuple):
    """One recording in a file: the bytes start .. stop, after a `header` of ours where the file's own is wrong.

    `num_mp3_frames` is how many MPEG frames the recording says that it has, where it does not say how many bytes.
    """

    start: int
    stop: int
    is_mp3: bool = False
    header: bytes = b""
    num_mp3_frames: int | None = None


class Parts(NamedTuple):
    """The recordings of a file in their order, and what a person should know about the file ("": nothing)."""

    parts: tuple[Part, ...]
    note: str = ""

    @property
    def is_whole_file(self) -> bool:
        """Whether the file as it is is the one recording."""
        return len(self.parts) == 1 and self.parts[0].start == 0 and not self.parts[0].header


def find_parts(file: BinaryIO) -> Parts:
    """The recordings in an open file. Raises ReadError for what is not audio or was cut, and OSError."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise ReadError("empty file")
    start = _after_id3(file, 0)
    head = _read(file, start, 12)
    if head[:4] == b"OggS":
        return _ogg(file, start, size)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        return _wav(file, start, size)
    if head[:4] == b"fLaC":
        return _flac(file, start, size)
    if start or _is_mpeg_frame(head):
        return _mp3(file, size)
    if kind := kind_of(_read(file, 0, 256)):
        raise ReadError(f"not audio: {kind}")
    _check_end(file, size)
    return Parts((Part(start, size),))


class PartFile(io.RawIOBase):
    """A part as a file of its own. Closing it leaves `file` open."""

    def __init__(self, file: BinaryIO, part: Part):
        self.file, self.part, self.position = file, part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        size = len(self.part.header) + self.part.stop - self.part.start
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: size}[whence]
        if position < 0:
            raise OSError("a seek before the beginning of the file")
        self.position = position
        return position

    def readinto(self, buffer) -> int:
        view, header = memoryview(buffer).cast("B"), self.part.header
        content = header[self.position : self.position + len(view)]
        start = self.part.start + max(0, self.position - len(header))
        content += _read(self.file, start, max(0, min(len(view) - len(content), self.part.stop - start)))
        view[: len(content)] = content
        self.position += len(content)
        return len(content)


def _read(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


def _after_id3(file: BinaryIO, position: int) -> int:
    """The position after the ID3v2 tags that begin at `position`."""
    while (head := _read(file, position, 10))[:3] == b"ID3" and len(head) == 10 and max(head[6:]) < 128:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        position += 10 + size + (10 if head[5] & 0x10 else 0)
    return position


def _find(file: BinaryIO, pattern: bytes, *, start: int, stop: int) -> Iterator[int]:
    """The positions of `pattern` in the bytes start .. stop of a file, in order."""
    rest = b""
    while start < stop and (block := _read(file, start, min(_BLOCK, stop - start))):
        text, first = rest + block, start - len(rest)
        at = text.find(pattern)
        while at >= 0:
            yield first + at
            at = text.find(pattern, at + 1)
        rest, start = text[len(text) + 1 - len(pattern) :], start + len(block)


def _is_rising(places: Iterable[tuple[int, int]]) -> bool:
    """Whether the numbers in (byte, number) rise from byte to byte: they start anew in a file that was joined."""
    numbers = [number for _, number in sorted(set(places))]
    return all(before < after for before, after in itertools.pairwise(numbers))


# WAV: chunks


def _wav(file: BinaryIO, start: int, size: int) -> Parts:
    """A WAV file, or several joined ones. Audio that the size in the header leaves out belongs to the recording."""
    sound_format, position = b"", start + 12
    while len(chunk := _read(file, position, 8)) == 8 and chunk[:4] != b"data":
        if chunk[:4] == b"fmt ":
            sound_format = _read(file, position, 8 + _length(chunk))
        position += 8 + _length(chunk)
    data, length = position + 8, int.from_bytes(chunk[4:8], "little")
    end = position = min(size, data + length)
    if int.from_bytes(sound_format[8:10], "little") in _MPEG_IN_WAV:
        if end - data < length < UNKNOWN_LENGTH:
            raise ReadError(f"truncated: {end - data:,} of {length:,} bytes of MP3 are left")
        part = Part(data, end, is_mp3=True)
        end += length % 2 if end - data == length else 0
        if _read(file, end, 4) != b"RIFF":
            return Parts((part,))
        return Parts((part, *_wav(file, end, size).parts), JOINED)
    if not _is_chunk(_read(file, end, 12), size - end):
        end = position = min(size, data + _length(chunk))  # some programs leave the even byte out
    if _read(file, end, 4) in _FILES:
        raise ReadError(f"a WAV file and another file in one, which begins at byte {end:,}: write a file of each")
    while _is_chunk(chunk := _read(file, position, 12), size - position):  # texts follow the audio
        if chunk[:4] == b"RIFF":
            rest = _wav(file, position, size)
            return Parts((Part(start, position), *rest.parts), JOINED)
        position += 8 + _length(chunk)
    if position != end or not _is_audio(
        file, start=end, size=size, num_bytes_per_second=int.from_bytes(sound_format[16:20], "little")
    ):
        return Parts((Part(start, size),))
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, size - start, size - data, 0, 0)
    header = b"RF64" + _UNKNOWN_SIZE + b"WAVE" + sizes + sound_format + b"data" + _UNKNOWN_SIZE
    return Parts((Part(data, size, header=header),), SIZE_TOO_SMALL)


def _length(chunk: bytes) -> int:
    """The length of the content of a chunk, with the byte that makes it even; 0 for less than a head of a chunk."""
    length = int.from_bytes(chunk[4:8], "little")
    return length + length % 2


def _is_chunk(head: bytes, remaining: int) -> bool:
    """Whether `head` begins a chunk (or a further file) within the `remaining` bytes."""
    is_named = len(head) >= 8 and all(32 <= byte < 127 for byte in head[:4])
    return is_named and (head[:4] == b"RIFF" and head[8:12] == b"WAVE" or _length(head) <= remaining - 7)


def _is_audio(file: BinaryIO, *, start: int, size: int, num_bytes_per_second: int) -> bool:
    """Whether the bytes after the end of a WAV file are more of its audio. A tag, zeros and a few bytes are not."""
    beginning = _read(file, start, _BLOCK)
    return size - start > 0.1 * num_bytes_per_second > 0 and not beginning.startswith(_TAGS) and any(beginning)


# AIFF, RF64, CAF, W64, AU: chunks of other forms, which are checked but not mended


class _ChunkForm(NamedTuple):
    """How the chunks of a container are written, where the first one begins, and what its length counts as well."""

    head: str
    first: int
    counted: int = 0
    even: int = 2


_CHUNKS = {
    b"FORM": _ChunkForm(">4sI", 12),
    b"RIFX": _ChunkForm(">4sI", 12),
    b"RF64": _ChunkForm("<4sI", 12),
    b"caff": _ChunkForm(">4sq", 8, even=1),
    b"riff": _ChunkForm("<4s12xQ", 40, counted=24, even=8),  # W64
}
_AU = {b".snd": ">II", b"dns.": "<II"}


def _check_end(file: BinaryIO, size: int) -> None:
    """Raises ReadError for a file that was cut, and for one with more audio than its header says."""
    end = _end(file)
    if end is None:
        return
    if end > size + 8:
        raise ReadError(f"truncated: {size:,} of {end:,} bytes are left")
    rest = _read(file, end, _BLOCK)
    if size - end > 4096 and any(rest) and not rest.startswith(_TAGS):
        raise ReadError(f"longer than its header says: it ends at byte {end:,} of {size:,}; write the file anew")


def _end(file: BinaryIO) -> int | None:
    """The byte at which a file of _CHUNKS or _AU ends by what its headers say; None where they say nothing."""
    head = _read(file, 0, 36)
    if (order := _AU.get(head[:4])) and len(head) >= 12:
        start, length = struct.unpack(order, head[4:12])
        return start + length if 0 < length < UNKNOWN_LENGTH else None
    if (form := _CHUNKS.get(head[:4])) is None:
        return None
    position, length_of_head = form.first, struct.calcsize(form.head)
    while len(chunk := _read(file, position, length_of_head)) == length_of_head:
        name, length = struct.unpack(form.head, chunk)
        if name in _CHUNKS or not all(32 <= byte < 127 for byte in name):
            break
        if head[:4] == b"RF64" and name == b"data":
            length = int.from_bytes(head[28:36], "little")
        if length < form.counted or form.counted == 0 and name in (b"data", b"SSND") and length in (0, 0xFFFFFFFF):
            return None
        length += length_of_head - form.counted
        position += length + -length % form.even
    return position


# OGG: pages


class _Page(NamedTuple):
    """The header of a page of an OGG file: where the page begins and ends, and what it says of its stream."""

    start: int
    stop: int
    is_first: bool
    is_last: bool
    serial: int
    number: int


def _ogg(file: BinaryIO, start: int, size: int) -> Parts:
    """An OGG file, or several joined ones. Raises ReadError where the last page was cut."""
    places = [start + (size - start) * i // _SAMPLED_PAGES for i in range(_SAMPLED_PAGES)]
    windows = [(place, min(size, place + 2 * _MAX_PAGE)) for place in places]
    sampled = [page for window in windows for page in itertools.islice(_pages(file, *window), 1)]
    pages = list(_pages(file, max(start, size - 2 * _MAX_PAGE), size))
    if sampled and not pages:  # something else follows the stream, e.g. zeros
        pages = list(_pages(file, sampled[-1].start, size))
    if not pages or (last := pages[-1]).stop > size or _begins_a_page(_read(file, last.stop, 5)):
        raise ReadError("truncated: the last page of the OGG stream is cut; fetch the file again")
    note = "" if last.is_last else NO_END
    is_one = _is_rising((page.start, page.number) for page in (*sampled, last))
    if is_one and {page.serial for page in sampled} == {last.serial}:
        return Parts((Part(start, size),), note)
    firsts = [page for page in _pages(file, start, size, pattern=b"OggS\0\2") if page.is_first]
    ends = {page.stop for page in firsts}  # the streams of one recording begin one after the other
    starts = [start, *(page.start for page in firsts[1:] if page.start not in ends)]
    parts = tuple(Part(first, stop) for first, stop in itertools.pairwise((*starts, size)))
    return Parts(parts, JOINED if len(parts) > 1 else note)


def _begins_a_page(rest: bytes) -> bool:
    """Whether the bytes after the last page, up to five of them, are the cut beginning of one more."""
    return bool(rest) and b"OggS\0".startswith(rest)


def _pages(file: BinaryIO, start: int, stop: int, *, pattern: bytes = b"OggS\0") -> Iterator[_Page]:
    """The pages that begin in the bytes start .. stop of a file."""
    for position in _find(file, pattern, start=start, stop=stop):
        head = _read(file, position, 27 + 255)
        flags, serial, number = struct.unpack("<5xB8xII", head[:22].ljust(22, b"\0"))
        length = 27 if len(head) < 27 else 27 + head[26] + sum(head[27 : 27 + head[26]])
        yield _Page(
            position, position + length, is_first=bool(flags & 2), is_last=bool(flags & 4), serial=serial, number=number
        )


# FLAC: frames


class _FlacFrame(NamedTuple):
    """A frame of a FLAC file at a byte, and the samples of its recording from `first` up to `stop` that it holds."""

    position: int
    first: int
    stop: int


def _flac(file: BinaryIO, start: int, size: int) -> Parts:
    """A FLAC file, or several joined ones. A length in the header that is too small is taken out of it."""
    information = _read(file, start, 42)  # "fLaC", the head of the first block, and the STREAMINFO in it
    whole = Parts((Part(start, size),))
    if len(information) < 42:
        return whole
    block_size = int.from_bytes(information[10:12], "big")
    window = 2 * int.from_bytes(information[15:18], "big") or 1 << 16  # twice the largest frame, where it is known
    total = int.from_bytes(information[21:26], "big") & (1 << 36) - 1
    audio = _after_flac_metadata(file, start + 4)
    places = [audio + (size - audio) * i // _SAMPLED_FRAMES for i in range(_SAMPLED_FRAMES)]
    windows = [(place, min(size, place + window)) for place in places] + [(max(audio, size - window), size)]
    frames = sorted({frame for bounds in windows for frame in _flac_frames(file, *bounds, block_size=block_size)})
    is_one = _is_rising((frame.position, frame.first) for frame in frames)
    has_all = not frames or not total or max(frame.stop for frame in frames) <= total
    if is_one and has_all:
        return whole  # a recording without a length is read from the front, and one that was cut is refused there
    firsts = [at for at in _find(file, b"fLaC", start=start, stop=size) if _read(file, at + 4, 4) in _STREAMINFO]
    if len(firsts) > 1:
        return Parts(tuple(Part(*bounds) for bounds in itertools.pairwise((*firsts, size))), JOINED)
    if has_all:
        return whole
    header = information[:21] + bytes([information[21] & 0xF0]) + bytes(4) + information[26:]
    return Parts((Part(start + len(header), size, header=header),), SIZE_TOO_SMALL)


def _after_flac_metadata(file: BinaryIO, position: int) -> int:
    """The position after the blocks of metadata that begin at `position`. RFC 9639, section 8."""
    is_last = False
    while not is_last and len(head := _read(file, position, 4)) == 4:
        is_last = bool(head[0] & 0x80)
        position += 4 + int.from_bytes(head[1:], "big")
    return position


def _flac_frames(file: BinaryIO, start: int, stop: int, *, block_size: int) -> list[_FlacFrame]:
    """The frames that begin in the bytes start .. stop. Frames of fixed size have `block_size` samples.

    Audio may hold the bytes of a frame's head by chance. A frame is where a recording begins, or the samples of another
    frame of these bytes end or go on.
    """
    content = _read(file, start, stop - start)
    frames = []
    for match in re.finditer(rb"\xff[\xf8\xf9]", content):
        samples = _flac_samples(content[match.start() : match.start() + 16].ljust(16, b"\0"), block_size)
        if samples:
            frames.append(_FlacFrame(start + match.start(), *samples))
    firsts, stops = {frame.first for frame in frames}, {0} | {frame.stop for frame in frames}
    return [frame for frame in frames if frame.first in stops or frame.stop in firsts]


def _flac_samples(head: bytes, block_size: int) -> tuple[int, int] | None:
    """(first, stop) of the samples in the frame whose first 16 bytes these are; None where they begin no frame.

    RFC 9639, section 9.1.
    """
    length = max(1, 8 - (head[4] ^ 0xFF).bit_length())  # bytes of the number, coded as UTF-8 codes a character
    number = head[4] & (0x7F if length == 1 else 0xFF >> length + 1)
    is_number = 0x80 > head[4] or 0xC0 <= head[4] < 0xFF
    for byte in head[5 : 4 + length]:
        number, is_number = number << 6 | byte & 0x3F, is_number and byte >> 6 == 2
    size_code, rate_code, position = head[2] >> 4, head[2] & 15, 4 + length
    size_bytes, rate_bytes = {6: 1, 7: 2}.get(size_code, 0), {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    explicit = int.from_bytes(head[position : position + size_bytes], "big") + 1
    position += size_bytes + rate_bytes
    is_reserved = size_code == 0 or rate_code == 15 or head[3] >> 4 > 10 or head[3] >> 1 & 7 == 3 or head[3] & 1
    if is_reserved or not is_number or _crc8(head[:position]) != head[position]:
        return None
    size = explicit if size_bytes else (0, 192, 576, 1152, 2304, 4608, 0, 0, *(256 << n for n in range(8)))[size_code]
    first = number * (1 if head[1] & 1 else block_size)
    return first, first + size


def _crc8(content: bytes) -> int:
    """The CRC of the polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc


# MP3: frames


def _mp3(file: BinaryIO, size: int) -> Parts:
    """An MP3 file, or several joined ones, each with a header of its own (Xing, Info) or a tag before it."""
    tags = sorted(tag for name in (b"Xing", b"Info") for tag in _mp3_tags(file, name, size))
    syncs = _find(file, b"\xff", start=_after_id3(file, 0), stop=size)
    first = next((at for at in syncs if _is_mpeg_frame(_read(file, at, 4))), size)
    starts = [0, *(_before_id3(file, tag.position) for tag in tags if tag.position > first)]
    parts = []
    for start, stop in itertools.pairwise((*starts, size)):
        tag = next((tag for tag in tags if start <= tag.position < stop), _Mp3Tag(start, None, None))
        if tag.num_bytes is None:
            parts.append(Part(start, stop, is_mp3=True, num_mp3_frames=tag.num_frames))
            continue
        if stop - tag.position < 0.99 * tag.num_bytes:
            raise ReadError(f"truncated: {stop - tag.position:,} of {tag.num_bytes:,} bytes of MP3 are left")
        parts.append(Part(start, stop, is_mp3=True))
    return Parts(tuple(parts), JOINED if len(parts) > 1 else "")


class _Mp3Tag(NamedTuple):
    """A tag in an MPEG frame at a byte: how many frames and bytes it says that its recording has (None: not said)."""

    position: int
    num_frames: int | None
    num_bytes: int | None


def _mp3_tags(file: BinaryIO, name: bytes, size: int) -> Iterator[_Mp3Tag]:
    """The tags of this name in the MPEG frames of a file."""
    for at in _find(file, name, start=0, stop=size):
        for side_information in (9, 17, 32):  # bytes between the head of a frame and the tag in it
            position = at - 4 - side_information
            head = _read(file, max(0, position), 4)
            if position >= 0 and _is_mpeg_frame(head) and _side_information(head) == side_information:
                flags, *counts = struct.unpack(">III", _read(file, at + 4, 12).ljust(12, b"\0"))
                if flags < 16:
                    num_frames = counts.pop(0) if flags & 1 else None
                    yield _Mp3Tag(position, num_frames, counts[0] if flags & 2 else None)


def _is_mpeg_frame(head: bytes) -> bool:
    """Whether the bytes begin a frame of MPEG audio, of layer 1, 2 or 3."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer, bit_rate, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and layer != 0 and bit_rate != 15 and rate != 3


def _side_information(head: bytes) -> int:
    """The bytes of side information in a frame of layer 3, by version and channels."""
    is_mpeg1, is_mono = head[1] >> 3 & 3 == 3, head[3] >> 6 == 3
    return (17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17)


def _before_id3(file: BinaryIO, position: int) -> int:
    """The beginning of the ID3v2 tag that ends at `position`; `position` where there is none."""
    first = max(0, position - _BLOCK)
    starts = (at for at in _find(file, b"ID3", start=first, stop=position) if _after_id3(file, at) == position)
    return next(starts, position)
