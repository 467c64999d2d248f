"""Finds the files of many recordings that a root names."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from w2v_jax.core.cli import UserError
from w2v_jax.data.index import Skip, root_entries, roots
from w2v_jax.data.io.listing import folders_below, not_audio
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
        if not path.is_dir():
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


def _no_file(path: str) -> str:
    """Why what is at a path is not opened, "" for a file. Opening a pipe would block for ever."""
    return "" if os.path.isfile(path) else "not a regular file" if os.path.exists(path) else "file does not exist"


def _expanded(pattern: str) -> list[str]:
    """The names that a pattern with {first..last} stands for; itself where there is none."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match or os.path.exists(pattern):
        return [pattern]
    names = []
    for number in range(int(match[1]), int(match[2]) + 1):
        names += _expanded(f"{pattern[: match.start()]}{number:0{len(match[1])}}{pattern[match.end() :]}")
    return names


def named_split(root: str, split: str) -> tuple[str, str]:
    """(path, split) of a root: PATH@SPLIT names a split of its own in place of `split`."""
    if "@" in root and not os.path.exists(root):
        root, _, split = root.rpartition("@")
    return root, split
