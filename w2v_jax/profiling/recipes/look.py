"""What a recipe knows before it chooses: the recordings and their labels, and the machine.

The labelled recordings are parted once, by a hash of speakers or ids, into those that train and those held out (dev).
Neither they nor those of --test are in the audio of a pretraining.
"""

from __future__ import annotations

import collections
import importlib.util
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError, some_of
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import write_whole
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data import open_source
from w2v_jax.data.index import Index, Source, TooFew, hash_ids, subset
from w2v_jax.data.sources.jsonl import manifest_lines
from w2v_jax.data.transcripts import clean_text, is_missing

LEAST_LABELS, DEV_SHARE, MOST_DEV = 60.0, 0.1, 1200.0
"""Seconds of labels without which nothing is planned; the share that is held out; the most of it in seconds.

At least LEAST_LABELS are held out, but never more than half of the labels.
"""
SPEAKERS_TO_HOLD_OUT = 5
"""With so many speakers, whole ones are held out. With fewer, too much of the labels would be one of them."""
MOST_SPEAKERS_SHARE = 0.3
LONGEST = 36.0
"""Seconds: longer labelled recordings are left out of a recogniser's training, as in the configs of the package."""


class DataFacts(NamedTuple):
    """The recordings in numbers. Hours are those of a pretraining, minutes those of labelled recordings.

    lengths: seconds, so that half, nine tenths and all of the labelled recordings are no longer. crop: the median of
    all audio. rates: Hz and the number of recordings with it. letters: different ones. tokens_per_second: the most of a
    recording. longer: labelled recordings that are longer than LONGEST.
    """

    hours: float
    train_minutes: float
    dev_minutes: float
    test_minutes: float
    recordings: int
    labelled: int
    untranscribed: int
    without_audio: int
    unreadable: int
    speakers: int
    dev_speakers: int
    by_speaker: bool
    letters: int
    tokens_per_second: float
    lengths: tuple[float, float, float]
    longer: int
    crop: float
    rates: tuple[tuple[int, int], ...]
    shared_speakers: tuple[str, ...]


class MachineFacts(NamedTuple):
    """Devices of one platform ("cpu", "gpu", "tpu") and kind, bytes of memory of each and of free disk, and the load.

    slow_bfloat16: a processor without units for that type. loader: `data.loader`. load: programs that wanted a core in
    the last minute, for each core; above 1 others make the rest slower.
    """

    platform: str
    kind: str
    devices: int
    memory: float
    cores: int
    disk: float
    slow_bfloat16: bool
    loader: str
    load: float


class Recordings(NamedTuple):
    """The lists that the commands of a plan read, as sources, and their facts."""

    audio: Source
    train: Source
    dev: Source
    facts: DataFacts

    __repr__ = short_repr

    def write(self, folder: pathlib.Path) -> None:
        """Writes audio.jsonl, train.jsonl and dev.jsonl."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in (("audio", self.audio), ("train", self.train), ("dev", self.dev)):
            path = folder / f"{name}.jsonl"
            write_whole(path, manifest_lines(source, path))


def look_at_data(audio: str, labels: str, test: str = "") -> Recordings:
    """The recordings of the folders, parted. Raises UserError and TooFew where there are too few labels."""
    labelled = _open((labels,), "--labels")
    index = labelled.index
    texts = index.transcripts.tolist()
    spoken = np.array([row for row, text in enumerate(texts) if not is_missing(text)], int)
    lost = collections.Counter(skip.kind for skip in index.lost)
    without_audio = sum(count for kind, count in lost.items() if "transcript" in kind)
    if not len(spoken):
        raise TooFew(_no_transcripts(labels, audio, without_audio), index.lost)
    if (seconds := float(index.durations[spoken].sum())) < LEAST_LABELS:
        raise TooFew(
            f"--labels {labels}: {len(spoken):,} recordings with a transcript last {seconds:.0f} s together, and a "
            f"recogniser needs {LEAST_LABELS:.0f} s at the least, better ten minutes: transcribe more of them",
            index.lost,
        )
    train, dev, by_speaker = hold_out(index.select(spoken))
    train, dev = spoken[train], spoken[dev]
    tested = _open((test,), "--test").index if test else None
    kept_apart = {os.path.realpath(path) for path in index.paths[dev]}
    kept_apart |= {os.path.realpath(path) for path in tested.paths} if tested is not None else set()
    heard = {os.path.realpath(path) for path in index.paths[train]}
    if common := heard & ({os.path.realpath(path) for path in tested.paths} if tested is not None else set()):
        raise UserError(
            f"--test {test}: {len(common):,} of its recordings are in --labels, too ({some_of(sorted(common), 2)}): "
            "its errors would say nothing; name other recordings, or leave --test out"
        )
    pool = pretraining_audio(audio, labelled, labels, kept_apart=kept_apart)
    return Recordings(
        pool,
        subset(labelled, train),
        subset(labelled, dev),
        facts=DataFacts(
            hours=pool.index.hours,
            train_minutes=float(index.durations[train].sum()) / 60,
            dev_minutes=float(index.durations[dev].sum()) / 60,
            test_minutes=tested.hours * 60 if tested is not None else 0.0,
            recordings=len(pool.index),
            labelled=len(spoken),
            untranscribed=len(index) - len(spoken),
            without_audio=without_audio,
            unreadable=sum(lost.values()) - without_audio,
            speakers=len(_speakers(index.select(spoken))),
            dev_speakers=len(_speakers(index.select(dev))),
            by_speaker=by_speaker,
            **_of_texts(index.select(spoken)),
            crop=float(np.median(pool.index.durations)),
            rates=tuple(collections.Counter(pool.index.rates.tolist()).most_common()),
            shared_speakers=tuple(sorted(_speakers(index.select(train)) & _speakers(tested)))
            if tested is not None
            else (),
        ),
    )


def _open(folders: tuple[str, ...], flag: str) -> Source:
    """The recordings of some folders. Raises UserError that names the flag of the first."""
    try:
        return open_source("folder", folders, labels="letters")
    except UserError as error:
        error.args = (str(error).replace("data.root", flag),)
        raise


def _no_transcripts(labels: str, audio: str, without_audio: int) -> str:
    if without_audio:
        return (
            f"--labels {labels}: {without_audio:,} lines of transcripts have no recording of their name beside them: "
            f"put the *.trans.txt files into the folders of their recordings ({audio}), and give that folder as "
            "--labels"
        )
    return (
        f"--labels {labels}: no recording has a transcript. They stand in files *.trans.txt in the folders of the "
        "recordings, one line for each, NAME TEXT, where NAME is the file's without its ending: docs/recognition.md"
    )


def _speakers(index: Index | None) -> set[str]:
    return {speaker for speaker in index.speakers.tolist() if speaker} if index is not None else set()


def hold_out(index: Index) -> tuple[np.ndarray, np.ndarray, bool]:
    """(rows that train, rows held out, whether whole speakers are held out) of labelled recordings.

    The choice is by a hash, so that it is the same on every machine and in every order.
    """
    seconds = index.durations
    whole = float(seconds.sum())
    wanted = min(max(DEV_SHARE * whole, LEAST_LABELS), MOST_DEV, whole / 2)
    names = index.speakers.tolist()
    by_speaker = all(names) and len(set(names)) >= SPEAKERS_TO_HOLD_OUT
    if by_speaker:
        of = {name: float(seconds[index.speakers == name].sum()) for name in set(names)}
        order = [name for _, name in sorted(zip(hash_ids(of).tolist(), of))]
        chosen: set[str] = set()
        for name in order:
            held = sum(of[each] for each in chosen)
            if held < wanted and held + of[name] <= max(MOST_SPEAKERS_SHARE * whole, wanted):
                chosen.add(name)
        mask = np.isin(index.speakers, sorted(chosen))
        if chosen:
            return np.flatnonzero(~mask), np.flatnonzero(mask), True
    order = np.argsort(index.id_hashes(), kind="stable")
    count = int(np.searchsorted(np.cumsum(seconds[order]), wanted)) + 1
    held = order[: min(count, len(index) - 1)]
    mask = np.isin(np.arange(len(index)), held)
    return np.flatnonzero(~mask), np.flatnonzero(mask), False


def pretraining_audio(audio: str, labelled: Source, labels: str, *, kept_apart: set[str]) -> Source:
    """All recordings of both folders, of which the second is open already, but for the files `kept_apart`."""
    same = os.path.realpath(audio) == os.path.realpath(labels)
    source = labelled if same else _open((audio, labels), "--audio")
    rows = [row for row, path in enumerate(source.index.paths) if os.path.realpath(path) not in kept_apart]
    return subset(source, np.array(rows, int))


def _of_texts(index: Index) -> dict[str, Any]:
    """What labelled recordings say of letters and lengths."""
    texts = [clean_text(text) for text in index.transcripts]
    seconds = index.durations
    fits = seconds <= LONGEST
    if not fits.any():
        raise UserError(
            f"--labels: all {len(index):,} labelled recordings are longer than {LONGEST:g} s (e.g. {index.paths[0]}, "
            f"{seconds[0]:.0f} s): cut them at pauses, with their transcripts"
        )
    return {
        "letters": len(set("".join(texts))),
        "tokens_per_second": max(len(text) / max(float(s), 0.1) for text, s in zip(texts, seconds, strict=True)),
        "lengths": tuple(float(x) for x in np.quantile(seconds[fits], (0.5, 0.9, 1.0))),
        "longer": int((~fits).sum()),
    }


def look_at_machine(out: pathlib.Path, devices: dict[str, Any]) -> MachineFacts:
    """devices: what `speed` found of JAX's devices, in its own process."""
    there = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] / cores if hasattr(os, "getloadavg") else 0.0
    return MachineFacts(
        platform=devices["platform"],
        kind=devices["kind"],
        devices=devices["devices"],
        memory=devices["memory"],
        cores=cores,
        disk=float(shutil.disk_usage(there).free),
        slow_bfloat16=devices["slow_bfloat16"],
        loader="tfdata" if importlib.util.find_spec("tensorflow") else "threads",
        load=load,
    )


def data_rows(facts: DataFacts) -> dict[str, str]:
    """The data for people, row by row."""
    rates = ", ".join(
        f"{rate / 1000:g} kHz" + (f" ({count:,})" if len(facts.rates) > 1 else "") for rate, count in facts.rates
    )
    held = (
        f"{facts.dev_speakers} whole speaker(s)"
        if facts.by_speaker
        else f"by recording, of the same {facts.speakers or 'unnamed'} speaker(s): errors on new voices will be higher"
    )
    rows = {
        "audio": f"{facts.recordings:,} recordings, {facts.hours:.2f} h, {rates}",
        "labels": f"{facts.labelled:,} recordings, {facts.train_minutes + facts.dev_minutes:.1f} min, "
        f"{facts.speakers} speaker(s), {facts.letters} letters; seconds: half below {facts.lengths[0]:.1f}, all below "
        f"{facts.lengths[2]:.1f}",
        "held out": f"{facts.dev_minutes:.1f} min (dev), {held}",
    }
    notes = []
    if facts.untranscribed:
        notes.append(
            f"{facts.untranscribed:,} recordings of --labels have no transcript; they are heard, not learnt from"
        )
    if facts.without_audio:
        notes.append(f"{facts.without_audio:,} lines of transcripts have no recording")
    if facts.unreadable:
        notes.append(
            f"{facts.unreadable:,} recordings of --labels cannot be read: python -m w2v_jax.prepare names them"
        )
    if facts.longer:
        notes.append(
            f"{facts.longer:,} labelled recordings are longer than {LONGEST:g} s and not learnt from: cut them"
        )
    if any(rate < SAMPLE_RATE for rate, _ in facts.rates):
        notes.append("recordings below 16 kHz are resampled; what they lack above stays lost")
    if facts.shared_speakers:
        notes.append(f"speakers of --test are in --labels, too: {some_of(facts.shared_speakers)}")
    if facts.train_minutes < 5:
        notes.append("with less than five minutes of labels every second letter may be wrong")
    return rows | ({"note": "\n".join(notes)} if notes else {})


def machine_rows(facts: MachineFacts) -> dict[str, str]:
    """The machine for people, row by row."""
    busy = f"; others keep it busy ({facts.load:.1f} waiting programs a core)" if facts.load > 1.2 else ""
    return {
        "devices": f"{facts.devices} x {facts.kind} ({facts.platform}), {facts.cores} cores{busy}",
        "memory": f"{facts.memory / 1e9:.0f} GB; disk: {facts.disk / 1e9:.0f} GB free",
    }
