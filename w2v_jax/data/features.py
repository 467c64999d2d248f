"""Features that `python -m w2v_jax.extract` has written: one vector per frame, no audio."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError
from w2v_jax.data.extracted import read_about, read_frames, read_parts
from w2v_jax.data.index import Form, Index, Row, make_index, roots, usable


class Features:
    """The source of rows whose path is a part and whose offset is the first sample of the utterance in it."""

    def __init__(self, index: Index, form: Form, layouts: dict[str, tuple[int, str]]):
        """layouts: (header bytes, dtype) of the array of each part."""
        self.index, self.form, self.layouts = index, form, layouts

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """float32 [F C]; start and length in 16 kHz samples, rounded down to whole frames."""
        hop, path = self.form.hop, str(self.index.paths[row])
        first = start // hop
        count = min(length // hop, int(self.index.num_samples[row]) // hop - first)
        place = int(self.index.offsets[row]) // hop + first
        return read_frames(path, self.layouts[path], self.form.width, place, count).astype(np.float32)


def make(data: Any, root: Any) -> Features:
    """The source of all utterances in folders of features. Uses data.min_seconds.

    Raises UserError for folders that hold codes, are not finished or damaged, or were made by different models.
    """
    folders = roots(root)
    abouts = [_about(folder) for folder in folders]
    keys = ("what", "layer", "model", "hop")
    for folder, about in zip(folders, abouts, strict=True):
        if [about.get(key) for key in keys] != [abouts[0].get(key) for key in keys]:
            raise UserError(f"{folder} and {folders[0]} are features of different models or layers; use one of them")
    hop, layouts, rows, widths = abouts[0]["hop"], {}, [], set()
    for folder, about in zip(folders, abouts, strict=True):
        for part in read_parts(folder, about):
            path = str(part.path)
            layouts[path] = (os.path.getsize(path) - part.array.nbytes, part.array.dtype.str)
            widths.add(part.array.shape[1])
            for u in part.utterances:
                rows.append(Row(u.id, path, u.first * hop, u.frames * hop, SAMPLE_RATE, u.speaker, u.transcript))
    where = ", ".join(map(str, folders))
    if not rows or len(widths) != 1:
        raise UserError(f"data.root: {where} holds no utterance, or features of several widths {sorted(widths)}")
    made_by = f"{abouts[0]['model']} {abouts[0]['what']} {abouts[0].get('layer', '')}".strip()
    form = Form("features", "float32", hop, made_by, widths.pop())
    return Features(usable(make_index(rows), where, data.min_seconds), form, layouts)


def _about(folder: pathlib.Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"data.root: {str(folder)!r} is a file; data.name=features needs folders of extracted features")
    about = read_about(folder)
    if about["what"] == "codes":
        raise UserError(f"{folder} holds codes, and data.name=features needs features: extract --what context, say")
    return about
