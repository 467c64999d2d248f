"""Folders of codes as `w2v_jax.extract` writes them, and what damages their files."""

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
