"""Work that turns the recordings of a source into the parts of a folder, and goes on where it was stopped.

`feature_files.py` describes the folder. The parts that are there are finished, because each appears whole. A second
command must have the same settings. What cannot be read stands in skipped.jsonl before its part appears. A folder that
was killed at any moment ends with the same bytes as one that was not.

Several processes may share the parts: process p of P makes every P-th. Process 0 alone calls `begin`, before the others
start, and `totals`, after all have ended; until then the others name what they skip in skipped-p.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import write_whole
from w2v_jax.core.progress import ProgressBar
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import SKIPPED, Source
from w2v_jax.data.io.feature_files import METADATA, Utterance, part_path, read_metadata, write_metadata

Encode = Callable[[np.ndarray, Callable[[int, str], None]], Iterator[tuple[int, np.ndarray]]]
"""A function of rows and `on_skip` that gives (row, frames [F D]) of each row that can be encoded."""


@dataclasses.dataclass(frozen=True, eq=False)
class PartJob:
    """The rows of each part, and where it goes. The `settings` stand in extract.json. noun: "extraction".

    process: the number of this process, of so many `processes` that share the parts.
    """

    folder: pathlib.Path
    source: Source
    parts: list[np.ndarray]
    settings: dict[str, Any]
    noun: str
    suffix: str
    process: int = 0
    processes: int = 1

    __repr__ = short_repr

    def path(self, number: int) -> pathlib.Path:
        """The file of a part."""
        return part_path(self.folder, number, self.suffix)

    def finished(self) -> set[int]:
        """The numbers of the parts that are there."""
        return {number for number in range(len(self.parts)) if self.path(number).exists()}

    def begin(self, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Writes extract.json, unless it is there, and returns its content.

        `check` may raise before anything is written. Raises UserError if the folder holds anything else.
        """
        settings = json.loads(json.dumps(self.settings))
        summary = settings | dict(parts=len(self.parts), complete=False)
        is_new = not (self.folder / METADATA).exists()
        if not is_new:
            old = read_metadata(self.folder, complete=False)
            if changes := changed_settings(old, settings):
                raise UserError(
                    f"{self.folder} holds {_a(self.noun)} with other settings:{changes}\nChoose another --out, use the "
                    "same settings, or delete the folder"
                )
        elif any(path.name != ".lock" for path in self.folder.iterdir()):
            raise UserError(f"{self.folder} is not empty and holds no {self.noun}; choose another --out")
        check()
        if is_new:
            write_metadata(self.folder, summary)
        self._gather_skipped()
        return summary

    def write_missing(self, write: Callable[[int, np.ndarray], None], done: set[int]) -> None:
        """Calls `write` with number and rows of each part of this process that is not in `done`. Shows the progress."""
        durations = self.source.index.durations
        own = {number: rows for number, rows in enumerate(self.parts) if number % self.processes == self.process}
        hours = sum(float(durations[rows].sum()) for rows in own.values()) / 3600
        progress = ProgressBar(self.folder, hours, is_shown=self.process == 0)
        for number, rows in own.items():
            if number not in done:
                write(number, rows)
            for row in rows:
                progress.add(float(durations[row]), is_new=number not in done)
        progress.end(sum(map(len, own.values())))

    def encoded(self, number: int, rows: np.ndarray, encode: Encode) -> list[tuple[np.ndarray, Utterance]]:
        """The frames and the utterance of each row, in their order. Names the rows without any in skipped.jsonl."""
        index = self.source.index
        skipped: list[dict[str, Any]] = []
        encoded: dict[int, tuple[np.ndarray, Utterance]] = {}

        def on_skip(row: int, reason: str) -> None:
            skipped.append({"path": str(index.paths[row]), "reason": reason, "part": number, "id": str(index.ids[row])})

        for row, frames in encode(rows, on_skip):
            id, speaker, transcript = (str(column[row]) for column in (index.ids, index.speakers, index.transcripts))
            utterance = Utterance(
                id,
                first=0,
                frames=len(frames),
                seconds=round(float(index.durations[row]), 6),
                speaker=speaker,
                transcript=transcript,
            )
            encoded[row] = frames, utterance
        with self._skipped_path.open("a", encoding="utf-8") as file:
            for skip in sorted(skipped, key=lambda skip: (skip["id"], skip["reason"])):
                file.write(json.dumps(skip, ensure_ascii=False) + "\n")
        return [encoded[row] for row in rows.tolist() if row in encoded]

    def totals(self, size: Callable[[pathlib.Path], tuple[int, int]]) -> dict[str, int]:
        """utterances, frames and skipped of the finished folder; `size` counts those of a part. Raises UserError."""
        self._gather_skipped()
        skipped = (self.folder / SKIPPED).read_text(encoding="utf-8").count("\n")
        utterances, frames = map(sum, zip(*(size(self.path(number)) for number in range(len(self.parts))), strict=True))
        if not utterances:
            raise UserError(f"no recording could be encoded; {self.folder / SKIPPED} gives the reasons")
        return dict(utterances=utterances, frames=frames, skipped=skipped)

    def skipped_hint(self, skipped: int) -> str:
        """What the last line of a command adds where something was left out."""
        return f"; {skipped:,} were skipped, see {self.folder / SKIPPED}" if skipped else ""

    @property
    def _skipped_path(self) -> pathlib.Path:
        return self.folder / (SKIPPED if self.process == 0 else f"skipped-{self.process}.jsonl")

    def _gather_skipped(self) -> None:
        """Writes skipped.jsonl anew: the lines about the listing, and those of all processes about finished parts."""
        done, parts = self.finished(), {}
        files = sorted(self.folder.glob("skipped*.jsonl"))
        for line in "\n".join(file.read_text(encoding="utf-8") for file in files).split("\n"):
            try:
                parts[line] = json.loads(line).get("part")
            except ValueError:  # cut by a kill: its part is not finished
                continue
        listing = [json.dumps(skip._asdict(), ensure_ascii=False) for skip in self.source.index.skipped]
        found = sorted((line for line in parts if parts[line] in done), key=lambda line: parts[line])
        write_whole(self.folder / SKIPPED, [*listing, *found])
        for file in files:
            if file.name != SKIPPED:
                file.unlink()


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Lines that name the settings which differ from those of an older command; "" where none does."""
    return "".join(f"\n  {key}: {old.get(key)!r} -> {value!r}" for key, value in new.items() if old.get(key) != value)


def cut_into_parts(num_samples: np.ndarray, hours: float) -> list[np.ndarray]:
    """The rows of each part, in order. A part begins after every `hours` of audio."""
    starts = np.cumsum(num_samples) - num_samples
    number = starts // max(1, round(hours * 3600 * SAMPLE_RATE))
    return np.split(np.arange(len(num_samples)), np.flatnonzero(np.diff(number)) + 1)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
