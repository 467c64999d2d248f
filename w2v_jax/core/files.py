"""Files and folders: read where they lie, on a disk or in a store; written whole or not at all; and locks.

What opens and finds recordings and texts goes through `open_binary`, `state_of`, `exists`, `is_file` and `is_folder`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import pathlib
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import filelock

from w2v_jax.core import stores
from w2v_jax.core.cli import UserError, cannot_write, writing
from w2v_jax.core.stores import is_remote

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What the system answers where a file system has no locks."""


def append_lines(path, lines: Sequence[str]) -> None:
    """Appends whole lines or, when the disk refuses, nothing: then raises OSError."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            content = "".join(line + "\n" for line in lines).encode()
            if file.write(content) != len(content):
                raise OSError("No space left on device")
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A path beside `path` to write to. It becomes `path` at the end, or vanishes with an error."""
    partial = pathlib.Path(f"{os.fspath(path)}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_whole(path: str | os.PathLike, text: str | Iterable[str]) -> None:
    """Writes a text, or lines without their ends, to a file that is never seen half-written."""
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines([text] if isinstance(text, str) else (f"{line}\n" for line in text))


@contextlib.contextmanager
def whole_folder(path: pathlib.Path, flag: str = "--to") -> Iterator[pathlib.Path]:
    """A new folder beside `path` to write to. It becomes `path` at the end, or vanishes with an error.

    Raises UserError, which names the command's flag, where something stands at `path` or it cannot be written. An
    OSError about files elsewhere stays as it is.
    """
    if not path.name:
        raise UserError(f"{flag} {path} names no new folder")
    partial = path.with_name(f"{path.name}.partial")
    with writing(f"{flag} {path}"):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists already; choose another {flag}, or remove it")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rmdir()
        os.replace(partial, path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and str(error.filename or partial).startswith(str(partial)):
            raise cannot_write(f"{flag} {path}", error) from None
        raise


@contextlib.contextmanager
def locked_file(path: str | os.PathLike, on_taken: Callable[[], None]) -> Iterator[None]:
    """Holds the lock file at `path`, made if missing. `on_taken` is called where another process holds it.

    If `on_taken` returns, this process waits. The kernel frees the lock of a killed process. Where a file system has no
    locks, there is none. Raises OSError where the file cannot be opened.
    """
    lock = filelock.FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a killed process
    try:
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            on_taken()
            lock.acquire(poll_interval=0.2)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def sole_maker(path: pathlib.Path) -> Iterator[None]:
    """Waits until no other process makes the folder `path`, then keeps the others waiting.

    The lock is the file `.NAME.lock` beside `path`. It vanishes at the end.
    """
    lock = path.with_name(f".{path.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(lock, lambda: print(f"{path}: another process is making it; waiting for it", file=sys.stderr)):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()  # while it is held: those who wait take a new one


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hex digits. Raises OSError and, where a store does not answer, StoreError."""
    with open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Files on disks and in stores


def open_binary(path: str | os.PathLike, *, ahead: int = stores.BLOCK) -> io.BufferedReader:
    """A file that is open for reading. ahead: bytes of an object in a store to read at once at least.

    Raises OSError and, where a store does not answer, StoreError.
    """
    if is_remote(path):
        return io.BufferedReader(stores.open_object(os.fspath(path), ahead=ahead), stores.BLOCK)
    return open(path, "rb")


def exists(path: str | os.PathLike) -> bool:
    return stores.is_anything(os.fspath(path)) if is_remote(path) else os.path.exists(path)


def is_file(path: str | os.PathLike) -> bool:
    return stores.is_object(os.fspath(path)) if is_remote(path) else os.path.isfile(path)


def is_folder(path: str | os.PathLike) -> bool:
    return stores.is_prefix(os.fspath(path)) if is_remote(path) else os.path.isdir(path)


def absolute(path: str | os.PathLike) -> str:
    """A path that means the same in every folder; a URL does."""
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


FileState = stores.State


def present_state_of(path: str | os.PathLike) -> FileState:
    """`state_of` by a look at the store itself, whatever was listed there before."""
    return stores.present_state(os.fspath(path)) if is_remote(path) else state_of(path)


def state_of(path: str | os.PathLike) -> FileState:
    """(bytes, time of change in nanoseconds) of a file; None where there is none.

    Of a folder (-1, time of change, inode, time of change of the inode): who sets the first time, as tar does, changes
    the last one. In stores, numbers that change with the version take the place of times, and those of a folder change
    with anything below it. Raises OSError where nobody can tell.
    """
    if is_remote(path):
        return stores.listed_state(os.fspath(path))
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        return None
    if stat.S_ISDIR(status.st_mode):
        return -1, status.st_mtime_ns, status.st_ino, status.st_ctime_ns
    return status.st_size, status.st_mtime_ns


def is_same_state(before: FileState, now: FileState) -> bool:
    """Whether two states are one. That of a copied folder is where the time of change is the same."""
    if before is None or now is None:
        return before is now
    is_other_folder = before[2:3] != now[2:3]
    return before == now or (is_other_folder and before[:2] == now[:2])
