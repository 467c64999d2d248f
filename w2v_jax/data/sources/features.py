"""Features that `python -m w2v_jax.extract` has written: one vector per frame, no audio."""

from __future__ import annotations

from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.data.index import Form, Index, make_index, usable
from w2v_jax.data.io.feature_files import Layouts, list_utterances, open_folders, read_row


class Features:
    """The source of features. A row's path is a part, and its offset is the first sample of the utterance there."""

    __repr__ = short_repr

    def __init__(self, index: Index, form: Form, layouts: Layouts):
        self.index, self.form, self.layouts = index, form, layouts

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """float32 [F C]. `start` and `length` are in 16 kHz samples and are rounded down to whole frames."""
        hop, width = self.form.hop, self.form.width
        frames = read_row(self.index, row, start=start, length=length, hop=hop, width=width, layouts=self.layouts)
        return frames.astype(np.float32)


def make(data: Any, root: Any) -> Features:
    """The source of all utterances in folders of features. Uses data.min_seconds.

    Raises UserError for folders that hold codes, are unfinished or damaged, or come from different models.
    """
    folders = open_folders(root, "features")
    first_folder, first = folders[0]
    keys = ("what", "layer", "model", "hop")
    for folder, metadata in folders:
        if [metadata.get(key) for key in keys] != [first.get(key) for key in keys]:
            raise UserError(f"{folder} and {first_folder} are features of different models or layers; use one of them")
    layouts: Layouts = {}
    widths: set[int] = set()
    index = make_index(list_utterances(folders, layouts, lambda part: widths.add(part.array.shape[1])))
    where = ", ".join(str(folder) for folder, _ in folders)
    if not len(index) or len(widths) != 1:
        raise UserError(f"data.root: {where} holds no utterance, or features of several widths {sorted(widths)}")
    made_by = f"{first['model']} {first['what']} {first.get('layer', '')}".strip()
    form = Form("features", "float32", hop=first["hop"], made_by=made_by, width=widths.pop())
    return Features(usable(index, where, data.min_seconds), form, layouts)
