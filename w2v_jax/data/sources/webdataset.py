"""WebDataset: tar files ("shards") in which the files of a sample follow one another and share a key.

    shard-000000.tar: a/utt1.flac a/utt1.txt a/utt1.json a/utt2.flac ...

The key is the path up to the first dot of the file's name, and the id of the row. Audio has an extension of `folder`.
`.txt` holds the transcript. `.json` holds an object of texts, with keys of `archives/texts.py` such as `text` and
`speaker`. `data.root` names shards, folders of them, or patterns such as `shard-{000000..000127}.tar`. Listing reads
the headers of each tar file; a read then takes the bytes of one recording. Shards that are compressed are refused: in
them nobody can seek.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

from w2v_jax.core.cli import os_error_text
from w2v_jax.core.files import open_binary
from w2v_jax.core.stores import ARCHIVE
from w2v_jax.core.text import kind_of
from w2v_jax.data.archives.shards import Archive, archives, read_ahead
from w2v_jax.data.archives.texts import as_text, role_names
from w2v_jax.data.index import Skip, root_entries
from w2v_jax.data.io.address import in_file
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.io.listing import SURROGATES, Candidate, list_parts
from w2v_jax.data.kept.listings import FileStates
from w2v_jax.data.sources.folder import EXTENSIONS, MAC

ENDING = r"\.(tar|tar\.\w+|tgz)"
BLOCK = 512
"""Bytes of a header. A tar file ends with two of zeros."""


class ShardFile(NamedTuple):
    """A file in a shard: its name, and its bytes start .. start + size there."""

    name: str
    start: int
    size: int

    @property
    def key(self) -> str:
        folder, name = os.path.split(self.name.removeprefix("./"))
        return os.path.join(folder, name.split(".")[0])

    @property
    def extension(self) -> str:
        return os.path.splitext(self.name)[1].lower()


def make(data, root) -> AudioFiles:
    """The source of the shards that `root` names. Uses data.min_seconds and data.workers. Raises UserError."""
    skipped: list[Skip] = []
    states: FileStates = {}
    shards = archives(root, ENDING, skipped, what=".tar", states=states)
    parts = [read_ahead(shards, _candidates, skipped, workers=data.workers)]
    return list_parts(data, parts, kind="webdataset", where=root_entries(root), skipped=skipped, states=states)


def _candidates(shard: Archive, skipped: list[Skip]) -> Iterator[Candidate]:
    path = shard.path
    try:
        with open_binary(path, ahead=ARCHIVE) as file:
            for key, members in itertools.groupby(_members(path, file, skipped), key=lambda member: member.key):
                yield from _sample(path, file, key=key, members=list(members), skipped=skipped)
    except OSError as error:
        skipped.append(Skip(path, f"unreadable file: {os_error_text(error)}"))


def _sample(
    path: str, file: BinaryIO, *, key: str, members: list[ShardFile], skipped: list[Skip]
) -> Iterator[Candidate]:
    """The recordings among the members of a key."""
    texts: dict[str, str] = {}
    for member in members:
        if member.extension in (".txt", ".json"):
            try:
                texts |= _texts(file, member)
            except (ValueError, RecursionError) as error:
                skipped.append(Skip(_place(path, member.name), f"unreadable transcripts: {error}"))
    recordings = [member for member in members if member.extension in EXTENSIONS]
    for member in recordings:
        address = in_file(path, member.start, member.size, name=member.name)
        yield Candidate(key, address, speaker=texts.get("speaker", ""), transcript=texts.get("transcript", ""))
    if not recordings:
        names = ", ".join(os.path.basename(member.name) for member in members)
        skipped.append(Skip(_place(path, key), f"sample without audio: it has {names}"))


def _texts(file: BinaryIO, member: ShardFile) -> dict[str, str]:
    """The texts in a member by role. Raises ValueError."""
    file.seek(member.start)
    content = file.read(member.size)
    if len(content) < member.size:
        raise ValueError("the shard ends within it")
    text = content.decode("utf-8-sig")
    if member.extension == ".txt":
        return {"transcript": text.strip()}
    entry = json.loads(text)
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    names = role_names(name for name in entry if isinstance(entry[name], (str, int, float, list)))
    return {role: as_text(entry[name]).strip() for role, name in names.items() if role != "id"}


def _members(path: str, file: BinaryIO, skipped: list[Skip]) -> Iterator[ShardFile]:
    """The files of a shard, in their order. What is lost of it joins `skipped`."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    kind = kind_of(file.read(BLOCK))
    if kind or not size:
        skipped.append(Skip(path, f"not a tar file: {kind}" if kind else "empty file"))
        return
    file.seek(0)
    last = "its beginning"
    try:
        with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                cast(Any, tar).members.clear()  # which would grow with the shard
                last = info.name.encode(errors="surrogateescape").decode(errors="replace")
                if info.size < 0:  # after which tarfile would go backwards
                    raise ValueError(f"an entry of {info.size} bytes")
                if reason := _reason(info):
                    skipped.append(Skip(_place(path, last), reason))
                elif not info.isdir():
                    yield ShardFile(info.name, info.offset_data, info.size)
            end = tar.offset
    except (tarfile.TarError, ValueError) as error:
        skipped.append(Skip(path, f"damaged shard: {error} after {last}; what follows is lost"))
        return
    file.seek(end)
    if not end:
        skipped.append(Skip(path, "empty file"))
    elif end >= size:
        skipped.append(Skip(path, f"damaged shard: no end mark after {last}; what may have followed is lost"))
    elif file.read(BLOCK).strip(b"\0"):
        skipped.append(Skip(path, f"damaged shard: no header at byte {end:,}, after {last}; what follows is lost"))


def _reason(info: tarfile.TarInfo) -> str:
    """Why an entry of a shard is left out, "" where it is not."""
    if re.search(SURROGATES, info.name):
        return "file name is not UTF-8"
    if os.path.basename(info.name).startswith(MAC):
        return "Mac resource file"
    if not info.isdir() and (not info.isreg() or info.issparse()):
        return "a link, device or sparse file, not a file of its own"
    return ""


def _place(path: str, name: str) -> str:
    return f"{path}#{name}"
