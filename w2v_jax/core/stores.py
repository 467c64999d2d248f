"""Objects in stores: gs://, s3:// and whatever fsspec opens. A URL stands where a path of a disk may stand.

`connect` gives the client of a store, and `tried` asks it again where it fails. `listed` finds all beneath a folder by
one listing. `open_object` reads a part of an object where it lies; what was read last stays in memory, up to a limit.
Nothing lies on the disk. fsspec is imported with the first URL.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import pathlib
import random
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from w2v_jax.core.cli import UserError, expand_home, is_url

T = TypeVar("T")
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
"""The extra that installs the client of a scheme."""
TRIES, FIRST_WAIT = 6, 1.0
"""A request is tried so often; each wait is twice the one before: half a minute in all."""
CONNECT, SILENCE = 30.0, 120.0
"""Seconds without a connection, or without a byte, after which a request has failed."""
BLOCK = 32 << 10
"""Bytes that are kept, or dropped, together."""
SMALL = 128 << 10
"""Bytes up to which an object is read whole even for its header: that is one request in place of several."""
WHOLE = 4 << 20
"""Bytes up to which a recording is read whole."""
CROP = 256 << 10
"""Bytes of a longer recording that are read at once."""
ARCHIVE = 4 << 20
"""Bytes of a file of many recordings that are read at once where all of it is looked through."""
MAX_AHEAD = 8 << 20
"""Bytes up to which the reads of somebody who goes on and on grow."""
MEMORY = "W2V_JAX_STORE_MEMORY"
"""The variable of the environment that says how many MB of what was read last stay in memory."""
DEFAULT_MEMORY, LEAST_MEMORY = 256, 16
THREADS = 32
"""Threads that read from a store where the person chose no number: they wait for it most of the time."""
STATES_KEPT = 1 << 16

State = tuple[int, int] | tuple[int, int, int, int] | None
"""(bytes, a number that changes with the version) of an object; (-1, the same of all beneath, 0, 0) of a folder."""

_EXPIRED = re.compile(r"expired|expiredtoken|refresherror|invalid[_ ]grant|unauthorized|\b401\b", re.I)
_RENEW = "A credential has expired: renew it (gcloud auth application-default login, aws sso login, ...)"


class StoreError(UserError):
    """A store that does not answer, or refuses, after all tries."""


class Folder(NamedTuple):
    """A folder, or an object, of a store: its URL, fsspec's file system and the path there."""

    url: str
    fs: Any
    path: str

    def at(self, name: str) -> str:
        return f"{self.path}/{name}"


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is the URL of a store."""
    return is_url(os.fspath(path))


def connect(url: str) -> Folder:
    """The folder at a URL; nothing is read yet. Raises UserError for an unknown scheme and without its client."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        fs, path = fsspec.url_to_fs(url.rstrip("/"), use_listings_cache=False, **_timeout(scheme))
    except ImportError as error:
        hint = f'pip install "w2v-jax[{EXTRAS[scheme]}]"' if scheme in EXTRAS else str(error)
        raise UserError(f"{url}: the client of {scheme}:// is not installed: {hint}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}") from None
    return Folder(url.rstrip("/"), fs, path.rstrip("/"))


def _timeout(scheme: str) -> dict[str, Any]:
    """The setting of gcsfs, which would wait for ever for a server that is silent; other clients have limits."""
    if EXTRAS.get(scheme) != "gcs":
        return {}
    import aiohttp

    return {"requests_timeout": aiohttp.ClientTimeout(sock_connect=CONNECT, sock_read=SILENCE)}


def tried(what: str, do: Callable[[], T]) -> T:
    """The result of `do`, which is tried again after a while where the store fails.

    An object that is missing, a folder that is forbidden and a request that makes no sense are raised at once. Raises
    StoreError after the last try.
    """
    wait = FIRST_WAIT
    for attempt in range(1, TRIES + 1):
        try:
            return do()
        except (FileNotFoundError, FileExistsError, IsADirectoryError, NotImplementedError):
            raise
        except PermissionError as error:
            advice = f"Are the credentials right, and still valid? {_advice(error)}".rstrip()
            raise StoreError(f"{what}: the store refuses ({error}). {advice}") from None
        except Exception as error:
            if attempt == TRIES:
                failure = f"failed {TRIES} times, at last by {type(error).__name__}: {error}"
                raise StoreError(f"{what}: {failure}. {_advice(error) or 'Is the store within reach?'}") from None
        time.sleep(wait * random.uniform(0.75, 1.25))  # many hosts must not come back together
        wait *= 2
    raise AssertionError("the last try returns or raises")


def _advice(error: Exception) -> str:
    """What to do about a credential that has expired; "" for other errors."""
    is_expired = _EXPIRED.search(f"{type(error).__name__}: {error}")
    return f"{_RENEW}, and give the same command again" if is_expired else ""


# Paths


class StorePath(pathlib.PosixPath):
    """The URL of a folder or an object as a path: `/`, `name`, `parent`, `with_suffix`, `is_file` and the like."""

    def __str__(self) -> str:
        return re.sub(r"((?:^|::)\w[\w+.-]*:)/", r"\1//", super().__str__())

    def __fspath__(self) -> str:
        return str(self)

    def exists(self, **_: Any) -> bool:
        return is_anything(str(self))

    def is_dir(self, **_: Any) -> bool:
        return is_prefix(str(self))

    def is_file(self, **_: Any) -> bool:
        return is_object(str(self))

    def glob(self, pattern: str, **_: Any) -> Any:
        """The objects and folders in this folder, or further below, whose relative path matches."""
        inside = listed(str(self))
        names = [name for name in (*inside.objects, *inside.folders) if name]
        return (self / name for name in names if pathlib.PurePosixPath(name).match(pattern) and _deep(name, pattern))


def _deep(name: str, pattern: str) -> bool:
    return "**" in pattern or name.count("/") == pattern.count("/")


def path_of(text: str | os.PathLike) -> pathlib.Path:
    """A path on a disk or in a store. file:///FOLDER is the disk's."""
    text = os.fspath(text)
    if text.startswith("file:///"):
        return pathlib.Path(text.removeprefix("file://"))
    return StorePath(text) if is_remote(text) else pathlib.Path(text)


def place_argument(text: str | os.PathLike) -> pathlib.Path:
    """A path of a disk or a store as a person names it. Raises UserError as `expand_home` does."""
    return path_of(expand_home(text))


def joined_path(folder: str | os.PathLike, name: str) -> str:
    """A path in a list of files, as text: one from the root or of a store as it is, any other below `folder`."""
    name = os.path.expanduser(name)
    if is_remote(name):
        return str(path_of(name))
    return os.path.join(folder, name)


# What there is


class Listed:
    """All beneath a folder of a store: the state of each object by its relative name, and what is in each folder.

    folders: the names of the folders and of the objects directly in each folder, by its relative name ("": the root).
    """

    def __init__(self, objects: Mapping[str, tuple[int, int]]):
        self.objects = objects
        self.folders: dict[str, tuple[set[str], list[str]]] = {"": (set(), [])}
        digest = hashlib.blake2b(digest_size=8)
        for name, state in sorted(objects.items()):
            digest.update(f"{name}\n{state}\n".encode(errors="surrogatepass"))
            folder, _, last = name.rpartition("/")
            if folder not in self.folders:
                self._add(folder)
            self.folders[folder][1].append(last)
        self.state: State = (-1, _number(digest.digest()), 0, 0)

    def _add(self, folder: str) -> None:
        above, _, last = folder.rpartition("/")
        if above not in self.folders:
            self._add(above)
        self.folders[folder] = (set(), [])
        self.folders[above][0].add(last)


def _number(digest: bytes) -> int:
    """A whole number of 63 bits."""
    return int.from_bytes(digest, "little") >> 1


def version_of(info: Mapping[str, Any]) -> str:
    """Size, and the first of what stores call the version of an object."""
    names = ("etag", "ETag", "generation", "md5Hash", "mtime", "LastModified", "updated", "created")
    return f"{info['size']} {next((str(info[name]) for name in names if info.get(name)), '')}"


def _state(version: str) -> tuple[int, int]:
    return int(version.split()[0]), _number(hashlib.blake2b(version.encode(), digest_size=8).digest())


def _found(folder: Folder) -> dict[str, str]:
    """Each object beneath a folder, by its name relative to it, with its `version_of`. Raises FileNotFoundError."""

    def find() -> Mapping[str, Mapping[str, Any]]:
        folder.fs.invalidate_cache()
        return folder.fs.find(folder.path, detail=True)

    found = tried(f"{folder.url}: listing", find)
    prefix = folder.path.lstrip("/") + "/"
    return {path.lstrip("/")[len(prefix) :]: version_of(info) for path, info in found.items() if info["type"] == "file"}


def listing(folder: Folder) -> dict[str, str]:
    """Each file beneath a folder, by its name relative to it, with what changes when it changes: size and version."""
    try:
        names = _found(folder)
    except FileNotFoundError:
        return {}
    for name in names:
        if name.startswith("/") or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise UserError(f"{folder.url}: the object {name!r} has no name that a file can have; remove or rename it")
    return names


_lists: dict[str, Listed] = {}


def listed(url: str) -> Listed:
    """All beneath a folder, by one listing, which counts until `forget_listings`. Raises StoreError."""
    url = url.rstrip("/")
    if url not in _lists:
        try:
            names = _found(connect(url))
        except FileNotFoundError:
            names = {}
        _lists[url] = Listed({name: _state(version) for name, version in names.items() if name[-1:] not in ("", "/")})
    return _lists[url]


def forget_listings() -> None:
    """Whoever asks next what there is asks the store."""
    _lists.clear()
    _known.cache_clear()


def listed_state(url: str) -> State:
    """The state of an object or a folder; None where there is none. Earlier listings count until `forget_listings`."""
    url = url.rstrip("/")
    for root, found in _lists.items():
        if url == root:
            return found.state
        if url.startswith(f"{root}/"):
            name = url[len(root) + 1 :]
            return (-1, 0, 0, 0) if name in found.folders else found.objects.get(name)
    state = _known(url)
    return listed(url).state if _is_folder(state) else state


def present_state(url: str) -> State:
    """The state of an object or folder by a request of its own: that of a folder says nothing of what is in it."""
    folder = connect(url)
    try:
        info = tried(url, lambda: folder.fs.info(folder.path))
    except FileNotFoundError:
        return None
    return (-1, 0, 0, 0) if info["type"] == "directory" else _state(version_of(info))


@functools.lru_cache(STATES_KEPT)
def _known(url: str) -> State:
    return present_state(url)


def _is_folder(state: State) -> bool:
    return state is not None and state[0] < 0


def is_anything(url: str) -> bool:
    """Whether there is such an object or folder."""
    return is_object(url) or is_prefix(url)


def is_prefix(url: str) -> bool:
    """Whether objects lie beneath a URL."""
    url = url.rstrip("/")
    return url in _lists or _is_folder(_state_alone(url))


def is_object(url: str) -> bool:
    """Whether there is such an object."""
    state = _state_alone(url.rstrip("/"))
    return state is not None and not _is_folder(state)


def _state_alone(url: str) -> State:
    """`listed_state` without a listing of a folder."""
    known = any(url == root or url.startswith(f"{root}/") for root in _lists)
    return listed_state(url) if known else _known(url)


# What is in an object


def memory_limit() -> int:
    """The bytes of objects that stay in memory. Raises UserError."""
    text = os.environ.get(MEMORY) or str(DEFAULT_MEMORY)
    if not text.isdecimal() or int(text) < LEAST_MEMORY:
        raise UserError(f"{MEMORY}={text!r}: needs a whole number of MB, at least {LEAST_MEMORY}")
    return int(text) << 20


class _Blocks:
    """The blocks that were read last, by object and number."""

    def __init__(self) -> None:
        self._lock, self._blocks, self._size = threading.Lock(), OrderedDict[tuple, bytes](), 0

    def get(self, key: tuple) -> bytes | None:
        with self._lock:
            if (block := self._blocks.get(key)) is not None:
                self._blocks.move_to_end(key)
            return block

    def put(self, key: tuple, block: bytes, limit: int) -> None:
        with self._lock:
            self._size += len(block) - len(self._blocks.pop(key, b""))
            self._blocks[key] = block
            while self._size > limit and self._blocks:
                self._size -= len(self._blocks.popitem(last=False)[1])


_blocks = _Blocks()


class StoreFile(io.RawIOBase):
    """An object as a file that is open for reading. Each read returns all that was asked for, or up to the end.

    key: URL, size and version; files of one key are equal. ahead: bytes that are read at once at least; twice as many,
    and so on, for somebody who goes on where the last request ended. Raises StoreError, and OSError where the object
    has become shorter.
    """

    def __init__(self, key: tuple[str, int, int], ahead: int):
        self.key, self.size = key, key[1]
        self._least = self._ahead = ahead
        self._position, self._end = 0, -1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoreFile) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if position < 0:
            raise OSError("a seek before the beginning of the file")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        view, start = memoryview(buffer).cast("B"), self._position
        stop = min(self.size, start + len(view))
        if stop <= start:
            return 0
        first = start // BLOCK
        content = b"".join(self._read(first, -(-stop // BLOCK)))
        view[: stop - start] = content[start - first * BLOCK : stop - first * BLOCK]
        self._position = stop
        return stop - start

    def _read(self, first: int, last: int) -> list[bytes]:
        """The blocks first .. last, without the last one. Those that are missing are read by one request."""
        found = [_blocks.get((*self.key, number)) for number in range(first, last)]
        missing = [first + i for i, block in enumerate(found) if block is None]
        if missing:
            self._ahead = min(2 * self._ahead, MAX_AHEAD) if missing[0] == self._end else self._least
            self._end = max(missing[-1] + 1, missing[0] + -(-self._ahead // BLOCK))
            content = self._request(missing[0] * BLOCK, min(self._end * BLOCK, self.size))
            limit = memory_limit()
            for number in range(missing[0], self._end):
                at = (number - missing[0]) * BLOCK
                if at >= len(content):
                    break
                block = content[at : at + BLOCK]
                _blocks.put((*self.key, number), block, limit)
                if number < last:
                    found[number - first] = block
        return [block or b"" for block in found]

    def _request(self, start: int, stop: int) -> bytes:
        folder = connect(self.key[0])
        content = tried(folder.url, lambda: folder.fs.cat_file(folder.path, start=start, end=stop))
        if len(content) != stop - start:
            raise OSError(f"the object has ended at byte {start + len(content):,} of {self.size:,}")
        return content


def open_object(url: str, state: State = None, *, ahead: int = BLOCK) -> StoreFile:
    """An object, open for reading. state: that of its listing, where it is known. Raises OSError and StoreError."""
    state = state or listed_state(url)
    if state is None or _is_folder(state):
        code = errno.ENOENT if state is None else errno.EISDIR
        raise OSError(code, os.strerror(code), url)
    size = state[0]
    return StoreFile((url, size, state[1]), size if size <= SMALL else ahead)


def open_recording(url: str, state: State = None) -> StoreFile:
    """`open_object` of a recording that is decoded: whole, or where it is long some of it at once."""
    file = open_object(url, state)
    return StoreFile(file.key, file.size if file.size <= WHOLE else CROP)


def note_reading(paths: Iterable[str | os.PathLike]) -> None:
    """Tells, once in a process, how recordings of a store are read, if one of the paths lies in one."""
    remote = next((path for path in paths if is_remote(path)), None)
    if remote is not None:
        _tell(memory_limit())


@functools.lru_cache(1)
def _tell(size: int) -> None:
    how = "recordings are read where they lie, and nothing of them is kept on the disk"
    limit = f"up to {size >> 20:,} MB of what was read last stay in memory ({MEMORY}=MB)"
    print(f"object store: {how}; {limit}", file=sys.stderr, flush=True)


def threads(workers: int, path: str) -> int:
    """The threads that read recordings, one of which is at `path`: `workers` or, where that is 0, one for each core."""
    return workers or max(os.cpu_count() or 1, THREADS if is_remote(path) else 0)
