"""Writes a self-made corpus in LibriSpeech layout. A kill at any moment leaves nothing half-written.

    ROOT/train/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0001.flac    16 kHz, mono, 16 bit
    ROOT/train/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt    one line "ID TRANSCRIPT" per recording
    ROOT/dev/...                                            the same with other speakers
    ROOT/manifest.jsonl                                     one object per recording: what data.name=jsonl reads,
                                                            its size and its SHA-256
    ROOT/corpus.json                                        the settings, which identify the corpus
    ROOT/README.md

Everything is written to `.NAME.partial` beside ROOT, and one rename at the end makes it ROOT. The writer holds the lock
`.NAME.lock` beside ROOT. A partial folder with the same settings is continued; one with other settings is made anew.
This file does not know how the sound is made: `synthetic.py` and `speak.py` pass recordings and a function that renders
one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.files import file_digest, sole_maker, whole_file, write_whole
from w2v_jax.core.progress import ProgressBar
from w2v_jax.core.stores import is_remote
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import root_entries

MARKER = "corpus.json"
MANIFEST = "manifest.jsonl"
RECORDINGS_PER_CHAPTER = 50
DEFAULT_HOURS = 0.5
DEV_SHARE = 0.05
"""Hours of the dev part per hour of the train part."""


def generator(version: int, *key: int) -> np.random.Generator:
    """What draws the part of a corpus that `key` names, the same wherever and whenever; other versions draw others."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([version, len(key), *key])))


class Recording(NamedTuple):
    """A recording to make: number `number` (from 0) of a speaker. `voice` is what the renderer needs."""

    split: str
    speaker: int
    number: int
    transcript: str
    voice: Any

    @property
    def chapter(self) -> str:
        return f"{self.speaker}-{self.number // RECORDINGS_PER_CHAPTER + 1}"

    @property
    def id(self) -> str:
        return f"{self.chapter}-{self.number % RECORDINGS_PER_CHAPTER + 1:04d}"

    @property
    def path(self) -> str:
        speaker, chapter = self.chapter.split("-")
        return f"{self.split}/{speaker}/{chapter}/{self.id}.flac"


Render = Callable[[Recording], np.ndarray]
"""Returns the int16 samples of a recording at 16 kHz."""


class CorpusPart(NamedTuple):
    """`hours` of recordings, taken from an endless iterator whose k-th element is a pure function of the settings."""

    hours: float
    recordings: Iterator[Recording]


def check_hours(hours: float) -> None:
    """Raises UserError for hours that no corpus can have."""
    if not 0 < hours < 100_000:
        raise UserError(f"a corpus of {hours} hours cannot be made; set data.hours to e.g. {DEFAULT_HOURS}")


def make_corpus(
    root: pathlib.Path,
    parts: Sequence[CorpusPart],
    render: Render,
    *,
    settings: dict[str, Any],
    readme: str,
    progress: bool,
) -> pathlib.Path:
    """Makes the corpus unless ROOT already holds it, and returns ROOT.

    `settings` must be representable in JSON. A second process that makes the same corpus waits for the first. Raises
    UserError where ROOT holds something else or cannot be written.
    """
    if is_complete(root, settings):
        return root
    partial = root.with_name(f".{root.name}.partial")
    try:
        with sole_maker(root):
            if not is_complete(root, settings):
                if read_settings(root) is not None and not partial.exists():
                    os.rename(root, partial)  # this corpus lacks files: complete it where partial work belongs
                _start_partial(partial, settings)
                bar = ProgressBar(root, sum(part.hours for part in parts), is_shown=progress)
                records = [record for part in parts for record in _write_part(partial, part, render=render, bar=bar)]
                write_whole(partial / "README.md", readme)
                _finish(root, partial, records=records, settings=settings)
                bar.end(len(records))
    except OSError as error:
        raise UserError(
            f"could not write the corpus {root}: {error}. Finished recordings stay in {partial}. "
            "Free some space or correct the permissions, then start again; it goes on from there"
        ) from error
    return root


def part_source(data: Any, root: Any, write: Callable[[pathlib.Path, dict[str, Any]], pathlib.Path]) -> Any:
    """The folder source of ROOT/train, or of the part that ROOT names (ROOT/dev). Makes a missing corpus first.

    `write(corpus, settings)` makes the corpus in a folder unless it is complete, and returns the folder. `settings` are
    those that the folder was made with, {} where there are none.
    """
    from w2v_jax.data.sources import folder

    paths = [pathlib.Path(entry) for entry in root_entries(root)]
    if not paths:
        raise UserError("data.root is empty: set it to the folder of the self-made corpus, which need not exist yet")
    if any(map(is_remote, root_entries(root))):
        raise UserError(
            f"data.root={root}: a corpus is made on a disk; one that was copied to a store: data.name=folder"
        )
    parts = []
    for path in paths:
        corpus, part = _home_and_part(path)
        parts.append(str(write(corpus, read_settings(corpus) or {}) / part))
    return folder.make(data, tuple(parts))


def homes(*roots: Any) -> list[pathlib.Path]:
    """The folders of the self-made corpora that `roots` name, each once."""
    entries = [pathlib.Path(entry) for root in roots for entry in root_entries(root)]
    return list(dict.fromkeys(_home_and_part(entry)[0] for entry in entries))


def _home_and_part(path: pathlib.Path) -> tuple[pathlib.Path, str]:
    """(the folder of a corpus, "train" or "dev") of a root."""
    return (path.parent, path.name) if path.name in ("train", "dev") else (path, "train")


def verify(root: str | os.PathLike) -> list[tuple[str, str]]:
    """(path, reason) of every file of the manifest that is missing or has another SHA-256."""
    root, damaged = pathlib.Path(root), []
    for record in read_manifest(root):
        path = root / record["audio_filepath"]
        if not path.is_file():
            damaged.append((str(path), "missing"))
        elif file_digest(path) != record["sha256"]:
            damaged.append((str(path), "SHA-256 differs from the manifest's"))
    return damaged


def read_manifest(root: pathlib.Path) -> list[dict[str, Any]]:
    """The records of `manifest.jsonl`, without a last line that a kill cut short."""
    records = []
    with contextlib.suppress(FileNotFoundError):
        for line in (root / MANIFEST).read_text(encoding="utf-8").split("\n"):
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
    return records


def read_settings(root: str | os.PathLike) -> dict[str, Any] | None:
    """The settings of the corpus in `root`; None where there is no corpus."""
    try:
        return json.loads((pathlib.Path(root) / MARKER).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_complete(root: pathlib.Path, settings: Mapping[str, Any]) -> bool:
    """Whether `root` is this corpus with every file. Raises UserError where it is something else."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise UserError(f"{root} is a file, and a corpus needs a folder; choose another data.root")
    existing = read_settings(root)
    if existing is None:
        if any(root.iterdir()):
            raise UserError(
                f"{root} is not empty and not a self-made corpus ({MARKER} is missing); choose another folder"
            )
        return False
    if existing != settings:
        differences = [
            f"{key}={existing.get(key)!r} (asked for: {settings.get(key)!r})"
            for key in sorted({*existing, *settings})
            if existing.get(key) != settings.get(key)
        ]
        raise UserError(
            f"{root} holds a corpus with other settings: {', '.join(differences)}. "
            "Give the same settings, choose another folder, or delete this one"
        )
    records = read_manifest(root)
    return bool(records) and all(_is_intact(root, record) for record in records)


def _is_intact(root: pathlib.Path, record: Mapping[str, Any]) -> bool:
    try:
        return (root / record["audio_filepath"]).stat().st_size == record["bytes"]
    except (OSError, KeyError):
        return False


def _start_partial(partial: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Prepares the partial folder; its manifest then lists the intact recordings of the same settings."""
    partial.mkdir(exist_ok=True)
    if read_settings(partial) != settings:
        for path in partial.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_whole(partial / MARKER, json.dumps({"settings": settings}, indent=2))
    intact = {r["audio_filepath"]: r for r in read_manifest(partial) if _is_intact(partial, r)}
    write_whole(partial / MANIFEST, map(json.dumps, intact.values()))


def _write_part(
    partial: pathlib.Path, part: CorpusPart, *, render: Render, bar: ProgressBar
) -> Iterator[dict[str, Any]]:
    """Writes the recordings of a part that its manifest lacks. Yields the records of all."""
    finished, seconds = {r["audio_filepath"]: r for r in read_manifest(partial)}, 0.0
    with open(partial / MANIFEST, "a", encoding="utf-8") as manifest:
        while seconds < part.hours * 3600:
            recording = next(part.recordings)
            record = finished.get(recording.path)
            if record is None:
                record = _write_recording(partial, recording, render(recording))
                manifest.write(json.dumps(record) + "\n")
                manifest.flush()
            seconds += record["frames"] / SAMPLE_RATE
            bar.add(record["frames"] / SAMPLE_RATE, is_new=recording.path not in finished)
            yield record


def _write_recording(partial: pathlib.Path, recording: Recording, wave: np.ndarray) -> dict[str, Any]:
    """Writes one FLAC file under a temporary name and renames it. Returns its record for the manifest."""
    import soundfile

    memory = io.BytesIO()
    soundfile.write(memory, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    content = memory.getvalue()
    path = partial / recording.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content)
    record: dict[str, Any] = {"id": recording.id, "audio_filepath": recording.path, "duration": len(wave) / SAMPLE_RATE}
    record |= {"frames": len(wave), "rate": SAMPLE_RATE, "speaker": str(recording.speaker)}
    return record | {"text": recording.transcript, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _finish(
    root: pathlib.Path, partial: pathlib.Path, *, records: list[dict[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Removes stray files, writes transcripts, manifest and settings, and renames `partial` to `root`."""
    listed = {r["audio_filepath"] for r in records}
    for path in [*partial.rglob("*.flac"), *partial.rglob("*.partial")]:
        if path.relative_to(partial).as_posix() not in listed:
            path.unlink()  # e.g. a kill came between the file and its line in the manifest
    chapters: dict[pathlib.Path, list[str]] = {}
    for r in records:
        path = (partial / r["audio_filepath"]).with_name(f"{r['id'].rsplit('-', 1)[0]}.trans.txt")
        chapters.setdefault(path, []).append(f"{r['id']} {r['text']}")
    for path, lines in chapters.items():
        write_whole(path, lines)
    seconds = sum(r["frames"] for r in records) / SAMPLE_RATE
    splits = sorted({r["audio_filepath"].split("/", 1)[0] for r in records})
    summary = {"settings": settings, "rows": len(records), "hours": round(seconds / 3600, 4), "splits": splits}
    write_whole(partial / MANIFEST, (json.dumps(r, ensure_ascii=False) for r in records))
    write_whole(partial / MARKER, json.dumps(summary, indent=2))
    if read_settings(root) == settings:
        shutil.rmtree(root)  # this corpus lacks files
    elif root.is_dir():
        root.rmdir()  # it is empty, as `is_complete` has checked
    os.rename(partial, root)
