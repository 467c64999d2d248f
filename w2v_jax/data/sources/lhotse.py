"""lhotse manifests: recordings with their supervisions, or cuts, as JSONL, compressed by gzip or not.

`data.root` names a manifest of recordings, one of cuts, or a folder with one of either. A manifest of supervisions
belongs to that of recordings whose name differs by that word: x_recordings_y.jsonl.gz, x_supervisions_y.jsonl.gz. The
rows are the supervisions; without them the recordings; or the cuts. Only recordings in files are read: commands, web
addresses and audio within the manifest are refused with the reason, and so are cuts that lhotse would mix, pad or
change in speed. lhotse itself is not needed.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from w2v_jax.core.cli import UserError
from w2v_jax.core.stores import is_remote
from w2v_jax.core.text import json_lines
from w2v_jax.data.archives.texts import as_text
from w2v_jax.data.index import Skip, roots
from w2v_jax.data.io.address import channel_of
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.io.listing import SURROGATES, Candidate, beside, list_parts
from w2v_jax.data.kept.listings import states_of

KINDS = ("recordings", "cuts")
"""The manifests that have rows: what their names hold."""


class Refused(Exception):
    """A row of a manifest cannot be used. The text is the reason."""


class Entry(NamedTuple):
    """What is to be a row: "path:line", its fields, its recording, and the supervisions that tell what is said."""

    where: str
    fields: dict[str, Any]
    recording: Mapping[str, Any] | None
    said: Sequence[Mapping[str, Any]]


def make(data, root) -> AudioFiles:
    """The source of some manifests. Uses data.min_seconds, data.workers. Raises UserError with file and line."""
    skipped: list[Skip] = []
    manifests = [_manifest(path) for path in roots(root)]
    states = states_of(file for manifest in manifests for file in (manifest, _supervisions(manifest)))
    parts = (_candidates(manifest, skipped) for manifest in manifests)
    return list_parts(data, parts, kind="lhotse", where=manifests, skipped=skipped, states=states)


def _manifest(path: pathlib.Path) -> pathlib.Path:
    """The manifest of recordings or cuts that a root names. Raises UserError where there is none, or more than one."""
    if not path.is_dir():
        if not any(kind in path.name for kind in KINDS):
            raise UserError(f"data.root: the name of {str(path)!r} must hold one of the words {', '.join(KINDS)}")
        return path
    found = sorted(file for kind in KINDS for file in path.glob(f"*{kind}*.jsonl*"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"data.root: {str(path)!r} must hold one manifest of recordings or cuts, or name one: {names}")
    return found[0]


def _supervisions(manifest: pathlib.Path) -> pathlib.Path:
    """Where the supervisions of a manifest of recordings would be."""
    return manifest.with_name(manifest.name.replace("recordings", "supervisions"))


def _candidates(manifest: pathlib.Path, skipped: list[Skip]) -> Iterator[Candidate]:
    for entry in _rows(manifest, skipped):
        try:
            yield _candidate(manifest.parent, entry)
        except Refused as error:
            skipped.append(Skip(f"{entry.where} ({as_text(entry.fields.get('id'))})", str(error)))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{entry.where}: not an entry of lhotse's: {reason}") from None


def _rows(manifest: pathlib.Path, skipped: list[Skip]) -> Iterator[Entry]:
    """The cuts, supervisions or recordings that are rows. Recordings without a row join `skipped`."""
    supervisions = _supervisions(manifest)
    if "recordings" not in manifest.name:
        for where, cut in json_lines(manifest, gzipped=True):
            yield Entry(where, cut, cut.get("recording"), said=cut.get("supervisions") or [])
    elif not supervisions.exists():
        for where, recording in json_lines(manifest, gzipped=True):
            yield Entry(where, {"start": 0, **recording}, recording, said=[])
    else:
        recordings: dict[str, Any] = {}
        for where, entry in json_lines(manifest, gzipped=True):
            if (id := as_text(entry.get("id"))) in recordings:
                skipped.append(Skip(where, f"repeated recording: {id}, whose last line counts"))
            recordings[id] = entry
        used = set()
        for where, entry in json_lines(supervisions, gzipped=True):
            used.add(id := as_text(entry.get("recording_id")))
            yield Entry(where, entry, recordings.get(id), said=[entry])
        skipped += [Skip(f"{manifest} ({id})", "recording without supervision") for id in recordings if id not in used]


def _candidate(folder: pathlib.Path, entry: Entry) -> Candidate:
    """Raises Refused, and what Python raises for an entry of another form."""
    fields, kind = entry.fields, entry.fields.get("type", "MonoCut")
    if kind not in ("MonoCut", "MultiCut"):
        raise Refused(f"a {kind}: only cuts of one recording are read; save what lhotse makes of it with save_audios()")
    if not entry.recording:
        raise Refused("no recording: the manifest has none for this entry")
    speakers = list(dict.fromkeys(as_text(one.get("speaker")) for one in entry.said))
    return Candidate(
        as_text(fields["id"]),
        _address(folder, entry.recording, fields.get("channel")),
        offset=_seconds(fields["start"]),
        duration=_seconds(fields["duration"]),
        speaker=speakers[0] if len(speakers) == 1 else "",
        transcript=" ".join(filter(None, (as_text(one.get("text")) for one in entry.said))),
    )


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} are no seconds")
    return float(value)


def _address(folder: pathlib.Path, recording: Mapping[str, Any], channel: Any) -> str:
    """Where the samples of a channel or of several are (None: of all). Raises Refused."""
    if recording.get("transforms"):
        raise Refused("a recording with transforms, which only lhotse applies: save it with save_audio()")
    known = {c for source in recording["sources"] for c in source["channels"]}
    wanted = known if channel is None else {channel} if isinstance(channel, int) else set(channel)
    if not wanted <= known:
        raise Refused(f"no such channel: it names {channel}, and the recording has {sorted(known)}")
    sources = [source for source in recording["sources"] if wanted & set(source["channels"])]
    if len(sources) != 1:
        raise Refused("its channels lie in several files: name one channel in the manifest")
    kind, channels, place = sources[0]["type"], sources[0]["channels"], sources[0]["source"]
    if kind != "file" and not (kind == "url" and is_remote(place) and not place.startswith("http")):
        raise Refused(f"a source of type {kind}: only files are read; save it with save_audio()")
    path = beside(folder, place)
    if re.search(SURROGATES, path):
        raise Refused("file name is not UTF-8")
    if wanted == set(channels):
        return path
    if len(wanted) > 1:
        raise Refused("several but not all channels of a file: name one channel in the manifest")
    return channel_of(path, channels.index(*wanted))
