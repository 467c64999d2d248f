"""Laws of the reader of text: a line ends at a newline only, a byte order mark is no text, other files are named."""

import bz2
import codecs
import gzip
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2v_jax.core.cli import UserError
from w2v_jax.core.text import json_lines, json_object, numbered_lines, read_text, wrong_content

LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0\ufeff")), min_size=1)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("text") / "text.txt"


@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_every_line_comes_back_as_it_was_written(file, lines, end, has_mark, has_last_end):
    lines = ["first", *lines, "last"]
    file.write_bytes(("\ufeff" * has_mark + end.join(lines) + end * has_last_end).encode())
    assert list(numbered_lines(file)) == list(enumerate(lines, 1))
    assert read_text(file) == "\n".join(lines)
    file.write_bytes(gzip.compress(file.read_bytes()))
    assert list(numbered_lines(file, gzipped=True)) == list(enumerate(lines, 1))


def test_a_line_ends_at_a_newline_only(file):
    separators = "\u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e"
    file.write_text(f"one {separators}\ntwo\n\nfour", encoding="utf-8")
    assert list(numbered_lines(file)) == [(1, f"one {separators}"), (2, "two"), (3, ""), (4, "four")]
    file.write_bytes(b"one\rhalf\r\ntwo\r")
    assert [line for _, line in numbered_lines(file)] == ["one\rhalf", "two"]
    file.write_bytes(b"")
    assert list(numbered_lines(file)) == [] and read_text(file) == ""


def test_byte_order_marks_in_front_of_lines_are_no_text(file):
    """Also the second one that some editors write, and those that `cat` leaves inside of joined files."""
    file.write_text("\ufeff\ufeffone\n\ufefftwo", encoding="utf-8")
    assert [line for _, line in numbered_lines(file)] == ["one", "two"]
    assert read_text(file) == "one\ntwo"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"one\ntwo\n", mtime=0), "compressed by gzip.*gunzip"),  # the same name in every process
        (bz2.compress(b"one\n"), "compressed by bzip2"),
        (lzma.compress(b"one\n"), "compressed by xz"),
        (b"\x28\xb5\x2f\xfd\x04", "compressed by zstd"),
        (b"PK\x03\x04\x14", "ZIP archive"),
        ("one\n".encode("utf-16"), "is UTF-16.*iconv -f UTF-16 "),
        (codecs.BOM_UTF16_BE + "one\n".encode("utf-16-be"), "is UTF-16"),
        ("one\n".encode("utf-32"), "is UTF-32.*iconv -f UTF-32 "),
        (codecs.BOM_UTF32_BE + "one\n".encode("utf-32-be"), "is UTF-32"),
        ("one\ntwo\n".encode("utf-16-le"), "text.txt:1: holds a null byte.*UTF-16"),
        ("один\n".encode("utf-32-be"), "text.txt:1: holds a null byte.*UTF-16 or UTF-32"),
        (b"one\ntwo\nth\0ree\n", "text.txt:3: holds a null byte"),
        (bytes(100_000), "text.txt:1: holds a null byte"),
        ("one\nune caf\u00e9\n".encode("cp1252"), "text.txt:2: is not text in UTF-8 .byte 0xE9 after 'une caf'"),
        ("один\n".encode("koi8-r"), "text.txt:1: is not text in UTF-8"),
        ("one\nдва".encode()[:-1], "text.txt:2: is not text in UTF-8"),
        (b"one\rtwo\rthree", "carriage returns, as on old Macs"),
        (b"{\\rtf1\\ansi one}\n", "rich text"),
        (b"%PDF-1.4\n", "a PDF"),
        (b"\n<!DOCTYPE html>\n<html></html>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS.*git lfs pull"),
        (b"mmap lm http://kheafield.com/code format version 5\n\0", "KenLM binary.*ARPA"),
    ],
)
def test_a_file_that_is_no_text_is_named_as_what_it_is(file, content, message):
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(numbered_lines(file))
    assert str(caught.value).startswith(str(file))
    with pytest.raises(UserError, match=message):
        read_text(file)
    with pytest.raises(UserError, match="^--text it:[0-9]+: "):
        read_text(file, "--text it")


def test_files_that_cannot_be_read_are_named(file, tmp_path):
    with pytest.raises(UserError, match="none.txt: cannot be read"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path)
    file.write_bytes(gzip.compress(b"one\n" * 99)[:-9])
    with pytest.raises(UserError, match="cannot be read; the gzip file is damaged or cut short"):
        list(numbered_lines(file, gzipped=True))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n", "is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "is an HTML or XML page"),
        (b"<html lang='en'>", "is an HTML or XML page"),
        (b"", "is empty; download it again"),
        (b"anything else", "is damaged"),
    ],
)
def test_what_stands_in_place_of_a_download_is_named(tmp_path, content, words):
    (tmp_path / "x").write_bytes(content)
    assert str(wrong_content(tmp_path / "x", "is damaged")).startswith(f"{tmp_path / 'x'} {words}")


def test_lines_of_json_are_objects_with_their_places(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"b": 2}\n')
    assert list(json_lines(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"b": 2})]
    for line, words in (("{", "not JSON"), ("[1]", r"needs a JSON object, got '\[1\]'")):
        path.write_text(f'{{"a": 1}}\n{line}\n')
        with pytest.raises(UserError, match=rf"a.jsonl:2: {words}"):
            list(json_lines(path))


def test_what_is_no_json_object_is_none():
    assert json_object(b'{"a": 1}\n') == {"a": 1}
    assert [json_object(text) for text in (b"", b"{", b"[1]", b"1", b"null", b"\xff")] == [None] * 6
