"""Features that `python -m w2v_jax.extract` has written: one vector per frame, no audio."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from w2v_jax.config import UserError
from w2v_jax.data.extracted import layout_of, read_about, read_parts, read_row, rows_of
from w2v_jax.data.index import Form, Index, make_index, roots, usable


class Features:
    """The source of rows whose path is a part and whose offset is the first sample of the utterance in it."""

    def __init__(self, index: Index, form: Form, layouts: dict[str, tuple[int, str]]):
        """layouts: (header bytes, dtype) of the array of each part."""
        self.index, self.form, self.layouts = index, form, layouts

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """float32 [F C]; start and length in 16 kHz samples, rounded down to whole frames."""
        law: dict[str, Any] = dict(hop=self.form.hop, width=self.form.width, layouts=self.layouts)
        return read_row(self.index, row, start, length, **law).astype(np.float32)


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
            layouts[str(part.path)] = layout_of(part)
            widths.add(part.array.shape[1])
            rows.extend(rows_of(part, hop))
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
