"""Folders of codes and units as `w2v_jax.extract` and `w2v_jax.units` write them, and what damages their files."""

import json
import os

import numpy as np

from w2v_jax.data.code_vocabulary import CodeCounter
from w2v_jax.data.io.feature_files import Utterance, part_path, write_metadata, write_part

HOP = 320


def write_codes(folder, lengths=((40, 75), (120, 33, 64)), *, model="abc", unseen=(), seed=0, **changes):
    """A folder of codes [.. 2] of 20, one tuple of utterance lengths per part; pairs `unseen` join no vocabulary."""
    rng, counter, number = np.random.default_rng(seed), CodeCounter(2, 20), 0
    folder.mkdir(parents=True)
    written = []
    for part, frames in enumerate(lengths):
        found = []
        for n in frames:
            pairs = rng.integers(0, 4, (n, 2))
            counter.add(pairs)
            if unseen:
                pairs[n // 2] = unseen
            written.append(pairs)
            found.append((pairs, Utterance(f"u{number}", 0, 0, n * HOP / 16000, "s", f"text {number}")))
            number += 1
        write_part(part_path(folder, part), found, width=2, dtype="<u2")
    counter.vocabulary(model).save(folder / "vocabulary.json")
    about = dict(what="codes", model=model, hop=HOP, groups=2, codes=20, parts=len(lengths), complete=True)
    write_metadata(folder, about | changes)
    return written


def cut(path, count=10):
    os.truncate(path, path.stat().st_size - count)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_units(folder, lengths, *, clusters=20, groups=1, hop=HOP, model="abc", seed=0, ids=None, **changes):
    """A folder of units [.. groups]: recordings of these seconds, in parts of three. Returns the units of each."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    ids = [f"u{number}" for number in range(len(lengths))] if ids is None else ids
    written = [rng.integers(0, clusters, (int(seconds * 16_000) // hop, groups)) for seconds in lengths]
    about = [Utterance(id, 0, 0, seconds) for id, seconds in zip(ids, lengths, strict=True)]
    pairs = list(zip(written, about, strict=True))
    parts = [pairs[i : i + 3] for i in range(0, len(pairs), 3)]
    for number, part in enumerate(parts):
        write_part(part_path(folder, number), part, width=groups, dtype="<u2")
    metadata = dict(what="units", model=model, hop=hop, groups=groups, codes=clusters, parts=len(parts), complete=True)
    write_metadata(folder, metadata | changes)
    return written
