"""A store in memory, poor://, whose requests are counted, are slow, and fail now and then."""

from __future__ import annotations

import os
import time

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Poor(MemoryFileSystem):
    """The first of `every` requests for an object fails with `error`, and each takes `seconds`.

    requests: (kind, path, bytes) of each.
    """

    protocol = "poor"
    every, seconds = 0, 0.0
    error: Exception = ConnectionError("reset by peer")
    requests: list[tuple[str, str, int]] = []
    asked: dict[str, int] = {}

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).replace("poor://", "memory://"))

    def _asked(self, kind, path, size=0):
        Poor.requests.append((kind, path, size))
        time.sleep(Poor.seconds)
        Poor.asked[path] = Poor.asked.get(path, -1) + 1
        if Poor.every and Poor.asked[path] % Poor.every == 0:
            raise Poor.error

    def info(self, path, **named):
        self._asked("info", path)
        return super().info(path, **named)

    def find(self, path, *rest, **named):
        self._asked("find", path)
        info = super().info
        found = super().find(path, *rest, **{**named, "detail": False})
        return {name: info(name) for name in found}

    def cat_file(self, path, start=None, end=None, **named):
        content = super().cat_file(path, start=start, end=end, **named)
        self._asked("cat", path, len(content))
        return content


fsspec.register_implementation("poor", Poor, clobber=True)


def reset() -> None:
    """An empty store that answers at once and always."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    Poor.every, Poor.seconds, Poor.error, Poor.requests = 0, 0.0, ConnectionError("reset by peer"), []
    Poor.asked = {}


def upload(folder, url: str) -> None:
    """Puts the files below a folder into the store."""
    fs, path = fsspec.url_to_fs(url)
    for above, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(above, name)
            with open(file, "rb") as opened:
                fs.pipe_file(f"{path}/{os.path.relpath(file, folder)}", opened.read())


def read_bytes(kind: str = "cat") -> int:
    """The bytes of all requests of a kind so far."""
    return sum(size for each, _, size in Poor.requests if each == kind)
