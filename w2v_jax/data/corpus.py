"""Writes a self-made corpus in LibriSpeech layout so that a kill at any moment leaves nothing half-written.

    ROOT/train/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0001.flac    16 kHz, mono, 16 bit
    ROOT/train/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt    one line "ID TRANSCRIPT" per recording
    ROOT/dev/...                                            the same, other speakers
    ROOT/manifest.jsonl                                     one object per recording: what data.name=jsonl reads,
                                                            and its size and SHA-256
    ROOT/corpus.json                                        the settings: a corpus is known again by this file
    ROOT/README.md

Everything is written to `.NAME.partial` beside ROOT, which becomes ROOT by one rename at the end. A partial
folder of the same settings is continued, one of other settings is made anew. It knows nothing about how the
sound is made: `synthetic.py` and `speak.py` hand in rows and a function that renders one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError
from w2v_jax.data.progress import Progress

MARKER = "corpus.json"
MANIFEST = "manifest.jsonl"
LOCK = ".lock"
ROWS_PER_CHAPTER = 50


class Row(NamedTuple):
    """One recording to make: the `number`-th (from 0) of a speaker. `voice` is what the renderer needs."""

    split: str
    speaker: int
    number: int
    transcript: str
    voice: Any

    @property
    def chapter(self) -> str:
        return f"{self.speaker}-{self.number // ROWS_PER_CHAPTER + 1}"

    @property
    def id(self) -> str:
        return f"{self.chapter}-{self.number % ROWS_PER_CHAPTER + 1:04d}"

    @property
    def path(self) -> str:
        speaker, chapter = self.chapter.split("-")
        return f"{self.split}/{speaker}/{chapter}/{self.id}.flac"


def write(
    root: str | os.PathLike,
    rows: Mapping[str, Iterator[Row]],
    hours: Mapping[str, float],
    render: Callable[[Row], np.ndarray],
    *,
    settings: Mapping[str, Any],
    readme: str,
    progress: bool = True,
) -> pathlib.Path:
    """Makes the corpus unless ROOT already holds it, and returns ROOT.

    `settings` holds what JSON can. `rows[split]` is an endless stream whose k-th row is a pure function of the
    settings; it is read until `hours[split]` are reached. `render(row)` gives int16 samples at 16 kHz. A second process
    that wants the same corpus waits for the first. Raises UserError when ROOT holds something else or the disk refuses.
    """
    root = pathlib.Path(root).expanduser().absolute()
    if is_complete(root, settings):
        return root
    partial = root.with_name(f".{root.name}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _lock(root, partial, settings) as is_ours:
            if is_ours:
                _fill(root, partial, rows, hours, render, settings=settings, readme=readme, progress=progress)
    except OSError as error:
        raise UserError(
            f"could not write the corpus {root}: {error}. What is finished stays in {partial}; "
            "give it space or rights and start again, it goes on from there"
        ) from error
    return root


def source(data: Any, root: Any, write: Callable[[pathlib.Path, dict[str, Any]], pathlib.Path]) -> Any:
    """The folder source of ROOT/train, or of the part that ROOT names (ROOT/dev), made first if it is missing.

    `write(home, settings)` makes the corpus of a home folder, or finds it; settings are those it was made with.
    """
    from w2v_jax.data import folder

    given = [root] if isinstance(root, (str, os.PathLike)) else list(root)
    if not given:
        raise UserError("data.root is empty: set it to the folder where the self-made corpus is written (or was)")
    parts = []
    for path in map(pathlib.Path, given):
        home, part = (path.parent, path.name) if path.name in ("train", "dev") else (path, "train")
        parts.append(str(write(home, read_settings(home) or {}) / part))
    return folder.make(data, tuple(parts))


def verify(root: str | os.PathLike) -> list[tuple[str, str]]:
    """(path, reason) of every file of the manifest that is missing or whose SHA-256 differs."""
    root, wrong = pathlib.Path(root), []
    for record in read_manifest(root):
        path = root / record["audio_filepath"]
        if not path.is_file():
            wrong.append((str(path), "missing"))
        elif hashlib.sha256(path.read_bytes()).hexdigest() != record["sha256"]:
            wrong.append((str(path), "SHA-256 differs from the manifest's"))
    return wrong


def read_manifest(root: pathlib.Path) -> list[dict[str, Any]]:
    """The records of `manifest.jsonl`; a last line that a kill cut short is left out."""
    records = []
    with contextlib.suppress(FileNotFoundError):
        for line in (root / MANIFEST).read_text(encoding="utf-8").split("\n"):
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
    return records


def read_settings(root: str | os.PathLike) -> dict[str, Any] | None:
    """The settings that the corpus in `root` was made with; None where there is none."""
    try:
        return json.loads((pathlib.Path(root) / MARKER).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_complete(root: pathlib.Path, settings: Mapping[str, Any]) -> bool:
    """True when `root` is this corpus with every file; UserError when it is something else, never overwritten."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise UserError(f"{root} is a file; the corpus needs a folder. Choose another data.root")
    found = read_settings(root)
    if found is None:
        if any(root.iterdir()):
            raise UserError(
                f"{root} is not empty and not a self-made corpus ({MARKER} is missing); choose another folder"
            )
        return False
    if found != settings:
        other = [
            f"{k}={found.get(k)!r} (asked for: {settings.get(k)!r})"
            for k in sorted({*found, *settings})
            if found.get(k) != settings.get(k)
        ]
        raise UserError(
            f"{root} holds a corpus with other settings: {', '.join(other)}. "
            "Ask for the same ones, choose another folder, or delete this one"
        )
    records = read_manifest(root)
    return bool(records) and all(_is_whole(root, record) for record in records)


def _is_whole(root: pathlib.Path, record: Mapping[str, Any]) -> bool:
    try:
        return (root / record["audio_filepath"]).stat().st_size == record["bytes"]
    except (OSError, KeyError):
        return False


@contextlib.contextmanager
def _lock(root: pathlib.Path, partial: pathlib.Path, settings: Mapping[str, Any]) -> Iterator[bool]:
    """Holds the partial folder alone; yields False when another process finished the corpus meanwhile.

    The kernel frees the lock of a killed process. Where a file system has no locks, there is none.
    """
    file = None
    while file is None:
        if is_complete(root, settings):
            yield False
            return
        with contextlib.suppress(FileNotFoundError):  # another process renamed the folder this very moment: look again
            if read_settings(root) is not None and not partial.exists():
                os.rename(root, partial)  # ours, but files are missing: finish it where partial work belongs
            partial.mkdir(exist_ok=True)
            file = _locked(partial / LOCK, root)
    with file:
        is_ours = not is_complete(root, settings)
        if not is_ours and [path.name for path in partial.iterdir()] == [LOCK]:
            shutil.rmtree(partial)  # made by this process just after another one had finished
        yield is_ours


def _locked(path: pathlib.Path, root: pathlib.Path) -> IO | None:
    """The open file, locked; None if its folder has become the corpus while this process waited for the lock."""
    file = open(path, "a")
    try:
        import fcntl

        _wait_for_lock(fcntl, file, root)
    except ImportError:  # not a POSIX system
        pass
    try:
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    except FileNotFoundError:
        pass
    file.close()
    return None


def _wait_for_lock(fcntl: Any, file: Any, root: pathlib.Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{root}: another process is making this corpus; waiting for it", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        pass


def _fill(
    root: pathlib.Path,
    partial: pathlib.Path,
    rows: Mapping[str, Iterator[Row]],
    hours: Mapping[str, float],
    render: Callable[[Row], np.ndarray],
    *,
    settings: Mapping[str, Any],
    readme: str,
    progress: bool,
) -> None:
    if read_settings(partial) != settings:
        for path in partial.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    _write_text(partial / MARKER, json.dumps({"settings": settings}, indent=2))
    done = {r["audio_filepath"]: r for r in read_manifest(partial) if _is_whole(partial, r)}
    _write_text(partial / MANIFEST, "".join(json.dumps(r) + "\n" for r in done.values()))
    records, report = [], Progress(root, sum(hours.values()), progress)
    with open(partial / MANIFEST, "a", encoding="utf-8") as manifest:
        for split in rows:
            seconds = 0.0
            for row in rows[split]:
                record = done.get(row.path)
                if record is None:
                    record = _write_row(partial, row, render(row))
                    manifest.write(json.dumps(record) + "\n")
                    manifest.flush()
                records.append(record)
                seconds += record["frames"] / SAMPLE_RATE
                report.add(record["frames"] / SAMPLE_RATE, is_new=row.path not in done)
                if seconds >= hours[split] * 3600:
                    break
    _finish(root, partial, records, settings, readme)
    report.end(len(records))


def _write_row(partial: pathlib.Path, row: Row, wave: np.ndarray) -> dict[str, Any]:
    """Writes one FLAC file under a temporary name, then renames it; its line for the manifest."""
    import io

    import soundfile

    memory = io.BytesIO()
    soundfile.write(memory, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    content = memory.getvalue()
    path = partial / row.path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return {
        "id": row.id,
        "audio_filepath": row.path,
        "duration": len(wave) / SAMPLE_RATE,
        "frames": len(wave),
        "rate": SAMPLE_RATE,
        "speaker": str(row.speaker),
        "text": row.transcript,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _finish(
    root: pathlib.Path,
    partial: pathlib.Path,
    records: list[dict[str, Any]],
    settings: Mapping[str, Any],
    readme: str,
) -> None:
    kept = {r["audio_filepath"] for r in records}
    for path in [*partial.rglob("*.flac"), *partial.rglob("*.tmp")]:
        if path.relative_to(partial).as_posix() not in kept:
            path.unlink()  # e.g. written, but killed before its line in the manifest
    chapters: dict[pathlib.Path, list[str]] = {}
    for r in records:
        folder = (partial / r["audio_filepath"]).parent
        name = f"{r['id'].rsplit('-', 1)[0]}.trans.txt"
        chapters.setdefault(folder / name, []).append(f"{r['id']} {r['text']}\n")
    for path, lines in chapters.items():
        _write_text(path, "".join(lines))
    seconds = sum(r["frames"] for r in records) / SAMPLE_RATE
    splits = sorted({r["audio_filepath"].split("/", 1)[0] for r in records})
    about = {"settings": settings, "rows": len(records), "hours": round(seconds / 3600, 4), "splits": splits}
    _write_text(partial / MANIFEST, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    _write_text(partial / "README.md", readme)
    _write_text(partial / MARKER, json.dumps(about, indent=2))
    if read_settings(root) == settings:
        shutil.rmtree(root)  # ours, but files are missing in it
    elif root.is_dir():
        root.rmdir()  # `is_complete` lets no other folder than an empty one come this far
    os.rename(partial, root)
    (root / LOCK).unlink(missing_ok=True)


def _write_text(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
