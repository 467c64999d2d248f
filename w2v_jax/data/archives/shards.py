"""Finds the files of many recordings that a root names, and reads what is in them in threads."""

from __future__ import annotations

import itertools
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from w2v_jax.core import stores
from w2v_jax.core.cli import UserError
from w2v_jax.core.files import exists, is_file, is_folder
from w2v_jax.data.index import Skip, root_entries, roots
from w2v_jax.data.io.listing import Candidate, folders_below, not_audio
from w2v_jax.data.kept.listings import FileStates, states_of

BESIDE = ("dataset_info.json", "features.json", "shards.json", "report.json", "report.png", "skipped.jsonl")
"""What `prepare` and TensorFlow Datasets write beside files of recordings. Nobody takes them for recordings."""


class Archive(NamedTuple):
    """A file of many recordings, and its path below the root without the extension."""

    path: str
    name: str


def archives(root: Any, ending: str, skipped: list[Skip], *, what: str, states: FileStates) -> list[Archive]:
    """The files that a root names: a file, all below a folder, or those of a pattern such as `a-{000..127}.tar`.

    `ending` is a regular expression, and `what` tells it to people. Files of a folder with other names join `skipped`.
    Adds the files and folders to `states`. Raises UserError for a file that does not exist or has another name, and
    where there is none.
    """
    found, paths = [], roots([text for entry in root_entries(root) for text in _expanded(entry)])
    for path in paths:
        if not is_folder(path):
            if not re.search(f"{ending}$", path.name):
                raise UserError(f"data.root: {str(path)!r} is no directory, and its name does not end in {what}")
            found.append(Archive(str(path), re.sub(f"{ending}$", "", path.name)))
            continue
        below = folders_below([path], skipped, states)
        for folder, name in ((folder, name) for _, folder, names in below for name in names):
            file = os.path.join(folder, name)
            if re.search(f"{ending}$", name):
                found.append(Archive(file, re.sub(f"{ending}$", "", os.path.relpath(file, path)).replace(os.sep, "/")))
            elif name not in BESIDE:
                skipped.append(Skip(file, not_audio(os.path.splitext(name)[1])))
    if not found:
        raise UserError(f"data.root: {', '.join(map(str, paths))} holds no {what} file")
    states |= states_of(archive.path for archive in found)
    skipped += [Skip(archive.path, reason) for archive in found if (reason := _no_file(archive.path))]
    return [archive for archive in found if not _no_file(archive.path)]


def read_ahead(
    files: Sequence[Archive],
    read: Callable[[Archive, list[Skip]], Iterable[Candidate]],
    skipped: list[Skip],
    *,
    workers: int,
) -> Iterator[Candidate]:
    """The candidates of some files, in their order. Threads (0: one per core) read a few files ahead.

    `read(file, skipped)` gives the candidates of one. What it skips joins `skipped` when the turn of the file comes.
    """

    def whole(file: Archive) -> tuple[list[Candidate], list[Skip]]:
        own: list[Skip] = []
        return list(read(file, own)), own

    remaining, pending = iter(files), deque[Future]()
    count = stores.threads(workers, files[0].path) if files else 1
    pool = ThreadPoolExecutor(count, thread_name_prefix="list")
    try:
        while True:
            pending.extend(pool.submit(whole, file) for file in itertools.islice(remaining, count + 1 - len(pending)))
            if not pending:
                return
            candidates, skips = pending.popleft().result()
            skipped.extend(skips)
            yield from candidates
    finally:
        pool.shutdown(cancel_futures=True)


def _no_file(path: str) -> str:
    """Why what is at a path is not opened, "" for a file. Opening a pipe would block for ever."""
    return "" if is_file(path) else "not a regular file" if exists(path) else "file does not exist"


def _expanded(pattern: str) -> list[str]:
    """The names that a pattern with {first..last} stands for; itself where there is none."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match or exists(pattern):
        return [pattern]
    names = []
    for number in range(int(match[1]), int(match[2]) + 1):
        names += _expanded(f"{pattern[: match.start()]}{number:0{len(match[1])}}{pattern[match.end() :]}")
    return names


def named_split(root: str, split: str) -> tuple[str, str]:
    """(path, split) of a root: PATH@SPLIT names a split of its own in place of `split`."""
    if "@" in root and not exists(root):
        root, _, split = root.rpartition("@")
    return root, split
