"""The speech units that a method learns to predict, beside the recordings that they were made of.

`open_targets` opens the folders of `data.targets`. `with_targets` joins them to any source by the recordings' ids, and
leaves out recordings without units or with units of another length. `Targets.read` gives the units of any crop: label u
of a crop from sample s is the one that starts nearest to sample s + u * hop, also where long recordings were cut.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.stores import path_of
from w2v_jax.core.units import NO_TARGET, SAMPLE_RATE
from w2v_jax.data.index import Index, Skip, Source, TooFew, hash_ids, root_entries, subset
from w2v_jax.data.io import corpus
from w2v_jax.data.sources.speech_units import Units, open_units, write_letters

TOLERANCE = SAMPLE_RATE // 10
"""By how many samples (0.1 s, as in fairseq) the lengths of a recording and of its units may differ."""
NO_UNITS, OTHER_LENGTH = "no speech units", "speech units of another length"
"""Kinds of reasons (`Skip.kind`) why a recording is left out."""


class Targets:
    """The units of each row of a source: S label sets of one or more folders, one after the other.

    folders: those of each group of recordings (one group, where no corpora are mixed). groups [N]: the group of each
    recording. rows [N folders]: its row in the units of each folder.
    """

    __repr__ = short_repr

    def __init__(self, folders: Sequence[Sequence[Units]], groups: np.ndarray, rows: np.ndarray):
        self.folders, self.groups, self.rows = tuple(map(tuple, folders)), groups, rows
        self.hop = folders[0][0].form.hop
        self.sets = sum(units.form.width for units in folders[0])

    def shape(self, length: int) -> tuple[int, int]:
        """(S, U) of a row of `length` samples."""
        return self.sets, length // self.hop

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """Units int32 [S U] of `length` samples from sample `start` of a row. NO_TARGET where there is none.

        Raises ReadError. Safe to call from several threads.
        """
        sets, count = self.shape(length)
        found, base = np.full((sets, count), NO_TARGET, np.int32), 0
        middles = start + self.hop // 2 + self.hop * np.arange(count)
        for units, unit_row in zip(self.folders[self.groups[row]], self.rows[row], strict=True):
            frames = units.frame_at(middles)
            first, last = int(frames[0]), int(frames[-1])
            read = units.read(int(unit_row), first * self.hop, (last + 1 - first) * self.hop)
            there = frames - first < len(read)
            found[base : base + units.form.width, there] = read[frames[there] - first].T
            base += units.form.width
        return found

    def digest(self) -> list[str]:
        """What made the units, and which these are, for each folder. A resumed run must have the same."""
        return [
            f"{units.form.made_by}, {units.form.width} x {units.clusters} clusters, hop {units.form.hop}, "
            f"{units.index.select(np.sort(rows)).fingerprint()}"
            for group, folders in enumerate(self.folders)
            for units, rows in zip(folders, self.rows[self.groups == group].T, strict=True)
        ]


def open_targets(data: Any, classes: Sequence[int]) -> tuple[Units, ...]:
    """The units of the folders in data.targets. `classes` are the clusters of each label set that the config names.

    A self-made corpus (data.hours above 0, data.name=synthetic) has its letters for units: without data.targets they
    are beside it, and a missing folder is made. Raises UserError where the folders are not what the config needs.
    """
    paths = [path_of(path) for path in root_entries(data.targets)]
    homes = corpus.homes(data.root, data.eval_root) if data.name == "synthetic" and data.hours > 0 else []
    if homes and not paths:
        paths = [homes[0].with_name(f"{homes[0].name}-letters")]
    if not paths:
        raise UserError(
            "data.targets is empty: this method learns to predict units that were made before. Write them with "
            "python -m w2v_jax.units label, and name their folder by --config.data.targets=FOLDER"
        )
    for path in paths if homes else ():
        write_letters(path, homes)
    folders = tuple(open_units(path, "data.targets") for path in paths)
    for path, units in zip(paths, folders, strict=True):
        _check(data, path, units)
    found = tuple(units.clusters for units in folders for _ in range(units.form.width))
    if found != tuple(classes):
        shown = ",".join(map(str, found))
        raise UserError(
            f"loss.classes={tuple(classes)}, and {', '.join(map(str, paths))} has label sets of {found} clusters: "
            f"--config.loss.classes={shown}"
        )
    return folders


def _check(data: Any, path: pathlib.Path, units: Units) -> None:
    """Raises UserError for units of another model or rate than the config names."""
    if units.form.hop != data.targets_hop:
        raise UserError(
            f"data.targets_hop={data.targets_hop}, and the units of {path} are {units.form.hop} samples apart: "
            f"--config.data.targets_hop={units.form.hop} (320 for units of a layer, 160 for those of MFCC; all folders "
            "of data.targets need the same)"
        )
    if data.targets_model not in ("", units.model):
        raise UserError(
            f"data.targets: {path} was made by the model {units.model}, and data.targets_model={data.targets_model}: "
            f"choose the other folder, or take this one by --config.data.targets_model={units.model}"
        )


def with_targets(
    source: Source, folders: Sequence[Units] | Mapping[str, Sequence[Units]], *, where: str
) -> tuple[Source, Targets]:
    """The rows that have units of their length in every folder, and their units. The others join `index.skipped`.

    folders: where corpora are mixed, those of each group of rows, by the label with which its ids begin (`corpora.py`);
    the ids of the units do not. `where` is the config key that chose the rows. Raises TooFew where no row is left, and
    UserError where groups have their label sets in different numbers of folders.
    """
    of_groups: Mapping[str, Sequence[Units]] = folders if isinstance(folders, Mapping) else {"": folders}
    all_folders = tuple(of_groups.values())
    if len({len(of_group) for of_group in all_folders}) > 1:
        counts = ", ".join(f"{label} {len(of_group)}" for label, of_group in of_groups.items())
        raise UserError(
            f"data.corpora: targets are in different numbers of folders ({counts}): cut the label sets of all corpora "
            "into folders alike"
        )
    index, rows = source.index, np.zeros((len(source.index), len(all_folders[0])), np.int64)
    keep, skips = np.ones(len(index), bool), []
    for group, (label, of_group) in enumerate(of_groups.items()):
        members = np.flatnonzero(index.groups == group)
        ids = index.ids[members].tolist()
        if label:
            ids = [id.removeprefix(f"{label}/") for id in ids]
        for column, units in enumerate(of_group):
            found = np.zeros(len(members), np.int64)
            there = _find(ids, units.index, found)
            labelled = units.labelled_samples()[found]
            fits = there & (np.abs(index.num_samples[members] - labelled) <= TOLERANCE)
            for number in np.flatnonzero(keep[members] & ~fits).tolist():
                row = int(members[number])
                reason = _reason(index, row, labelled=labelled[number], there=there[number])
                skips.append(Skip(f"{index.paths[row]} ({index.ids[row]})", reason))
            rows[members, column] = found
            keep[members] &= fits
    if len(index) and not keep.any():
        example = all_folders[0][0].index.ids[0]
        raise TooFew(
            f"{where}: none of the {len(index):,} recordings has units of its length in data.targets. A recording is "
            f"called {index.ids[0]!r}, the first one there {example!r}; label these recordings with python -m "
            "w2v_jax.units label, or name the folder of their units",
            [*index.skipped, *skips],
        )
    if not keep.all():
        source = subset(source, np.flatnonzero(keep))
        source.index.skipped.extend(skips)
    return source, Targets(all_folders, source.index.groups, rows[keep])


def _find(ids: Sequence[str], units: Index, rows: np.ndarray) -> np.ndarray:
    """Whether each id has units, bool [N]; writes the row of its units into `rows` [N], 0 where it has none."""
    hashes = units.id_hashes()
    order = np.argsort(hashes, kind="stable")
    wanted = hash_ids(ids)
    place = np.minimum(np.searchsorted(hashes[order], wanted), len(order) - 1)
    there = hashes[order][place] == wanted
    rows[:] = np.where(there, order[place], 0)
    return there


def _reason(index: Index, row: int, *, labelled: int, there: bool) -> str:
    if not there:
        return NO_UNITS
    audio = index.num_samples[row] / SAMPLE_RATE
    return f"{OTHER_LENGTH}: {audio:.2f} s of audio, {labelled / SAMPLE_RATE:.2f} s of units"
