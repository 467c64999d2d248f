"""Text that other programs wrote: UTF-8, in lines that end at a newline and nowhere else.

A byte order mark is no text. A file of another kind is named as what it is, with the place and what to do.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any

from w2v_jax.core.cli import UserError, cannot_read
from w2v_jax.core.files import open_binary

GZIP = b"\x1f\x8b"
TO_UTF8 = "save it as UTF-8, e.g. iconv -f {} -t UTF-8 OLD > NEW"
ENCODINGS = (
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32", TO_UTF8.format("UTF-32")),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", TO_UTF8.format("UTF-16")),
)
"""How texts in other encodings begin, what they are, and what to do."""

STAND_INS = (
    (
        rb"(?i:(\xef\xbb\xbf)?\s*<(!--|(!doctype html|html|head|body|script|svg|\?xml|\?php)\b))",
        "an HTML or XML page",
        "download the file itself",
    ),
    (rb"version https://git-lfs\.github\.com/", "a pointer of Git LFS", "fetch the file itself with git lfs pull"),
)
"""How files begin that stand in the place of one that was not downloaded, what they are, and what to do."""

OTHER_KINDS = (
    (rb"\x1f\x8b", "compressed by gzip", "decompress it with gunzip"),
    (rb"BZh[1-9]1AY&SY", "compressed by bzip2", "decompress it with bunzip2"),
    (rb"\xfd7zXZ\0", "compressed by xz", "decompress it with unxz"),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it with unzstd"),
    (rb"PK\x03\x04", "a ZIP archive or an office document", "unpack it, or save it as plain text"),
    (rb"\{\\rtf", "rich text (RTF)", "save it as plain text"),
    (rb"%PDF-", "a PDF", "save it as plain text"),
    (rb"mmap lm http://kheafield", "a KenLM binary", "give the ARPA file that it was made from"),
    *STAND_INS,
)
"""How files begin that are neither text nor audio, what they are, and what to do."""


def kind_of(head: bytes, kinds: tuple[tuple[bytes, str, str], ...] = OTHER_KINDS) -> str:
    """What a file with this beginning is, and what to do: "a PDF; save it as plain text". Empty: none of `kinds`."""
    return next((f"{kind}; {advice}" for pattern, kind, advice in kinds if re.match(pattern, head)), "")


def wrong_content(path: str | os.PathLike, reason: str) -> UserError:
    """The error to raise for a file whose content cannot be used. `reason` follows the path.

    Where the file is empty or one of STAND_INS, that is the reason instead.
    """
    with open(path, "rb") as file:
        head = file.read(256)
    kind = kind_of(head, STAND_INS)
    reason = f"is {kind}" if kind else reason if head else "is empty; download it again"
    return UserError(f"{os.fspath(path)} {reason}")


def numbered_lines(path: str | os.PathLike, what: str = "", *, gzipped: bool = False) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a text. A line ends at a newline, which may follow a carriage return.

    `what` names the file in messages, e.g. "--text FILE"; by default its path does. `gzipped` allows a file compressed
    by gzip, too. Raises UserError with the line where the file cannot be read or is no text in UTF-8.
    """
    what = what or os.fspath(path)
    try:
        with open_binary(path) as raw:
            is_gzip = gzipped and raw.peek(len(GZIP)).startswith(GZIP)
            with io.BufferedReader(gzip.GzipFile(fileobj=raw)) if is_gzip else raw as file:
                _refuse_other_kinds(file.peek(), what)
                for number, line in enumerate(file, 1):
                    yield number, _decoded(line, f"{what}:{number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{what}: cannot be read; the gzip file is damaged or cut short ({error})") from None
    except OSError as error:
        raise cannot_read(what, error) from None


def json_lines(path: str | os.PathLike, *, gzipped: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """("path:line", object) of each line of a JSONL file that is not blank.

    Raises UserError as `numbered_lines` does, and for a line that is no JSON object.
    """
    for number, line in numbered_lines(path, gzipped=gzipped):
        if not line.strip():
            continue
        where = f"{os.fspath(path)}:{number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error})") from None
        if not isinstance(entry, dict):
            raise UserError(f"{where}: needs a JSON object, got {line[:60]!r}")
        yield where, entry


def json_object(text: bytes | str) -> dict[str, Any] | None:
    """The JSON object that a line or a small file holds; None where a kill or another hand left anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_text(path: str | os.PathLike, what: str = "") -> str:
    """The lines of `numbered_lines`, joined by newlines. Raises UserError as it does."""
    return "\n".join(line for _, line in numbered_lines(path, what))


def _refuse_other_kinds(head: bytes, what: str) -> None:
    """Raises UserError where a file that begins so is no text."""
    if kind := kind_of(head, OTHER_KINDS + ENCODINGS):
        raise UserError(f"{what}:1: is {kind}")
    if b"\0" in (line := head.split(b"\n")[0]):  # at once: the first line may be the whole of a large file
        _decoded(line, f"{what}:1")
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise UserError(f"{what}:1: its lines end at carriage returns, as on old Macs; convert them to newlines")


def _decoded(line: bytes, where: str) -> str:
    """The text of a line, without its end and without byte order marks in front, which joined files have inside."""
    if b"\0" in line:
        raise UserError(
            f"{where}: holds a null byte, so that it is no text in UTF-8 but UTF-16 or UTF-32 without a byte order "
            f"mark, or no text at all; if it is text, {TO_UTF8.format('UTF-16')}"
        )
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        before = line[: error.start].decode()[-20:]
        after = f" after {before!r}" if before else ""
        raise UserError(
            f"{where}: is not text in UTF-8 (byte 0x{line[error.start]:02X}{after}); if it is text, "
            f"{TO_UTF8.format('WINDOWS-1252')}"
        ) from None
    return text.removesuffix("\n").removesuffix("\r").lstrip("\ufeff")
