"""Folders in object stores: gs://, s3:// and whatever fsspec opens.

A command works on a local copy: what it reads is fetched before, what it writes is sent afterwards, and the folder of a
training is sent while it runs. Objects appear whole, and a checkpoint counts once its seal has been sent, so that
nothing half-written is ever read.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from w2v_jax.core.cli import UserError, cannot_write, duration, warn
from w2v_jax.core.environment import home
from w2v_jax.core.files import locked_file, whole_file, write_whole
from w2v_jax.core.stores import (
    TRIES,
    Folder,
    StoreError,
    connect,
    is_remote,
    listing,
    place_argument,
    tried,
    version_of,
)
from w2v_jax.core.text import json_object

EVERY = 60.0
"""Seconds between two sendings of a folder that is being written."""
LEASE = 120.0
"""Seconds without a sign of life after which the lock of another machine has no owner any more."""
SETTLE = 2.0
"""Seconds after which all who took the same lock at once have written, the last of whom holds it."""
GIVE_UP = 1800.0
"""Seconds of failed sendings after which a training stops."""
_in_use: set[str] = set()
"""The URLs that this process has fetched, whose copies stay."""
READ_BYTES = 50 * 10**9
"""What copies that were fetched to be read may take: runs, features, units and files."""
WHOLE = 64 << 20
"""Files up to so many bytes are sent from memory, so that a line that is added meanwhile does no harm."""
MARK, LOCK, SENT, FETCHED = ".run.json", ".lock", ".sent.json", ".fetched.json"
UNSENT = (LOCK, SENT, FETCHED, "compile_cache")
"""Names in a folder that stay on this machine."""


class Seals(NamedTuple):
    """The sub-folders of `folder` are whole once they hold the file `name`."""

    folder: str
    name: str

    def unit(self, name: str) -> str | None:
        """The sub-folder that a file belongs to: "checkpoints/100" of "checkpoints/100/state/a"; None for others."""
        parts = name.split("/")
        return "/".join(parts[:2]) if len(parts) > 2 and parts[0] == self.folder else None


UNSEALED = Seals("", "")
"""Of folders whose files are whole each by itself."""


def cache_folder() -> pathlib.Path:
    """Where local copies lie: the environment's W2V_JAX_CACHE, else ~/.cache/w2v_jax."""
    given = os.environ.get("W2V_JAX_CACHE")
    return (pathlib.Path(given).expanduser() if given else pathlib.Path(home(), ".cache", "w2v_jax")).absolute()


def local_copy(url: str, kind: str) -> pathlib.Path:
    """The folder of the cache for a URL.

    kind: "read" or "shards", which `make_room` removes, "runs" that go on, which reading leaves alone, "runs-N" of
    process N of several, or "out".
    """
    url = url.rstrip("/")
    return cache_folder() / kind / f"{url.rsplit('/', 1)[-1]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


# Reading


def fetched(url: str, seals: Seals = UNSEALED, kind: str = "read") -> pathlib.Path:
    """A local folder, or file, with what lies at the URL now. What has been fetched before is not fetched again.

    Sub-folders without their seal are left out. kind: that of `local_copy`. Raises UserError where nothing lies at the
    URL.
    """
    folder, local = connect(url), local_copy(url, kind)
    _in_use.add(url)
    with _writable(local), contextlib.ExitStack() as stack:
        local.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked_file(local.with_name(f".{local.name}.lock"), lambda: None))
        if tried(url, lambda: folder.fs.isfile(folder.path)):
            info = tried(url, lambda: folder.fs.info(folder.path))
            above, _, name = folder.path.rpartition("/")
            if kind == "read":
                make_room([*_in_use], info["size"], READ_BYTES, kind=kind)
            _fetch(Folder(folder.url.rpartition("/")[0], folder.fs, above), {name: version_of(info)}, local)
            return local / name
        for attempt in range(1, TRIES + 1):
            names = _whole(listing(folder), seals)
            if not names:
                raise UserError(f"{url} does not exist, or is empty")
            try:
                if kind == "read":
                    make_room([*_in_use], _bytes_of(names), READ_BYTES, kind=kind)
                _fetch(folder, names, local)
                break
            except FileNotFoundError as error:  # a training has removed an old checkpoint since it was listed
                if attempt == TRIES:
                    raise StoreError(f"{url} changes faster than it can be fetched: {error}") from None
    return local


def fetched_path(name: str | os.PathLike, seals: Seals = UNSEALED) -> pathlib.Path:
    """The path on this machine of what a person names: that at a URL is fetched first. Raises UserError."""
    path = place_argument(name)
    return fetched(str(path), seals) if is_remote(path) else path


@contextlib.contextmanager
def _writable(local: pathlib.Path) -> Iterator[None]:
    """Says of an error of the disk what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{cannot_write(local, error)}; W2V_JAX_CACHE names another folder for local copies") from None


def make_room(urls: Sequence[str], size: int, limit: int, *, kind: str = "shards") -> None:
    """Removes the copies of a kind that were fetched longest ago, but for `urls`, to leave room for `size` bytes."""
    ours = {local_copy(url, kind) for url in urls}
    others = {path: path.stat().st_mtime for path in (cache_folder() / kind).glob("[!.]*") if path not in ours}
    sizes = {path: sum(stat[0] for file in _files(path).values() if (stat := _stat(file))) for path in others}
    excess = sum(sizes.values()) + size - limit
    for path in sorted(others, key=others.__getitem__):
        if excess > 0 and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
            excess -= sizes[path]


def _whole(names: Mapping[str, str], seals: Seals) -> dict[str, str]:
    """The files that belong to the folder: no lock, and nothing of a sub-folder without its seal."""
    whole = lambda unit: unit is None or f"{unit}/{seals.name}" in names
    return {name: v for name, v in names.items() if name not in UNSENT and whole(seals.unit(name))}


def _bytes_of(names: Mapping[str, str]) -> int:
    """The bytes of files with these versions, which begin with them."""
    return sum(int(version.split()[0]) for version in names.values())


def _fetch(folder: Folder, names: Mapping[str, str], local: pathlib.Path) -> None:
    """Makes the local folder hold these files and no others. Its mark comes last: without it, the copy is not whole."""
    have = _read_json(local / FETCHED)
    for name in _files(local).keys() - names.keys() - {FETCHED}:
        _unlink(local, name)
    missing = [name for name, version in names.items() if have.get(name) != version or not (local / name).exists()]
    if missing:
        size = _bytes_of({name: names[name] for name in missing})
        print(f"fetching {folder.url}: {len(missing):,} files, {size / 1e6:,.1f} MB, to {local}", file=sys.stderr)
    for name in sorted(missing, key=lambda name: name == MARK):
        _get(folder, name, local / name)
    if have != names:
        write_whole(local / FETCHED, json.dumps(dict(names)))


def _files(local: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files beneath a folder by their relative names. What vanishes meanwhile is left out."""
    found = (pathlib.Path(above, name) for above, _, names in os.walk(local) for name in sorted(names))
    return {file.relative_to(local).as_posix(): file for file in found}


def _unlink(local: pathlib.Path, name: str) -> None:
    """Removes a file, and the folders that are empty without it."""
    (local / name).unlink(missing_ok=True)
    for above in pathlib.PurePath(name).parents[:-1]:
        with contextlib.suppress(OSError):  # it holds something, or is gone
            (local / above).rmdir()


def _get(folder: Folder, name: str, file: pathlib.Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial:
        tried(f"{folder.url}/{name}", lambda: folder.fs.get_file(folder.at(name), str(partial)))


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    """What a file of this module holds; nothing where it is missing or was damaged."""
    try:
        return json_object(file.read_bytes()) or {}
    except FileNotFoundError:
        return {}


# Writing


def send(
    local: pathlib.Path,
    folder: Folder,
    sent: dict[str, Any],
    *,
    seals: Seals = UNSEALED,
    last: Sequence[str] = (),
    process: int | None = None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> None:
    """Makes the store's folder hold what the local one holds. `sent` says what it holds, and is brought up to date.

    process: the process of a training, which leaves the files of others (`_writer`) alone.

    What appears under its name half-written (`.partial`), and sub-folders without their seal, are left out. A seal is
    the last of its sub-folder to be sent and the first to be removed. last: patterns of files, each of which says that
    those before it are complete, and which are sent in this order after all others. `may_go_on` is asked before each
    step that others see, and ends the sending. Raises StoreError, before it removes anything where the local folder has
    vanished.
    """
    found = _files(local)
    stats = {name: _stat(file) for name, file in found.items()}
    is_ours = lambda name: process in (None, _writer(name)) and _is_sent(name)
    names = _whole({name: "" for name, stat in stats.items() if stat and is_ours(name)}, seals)
    is_seal = lambda name: name == f"{seals.unit(name)}/{seals.name}"
    is_seen = lambda name: is_seal(name) or seals.unit(name) is None
    rank = lambda name: max((n for n, pattern in enumerate(last, 1) if fnmatch.fnmatchcase(name, pattern)), default=0)
    for name in sorted(names, key=lambda name: (is_seal(name), rank(name), name)):
        if sent.get(name) != stats[name]:
            if is_seen(name) and not may_go_on():
                return
            if _put(found[name], folder, name, only=stats[name] if rank(name) else None):
                sent[name] = stats[name]
    gone = set(filter(is_ours, sent)) - names.keys()
    if gone and not ((local / MARK).exists() or (local.parent / MARK).exists() and local.exists()):
        raise StoreError(f"{local} was removed while the run used it; nothing was removed from {folder.url}")
    for name in sorted(gone, key=lambda name: (not is_seal(name), name)):
        if not may_go_on():
            return
        _remove(folder, name)
        del sent[name]


def _is_sent(name: str) -> bool:
    parts = name.split("/")
    return parts[0] not in UNSENT and not any(".partial" in part for part in parts)


def _writer(name: str) -> int:
    """The process of a training that writes a file of its folder: N of NAME-N.jsonl, 0 of others."""
    match = re.fullmatch(r"[^/]+-(\d+)\.jsonl", name)
    return int(match[1]) if match else 0


def _stat(file: pathlib.Path) -> list[int] | None:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _put(file: pathlib.Path, folder: Folder, name: str, *, only: list[int] | None = None) -> bool:
    """Sends a file; False where it is gone, as a checkpoint is that training has just removed.

    only: what `_stat` must give for it; False for one that has changed since.
    """

    def put() -> bool:
        if file.stat().st_size <= WHOLE:
            content = file.read_bytes()
            if only is not None and _stat(file) != only:
                return False
            folder.fs.pipe_file(folder.at(name), content)
        else:
            folder.fs.put_file(str(file), folder.at(name))
        return True

    try:
        return tried(f"{folder.url}/{name}", put)
    except FileNotFoundError as error:
        if file.exists():
            raise StoreError(f"{folder.url}/{name}: cannot be written. Is there such a bucket? ({error})") from None
        return False


def _remove(folder: Folder, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        tried(f"{folder.url}/{name}", lambda: folder.fs.rm_file(folder.at(name)))


# The folder of a training


@contextlib.contextmanager
def working_copy(url: str, seals: Seals, *, token: str = "") -> Iterator[pathlib.Path]:
    """The local folder of a training whose folder is at the URL. It is sent every minute, and at the end.

    A run that another machine has brought further is fetched first. One process at a time holds the folder. A store
    that fails for half an hour stops the training as a SIGTERM does: its checkpoint is saved here. Raises UserError
    while another run holds the folder, and StoreError where the last state cannot be sent.

    token: of a training of several processes, the first of which is this one. What the store lacks is sent first, so
    that the others find it in their `further_copy`.
    """
    folder, local = connect(url), local_copy(url, "runs")
    with Lease(folder, token) as lease:
        with _writable(local):
            sent = _bring_up_to_date(folder, local, seals)
        print(f"{url}: the run is in {local}, and is sent every {EVERY:.0f} s", flush=True)
        with Sender(local, folder, seals, lease=lease, sent=sent, process=0) as sender:
            if token:
                sender.send_now()
            yield local


@contextlib.contextmanager
def further_copy(url: str, seals: Seals, *, token: str, process: int) -> Iterator[pathlib.Path]:
    """The local folder of another process of a training, whose first one has the `working_copy` with this token.

    It holds what lies at the URL now. Of what is written there, the files of this process alone (`_writer`) are sent.
    """
    folder, local = connect(url), fetched(url, seals, kind=f"runs-{process}")
    sent: dict[str, Any] = {name: _stat(file) for name, file in _files(local).items()}
    with Sender(local, folder, seals, lease=Lease(folder, token), sent=sent, process=process):
        yield local


@contextlib.contextmanager
def output_folder(path: pathlib.Path, last: Sequence[str], apart: str = "") -> Iterator[pathlib.Path]:
    """The folder to write for one at `path`: that or, where it lies in a store, a local copy that is sent.

    It is sent every minute, and at the end; then the copy goes. last: that of `send`. apart: a pattern of files that
    the command sends itself (`move_out`). A command that was stopped finds what was sent, on this machine or another.
    One process at a time holds the folder. Raises UserError.
    """
    if not is_remote(path):
        yield path
        return
    folder, home = connect(str(path)), local_copy(str(path), "out")
    local = home / (path.name or "out")
    with Lease(folder) as lease:
        with _writable(local):
            sent = _fetch_output(folder, local, apart)
        with Sender(local, folder, UNSEALED, lease=lease, sent=sent, last=last):
            yield local
        _remove(folder, MARK)
        shutil.rmtree(home, ignore_errors=True)
        print(f"sent to {path}", file=sys.stderr, flush=True)


def move_out(file: pathlib.Path, url: str) -> None:
    """Sends a file to a URL, and removes it here. Raises StoreError."""
    above, _, name = url.rpartition("/")
    _put(file, connect(above), name)
    file.unlink()


def rename(url: str, name: str) -> None:
    """Gives the object at a URL another name in its folder, unless it has it already. Raises StoreError."""
    old = connect(url)
    new = f"{old.path.rpartition('/')[0]}/{name}"
    if tried(url, lambda: old.fs.exists(old.path)):
        tried(url, lambda: old.fs.mv(old.path, new))
    elif not tried(url, lambda: old.fs.exists(new)):
        raise StoreError(f"{url} is no longer there; remove its folder, and give the same command")


def _fetch_output(folder: Folder, local: pathlib.Path, apart: str) -> dict[str, Any]:
    """Fetches what a command has left in the store and not here, but for `apart`. Returns `sent` of `send`.

    The mark beside the local folder, and the one in the store until the output is complete, say that both are of one
    command: without it, what is here goes.
    """
    listed, home = listing(folder), local.parent
    mark = _read_mark(folder) if MARK in listed else {}
    if not mark or _read_json(home / MARK) != mark:
        shutil.rmtree(home, ignore_errors=True)
        mark = mark or {"run": uuid.uuid4().hex}
    local.mkdir(parents=True, exist_ok=True)
    names = [name for name in listed if _is_sent(name) and name != MARK and not fnmatch.fnmatchcase(name, apart)]
    sent = _read_json(home / SENT)
    sent = {name: sent.get(name) for name in names}
    for name in names:
        if not (local / name).exists():
            _get(folder, name, local / name)
            sent[name] = _stat(local / name)
    write_whole(home / MARK, json.dumps(mark))
    _put(home / MARK, folder, MARK)
    return sent


@contextlib.contextmanager
def output_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The file to write for one at `path`: that or, where it lies in a store, a local one that is sent whole.

    Its folder is made. Raises StoreError.
    """
    if not is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as place:
        local = pathlib.Path(place) / path.name
        yield local
        _put(local, connect(str(path.parent)), path.name)


def _bring_up_to_date(folder: Folder, local: pathlib.Path, seals: Seals) -> dict[str, Any]:
    """Fetches the run unless the local copy is of the same run and at least as far. Returns `sent` of `send`.

    A copy of another run, of one that is no longer in the store for example, goes.
    """
    listed = listing(folder)
    there = _whole(listed, seals)
    mark = _read_mark(folder) if MARK in there else {}
    steps = lambda names: [int(u.split("/")[1]) for u in map(seals.unit, names) if u and u.split("/")[1].isdigit()]
    furthest = lambda names: max(steps(names), default=-1)
    is_same = bool(mark) and _read_json(local / MARK) == mark
    sent = _read_json(local / SENT)
    if not is_same or furthest(_whole(dict.fromkeys(_files(local), ""), seals)) < furthest(there):
        shutil.rmtree(local, ignore_errors=True)
        local.mkdir(parents=True)
        _fetch(folder, there, local)
        sent = {name: _stat(local / name) for name in there}
    if not mark:
        mark = {"run": uuid.uuid4().hex}
        write_whole(local / MARK, json.dumps(mark))
        _put(local / MARK, folder, MARK)
    # What another machine has sent or removed since, and what it left half-sent
    return {name: sent.get(name) for name in listed if _is_sent(name)}


def _read_mark(folder: Folder) -> dict[str, Any]:
    mark = json_object(tried(f"{folder.url}/{MARK}", lambda: folder.fs.cat_file(folder.at(MARK))))
    if mark is None:
        raise UserError(f"{folder.url}/{MARK} is not readable as JSON; remove it to go on from what lies there")
    return mark


class Lease:
    """The lock of a folder in a store: an object that only one can make, and that its owner renews all the time.

    The lock of a process of this machine that has ended, and one that was not renewed for `LEASE` seconds, has no owner
    any more. A run whose lock another one has taken is stopped as by a SIGTERM, and sends nothing more. Processes of
    one run have one token: one of them enters the lease, and the others may ask `is_held`.
    """

    def __init__(self, folder: Folder, token: str = ""):
        self.folder, self.path, self.is_lost = folder, folder.at(LOCK), False
        self.owner: dict[str, Any] = machine() | {"pid": os.getpid(), "token": token or uuid.uuid4().hex}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        while not (self._make() or self._take(self._read())):
            pass
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError, StoreError):
            if self._is_mine(self._read()):
                self.folder.fs.rm_file(self.path)

    def _make(self) -> bool:
        try:
            if tried(self.folder.url, lambda: self.folder.fs.exists(self.path)):
                return False
            self._write("create")
        except FileExistsError:
            return False
        return self._is_mine(self._read())  # a store may not know "create"

    def _write(self, mode: str = "overwrite") -> None:
        content = json.dumps(self.owner | {"time": time.time()}).encode()
        try:
            tried(f"{self.folder.url}/{LOCK}", lambda: self.folder.fs.pipe_file(self.path, content, mode=mode))
        except FileNotFoundError as error:
            raise StoreError(f"{self.folder.url}: cannot be written. Is there such a bucket? ({error})") from None

    def _read(self) -> dict[str, Any]:
        """The content of the lock; nothing where there is none."""
        try:
            content = tried(f"{self.folder.url}/{LOCK}", lambda: self.folder.fs.cat_file(self.path))
        except FileNotFoundError:
            return {}
        return json_object(content) or {"token": ""}

    def _is_mine(self, holder: Mapping[str, Any]) -> bool:
        return holder.get("token") == self.owner["token"]

    def _take(self, holder: Mapping[str, Any]) -> bool:
        """Takes a lock whose owner is gone. False where it has just vanished or another one was faster."""
        if not holder:
            return False
        if any(holder.get(name) != value for name, value in machine().items()) or _is_alive(holder.get("pid")):
            where = f"process {holder.get('pid')} on {holder.get('host')}"
            print(f"{self.folder.url} is locked by {where}; looking for {LEASE:.0f} s if it is alive", file=sys.stderr)
            end = time.monotonic() + LEASE
            while time.monotonic() < end:
                time.sleep(min(LEASE / 10, 5.0))
                if (now := self._read()) != holder:
                    if not now:
                        return False
                    remedy = "wait for it, stop it, or choose another folder"
                    raise UserError(f"another run is using {self.folder.url} ({where}); {remedy}")
        self._write()
        time.sleep(SETTLE * random.uniform(0.5, 1.0))  # whoever else saw no owner has written by now
        return self._is_mine(self._read())

    def is_held(self) -> bool:
        """Looks if the lock is still this run's, and stops the run where it is not. Raises StoreError.

        To a process that only asks, a lock that is gone is that of its own run, whose first process has ended.
        """
        holder = self._read()
        is_released = not holder and self._thread.ident is None
        if not (self.is_lost or is_released or self._is_mine(holder)):
            self.is_lost = True
            _stop(f"{self.folder.url}: another run has taken this folder")
        return not self.is_lost

    def _renew(self) -> None:
        while not self._over.wait(LEASE / 6):
            try:
                if not self.is_held():
                    return
                self._write()
            except StoreError as error:
                warn(str(error))


def machine() -> dict[str, str]:
    """What tells this machine, or container, from others, and from itself before it was started last."""
    boot, processes = pathlib.Path("/proc/sys/kernel/random/boot_id"), pathlib.Path("/proc/self/ns/pid")
    try:
        return {"host": socket.gethostname(), "boot": boot.read_text().strip(), "processes": os.readlink(processes)}
    except OSError:  # not Linux
        return {"host": socket.gethostname()}


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _stop(reason: str) -> None:
    warn(f"{reason}; stopping")
    os.kill(os.getpid(), signal.SIGTERM)


class Sender:
    """Sends a local folder every `EVERY` seconds from a thread of its own, and a last time when it is closed.

    A `with` statement closes it. Where an error has ended the work, that is the one to show: another is a warning.
    """

    def __init__(
        self,
        local: pathlib.Path,
        folder: Folder,
        seals: Seals,
        *,
        lease: Lease,
        sent: dict[str, Any],
        last: Sequence[str] = (),
        process: int | None = None,
    ):
        self.local, self.folder, self.seals, self.lease, self.sent = local, folder, seals, lease, sent
        self.last, self.process = last, process
        self.sent_file = (local.parent if last else local) / SENT
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self.close()
        except UserError as error:
            if kind is None:
                raise
            warn(str(error))

    def close(self) -> None:
        """Sends what is left. Raises StoreError where that fails, and UserError where the folder is another run's."""
        self._over.set()
        self._thread.join()
        try:
            self.send_now()
        except StoreError as error:
            rest = f"What was not sent is in {self.local}; the same command, here, sends it"
            raise StoreError(f"{error}\n{rest}") from None
        if not self.lease.is_held():
            raise UserError(f"{self.folder.url} belongs to another run now; what this one did last is in {self.local}")

    def send_now(self) -> None:
        """Sends what is not there yet. Raises StoreError."""
        try:
            held = self.lease.is_held
            send(
                self.local,
                self.folder,
                self.sent,
                seals=self.seals,
                last=self.last,
                process=self.process,
                may_go_on=held,
            )
            write_whole(self.sent_file, json.dumps(self.sent))
        except OSError as error:
            raise StoreError(f"{self.local} cannot be read or written ({error})") from None

    def _run(self) -> None:
        failing_since = 0.0
        while not self._over.wait(EVERY) and not self.lease.is_lost:
            try:
                self.send_now()
                failing_since = 0.0
            except StoreError as error:
                failing_since = failing_since or time.monotonic()
                warn(f"{error}; the work goes on, and it is tried again")
                if time.monotonic() - failing_since > GIVE_UP:
                    return _stop(f"nothing could be sent to {self.folder.url} for {duration(GIVE_UP)}")
