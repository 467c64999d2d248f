"""Phones or letters in time, to measure units by: from a file, or those of a self-made corpus, which are known exactly.

A file has a line per segment, with tabs between id, start and end in seconds, and label:

    84-121123-0000	0.25	0.33	AH
    84-121123-0000	0.33	0.41	B

The order is free. Empty lines, lines that begin with # and a first line "id start end label" are passed over. Ids are
those of the recordings. A frame has the label of the segment in which its middle lies, and none outside of all.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError, some_of
from w2v_jax.core.display import short_repr
from w2v_jax.core.text import numbered_lines
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import Index
from w2v_jax.data.io.corpus import MARKER, RECORDINGS_PER_CHAPTER, read_settings
from w2v_jax.data.sources import synthetic

TOO_LONG = 0.1
"""Seconds by which a segment may end after its recording does."""


class Segments(NamedTuple):
    """The segments of one recording, by time: starts and ends [S] in seconds, and labels [S], indices into names."""

    starts: np.ndarray
    ends: np.ndarray
    labels: np.ndarray

    __repr__ = short_repr

    def at(self, seconds: np.ndarray) -> np.ndarray:
        """The label at each time [F]; -1 outside of all segments."""
        if not len(self.starts):
            return np.full(len(seconds), -1)
        place = np.searchsorted(self.starts, seconds, side="right") - 1
        inside = (place >= 0) & (seconds < self.ends[place])
        return np.where(inside, self.labels[place], -1)


class TimeLabels(NamedTuple):
    """{id of a recording: its segments}, and the names of the labels."""

    segments: dict[str, Segments]
    names: list[str]

    __repr__ = short_repr

    def check(self, seconds: Mapping[str, float], where: str) -> list[str]:
        """The ids without segments among recordings of so many `seconds`.

        Raises UserError where the segments are those of other recordings: none has any, or one ends too late.
        """
        without = [id for id in seconds if id not in self.segments]
        if len(without) == len(seconds):
            raise UserError(
                f"{where} is of other recordings: it has none of the {len(seconds):,} with units, such as "
                f"{some_of(list(seconds), 3)}; its own are {some_of(list(self.segments), 3)}"
            )
        late = [id for id, end in seconds.items() if id in self.segments and self._end(id) > end + TOO_LONG]
        if late:
            raise UserError(
                f"{where} is of other recordings: in {len(late):,} of them a segment ends after the recording, as in "
                f"{late[0]} ({self._end(late[0]):.2f} s of {seconds[late[0]]:.2f} s)"
            )
        return without

    def _end(self, id: str) -> float:
        return float(self.segments[id].ends.max(initial=0.0))


def read_time_labels(path: pathlib.Path) -> TimeLabels:
    """The segments in a file, see above. Raises UserError, which names the line."""
    rows: dict[str, list[tuple[float, float, str]]] = {}
    for number, line in numbered_lines(path):
        fields = line.split("\t")
        if not line.strip() or line.startswith("#") or (number == 1 and fields[:3] == ["id", "start", "end"]):
            continue
        try:
            id, start, end, label = fields
            rows.setdefault(id, []).append((float(start), float(end), label))
        except ValueError:
            raise UserError(
                f"{path}, line {number}: {line[:80]!r} is not id, start, end and label with tabs between them"
            ) from None
        if not 0 <= float(start) <= float(end) < np.inf:
            raise UserError(f"{path}, line {number}: a segment from {start} s to {end} s cannot be")
    return _labelled({id: sorted(segments) for id, segments in rows.items()}, str(path))


def corpus_letters(index: Index) -> TimeLabels:
    """The letters of a self-made corpus, from its own recipe; pauses between words are the label " ".

    Raises UserError for other recordings.
    """
    corpora: dict[pathlib.Path, int] = {}
    rows = {}
    for id, path, transcript in zip(*(column.tolist() for column in (index.ids, index.paths, index.transcripts))):
        root = pathlib.Path("/", *pathlib.Path(path).resolve().parts[:-4])
        if root not in corpora:
            settings = read_settings(root) or {}
            if (settings.get("kind"), settings.get("version")) != ("synthetic", synthetic.VERSION):
                raise UserError(
                    f"{path} is not of a self-made corpus (data.name=synthetic; {root / MARKER}), and nothing else has "
                    "letters in time: give a file to --alignment"
                )
            corpora[root] = settings["seed"]
        match = re.fullmatch(r"(\d+)-(\d+)-(\d+)", id)
        text, times = "", np.zeros(0)
        if match:
            speaker, chapter, place = map(int, match.groups())
            number = (chapter - 1) * RECORDINGS_PER_CHAPTER + place - 1
            text, times = synthetic.letter_bounds(speaker, number, seed=corpora[root])
        if text != transcript:
            raise UserError(f"{path} is not what the corpus says that it is: its transcript is not that of its number")
        bounds = (times / SAMPLE_RATE).tolist()
        rows[id] = list(zip(bounds, bounds[1:], text))
    return _labelled(rows, "the corpus")


def frame_times(frames: int, metadata: Mapping[str, Any]) -> np.ndarray:
    """The middle of each frame of a recording in seconds, from the metadata of its units: hop, field and cut."""
    place, start = np.arange(frames), 0
    if metadata["cut"] == "recipe":
        of_piece = (metadata["max_samples"] - metadata["field"]) // metadata["hop"] + 1
        piece, place = np.divmod(place, of_piece)
        start = piece * metadata["max_samples"]
    return (start + place * metadata["hop"] + (metadata["field"] - 1) / 2) / SAMPLE_RATE


def _labelled(rows: Mapping[str, Sequence[tuple[float, float, str]]], where: str) -> TimeLabels:
    names = sorted({label for segments in rows.values() for _, _, label in segments})
    if len(names) < 2:
        raise UserError(f"{where} has {len(names)} different labels; a measure needs two or more")
    number = {name: i for i, name in enumerate(names)}
    segments = {}
    for id, own in rows.items():
        starts, ends, labels = zip(*own)
        segments[id] = Segments(np.array(starts), np.array(ends), np.array([number[label] for label in labels]))
    return TimeLabels(segments, names)
