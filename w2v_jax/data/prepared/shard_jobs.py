"""Makes a corpus of shards from a source: which recording goes where, all cores, and goes on where it was stopped.

    .NAME.partial/job.json              the settings, once the lists are written
    .NAME.partial/rows-00012.jsonl      the recordings of a shard, in the order of the source
    .NAME.partial/shard-00012.json      what went into a finished shard, which lies beside it
    NAME/                               everything, after one rename: whoever sees it sees a whole corpus

A shard is a function of its list and of the options. A job that was killed at any moment therefore ends with the same
bytes as one that was not, on any number of processes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError, cannot_write, os_error_text, warn
from w2v_jax.core.files import absolute, sole_maker, write_whole
from w2v_jax.core.progress import ProgressBar
from w2v_jax.core.storage import move_out, rename
from w2v_jax.data.index import SKIPPED, Index, Row, Skip, Source, write_skipped
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.io.part_jobs import changed_settings
from w2v_jax.data.prepared.records import Options
from w2v_jax.data.prepared.shard_files import (
    CONTENTS,
    JOB,
    ROWS,
    SHARD,
    SUMMARY,
    is_finished,
    read_rows,
    row_line,
    write_shard,
)
from w2v_jax.data.prepared.summaries import language_of, merged, shards_report
from w2v_jax.data.prepared.tfds_metadata import SHARD_NAME, write_dataset_info

REPORT = "report.json"
FEWEST_SHARDS, SMALLEST_SHARD = 64, 16 << 20
"""A small corpus has smaller shards, so that all cores have work: one in so many parts, but not below so many bytes."""
MOST_BYTES_OF_SAMPLE = 4
"""FLAC of 16 bits in stereo or of 24 bits in mono is no larger than this, with hardly an exception."""
LIKELY_BYTES_OF_SAMPLE = 1.0
"""FLAC of speech in 16 bits is rarely smaller."""
BYTES_OF_RECORD = 400


class ShardJob(NamedTuple):
    """A corpus to make in `folder`, and how.

    shard_bytes: the most that a shard holds, if a single recording holds less. language: that of all recordings; "":
    what a folder language=CODE above a recording says. about: the other settings, which JSON can represent. store: the
    URL of a folder to which each shard goes when it is finished; "": they stay here.
    """

    folder: pathlib.Path
    options: Options
    shard_bytes: int
    language: str
    about: dict[str, Any]
    store: str = ""

    @property
    def partial(self) -> pathlib.Path:
        """Where the corpus is made."""
        return self.folder.with_name(f".{self.folder.name}.partial")

    @property
    def settings(self) -> dict[str, Any]:
        """What two commands that make the same corpus have in common."""
        return {**self.about, **self.options._asdict(), "shard_bytes": self.shard_bytes, "language": self.language}


Run = Callable[[pathlib.Path, list[int]], Iterator[tuple[int, dict[str, Any]]]]
"""Makes the shards of these numbers of the job in a folder. Yields number and summary of each, as they are finished."""


def make_shards(job: ShardJob, list_source: Callable[[bool], Source], run: Run) -> dict[str, Any]:
    """Makes the corpus unless it is there, and returns its report.

    `list_source` is asked for the recordings where no earlier command has listed all, and told whether one began to.

    A second process that makes the same corpus waits for the first. Raises UserError.
    """
    folder = pathlib.Path(os.path.abspath(job.folder))
    job = job._replace(folder=folder)
    try:
        with sole_maker(folder):
            if (report := _finished_report(job)) is not None:
                print(f"{folder} is there already, made with the same settings")
                return report
            if (job.partial / CONTENTS).exists():  # killed within the last lines
                _check_settings(job, job.partial / CONTENTS)
                return _publish(job)
            if (job.partial / JOB).exists():
                _check_settings(job, job.partial / JOB)
            else:
                is_resumed = job.partial.exists()
                job.partial.mkdir(exist_ok=True)
                _begin(job, list_source(is_resumed))
            for path in job.partial.glob("*.partial"):  # of processes that were killed
                path.unlink(missing_ok=True)
            about = json.loads((job.partial / JOB).read_text(encoding="utf-8"))
            _write_missing(job, about, run)
            return _finish(job, about)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"the disk of {folder} takes no more ({error}). Finished shards stay in {job.partial}; free some space "
                "and give the same command, which goes on from there"
            ) from None
        raise cannot_write(f"--shards {folder}", error) from None


def _finished_report(job: ShardJob) -> dict[str, Any] | None:
    """The report of the corpus in the folder of a job; None where there is none. Raises UserError for other content."""
    folder = job.folder
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UserError(f"--shards {folder} is a file, and a corpus needs a folder")
    if not (folder / CONTENTS).exists():
        if any(folder.iterdir()):
            raise UserError(f"--shards {folder} is not empty and holds no corpus of `prepare`; choose another folder")
        return None
    _check_settings(job, folder / CONTENTS)
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))


def _check_settings(job: ShardJob, file: pathlib.Path) -> None:
    """Raises UserError where the settings in a file are not those of the job."""
    old = json.loads(file.read_text(encoding="utf-8"))["settings"]
    if changes := changed_settings(old, json.loads(json.dumps(job.settings))):
        raise UserError(
            f"{file.parent} holds a corpus with other settings:{changes}\nGive the same ones, choose another --shards, "
            "or delete the folder"
        )


# The lists


def _begin(job: ShardJob, source: Source) -> None:
    """Writes the lists of the shards and then job.json. Raises UserError where the disk is too small."""
    if not isinstance(source, AudioFiles):
        raise UserError("--shards needs recordings that are files or lie in files; this source has none")
    index = source.index
    most, likely = _sizes(index, job.options)
    limit = min(job.shard_bytes, max(int(most.sum()) // FEWEST_SHARDS, SMALLEST_SHARD))
    needed = min(likely.sum(), 2 * (os.cpu_count() or 1) * limit) if job.store else likely.sum()
    free = shutil.disk_usage(next(path for path in job.partial.parents if path.exists())).free
    if needed > free:
        raise UserError(
            f"--shards {job.folder}: needs about {needed / 1e9:.1f} GB, and the disk has "
            f"{free / 1e9:.1f} GB left: free some space, or choose a folder on another disk"
        )
    for path in job.partial.glob("rows-*.jsonl"):
        path.unlink()
    starts = shard_starts(most, limit)
    for number, (first, last) in enumerate(zip(starts, [*starts[1:], len(index)], strict=True)):
        write_whole(job.partial / ROWS.format(number), _lines(index.select(np.arange(first, last)), job.language))
    listing = [{"path": absolute(skip.path), "reason": skip.reason} for skip in index.skipped]
    about = {"settings": job.settings, "options": job.options._asdict(), "shards": len(starts)}
    about |= {"hours": index.hours, "notes": index.notes, "skipped": listing}
    write_whole(job.partial / JOB, json.dumps(about, ensure_ascii=True))


def _lines(index: Index, language: str) -> Iterator[str]:
    for row in range(len(index)):
        path = str(index.paths[row])
        entry = Row(
            str(index.ids[row]),
            absolute(path),
            offset=int(index.offsets[row]),
            frames=int(index.frames[row]),
            rate=int(index.rates[row]),
            speaker=str(index.speakers[row]),
            transcript=str(index.transcripts[row]),
            size=int(index.sizes[row]),
            modified=int(index.modified[row]),
        )
        yield row_line(entry, language_of(path, language))


def _sizes(index: Index, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """(the most, the likely) bytes of the records of each row [N]."""
    frames = index.num_samples if options.rate else np.asarray(index.frames)
    most = MOST_BYTES_OF_SAMPLE * frames
    likely = LIKELY_BYTES_OF_SAMPLE * frames
    paths = (str(path).lower() for path in index.paths)
    is_flac = np.fromiter((path.endswith(".flac") and "#" not in path for path in paths), bool, len(index))
    sizes = np.asarray(index.sizes)
    is_kept = is_flac & (sizes > 0) & ((options.rate == 0) | (np.asarray(index.rates) == options.rate))
    is_kept &= np.asarray(index.offsets) == 0  # the size of a file of many segments is none of theirs
    return np.where(is_kept, sizes, most) + BYTES_OF_RECORD, np.where(is_kept, np.minimum(sizes, likely), likely)


def shard_starts(sizes: np.ndarray, limit: int) -> list[int]:
    """The first rows of shards of at most `limit` bytes, or of one row, for rows of so many bytes [N], in order."""
    ends = np.cumsum(sizes)
    starts, before = [0], 0
    while True:
        last = max(starts[-1] + 1, int(np.searchsorted(ends, before + limit, side="right")))
        if last >= len(sizes):
            return starts
        starts.append(last)
        before = int(ends[last - 1])


# The shards


def _write_missing(job: ShardJob, about: dict[str, Any], run: Run) -> None:
    """Makes the shards that lack a summary, and shows the progress."""
    numbers = range(about["shards"])
    missing = [number for number in numbers if not is_finished(job.partial, number)]
    progress = ProgressBar(job.folder, about["hours"])

    def count(number: int, *, is_new: bool) -> None:
        rows, _ = read_rows(job.partial / ROWS.format(number))
        for row in rows:
            progress.add(row.frames / row.rate, is_new=is_new)

    for number in set(numbers) - set(missing):
        _send(job, number)
        count(number, is_new=False)
    with contextlib.closing(progress):
        for number, _ in run(job.partial, missing):
            _send(job, number)
            count(number, is_new=True)


def _send(job: ShardJob, number: int) -> None:
    """Sends a finished shard to the store of the job, if it has one and the shard is still here."""
    if job.store and (shard := job.partial / SHARD.format(number)).exists():
        move_out(shard, _sent(job, number))


def _sent(job: ShardJob, number: int) -> str:
    """The URL of a shard until all are finished: a name that nobody takes for a shard."""
    return f"{job.store}/{SHARD.format(number)}.partial"


def in_processes(workers: int) -> Run:
    """A `Run` in so many processes of this machine."""

    def run(folder: pathlib.Path, numbers: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        context = multiprocessing.get_context("spawn")  # threads and TensorFlow do not survive a fork
        count = max(1, min(workers, len(numbers)))
        try:
            stop = context.Event()
        except OSError as error:
            warn(f"this process makes all shards alone: other processes would need /dev/shm ({os_error_text(error)})")
            for number in numbers:
                yield number, write_shard(folder, number)
            return
        pool = concurrent.futures.ProcessPoolExecutor(
            count, mp_context=context, initializer=_start_worker, initargs=(os.getpid(), stop)
        )
        try:
            waiting = {pool.submit(_work, folder, number): number for number in numbers}
            for future in concurrent.futures.as_completed(waiting):
                yield waiting[future], future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError(
                "a process that made shards was ended by the system, perhaps for want of memory: give the same command "
                "with fewer --workers, which goes on from there"
            ) from None
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    return run


_worker: dict[str, Any] = {}
"""Of a process that makes shards: the id of its parent, and the event by which the parent stops it."""


def _start_worker(parent: int, stop: Any) -> None:
    _worker.update(parent=parent, stop=stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the work
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a limit of the size of files is an error of the writer


def _work(folder: pathlib.Path, number: int) -> dict[str, Any]:
    return write_shard(folder, number, check=_check_parent)


def _check_parent() -> None:
    """Ends this process where the command that started it was killed. Raises InterruptedError where it stops."""
    if os.getppid() != _worker["parent"]:
        os._exit(1)
    if _worker["stop"].is_set():
        raise InterruptedError("the command stops")


# The corpus


def _finish(job: ShardJob, about: dict[str, Any]) -> dict[str, Any]:
    """Names the shards, writes what is known of the corpus, and renames the folder. Returns the report."""
    partial, numbers = job.partial, range(about["shards"])
    summaries = [json.loads((partial / SUMMARY.format(n)).read_text(encoding="utf-8")) for n in numbers]
    used = [number for number, summary in zip(numbers, summaries, strict=True) if summary["records"]]
    listing = [Skip(**skip) for skip in about["skipped"]]
    skipped = [*listing, *(Skip(**skip) for summary in summaries for skip in summary["skipped"])]
    write_skipped(partial / SKIPPED, skipped)
    if not used:
        raise UserError(f"no recording could be stored; {partial / SKIPPED} gives the reasons")
    shards = []
    for place, number in enumerate(used):
        name = SHARD_NAME.format(place, len(used))
        if job.store:
            rename(_sent(job, number), name)
            (partial / name).touch()  # TensorFlow Datasets looks for the names
        with contextlib.suppress(FileNotFoundError):  # it has its name since before a kill, or is in the store
            os.replace(partial / SHARD.format(number), partial / name)
        summary = summaries[number]
        shards.append({"file": name, **{key: summary[key] for key in ("records", "bytes", "sha256")}})
    notes = [*about["notes"]]
    if not write_dataset_info(partial, shards):
        notes.append("TensorFlow Datasets is missing here, so that the corpus cannot be opened as one of its datasets")
    for shard in shards if job.store else ():
        (partial / shard["file"]).unlink()
    report = shards_report(merged(summaries), skipped, notes)
    write_whole(partial / REPORT, json.dumps(report, ensure_ascii=False, indent=1))
    contents = {"settings": job.settings, "records": report["records"], "shards": shards}
    write_whole(partial / CONTENTS, json.dumps(contents, ensure_ascii=False, indent=1))
    return _publish(job)


def _publish(job: ShardJob) -> dict[str, Any]:
    """Removes what a finished corpus does not need, and gives its folder its name. Returns the report."""
    for path in [*job.partial.glob("rows-*.jsonl"), *job.partial.glob("shard-*"), job.partial / JOB]:
        path.unlink(missing_ok=True)
    if job.folder.exists():
        job.folder.rmdir()  # it is empty
    os.replace(job.partial, job.folder)
    return json.loads((job.folder / REPORT).read_text(encoding="utf-8"))
