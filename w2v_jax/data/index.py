"""What audio exists: one row per recording or segment, and a list of everything that was skipped, with the reason.

An index consists of columns of equal length (`kept/columns.py`), in memory or in a mapped file. It holds no audio. A
`Source` is an index together with a way to read it. Order and batching belong to `batch_plan.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from w2v_jax.core.cli import UserError, expand_home, os_error_text
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import state_of, write_whole
from w2v_jax.core.stores import forget_listings, is_remote, path_of
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.kept.columns import AT_ONCE, Builder, Column, Joined, Store

SKIPPED = "skipped.jsonl"
"""The file of a run or an extraction that `write_skipped` writes."""
BELOW_MINIMUM = "shorter than data.min_seconds"
_SHOWN = 3  # paths of each kind of skipped files in a report
_HISTOGRAM = (0, 1, 2, 5, 10, 15, 20, 30, 60, 600, 3600)


UNKNOWN = -1
"""The size and the time of change of a file at which nobody has looked."""


class Skip(NamedTuple):
    """Something that was left out. `reason` is a kind, or "kind: detail". Reports count by kind."""

    path: str
    reason: str

    @property
    def kind(self) -> str:
        return self.reason.split(": ")[0]

    @property
    def is_recording(self) -> bool:
        """False for files with other extensions and for folders and transcripts listed twice: nothing is lost."""
        is_other_file = "is not an audio extension" in self.reason and "wrong extension" not in self.reason
        is_repeated = self.kind in ("repeated transcript", "directory listed already")
        return not (is_other_file or is_repeated or self.kind == "Mac resource file")


class TooFew(UserError):
    """Too few recordings are left, or none. `skipped` has all that was left out; the text ends with the kinds of it."""

    def __init__(self, text: str, skipped: Sequence[Skip]):
        super().__init__("\n".join([text, *skipped_by_kind(skipped)]))
        self.skipped = skipped


def skipped_by_kind(skipped: Sequence[Skip]) -> list[str]:
    """Lines for people: each kind of reason, the most common first, with the first paths and details."""
    kinds: dict[str, list[Skip]] = defaultdict(list)
    for skip in skipped:
        kinds[skip.kind].append(skip)
    lines = [f"skipped {len(skipped):,}:"] if kinds else []
    for kind, skips in sorted(kinds.items(), key=lambda item: -len(item[1])):
        lines.append(f"  {len(skips):,} x {kind}")
        lines += [f"      {skip.path}{skip.reason.removeprefix(kind)}" for skip in skips[:_SHOWN]]
    return lines


def write_skipped(path: str | os.PathLike, skipped: Iterable[Skip]) -> None:
    """Writes one JSON line, with path and reason, for each of `skipped`, and repeated ones once."""
    lines = (json.dumps(skip._asdict(), ensure_ascii=False) for skip in dict.fromkeys(skipped))
    write_whole(path, (line.encode("utf-8", "backslashreplace").decode() for line in lines))


class Row(NamedTuple):
    """One recording, or a segment of one: `frames` samples from sample `offset`, both at the file's own `rate`.

    size, modified: the bytes of the file that holds it when it was listed, and its time of change in nanoseconds;
    UNKNOWN where nobody looked.
    """

    id: str
    path: str
    offset: int
    frames: int
    rate: int
    speaker: str = ""
    transcript: str = ""
    size: int = UNKNOWN
    modified: int = UNKNOWN


class Form(NamedTuple):
    """The elements of a source's rows: their key in the batch, their dtype, and the 16 kHz samples that each spans.

    `made_by` identifies the model (and vocabulary) that made the elements, so that elements of another model are
    noticed. `width` counts the numbers in an element; it is 0 where an element is a scalar.
    """

    name: str = "wave"
    dtype: str = "float32"
    hop: int = 1
    made_by: str = ""
    width: int = 0

    def shape(self, length: int) -> tuple[int, ...]:
        """The shape of a row's elements over `length` samples."""
        return (length // self.hop, self.width) if self.width else (length // self.hop,)


WAVE = Form()


class ReadError(Exception):
    """A row cannot be read. The text is the reason. A run goes on without the row and reports it."""


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Errors of the disk as ReadError."""
    try:
        yield
    except FileNotFoundError:
        raise ReadError("file does not exist") from None
    except OSError as error:
        raise ReadError(f"unreadable file: {os_error_text(error)}") from None


def file_state(path: str) -> tuple[int, ...]:
    """`state_of` a file that is there. Raises ReadError."""
    with disk_errors():
        if (state := state_of(path)) is None:
            raise FileNotFoundError
        return state


class Source(Protocol):
    """Random access to recordings. Each file of `sources/` exports `make(data, root) -> Source`.

    `read(row, start, length)` returns form.dtype [form.shape(at most length)]; audio is mono at 16 kHz. `start` and
    `length` count 16 kHz samples within the row whatever the form, and are rounded down to whole elements. It raises
    ReadError. It is safe to call from several threads.
    """

    index: Index
    form: Form

    def read(self, row: int, start: int, length: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Columns of N rows. `offsets` and `frames` are at each file's own rate, `num_samples` at 16 kHz (rounded down).

    sizes, modified: those of `Row`. hashes: those of the ids (`hash_ids`), where they are known. groups: the corpus
    (and language) of each row where several are mixed (`corpora.py`), otherwise 0.
    """

    ids: Column
    paths: Column
    offsets: Column
    frames: Column
    rates: Column
    speakers: Column
    transcripts: Column
    sizes: Column
    modified: Column
    hashes: Column | None
    num_samples: np.ndarray
    groups: np.ndarray
    skipped: list[Skip]
    notes: list[str]

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.ids)

    def in_brief(self) -> str:
        return f"{len(self):,} recordings, {self.hours:.2f} h, {len(self.skipped):,} skipped"

    @property
    def lost(self) -> list[Skip]:
        """The skips but for those by which nothing is lost."""
        return [skip for skip in self.skipped if skip.is_recording]

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each row, float64 [N]."""
        return self.num_samples / SAMPLE_RATE

    @property
    def hours(self) -> float:
        return float(self.num_samples.sum()) / SAMPLE_RATE / 3600

    def select(self, rows: np.ndarray) -> Index:
        """The index of these rows (numbers or a boolean mask), in this order, with the same list of skips."""
        rows, shared = np.asarray(rows), {}
        columns = {name: getattr(self, name) for name in (*COLUMNS, "hashes")}
        chosen = {name: column and column.select(rows, shared) for name, column in columns.items()}
        return dataclasses.replace(self, **chosen, num_samples=self.num_samples[rows], groups=self.groups[rows])

    def id_hashes(self) -> np.ndarray:
        """`hash_ids` of the ids, uint64 [N]."""
        return hash_ids(self.ids) if self.hashes is None else np.asarray(self.hashes)

    def fingerprint(self) -> str:
        """A hash of ids and lengths. It is equal for the same data in the same order, whatever its path."""
        digest = hashlib.sha256(np.ascontiguousarray(self.num_samples, "<i8").tobytes())
        for lines in self.ids.lines():
            digest.update(lines)
        return digest.hexdigest()[:16]

    def report(self) -> str:
        """A text for people: rows, hours, a histogram of durations, and what was skipped, with the first paths."""
        lines = [f"{len(self):,} recordings, {self.hours:.2f} h"]
        if len(self):
            low, middle, high = np.quantile(self.durations, (0, 0.5, 1))
            lines[0] += f"; seconds: shortest {low:.2f}, median {middle:.2f}, longest {high:.2f}"
            lines += self._histogram()
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines + skipped_by_kind(self.skipped))

    def _histogram(self) -> list[str]:
        edges = (*_HISTOGRAM, np.inf)
        counts = np.histogram(self.durations, np.array(edges))[0]
        lines = []
        for (low, high), count in zip(itertools.pairwise(edges), counts, strict=True):
            name = f"{low}-{high} s" if np.isfinite(high) else f"over {low} s"
            if count:
                lines.append(f"  {name:>12} {count:>10,} {'#' * round(40 * count / counts.max())}")
        return lines


COLUMNS = {
    "ids": "id",
    "paths": "path",
    "offsets": "offset",
    "frames": "frames",
    "rates": "rate",
    "speakers": "speaker",
    "transcripts": "transcript",
    "sizes": "size",
    "modified": "modified",
}
"""The columns that `make_index` fills, and the field of a row that each has."""
TEXTS = ("ids", "paths", "speakers", "transcripts")
"""The columns of texts; the others are whole numbers."""


def make_index(rows: Iterable[Row], skipped: Sequence[Skip] = ()) -> Index:
    """The index of `rows` in their order. `skipped` may grow while `rows` is iterated; the index takes all of it.

    Rows with a repeated id stay: the second becomes "id#2", the third "id#3", and a note counts them.
    """
    builders = {name: Builder(is_text=name in TEXTS) for name in COLUMNS}
    order = [Row._fields.index(field) for field in COLUMNS.values()]
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, AT_ONCE)):
        values = list(zip(*chunk, strict=True))
        for builder, number in zip(builders.values(), order, strict=True):
            builder.add(values[number])
    stores: dict[str, Store] = {name: builder.store() for name, builder in builders.items()}
    hashes, renamed = hash_ids(Column(stores["ids"])), 0
    if repeated := _repeated(hashes):
        stores["ids"] = _made_unique(stores["ids"], repeated)
        hashes, renamed = hash_ids(Column(stores["ids"])), len(repeated)
    notes = [f"{renamed:,} repeated ids were made unique by a number, e.g. id#2"] if renamed else []
    return index_of(stores | {"hashes": hashes}, skipped=list(skipped), notes=notes)


def index_of(stores: Mapping[str, Store], *, skipped: list[Skip], notes: list[str]) -> Index:
    """The index of the stores of COLUMNS and of "hashes"."""
    num_samples = np.asarray(stores["frames"]).astype(np.int64)
    num_samples *= SAMPLE_RATE
    num_samples //= np.maximum(np.asarray(stores["rates"]), 1)
    return Index(
        **{name: Column(store) for name, store in stores.items()},
        num_samples=num_samples,
        groups=np.zeros(len(num_samples), np.int32),
        skipped=skipped,
        notes=notes,
    )


def join_indexes(indexes: Sequence[Index], labels: Sequence[str]) -> Index:
    """The rows of all indexes, one index after the other, as so many groups. Their ids become LABEL/ID."""
    columns = {name: [getattr(index, name) for index in indexes] for name in COLUMNS}
    prefixes = [f"{label}/" for label in labels]
    joined = {name: Column(Joined(parts, prefixes if name == "ids" else ())) for name, parts in columns.items()}
    return Index(
        **joined,
        hashes=None,
        num_samples=np.concatenate([index.num_samples for index in indexes]),
        groups=np.repeat(np.arange(len(indexes), dtype=np.int32), [len(index) for index in indexes]),
        skipped=[skip for index in indexes for skip in index.skipped],
        notes=[f"{label}: {note}" for label, index in zip(labels, indexes, strict=True) for note in index.notes],
    )


def usable(index: Index, where: str, min_seconds: float) -> Index:
    """Moves the rows shorter than `min_seconds` to the skips. Raises TooFew where no row remains.

    `where` names the data in the message.
    """
    short = (index.durations < min_seconds) | (index.num_samples < 1)
    short_rows = zip(index.paths[short], index.durations[short], strict=True)
    skips = [Skip(path, f"{BELOW_MINIMUM}: {seconds:.2f} s of {min_seconds:g} s") for path, seconds in short_rows]
    remaining = dataclasses.replace(index.select(~short) if short.any() else index, skipped=index.skipped + skips)
    if len(remaining):
        return remaining
    if len(index):
        longest = index.durations.max()
        lower = f"{math.floor(100 * longest) / 100:.2f}"
        raise TooFew(
            f"data.root: all {len(index):,} recordings of {where} are shorter than data.min_seconds={min_seconds:g} "
            f"(longest {longest:.2f} s); lower it with --config.data.min_seconds={lower} (in prepare: --min-seconds "
            f"{lower}), or choose other data",
            remaining.skipped,
        )
    why = "it holds no audio files (FLAC, WAV, OGG, MP3, Opus)"
    if any(skip.is_recording for skip in index.skipped):
        why = "repair or replace the files that are skipped, or choose other data"
    raise TooFew(f"data.root: no readable audio in {where}: {why}", index.skipped)


def split_heldout(index: Index, share: float, *, speakers: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(train rows, held-out rows), chosen by a hash of each id: the same whatever the order, seed or machine.

    About `share` of the rows are held out, none if `share` is 0. Otherwise both sides get at least one row, provided
    that there are two. With `speakers` it is about that share of the speakers, with all their rows. Raises UserError
    where a row then has no speaker, or all have the same.
    """
    if share <= 0 or len(index) < 2:
        return np.arange(len(index)), np.zeros(0, np.int64)
    if speakers:
        check_speakers(index, "data.root")
    hashes = hash_ids(index.speakers) if speakers else index.id_hashes()
    if speakers and (hashes == hashes[0]).all():
        raise UserError(
            f"data.eval_speakers: all {len(index):,} recordings, e.g. {index.paths[0]}, have the speaker "
            f"{index.speakers[0]!r}, so that none can be held out: add speakers, or set data.eval_speakers=false"
        )
    heldout = hashes < np.uint64(min(share, 1.0) * (2**64 - 2**11))  # the largest float below 2^64
    heldout |= hashes == hashes.min()
    heldout &= hashes != hashes.max()
    return np.flatnonzero(~heldout), np.flatnonzero(heldout)


def check_speakers(index: Index, where: str) -> None:
    """Raises UserError unless every row has a speaker. `where` names the config key of the rows."""
    if len(nameless := np.flatnonzero(index.speakers == "")):
        raise UserError(
            f"data.eval_speakers: {len(nameless):,} of {len(index):,} recordings of {where} have no speaker, e.g. "
            f"{index.paths[nameless[0]]}: give each a 'speaker' in a manifest (data.name=jsonl), or set "
            "data.eval_speakers=false"
        )


def some_hours(index: Index, hours: float) -> np.ndarray:
    """Rows with at most `hours` of audio in all, but at least one row, chosen by a hash of each id.

    The rows for fewer hours are a subset of those for more, whatever the order, seed or machine.
    """
    order = np.argsort(hash_ids(f"{id} hours" for id in index.ids), kind="stable")
    total = np.cumsum(index.num_samples[order]) / SAMPLE_RATE / 3600
    return np.sort(order[: max(1, int(np.searchsorted(total, hours, side="right")))])


def subset(source: Source, rows: np.ndarray) -> Source:
    """The source of only these rows, numbered from 0."""
    return _Subset(source, np.asarray(rows, np.int64), index=source.index.select(rows), form=source.form)


@dataclasses.dataclass(eq=False)
class _Subset:
    source: Source
    rows: np.ndarray
    index: Index
    form: Form

    __repr__ = short_repr

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        return self.source.read(int(self.rows[row]), start, length)


def hash_ids(ids: Iterable[str]) -> np.ndarray:
    """Hashes uint64 [N] of ids [N], the same on every machine and in every version."""
    hashes = bytearray()
    for id in ids:
        hashes += hashlib.blake2b(id.encode(), digest_size=8).digest()
    return np.frombuffer(hashes, "<u8").astype(np.uint64, copy=False)


def root_entries(root: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """The entries of a `root`, which is one path or several, as text, without empty ones.

    `~` is expanded, and a URL has no slash at its end.
    """
    entries = (root,) if isinstance(root, (str, os.PathLike)) else root
    texts = [expand_home(entry) for entry in entries if os.fspath(entry)]
    return [str(path_of(text)) if is_remote(text) else text for text in texts]


def roots(root: str | os.PathLike | Sequence[str | os.PathLike], key: str = "data.root") -> tuple[pathlib.Path, ...]:
    """The paths of a `root`, which is one path or several. Raises UserError where there is none or one is missing.

    `key` is the config key that the message names.
    """
    paths = tuple(map(path_of, root_entries(root)))
    if not paths:
        raise UserError(f"{key} is empty: set it to where the audio is, e.g. --config.{key}=/path/to/audio")
    for path in paths:
        if not path.exists():
            forget_listings()  # the next try looks anew
            several = (
                f" (one of {len(paths)} paths: a comma in --config.{key} separates them)" if len(paths) > 1 else ""
            )
            remedy = "correct the URL" if is_remote(path) else "correct the path or mount the disk"
            raise UserError(f"{key}: {str(path)!r} does not exist{several}; {remedy}")
    return paths


def _repeated(hashes: np.ndarray) -> list[int]:
    """The rows whose id, by its hash, an earlier row has."""
    order = np.argsort(hashes, kind="stable")
    return np.sort(order[1:][hashes[order][1:] == hashes[order][:-1]]).tolist()


def _made_unique(store: Store, repeated: Sequence[int]) -> Store:
    """The ids of a store, with a number after those of the rows `repeated`."""
    ids = Column(store).tolist()
    last_number, used = Counter(), set(ids)
    for row in repeated:
        id = ids[row]
        number = max(last_number[id], 1) + 1
        while f"{id}#{number}" in used:
            number += 1
        last_number[id] = number
        ids[row] = f"{id}#{number}"
        used.add(ids[row])
    return Column.of(ids).store
