"""JSONL manifests as NeMo writes them: one JSON object per line.

`audio_filepath` is required. `duration` and `offset` in seconds (for a segment of a longer file), `text`, `speaker` and
`id` are optional. `prepare` also writes `frames` (the length of the recording or segment in samples), `rate` (of the
file) and `size` (of the file, in bytes). Listing trusts a line that has the first two and does not open its file. Files
of another size are named when they are read. Relative paths are relative to the manifest, and a URL is that of an
object in a store. Other keys are ignored.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from collections.abc import Iterator

from w2v_jax.core.cli import UserError
from w2v_jax.core.files import absolute
from w2v_jax.core.stores import joined_path
from w2v_jax.core.text import json_lines
from w2v_jax.data.index import UNKNOWN, Source
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.io.listing import SURROGATES, Candidate, list_parts
from w2v_jax.data.kept.listings import states_of
from w2v_jax.data.sources.tsv import manifest_files


def make(data, root) -> AudioFiles:
    """The source of the manifests `root`. Uses data.min_seconds, data.workers. Raises UserError with file and line."""
    manifests = manifest_files(root, ".jsonl")
    states = states_of(manifests)
    return list_parts(data, map(_read, manifests), kind="jsonl", where=manifests, skipped=[], states=states)


def _read(manifest: pathlib.Path) -> Iterator[Candidate]:
    for where, entry in json_lines(manifest):
        name = _text(entry, "audio_filepath", where)
        if not name:
            raise UserError(f"{where}: 'audio_filepath' is missing")
        offset = _seconds(entry, "offset", where) or 0.0
        duration = _seconds(entry, "duration", where)
        frames, rate = _count(entry, "frames", where), _count(entry, "rate", where)
        default = os.path.splitext(name)[0] + (f":{offset:g}" if offset else "")
        yield Candidate(
            id=_text(entry, "id", where) or default,
            path=joined_path(manifest.parent, name),
            offset=offset,
            duration=duration,
            speaker=_text(entry, "speaker", where),
            transcript=_text(entry, "text", where),
            frames=frames if rate else None,
            rate=rate if frames else None,
            size=_count(entry, "size", where),
        )


def _text(entry: dict, key: str, where: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if isinstance(value, (dict, list, bool, float)):
        raise UserError(f"{where}: {key!r} must be text, got {value!r}")
    text = str(value)
    if re.search(SURROGATES, text):
        raise UserError(f"{where}: {key!r} holds half of a surrogate pair, which is not a character")
    return text


def _seconds(entry: dict, key: str, where: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise UserError(f"{where}: {key!r} must be seconds, 0 or more, got {value!r}")
    return float(value)


def _count(entry: dict, key: str, where: str) -> int | None:
    value = entry.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 48):
        raise UserError(f"{where}: {key!r} must be a whole number above 0, got {value!r}")
    return value


def manifest_lines(source: Source, out: pathlib.Path) -> Iterator[str]:
    """JSON objects from which `make` makes the same index. Paths below the manifest's folder are relative."""
    index, folder = source.index, absolute(out.parent)
    for row in range(len(index)):
        path = path_from(absolute(index.paths[row]), folder)
        rate, frames, offset = int(index.rates[row]), int(index.frames[row]), int(index.offsets[row])
        entry = {"id": index.ids[row], "audio_filepath": path}
        entry |= {"duration": frames / rate, "frames": frames, "rate": rate}
        entry |= {"size": int(index.sizes[row])} if index.sizes[row] != UNKNOWN else {}
        optional = {"offset": offset / rate, "text": index.transcripts[row], "speaker": index.speakers[row]}
        entry |= {key: value for key, value in optional.items() if value}
        yield json.dumps(entry, ensure_ascii=False)


def path_from(path: str, folder: str) -> str:
    """An absolute path as the manifest in `folder` names it."""
    below = path.removeprefix(os.path.join(folder, ""))
    return f"./{below}" if below.startswith("~") else below
