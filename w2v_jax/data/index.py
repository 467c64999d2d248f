"""What audio exists: one row per recording or segment, and a list of everything that was left out and why.

An index is columns of equal length, so that ten million rows stay flat in memory. It holds no audio; a `Source`
is an index together with a way to read it. Order and batching belong to `plan.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError

FORMAT = 1
CHUNK = 50_000
TOO_SHORT = "shorter than data.min_seconds"
_Text = np.dtypes.StringDType()
_HISTOGRAM = (0, 1, 2, 5, 10, 15, 20, 30, 60, 600, 3600)


class Skip(NamedTuple):
    """Something that was left out. `reason` is a kind, or "kind: detail"; reports count by kind."""

    path: str
    reason: str


class Row(NamedTuple):
    """One recording, or a segment of one: `frames` samples from sample `offset`, both at the file's own `rate`."""

    id: str
    path: str
    offset: int
    frames: int
    rate: int
    speaker: str = ""
    transcript: str = ""


class Form(NamedTuple):
    """What a source's rows are made of: the key in the batch, its type, and the 16 kHz samples of one element.

    made_by: which model (and vocabulary) made the elements, so that those of another one are not taken for them.
    width: numbers in an element; 0 where an element is one number.
    """

    name: str = "wave"
    dtype: str = "float32"
    hop: int = 1
    made_by: str = ""
    width: int = 0

    def shape(self, length: int) -> tuple[int, ...]:
        """The shape of `length` samples of a row."""
        return (length // self.hop, self.width) if self.width else (length // self.hop,)


WAVE = Form()


class ReadError(Exception):
    """A row that cannot be read; the text is the reason. A run goes on without the row and reports it."""


class Source(Protocol):
    """Random access to recordings. Each source file of this folder exports `make(data, root) -> Source`.

    read(row, start, length) -> form.dtype [form.shape(at most length)]; for audio mono at 16 kHz. start and length are
    16 kHz samples within the row whatever the form, rounded down to whole elements. Raises ReadError. Safe to call
    from several threads.
    """

    index: Index
    form: Form

    def read(self, row: int, start: int, length: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Columns of N rows: `offsets`, `frames` at each file's own rate, `num_samples` at 16 kHz (rounded down)."""

    ids: np.ndarray
    paths: np.ndarray
    offsets: np.ndarray
    frames: np.ndarray
    rates: np.ndarray
    num_samples: np.ndarray
    speakers: np.ndarray
    transcripts: np.ndarray
    skipped: list[Skip]
    notes: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each row, float64 [N]."""
        return self.num_samples / SAMPLE_RATE

    @property
    def hours(self) -> float:
        return float(self.num_samples.sum()) / SAMPLE_RATE / 3600

    def select(self, rows: np.ndarray) -> Index:
        """The index of these rows (numbers or a boolean mask), in this order, with the same skipped list."""
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return dataclasses.replace(self, **columns)

    def fingerprint(self) -> str:
        """A hash of ids and lengths: equal for the same data in the same order, wherever it lies."""
        digest = hashlib.sha256(np.ascontiguousarray(self.num_samples, "<i8").tobytes())
        for chunk in _chunks(self.ids):
            digest.update("\n".join(chunk).encode() + b"\n")
        return digest.hexdigest()[:16]

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSONL: a header, one line per row, one per skipped file. The file appears whole or not at all."""
        partial = pathlib.Path(f"{os.fspath(path)}.partial")
        header = {"index": FORMAT, "rows": len(self), "fingerprint": self.fingerprint(), "notes": self.notes}
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(header) + "\n")
            for row in self._rows():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            for skip in self.skipped:
                file.write(json.dumps({"skipped": skip.path, "reason": skip.reason}) + "\n")
        os.replace(partial, path)

    def _rows(self) -> Iterator[Row]:
        columns = (self.ids, self.paths, self.offsets, self.frames, self.rates, self.speakers, self.transcripts)
        for chunk in zip(*(_chunks(column) for column in columns), strict=True):
            yield from map(Row, *chunk)

    @staticmethod
    def load(path: str | os.PathLike) -> Index:
        """The index that `save` wrote. Raises UserError when the file is missing, cut short or changed."""
        where, skipped = os.fspath(path), []
        try:
            with open(path, encoding="utf-8") as file:
                header = json.loads(next(file))
                if header["index"] != FORMAT:
                    raise UserError(f"{where}: index format {header['index']}, this version reads {FORMAT}")
                index = make_index(_read_rows(file, skipped), skipped, header["notes"], unique=False)
        except OSError as error:
            raise UserError(f"{where}: the index cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise UserError(f"{where}: not an index of w2v_jax ({error}); delete it to list the data again") from None
        if len(index) != header["rows"] or index.fingerprint() != header["fingerprint"]:
            raise UserError(f"{where}: the index is cut short or was edited; delete it to list the data again")
        return index

    def report(self, paths: int = 3) -> str:
        """Lines for people: rows, hours, a histogram of durations, and what was skipped with the first paths."""
        lines = [f"{len(self):,} recordings, {self.hours:.2f} h"]
        if len(self):
            low, middle, high = np.quantile(self.durations, (0, 0.5, 1))
            lines[0] += f"; seconds: shortest {low:.2f}, median {middle:.2f}, longest {high:.2f}"
            lines += self._histogram()
        lines += [f"note: {note}" for note in self.notes]
        kinds: dict[str, list[Skip]] = defaultdict(list)
        for skip in self.skipped:
            kinds[skip.reason.split(": ")[0]].append(skip)
        if kinds:
            lines.append(f"skipped {len(self.skipped):,}:")
        for kind, skips in sorted(kinds.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(skips):,} x {kind}")
            lines += [f"      {skip.path}{skip.reason.removeprefix(kind)}" for skip in skips[:paths]]
        return "\n".join(lines)

    def _histogram(self) -> list[str]:
        edges = (*_HISTOGRAM, np.inf)
        counts = np.histogram(self.durations, np.array(edges))[0]
        lines = []
        for (low, high), count in zip(itertools.pairwise(edges), counts, strict=True):
            name = f"{low}-{high} s" if np.isfinite(high) else f"over {low} s"
            if count:
                lines.append(f"  {name:>12} {count:>10,} {'#' * round(40 * count / counts.max())}")
        return lines


_COLUMNS = ("ids", "paths", "offsets", "frames", "rates", "num_samples", "speakers", "transcripts")


def make_index(
    rows: Iterable[Row], skipped: Sequence[Skip] = (), notes: Sequence[str] = (), *, unique: bool = True
) -> Index:
    """The index of `rows` in their order.

    A repeated id keeps its row: the second becomes "id#2", the third "id#3", and a note counts them.
    """
    parts: list[list[np.ndarray]] = [[] for _ in Row._fields]
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, CHUNK)):
        for part, field, values in zip(parts, Row._fields, zip(*chunk, strict=True), strict=True):
            part.append(np.array(values, _dtype(field)))
    columns = [np.concatenate(p) if p else np.zeros(0, _dtype(f)) for p, f in zip(parts, Row._fields, strict=True)]
    ids, paths, offsets, frames, rates, speakers, transcripts = columns
    notes = list(notes)
    if unique and (renamed := _make_unique(ids)):
        notes.append(f"{renamed:,} repeated ids were made unique by a number, e.g. id#2")
    num_samples = frames * SAMPLE_RATE // np.maximum(rates, 1)
    return Index(ids, paths, offsets, frames, rates, num_samples, speakers, transcripts, list(skipped), notes)


def usable(index: Index, where: str, min_seconds: float) -> Index:
    """The index without rows shorter than `min_seconds`, which join the skipped ones. UserError if nothing is left."""
    short = (index.durations < min_seconds) | (index.num_samples < 1)
    found = zip(index.paths[short], index.durations[short], strict=True)
    skips = [Skip(path, f"{TOO_SHORT}: {seconds:.2f} s of {min_seconds:g} s") for path, seconds in found]
    left = dataclasses.replace(index.select(~short) if short.any() else index, skipped=index.skipped + skips)
    if len(left):
        return left
    if len(index):
        longest = index.durations.max()
        raise UserError(
            f"data.root: all {len(index):,} recordings of {where} are shorter than data.min_seconds={min_seconds:g} "
            f"(longest {longest:.2f} s); lower it with --config.data.min_seconds={longest:.2f} or choose other data"
        )
    raise UserError(f"data.root: no readable audio in {where}{_why_nothing(index.skipped)}")


def _why_nothing(skipped: Sequence[Skip]) -> str:
    if not skipped:
        return ": it holds no audio files (FLAC, WAV, OGG, MP3, Opus)"
    kinds = Counter(skip.reason.split(": ")[0] for skip in skipped).most_common(3)
    return f": skipped {len(skipped):,}, {'; '.join(f'{n:,} x {kind}' for kind, n in kinds)}; first: {skipped[0].path}"


def split_heldout(index: Index, share: float) -> tuple[np.ndarray, np.ndarray]:
    """(train rows, held-out rows), chosen by a hash of each id: the same rows whatever the order, seed or machine.

    About `share` of the rows, at least one on either side where there are two rows; none held out if share is 0.
    """
    if share <= 0 or len(index) < 2:
        return np.arange(len(index)), np.zeros(0, np.int64)
    hashes = hash_ids(index.ids)
    heldout = hashes < np.uint64(min(share, 1.0) * (2**64 - 2**11))  # the largest float below 2^64
    heldout[np.argmin(hashes)] = True
    heldout[np.argmax(hashes)] = False
    return np.flatnonzero(~heldout), np.flatnonzero(heldout)


def some_hours(index: Index, hours: float) -> np.ndarray:
    """Rows that hold at most `hours` of audio (one row at least), chosen by a hash of each id.

    The rows of fewer hours are among those of more, whatever the order, seed or machine.
    """
    order = np.argsort(hash_ids(np.array([f"{id} hours" for id in index.ids.tolist()], _Text)), kind="stable")
    heard = np.cumsum(index.num_samples[order]) / SAMPLE_RATE / 3600
    return np.sort(order[: max(1, int(np.searchsorted(heard, hours, side="right")))])


def subset(source: Source, rows: np.ndarray) -> Source:
    """The source that holds only these rows, numbered from 0."""
    return _Subset(source, np.asarray(rows, np.int64), source.index.select(rows), source.form)


@dataclasses.dataclass(eq=False)
class _Subset:
    source: Source
    rows: np.ndarray
    index: Index
    form: Form

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        return self.source.read(int(self.rows[row]), start, length)


def hash_ids(ids: np.ndarray) -> np.ndarray:
    """uint64 [N], the same on every machine and in every version."""
    hashes = (hashlib.blake2b(id.encode(), digest_size=8).digest() for chunk in _chunks(ids) for id in chunk)
    return np.fromiter((int.from_bytes(h, "little") for h in hashes), np.uint64, count=len(ids))


def roots(root: str | os.PathLike | Sequence[str | os.PathLike], key: str = "data.root") -> tuple[pathlib.Path, ...]:
    """The existing paths of a `root` entry. Raises UserError for none and for those that do not exist."""
    given = (root,) if isinstance(root, (str, os.PathLike)) else tuple(root)
    paths = tuple(pathlib.Path(p).expanduser() for p in given if os.fspath(p))
    if not paths:
        raise UserError(f"{key} is empty: say where the audio is, e.g. --config.{key}=/path/to/audio")
    for path in paths:
        if not path.exists():
            raise UserError(f"{key}: {str(path)!r} does not exist; correct the path or mount the disk")
    return paths


def _dtype(field: str) -> Any:
    return np.int64 if field in ("offset", "frames", "rate") else _Text


def _chunks(column: np.ndarray) -> Iterator[list]:
    return (column[i : i + CHUNK].tolist() for i in range(0, len(column), CHUNK))


def _make_unique(ids: np.ndarray) -> int:
    hashes = hash_ids(ids)
    order = np.argsort(hashes, kind="stable")
    same = np.concatenate([[False], hashes[order][1:] == hashes[order][:-1]]) if len(ids) else np.zeros(0, bool)
    repeated = np.sort(order[same])
    if not len(repeated):
        return 0
    seen, taken = Counter(), set(ids.tolist())
    for row in repeated:
        name = ids[row]
        number = seen[name] + 2
        while f"{name}#{number}" in taken:
            number += 1
        seen[name] = number - 1
        ids[row] = f"{name}#{number}"
        taken.add(ids[row])
    return len(repeated)


def _read_rows(lines: Iterable[str], skipped: list[Skip]) -> Iterator[Row]:
    for line in lines:
        entry = json.loads(line)
        if isinstance(entry, dict):
            skipped.append(Skip(entry["skipped"], entry["reason"]))
        else:
            yield Row(*entry)
