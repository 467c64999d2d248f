"""Common Voice: the folder of a language, with `clips/` and lists such as `train.tsv` and `validated.tsv`.

data.split names the list ("": train), and PATH@SPLIT that of a root; a root may also be a list. The columns `path`,
`sentence` and `client_id` give file, transcript and speaker.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

from w2v_jax.core.cli import UserError
from w2v_jax.core.text import numbered_lines
from w2v_jax.data.archives.shards import named_split
from w2v_jax.data.index import Skip, root_entries, roots
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.io.listing import Candidate, list_parts
from w2v_jax.data.kept.listings import states_of


def make(data, root) -> AudioFiles:
    """The source of some lists. Uses data.split, data.min_seconds and data.workers. Raises UserError with the line."""
    entries = root_entries(root) or map(str, roots(root))  # which raises
    lists = [_list(entry, data.split or "train") for entry in entries]
    skipped: list[Skip] = []
    parts = (_candidates(path, skipped) for path in lists)
    return list_parts(data, parts, kind="common_voice", where=lists, skipped=skipped, states=states_of(lists))


def _list(entry: str, split: str) -> pathlib.Path:
    """The list that a root names. Raises UserError where there is none."""
    name, split = named_split(entry, split)
    (path,) = roots(name)
    if not path.is_dir():
        return path
    if not (path / f"{split}.tsv").is_file():
        known = ", ".join(sorted(file.stem for file in path.glob("*.tsv"))) or "none"
        raise UserError(
            f"data.root: {name!r} has no {split}.tsv; choose with --config.data.split from its lists: {known}"
        )
    return path / f"{split}.tsv"


def _candidates(path: pathlib.Path, skipped: list[Skip]) -> Iterator[Candidate]:
    lines = numbered_lines(path)
    columns = next(lines, (1, ""))[1].split("\t")
    for name in ("path", "sentence"):
        if name not in columns:
            raise UserError(f"{path}:1: needs the columns of Common Voice; {name!r} is missing among {columns}")
    for number, line in lines:
        values = line.split("\t")
        if len(values) != len(columns):
            if line:
                reason = f"line of other columns: it has {len(values)}, and the list has {len(columns)}"
                skipped.append(Skip(f"{path}:{number}", reason))
            continue
        row = dict(zip(columns, values, strict=True))
        file = path.parent / "clips" / row["path"]
        id = os.path.splitext(row["path"])[0]
        yield Candidate(id, str(file), speaker=row.get("client_id", ""), transcript=row["sentence"])
