"""Listings that are kept: the next start maps an index and opens no file of audio.

    FOLDER/.w2v_jax/NAME.index      the rows, what was skipped, and the state of what decides them (`array_file.py`)
    FOLDER/.w2v_jax/NAME.headers    the lengths of files (`headers.py`), for a listing that is killed or made anew
    FOLDER/.w2v_jax/NAME.stale      of each index that no longer holds, its token
    FOLDER/.w2v_jax/NAME.lock       held while one process lists

FOLDER is the first root, or where the manifest lies; where it cannot be written, or lies in a store, it is
W2V_JAX_CACHE/listings (by default in ~/.cache/w2v_jax), which holds at most CACHE_BYTES. Paths in FOLDER are kept
relative to it, so that it may be moved; not where anything that decides the rows lies elsewhere.

An index is used while all that decides its rows is as it was: size and time of manifests, texts and shards, and of
files that were skipped; times of all folders, which change with the names in them. A folder in a store has no time: it
is listed, and sizes and versions of all in it must be as they were. A file whose content alone has changed is noticed
when it is read (`AudioFiles`), which marks the index as stale, so that the next start lists again, or by the first look
at SAMPLED files. The index stays, because others may have mapped it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from w2v_jax.core.cli import os_error_text, warn
from w2v_jax.core.files import FileState, absolute, append_lines, is_folder, is_same_state, locked_file, state_of
from w2v_jax.core.storage import cache_folder
from w2v_jax.core.stores import is_remote, path_of
from w2v_jax.data.index import COLUMNS, TEXTS, UNKNOWN, Index, Skip, index_of
from w2v_jax.data.io.address import file_of
from w2v_jax.data.kept.array_file import Damaged, read_arrays, write_arrays
from w2v_jax.data.kept.columns import Builder, Placed, Store, Texts
from w2v_jax.data.kept.headers import Headers, Measured

FOLDER = ".w2v_jax"
KEPT_FROM = 1024
"""Recordings from which on a listing is kept. Fewer take a second; in a store they do not, and one is kept."""
CACHE_BYTES = 16 << 30
SAMPLED = 100
"""Files of recordings that are looked at when an index is opened: all of them change where data are copied."""
SETTLED = 2.0
"""Seconds for which what has just changed might change again without another time of change."""
AHEAD = 3600.0
"""Seconds by which the clock of a file system may be ahead. Times beyond were set by hand."""
UNSETTLED = (-2, 0)
"""The state of what cannot be trusted to be the same when its size and time are."""
_PACKAGES = ("soundfile", "av", "pyarrow", "array_record")
_VERSION = 2
"""Of the files, and of what listing decides about the same recordings."""

FileStates = dict[str, FileState]
"""The state of each path that decides the rows of a listing, as it was before the path was read."""


def note_state(path: str | os.PathLike, states: FileStates) -> None:
    """Adds the present state of a path to `states`. To be called before it is read."""
    if os.fspath(path) not in states:
        states[os.fspath(path)] = _settled(os.fspath(path))


def states_of(paths: Iterable[str | os.PathLike]) -> FileStates:
    """The present states of some paths."""
    states: FileStates = {}
    for path in paths:
        note_state(path, states)
    return states


class KeptListing:
    """One listing, of a `kind` of source at some roots, and the place where it is kept.

    kind: the name of the source. roots: the paths that it was given. options: all else that decides the rows.
    """

    def __init__(self, kind: str, roots: Sequence[str | os.PathLike], options: str = ""):
        self._places = places = [str(path_of(root)) for root in roots]
        self.home = places[0] if is_folder(places[0]) else os.path.dirname(places[0]) or "."
        settings = json.dumps([[_relative_path(place, self.home) for place in places], options])
        self.name = f"{kind}-{_digest(settings)}"
        self._cache = cache_folder() / "listings" / _digest(absolute(self.home))
        self.folders = [self._cache] if is_remote(self.home) else [pathlib.Path(self.home) / FOLDER, self._cache]
        self.versions = {"format": _VERSION} | {name: _version(name) for name in _PACKAGES}
        self.index_file: pathlib.Path | None = None
        self._token = ""  # of the index that is used, "" once it was forgotten
        self._mark = _digest(json.dumps(self.versions)).encode()
        self._headers, self.is_begun, self._lock = Headers(mark=self._mark), False, contextlib.ExitStack()
        self._names: set[str] | None = None  # those in `home`, where FOLDER is not there yet

    def open(self, workers: int) -> Index | None:
        """The index that is kept; None where there is none, or one that no longer holds. Says so in one line.

        `workers` threads look at what decides the rows.
        """
        forgotten = self._forgotten()
        for path in (folder / f"{self.name}.index" for folder in self.folders):
            try:
                arrays, about = read_arrays(path)
                if about["versions"] != self.versions:
                    raise _Stale("made with other versions of packages")
                if about["token"] in forgotten:
                    raise _Stale("a recording was read that has changed since")
                if about["relative_to"] not in ("", os.getcwd()):
                    raise _Stale(f"paths in it are relative to {about['relative_to']}")
                if about["home"] not in ("", absolute(self.home)):
                    raise _Stale(f"it is that of {about['home']} and of data elsewhere")
                index = self._index(arrays)
                self._check(index, _from_json(arrays["states"]), workers)
            except FileNotFoundError:
                continue
            except (_Stale, Damaged) as error:
                reason = f"damaged: {error}" if isinstance(error, Damaged) else str(error)
                print(f"{path}: {reason}; listing again", file=sys.stderr, flush=True)
                continue
            except OSError as error:
                print(f"{path}: {os_error_text(error)}; listing again", file=sys.stderr, flush=True)
                continue
            self.index_file, self._token = path, about["token"]
            print(f"{len(index):,} recordings as they were listed in {path}", file=sys.stderr, flush=True)
            return index
        return None

    def _check(self, index: Index, states: Mapping[str, Any], workers: int) -> None:
        """Raises _Stale where what decides the rows is not as it was, or one of SAMPLED files."""
        listed = {_placed(path, self.home): state and tuple(state) for path, state in states.items()}
        for row in np.unique(np.linspace(0, len(index) - 1, SAMPLED, dtype=np.int64)).tolist():
            if (modified := int(index.modified[row])) != UNKNOWN:
                listed.setdefault(file_of(index.paths[row]), (int(index.sizes[row]), modified))
        with ThreadPoolExecutor(workers) as pool:
            for (path, before), now in zip(listed.items(), pool.map(_state, listed), strict=True):
                if before == UNSETTLED:
                    raise _Stale(f"{path} was changing, or could not be read, when it was listed")
                if not is_same_state(before, now):
                    raise _Stale(f"{path} has changed since")

    def _index(self, arrays: Mapping[str, np.ndarray]) -> Index:
        stores: dict[str, Store] = {name: arrays[name] for name in (*COLUMNS, "hashes") if name not in TEXTS}
        stores |= {name: Texts(arrays[name], arrays[f"{name}.ends"]) for name in TEXTS}
        stores["paths"] = Placed(Texts(arrays["paths"], arrays["paths.ends"]), self.home)
        skipped, notes = _from_json(arrays["told"])
        skips = [Skip(_placed(path, self.home), _placed(reason, self.home)) for path, reason in skipped]
        return index_of(stores, skipped=skips, notes=[_placed(note, self.home) for note in notes])

    # Making one

    def start(self, *, reads_headers: bool) -> None:
        """To be called before anything is listed. Reads the headers of earlier listings with the same versions."""
        if not self.folders[0].exists():
            self._names = _names(self.home)
        if reads_headers:
            files = [folder / f"{self.name}.headers" for folder in self.folders]
            self._headers = Headers(next((file for file in files if file.exists()), None), mark=self._mark)

    @property
    def knows_any(self) -> bool:
        """Whether an earlier listing has measured any file."""
        return len(self._headers) > 0

    def find(self, path: str, size: int, modified: int) -> Measured | None:
        """What an earlier listing has measured of a file of this size and time of change."""
        return self._headers.find(_relative(path, self.home), size, modified)

    def add(self, measured: Sequence[Measured]) -> None:
        """Keeps what was measured of some files. From the first time on, other processes keep nothing."""
        if not self.is_begun:
            self.is_begun = True
            self.index_file = self._begin()
        if self.index_file is not None:
            measured = [one._replace(path=_relative(one.path, self.home)) for one in measured]
            try:
                self._headers.add(self.index_file.with_suffix(".headers"), measured)
            except OSError as error:
                self._complain(error)

    def _begin(self) -> pathlib.Path | None:
        """Makes a folder for the files, and locks them. None where that cannot be, or another process has done so."""
        for folder in self.folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not (ignored := folder / ".gitignore").exists():
                    ignored.write_text("*\n")
                lock = folder / f"{self.name}.lock"
                self._lock.enter_context(locked_file(lock, _give_up))
                self._lock.callback(lock.unlink, missing_ok=True)  # while it is held
            except _Taken:
                return None
            except OSError:
                continue
            return folder / f"{self.name}.index"
        return None

    def write(self, index: Index, states: FileStates) -> Index:
        """Keeps an index. Returns it as it is kept; itself where it is small, or cannot be written.

        states: those of all that decides its rows. Where the index is small, removes one of earlier.
        """
        if len(index) < (1 if is_remote(self.home) else KEPT_FROM):
            self.index_file = None
            for folder in self.folders:
                with contextlib.suppress(OSError):
                    (folder / f"{self.name}.index").unlink(missing_ok=True)
            return index
        self.add([])
        if self.index_file is None:
            return index
        if self.home in states and self._names is not None and _names(self.home) == self._names:  # FOLDER came
            states[self.home] = _settled(self.home)
        try:
            self._write(self.index_file, index, states)
            arrays, about = read_arrays(self.index_file)
            kept, size = self._index(arrays), self.index_file.stat().st_size
        except (OSError, Damaged) as error:
            self._complain(error)
            return index
        self._token = about["token"]
        is_cached = self.index_file.parent == self._cache
        limit = f"; that folder holds at most {CACHE_BYTES / 1e9:.0f} GB" if is_cached else ""
        print(f"this listing is kept in {self.index_file} ({size / 1e6:,.1f} MB){limit}", file=sys.stderr, flush=True)
        if is_cached:
            _prune(self.index_file.parent.parent, self.index_file)
        else:
            with contextlib.suppress(OSError):
                self.index_file.with_suffix(".stale").unlink(missing_ok=True)
        return kept

    def close(self) -> None:
        """Lets other processes keep what they list."""
        self._lock.close()

    def _write(self, path: pathlib.Path, index: Index, states: FileStates) -> None:
        arrays: dict[str, np.ndarray] = {"hashes": index.id_hashes()}
        relative_to = ""
        for name in COLUMNS:
            column, builder = getattr(index, name), Builder(is_text=name in TEXTS)
            for block in column.blocks():
                if name == "paths":
                    block = [_relative(path, self.home) for path in block]
                    if not all(path[:1] in ("\0", "/") or is_remote(path) for path in block):
                        relative_to = os.getcwd()
                builder.add(block)
            store = builder.store()
            if isinstance(store, Texts):
                arrays |= {name: store.content, f"{name}.ends": _narrow(store.ends)}
            else:
                arrays[name] = _narrow(np.asarray(store))
        told = [[_relative(text, self.home) for text in skip] for skip in index.skipped]
        arrays["told"] = _to_json([told, [_relative(note, self.home) for note in index.notes]])
        placed = {self._from_home(path): state for path, state in states.items()}
        arrays["states"] = _to_json(placed)
        is_alone = all(place.startswith("\0") for place in (*map(self._from_home, self._places), *placed))
        home = "" if is_alone else absolute(self.home)
        about = {"versions": self.versions, "token": uuid.uuid4().hex, "relative_to": relative_to, "home": home}
        write_arrays(path, arrays, about)

    def _from_home(self, path: str) -> str:
        """A path below the folder `home` with NUL in its place, however it was written; any other one from the root."""
        below = _relative_path(path, self.home)
        if is_remote(below) or below.split(os.sep)[0] == os.pardir:
            return absolute(path)
        return "\0" if below == os.curdir else f"\0{os.sep}{below}"

    def _complain(self, error: Exception) -> None:
        warn(f"{self.index_file}: cannot be kept: {error}")
        self.index_file = None

    def remove_headers(self) -> None:
        """Removes what this listing and earlier ones have measured."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                (folder / f"{self.name}.headers").unlink(missing_ok=True)

    def forget(self) -> None:
        """Marks the index as one that no longer holds, because a file is not what it says."""
        token, self._token = self._token, ""
        for folder in self.folders if token else []:
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                append_lines(folder / f"{self.name}.stale", [token])
                break

    def _forgotten(self) -> set[str]:
        """The tokens of the indexes that no longer hold."""
        tokens: set[str] = set()
        for folder in self.folders:
            with contextlib.suppress(OSError):
                tokens |= set((folder / f"{self.name}.stale").read_text().split())
        return tokens


class _Stale(Exception):
    """An index is intact and holds no longer. The text is the reason."""


class _Taken(Exception):
    """Another process lists the same."""


def _give_up() -> None:
    raise _Taken


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _names(folder: str) -> set[str]:
    """The names in a folder, but for FOLDER."""
    try:
        return set(os.listdir(folder)) - {FOLDER}
    except OSError:
        return set()


def _state(path: str) -> FileState:
    try:
        return state_of(path)
    except OSError:
        return UNSETTLED


def _settled(path: str) -> FileState:
    """The state of a path, UNSETTLED where it may be changing."""
    state = _state(path)
    if is_remote(path):
        return state
    return UNSETTLED if state is not None and -AHEAD < time.time() - state[1] / 1e9 < SETTLED else state


def _relative(text: str, home: str) -> str:
    """A text that may begin with a path in the folder `home`; NUL then stands for that folder."""
    return "\0" + text.removeprefix(home) if text == home or text.startswith(os.path.join(home, "")) else text


def _placed(text: str, home: str) -> str:
    return home + text[1:] if text.startswith("\0") else text


def _relative_path(path: str, home: str) -> str:
    """A path as seen from the folder `home`; one in a store, that is not below it, as it is."""
    if not is_remote(path) and not is_remote(home):
        return os.path.relpath(path, home)
    return os.curdir if path == home else path.removeprefix(f"{home}/")


def _narrow(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers in 32 bits where they fit."""
    return numbers.astype(np.int32) if np.abs(numbers).max(initial=0) < 1 << 31 else numbers


def _to_json(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _from_json(content: np.ndarray) -> Any:
    return json.loads(content.tobytes())


def _prune(folder: pathlib.Path, newest: pathlib.Path) -> None:
    """Removes the oldest files of the cache beyond CACHE_BYTES."""
    with contextlib.suppress(OSError):
        files = {file: file.stat() for file in folder.glob("*/*") if file.suffix in (".index", ".headers")}
        excess = sum(status.st_size for status in files.values()) - CACHE_BYTES
        for file in sorted(files, key=lambda file: files[file].st_mtime):
            if excess > 0 and file.with_suffix(".index") != newest:
                file.unlink()
                excess -= files[file].st_size
