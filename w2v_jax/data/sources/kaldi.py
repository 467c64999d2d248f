"""Kaldi data folders: `wav.scp`, and where they exist `segments`, `text` and `utt2spk`.

    wav.scp    RECORDING PATH            one file, or FILE.ark:OFFSET, a WAV file within an archive of Kaldi's
    segments   UTTERANCE RECORDING START END [CHANNEL]     seconds; an END below 0 is the end of the recording
    text       UTTERANCE WORDS ...
    utt2spk    UTTERANCE SPEAKER

Without `segments`, recordings are utterances. Paths are relative to the folder or, where there is no such file, to the
present directory, as in Kaldi. Pipes ("sox ... |") are skipped with the reason: nothing is run to read data.
`reco2dur` and the like are not needed, because the length of a recording is that of its file.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

from w2v_jax.core.cli import UserError, os_error_text
from w2v_jax.core.files import exists, open_binary
from w2v_jax.core.stores import ARCHIVE, is_remote
from w2v_jax.core.text import numbered_lines
from w2v_jax.data.index import Skip, roots
from w2v_jax.data.io.address import channel_of, in_file
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.io.containers import UNKNOWN_LENGTH
from w2v_jax.data.io.listing import Candidate, Transcript, beside, list_parts, read_transcripts, skip_without_audio
from w2v_jax.data.kept.listings import FileStates, note_state, states_of

PIPE = "a pipe, which is not run: write its output to a file, e.g. wav-copy scp:wav.scp ark,scp:wav.ark,new.scp"


def make(data, root) -> AudioFiles:
    """The source of some data folders. Uses data.min_seconds, data.workers. Raises UserError with file and line."""
    folders = roots(root)
    for folder in folders:
        if not (folder / "wav.scp").is_file():
            raise UserError(f"data.root: {str(folder)!r} is no data folder of Kaldi's: wav.scp is missing")
    skipped: list[Skip] = []
    states = states_of(folder / name for folder in folders for name in ("wav.scp", "segments", "text", "utt2spk"))
    parts = (_candidates(folder, skipped, states) for folder in folders)
    return list_parts(data, parts, kind="kaldi", where=folders, skipped=skipped, states=states)


def _candidates(folder: pathlib.Path, skipped: list[Skip], states: FileStates) -> Iterator[Candidate]:
    texts, speakers = (_table(folder / name, skipped, states) for name in ("text", "utt2spk"))
    used = set()
    read = _segments if (folder / "segments").is_file() else _recordings
    for candidate in read(folder, skipped, states):
        used.add(candidate.id)
        speaker, text = (table[candidate.id].text if candidate.id in table else "" for table in (speakers, texts))
        yield candidate._replace(speaker=speaker, transcript=text)
    skip_without_audio(texts, used, skipped)


def _table(path: pathlib.Path, skipped: list[Skip], states: FileStates) -> dict[str, Transcript]:
    table: dict[str, Transcript] = {}
    if path.is_file():
        read_transcripts(str(path), table, skipped=skipped, states=states)
    return table


def _recordings(folder: pathlib.Path, skipped: list[Skip], states: FileStates) -> Iterator[Candidate]:
    """One for each line of wav.scp. Adds the archives to `states`."""
    for number, line in numbered_lines(folder / "wav.scp"):
        name, place = (*line.split(maxsplit=1), "", "")[:2]
        where = f"{folder / 'wav.scp'}:{number}"
        if name and not place.strip():
            raise UserError(f"{where}: needs 'RECORDING PATH', got {line!r}")
        if name:
            try:
                yield Candidate(name, _address(folder, place.strip(), name=name, states=states))
            except ValueError as error:
                skipped.append(Skip(f"{where} ({name})", str(error)))


def _address(folder: pathlib.Path, place: str, *, name: str, states: FileStates) -> str:
    """Where a recording of wav.scp is. Raises ValueError with the reason where it cannot be read."""
    if place.endswith("|") or place == "-":
        raise ValueError(PIPE)
    path = beside(folder, place)
    match = re.fullmatch(r"(.+):(\d+)", place, re.S)
    if not match or (not is_remote(path) and exists(path)):
        return path
    path, start = beside(folder, match[1]), int(match[2])
    note_state(path, states)
    try:
        with open_binary(path, ahead=ARCHIVE) as file:
            file.seek(start)
            head = file.read(12)
    except OSError as error:
        raise ValueError(f"unreadable archive: {path}: {os_error_text(error)}") from None
    size = 8 + int.from_bytes(head[4:8], "little")
    if head[:4] != b"RIFF" or head[8:] != b"WAVE" or size > UNKNOWN_LENGTH:
        raise ValueError(f"no WAV file with a length at byte {start:,} of the archive {path}")
    return in_file(path, start, size, name=name)


def _segments(folder: pathlib.Path, skipped: list[Skip], states: FileStates) -> Iterator[Candidate]:
    """One for each line of segments. Those of recordings that wav.scp lacks join `skipped`."""
    missing: list[Skip] = []
    recordings: dict[str, str] = {}
    for recording in _recordings(folder, missing, states):
        if recording.id in recordings:
            skipped.append(Skip(str(folder / "wav.scp"), f"repeated recording: {recording.id}, whose last line counts"))
        recordings[recording.id] = recording.path
    skipped += missing
    for number, line in numbered_lines(folder / "segments"):
        where = f"{folder / 'segments'}:{number}"
        if not line.strip():
            continue
        try:
            name, recording, start, end, *channel = line.split()
            offset, stop = float(start), float(end)
            channels = [int(text) for text in channel]
            if (
                not 0 <= offset < float("inf")
                or not stop < float("inf")
                or len(channels) > 1
                or min([0, *channels]) < 0
            ):
                raise ValueError
        except ValueError:
            raise UserError(f"{where}: needs 'UTTERANCE RECORDING START END [CHANNEL]', got {line!r}") from None
        if recording not in recordings:
            skipped.append(Skip(f"{where} ({name})", f"segment of a recording that cannot be read: {recording}"))
            continue
        path = recordings[recording]
        path = channel_of(path, channels[0]) if channels else path
        yield Candidate(name, path, offset=offset, duration=stop - offset if stop >= 0 else None)
