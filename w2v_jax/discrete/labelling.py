"""Units of all recordings of a source, in the parts of a folder: what is labelled, part by part, and what is counted.

A unit is the same alone and in any batch wherever the gap between the two nearest distances exceeds the model's
margin; `unsure` counts the other frames. Of centres at equal distance the first is taken.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax.core.display import short_repr
from w2v_jax.core.files import write_whole
from w2v_jax.data.index import Source
from w2v_jax.data.io.part_jobs import PartJob, cut_into_parts
from w2v_jax.data.io.unit_files import UNIT_FORMATS, unit_dtype, write_units
from w2v_jax.discrete.clustering import nearest
from w2v_jax.discrete.fit import NOT_FINITE
from w2v_jax.discrete.frame_features import FrameFeatures
from w2v_jax.discrete.unit_model import UnitModel, usage


class Tally(NamedTuple):
    """Of some frames: sums of squared distances [G], how many have an unsure unit, and counts [G V] of the units."""

    inertia: np.ndarray
    unsure: int
    counts: np.ndarray

    __repr__ = short_repr

    def plus(self, other: Tally) -> Tally:
        return Tally(self.inertia + other.inertia, self.unsure + other.unsure, self.counts + other.counts)


class Labelling(NamedTuple):
    """The model, the features that it reads, and the parts that the units go to."""

    model: UnitModel
    features: FrameFeatures
    work: PartJob
    reading: dict[str, Any]

    __repr__ = short_repr

    def write(self, number: int, rows: np.ndarray) -> None:
        """Labels one part. Its tally is there before the part appears."""
        settings, tally = self.work.settings, _empty(self.model)

        def encode(rows: np.ndarray, on_skip: Callable[[int, str], None]) -> Iterator[tuple[int, np.ndarray]]:
            nonlocal tally
            found = labelled(self.model, self.features, self.work.source, rows=rows, on_skip=on_skip, **self.reading)
            for row, codes, of_row in found:
                tally = tally.plus(of_row)
                yield row, codes.astype(settings["dtype"])

        pairs = self.work.encoded(number, rows, encode)
        write_whole(
            self._tally_path(number),
            json.dumps({"inertia": tally.inertia.tolist(), "unsure": tally.unsure, "counts": tally.counts.tolist()}),
        )
        write_units(
            self.work.path(number),
            pairs,
            groups=self.model.groups,
            dtype=settings["dtype"],
            form=settings["format"],
            collapse=settings["collapse"],
        )

    def tally(self) -> Tally:
        """The sum over all parts."""
        total = _empty(self.model)
        for number in range(len(self.work.parts)):
            fields = json.loads(self._tally_path(number).read_text(encoding="utf-8"))
            total = total.plus(Tally(np.array(fields["inertia"]), fields["unsure"], np.array(fields["counts"])))
        return total

    def summary(self) -> dict[str, Any]:
        """What metadata say of the labelled frames: inertia per frame [G], unsure frames, use of the clusters."""
        tally = self.tally()
        frames = max(int(tally.counts[0].sum()), 1)
        return dict(inertia=(tally.inertia / frames).tolist(), unsure=tally.unsure, **usage(tally.counts))

    def _tally_path(self, number: int) -> pathlib.Path:
        return self.work.path(number).with_suffix(".tally.json")


def make_labelling(
    model: UnitModel,
    features: FrameFeatures,
    source: Source,
    *,
    out: pathlib.Path,
    form: str,
    collapse: bool,
    part_hours: float,
    about_source: dict[str, Any],
    **reading: Any,
) -> Labelling:
    """The work of labelling a source. `about_source` says in the metadata how it was opened. Raises UserError."""
    features.check_source(source)
    field, hop = features.geometry
    settings = dict(what="units", model=model.digest, **features.identity, **features.cutting, hop=hop, field=field)
    settings |= dict(groups=model.groups, codes=model.codes, dtype=unit_dtype(model.codes), margin=model.margin)
    settings |= dict(**about_source, fingerprint=source.index.fingerprint())
    settings |= dict(format=form, collapse=collapse, part_hours=part_hours)
    parts = cut_into_parts(source.index.num_samples, part_hours)
    work = PartJob(
        out,
        source,
        parts=parts,
        settings=settings,
        noun="labelling",
        suffix=UNIT_FORMATS[form],
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    return Labelling(model, features, work, reading=reading)


def labelled(
    model: UnitModel,
    features: FrameFeatures,
    source: Source,
    *,
    rows: np.ndarray,
    on_skip: Callable[[int, str], None],
    **reading: Any,
) -> Iterator[tuple[int, np.ndarray, Tally]]:
    """(row, units [F G], their tally) of each row whose features are finite; the others go to `on_skip`."""
    centers, margin = jnp.asarray(model.centers), np.array(model.margin)
    found = features.encode(source, rows, then=lambda x: nearest(x, centers)._asdict(), on_skip=on_skip, **reading)
    for row, arrays in found:
        codes, distance = arrays["codes"], arrays["distance"]
        if not np.isfinite(distance).all():
            on_skip(row, NOT_FINITE)
            continue
        counts = np.stack([np.bincount(own, minlength=model.codes) for own in codes.T])
        unsure = int((arrays["gap"] <= margin).any(axis=1).sum())
        yield row, codes, Tally(distance.sum(axis=0, dtype=np.float64), unsure, counts)


def _empty(model: UnitModel) -> Tally:
    return Tally(np.zeros(model.groups), 0, np.zeros((model.groups, model.codes), np.int64))
