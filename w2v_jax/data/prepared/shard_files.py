"""One shard: an ArrayRecord file of the records of some recordings, and a summary of what went into it.

The summary appears last, by a rename, so that a shard without one is made again. Two processes that make the same shard
write the same bytes, and each of them whole.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from w2v_jax.core.cli import UserError, needing, os_error_text
from w2v_jax.core.files import file_digest, open_binary, state_of, write_whole
from w2v_jax.data.archives.array_record import open_records, serialized
from w2v_jax.data.index import ReadError, Row, Skip, make_index
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.prepared.cuts import Cut
from w2v_jax.data.prepared.records import Options, StoredRecord, stored

JOB, ROWS, SHARD, SUMMARY = "job.json", "rows-{:05d}.jsonl", "shard-{:05d}.array_record", "shard-{:05d}.json"
CONTENTS = "shards.json"
"""The file of a finished corpus that lists its shards, with size and SHA-256 of each."""
WRITING = "group_size:1,uncompressed"
"""Of ArrayRecord: each record is read alone, and FLAC cannot be compressed any further."""
FULL = ("No space left", "File too large", "quota exceeded", "Disk quota")


def row_line(row: Row, language: str) -> str:
    """A row as it stands in the list of a shard."""
    return json.dumps({**row._asdict(), "language": language}, ensure_ascii=False)


def read_rows(path: pathlib.Path) -> tuple[list[Row], list[str]]:
    """(rows, their languages) of the list of a shard."""
    rows, languages = [], []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        entry = json.loads(line)
        languages.append(entry.pop("language"))
        rows.append(Row(**entry))
    return rows, languages


def read_options(folder: pathlib.Path) -> Options:
    """How the recordings of a job are stored."""
    options = json.loads((folder / JOB).read_text(encoding="utf-8"))["options"]
    return Options(**options | {"cut": options["cut"] and Cut(*options["cut"])})


def is_finished(folder: pathlib.Path, number: int) -> bool:
    return (folder / SUMMARY.format(number)).exists()


def write_shard(folder: pathlib.Path, number: int, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Makes shard `number` of the job in a folder, and returns its summary. Calls `check` before each recording.

    Raises OSError where the disk takes no more.
    """
    rows, languages = read_rows(folder / ROWS.format(number))
    source, options, summary = AudioFiles(make_index(rows)), read_options(folder), _Summary()
    path = folder / SHARD.format(number)
    with _writer(path) as write:
        for row, language in enumerate(languages):
            check()
            try:
                found = stored(source, row, options)
            except ReadError as error:
                summary.skipped.append(Skip(str(source.index.paths[row]), str(error)))
                continue
            for record in found.records:
                write(example_of(record, language))
                summary.add(record, language)
            summary.count_recording(str(source.index.paths[row]), found.is_kept, is_silent=found.is_silent)
            summary.notes["clipped"] += found.clipped > 0
            summary.notes["untold"] += found.untold
    if len(open_records(str(path))) != summary.counts["records"]:
        raise OSError(errno.EIO, "the records that were written are not there", str(path))
    about = {"bytes": path.stat().st_size, "sha256": file_digest(path), **summary.as_dict()}
    write_whole(folder / SUMMARY.format(number), json.dumps(about, ensure_ascii=False))
    return about


def example_of(record: StoredRecord, language: str) -> bytes:
    """A record as a serialized tf.train.Example of the features that dataset_info.json declares."""
    return serialized(
        {
            "id": record.id,
            "audio": record.audio,
            "sampling_rate": record.rate,
            "text": record.transcript,
            "speaker": record.speaker,
            "language": language,
        }
    )


class _Summary:
    """What is counted of the records of a shard."""

    def __init__(self):
        self.counts, self.notes = Counter(records=0, recordings=0, kept=0), Counter(clipped=0, untold=0)
        self.seconds = {name: defaultdict(float) for name in ("speakers", "languages", "rates")}
        self.lengths: Counter = Counter()
        self.silent: list[str] = []
        self.skipped: list[Skip] = []

    def add(self, record: StoredRecord, language: str) -> None:
        seconds = record.frames / record.rate
        self.counts["records"] += 1
        self.lengths[f"{seconds:.1f}"] += 1
        for name, value in (("speakers", record.speaker), ("languages", language), ("rates", str(record.rate))):
            self.seconds[name][value] += seconds

    def count_recording(self, path: str, is_kept: bool, *, is_silent: bool) -> None:
        self.counts["recordings"] += 1
        self.counts["kept"] += is_kept
        self.silent += [path] if is_silent else []

    def as_dict(self) -> dict[str, Any]:
        seconds = {name: {key: round(value, 4) for key, value in found.items()} for name, found in self.seconds.items()}
        skipped = [skip._asdict() for skip in self.skipped]
        return {**self.counts, **self.notes, **seconds, "lengths": self.lengths, "silent": self.silent} | {
            "skipped": skipped
        }


@contextlib.contextmanager
def _writer(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """A function that adds a record to a file, which appears whole at the end. Raises OSError."""
    with needing("shards need a package that is missing: pip install array_record (Linux)"):
        from array_record.python.array_record_module import ArrayRecordWriter
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # of an orphan of a killed command, perhaps
    try:
        with _disk_errors(partial):
            writer: Any = ArrayRecordWriter(str(partial), WRITING)
        try:
            yield lambda content: _write(writer, content, partial)
        except BaseException:
            with contextlib.suppress(RuntimeError):
                writer.close()
            raise
        with _disk_errors(partial):
            writer.close()
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _write(writer: Any, content: bytes, path: pathlib.Path) -> None:
    with _disk_errors(path):
        writer.write(content)


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
    """What ArrayRecord says of a full disk, as the error of the system."""
    try:
        yield
    except RuntimeError as error:
        code = errno.ENOSPC if any(words in str(error) for words in FULL) else errno.EIO
        raise OSError(code, str(error).split(";")[0], str(path)) from None


# Finished shards


def damaged_shards(folder: pathlib.Path, workers: int) -> list[Skip]:
    """(path, reason) of every shard of a corpus that is missing, or is not the one that was written.

    Raises UserError where the folder holds no corpus of `prepare`.
    """
    try:
        with open_binary(folder / CONTENTS) as file:
            shards = json.load(file)["shards"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{folder} is no corpus of `prepare --shards`: {CONTENTS} is missing or damaged") from None
    with ThreadPoolExecutor(workers) as pool:
        reasons = list(pool.map(lambda shard: _damage(folder / shard["file"], shard), shards))
    found = [Skip(str(folder / shard["file"]), reason) for shard, reason in zip(shards, reasons, strict=True) if reason]
    return found


def _damage(path: pathlib.Path, shard: dict[str, Any]) -> str:
    """What is wrong with a shard; "" for nothing."""
    try:
        if (state := state_of(path)) is None:
            return "shard does not exist"
        if state[0] != shard["bytes"]:
            return f"shard has another size: {state[0]:,} bytes, and {shard['bytes']:,} were written"
        return "" if file_digest(path) == shard["sha256"] else "shard has another SHA-256 than when it was written"
    except OSError as error:
        return f"unreadable shard: {os_error_text(error)}"
