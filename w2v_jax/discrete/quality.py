"""What units tell about phones or letters in time: purities and phone-normalised mutual information (PNMI).

From the joint histogram of (label, unit) over frames, as Hsu et al. 2021, section V-D, have it: phone purity is the
share of frames whose label is the most frequent one of their unit; cluster purity, the share whose unit is the most
frequent one of their label; PNMI, the mutual information as a share of the entropy of the labels. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.data.code_vocabulary import entropy_of
from w2v_jax.discrete.time_labels import TimeLabels, frame_times


class Quality(NamedTuple):
    """Shares between 0 and 1, and mean lengths of runs of one label or unit, in frames.

    pnmi_by_chance: of the same units in random order. Many units for few frames tell something by chance alone.
    """

    phone_purity: float
    cluster_purity: float
    pnmi: float
    pnmi_by_chance: float
    labels: int
    units: int
    label_length: float
    unit_length: float


def histogram(labels: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Frames [A K] of each label, from 0, with each unit, from 0; labels and units are [N] of non-negative numbers."""
    counts = np.zeros((int(labels.max(initial=0)) + 1, int(units.max(initial=0)) + 1), np.int64)
    np.add.at(counts, (labels, units), 1)
    return counts


def purities(counts: np.ndarray) -> tuple[float, float]:
    """(phone purity, cluster purity) of a joint histogram [A K]."""
    total = max(counts.sum(), 1)
    return float(counts.max(axis=0).sum() / total), float(counts.max(axis=1).sum() / total)


def pnmi(counts: np.ndarray) -> float:
    """The mutual information of a joint histogram [A K] as a share of the labels' entropy; 0 for a single label."""
    joint = counts / max(counts.sum(), 1)
    label, unit = joint.sum(axis=1), joint.sum(axis=0)
    entropy = entropy_of(label)
    return float((entropy + entropy_of(unit) - entropy_of(joint)) / entropy) if entropy > 0 else 0.0


def mean_run(rows: list[np.ndarray]) -> float:
    """The mean length of runs of equal values, over arrays [F] whose ends end a run."""
    runs = sum(1 + int((row[1:] != row[:-1]).sum()) for row in rows if len(row))
    return sum(map(len, rows)) / runs if runs else 0.0


def quality(labels: list[np.ndarray], units: list[np.ndarray]) -> Quality:
    """The quality of units [F] for labels [F] of each recording, in which -1 stands for no label."""
    known = [(label[label >= 0], unit[label >= 0]) for label, unit in zip(labels, units, strict=True)]
    all_labels = np.concatenate([label for label, _ in known])
    all_units = np.concatenate([unit for _, unit in known])
    counts = histogram(all_labels, all_units)
    shuffled = histogram(all_labels, np.random.default_rng(0).permutation(all_units))
    used = counts.sum(axis=1) > 0, counts.sum(axis=0) > 0
    phone_purity, cluster_purity = purities(counts)
    return Quality(
        phone_purity,
        cluster_purity,
        pnmi=pnmi(counts),
        pnmi_by_chance=pnmi(shuffled),
        labels=int(used[0].sum()),
        units=int(used[1].sum()),
        label_length=mean_run([label for label, _ in known]),
        unit_length=mean_run([unit for _, unit in known]),
    )


def qualities(metadata: Mapping[str, Any], units: Mapping[str, np.ndarray], labels: TimeLabels) -> list[Quality]:
    """The quality of each codebook, from {id: units [F G]} of recordings and the metadata of their folder.

    Raises UserError where no frame has a label.
    """
    known = {id: x for id, x in units.items() if id in labels.segments}
    in_time = [labels.segments[id].at(frame_times(len(x), metadata)) for id, x in known.items()]
    if not any((row >= 0).any() for row in in_time):
        raise UserError("no frame lies in a segment with a label; are the times in seconds?")
    return [quality(in_time, [x[:, g] for x in known.values()]) for g in range(metadata["groups"])]
