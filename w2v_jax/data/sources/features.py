"""Features that `python -m w2v_jax.extract` has written: one vector per frame, no audio."""

from __future__ import annotations

from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.data.index import Form, usable
from w2v_jax.data.io.feature_files import FrameSource, index_parts, of_one_model, open_folders


class Features(FrameSource):
    """The source of features."""

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """float32 [F C]. `start` and `length` are in 16 kHz samples and are rounded down to whole frames."""
        return self.frames(row, start, length, width=self.form.width).astype(np.float32)


def make(data: Any, root: Any) -> Features:
    """The source of all utterances in folders of features. Uses data.min_seconds.

    Raises UserError for folders that hold codes, are unfinished or damaged, or come from different models.
    """
    folders = open_folders(root, "features")
    first = of_one_model(folders, ("what", "layer", "model", "hop"), "features")
    widths: set[int] = set()
    index, layouts = index_parts(folders, lambda part: widths.add(part.array.shape[1]))
    where = ", ".join(str(folder) for folder, _ in folders)
    if not len(index) or len(widths) != 1:
        raise UserError(f"data.root: {where} holds no utterance, or features of several widths {sorted(widths)}")
    made_by = f"{first['model']} {first['what']} {first.get('layer', '')}".strip()
    form = Form("features", "float32", hop=first["hop"], made_by=made_by, width=widths.pop())
    return Features(usable(index, where, data.min_seconds), form, layouts)
