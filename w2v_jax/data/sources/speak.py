"""A corpus by text-to-speech: many voices and accents, in any language that espeak-ng has (extra `demo`).

A small grammar makes English sentences. In other languages the sentences are numbers. The lines of a text file can
replace both. Train and dev have different voices. Transcripts and voices are a function of the settings. The samples
are not, because espeak's noise differs between calls; therefore a corpus is made once and its manifest holds checksums.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError, path_argument
from w2v_jax.core.text import numbered_lines
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.io import corpus, espeak
from w2v_jax.data.io.espeak import Voice

VERSION = 2
"""Raise it when the texts, the voices or their choice change, so that an old corpus is not mistaken for a new one."""

DEV_EVERY = 8  # every eighth variant speaks only in dev
RATES, PITCHES, RANGES = (120, 210), (15, 85), (30, 80)  # words per minute; the others on espeak's scale 0 to 100

ARTICLES = "the the the a a this that every some my our their his her your another".split()
ADJECTIVES = (
    "small old quiet green heavy bright cold early narrow golden empty broken warm gentle distant simple large young "
    "noisy yellow light dark clever late wide silver curious hollow fresh rough smooth foreign modern ancient purple "
    "thirsty cheap sharp lazy brave orange shallow thick strange joyful"
).split()
NOUNS = (
    "river teacher window engine garden doctor paper mountain bottle market letter winter sailor kitchen student "
    "bridge apple farmer picture forest village candle monkey station island question painter basket tower friend "
    "neighbour voice church judge machine treasure clock thumb feather jacket oyster league measure wagon youth fox "
    "airport story blanket whale choir journey dragon shoe yard earth uncle box horse cloud mirror path pigeon queen "
    "rabbit school sheep song spoon table train tree valley violin wall wheel zebra lemon hammer father daughter mouth"
).split()
VERBS = (
    "finds carries watches repairs follows paints forgets answers visits opens hides remembers sells builds crosses "
    "covers touches draws moves brings chooses measures enjoys throws buys describes joins leaves pushes shows teaches "
    "warms washes needs loves lifts judges hears gathers fixes changes breaks borrows admires"
).split()
ADVERBS = (
    "slowly again today often quickly together tomorrow carefully soon outside once twice everywhere aloud".split()
)
ADVERBIALS = (
    "near the harbour|behind the house|under the table|after the rain|in the city|before sunrise|by the sea|uphill|"
    "without a word|at five o'clock|through the fog|beside the fire|for nineteen years|across the square|during lunch"
).split("|")
LINKS = "and but while because when although so".split()


def write_corpus(
    root: str | os.PathLike,
    hours: float,
    *,
    language: str = "en",
    voices: Sequence[str] = (),
    speakers: int = 0,
    text: str | os.PathLike = "",
    seed: int = 0,
    progress: bool = True,
) -> pathlib.Path:
    """Makes ROOT/train (`hours` of speech) and ROOT/dev (5 % more, other voices), unless they are complete.

    language: an espeak code such as "en" (all its accents), "en-us", "de", "ar".
    voices: espeak variants such as "f1", "m3", "klatt". An eighth of them speak dev. Empty: all that sound like people.
    speakers: of train, each with a voice, an accent, a rate and a pitch. 0: one per 3 minutes, between 8 and 400.
    text: a UTF-8 file whose lines are spoken.
    Raises UserError for an unknown language or voice, impossible hours, an empty text, or where the wheel is missing.
    """
    corpus.check_hours(hours)
    lines = _read_lines(text) if text else ()
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""
    speakers = speakers or int(np.clip(hours * 20, 8, 400))
    settings: dict[str, Any] = dict(kind="speak", version=VERSION, seed=seed, hours=float(hours), speakers=speakers)
    settings |= dict(language=language, voices=list(voices), text=digest)
    home = path_argument(root).absolute()
    if corpus.is_complete(home, settings):  # a complete corpus needs no espeak
        return home
    engine = espeak.engine()
    accents, variants = engine.accents_of(language), engine.checked_variants(voices)
    if len(variants) < 2:
        raise UserError("a speak corpus needs at least two voices, one of which speaks the dev part")
    dev_variants = variants[::DEV_EVERY]
    train_variants = [name for name in variants if name not in dev_variants]
    voice = lambda speaker, names: _voice(accents, names, corpus.generator(VERSION, seed, speaker))
    train_voices = {speaker: voice(speaker, train_variants) for speaker in range(1, 1 + speakers)}
    dev_voices = {speaker: voice(speaker, dev_variants) for speaker in range(10_001, 10_001 + max(4, speakers // 8))}
    sentence = _english if language.lower().split("-")[0] == "en" else _numbers
    if lines:
        sentence = lambda rng: lines[int(rng.integers(len(lines)))]
    train = corpus.CorpusPart(hours, _recordings("train", train_voices, sentence=sentence, seed=seed))
    dev = corpus.CorpusPart(hours * corpus.DEV_SHARE, _recordings("dev", dev_voices, sentence=sentence, seed=seed))
    readme = _README.format(language=language)
    return corpus.make_corpus(home, (train, dev), _render, settings=settings, readme=readme, progress=progress)


def make(data: Any, root: Any) -> Any:
    """The source of ROOT/train or ROOT/dev. Makes a missing corpus from `data.hours` and `data.language`."""

    def write(home: pathlib.Path, existing: dict[str, Any]) -> pathlib.Path:
        hours = data.hours or existing.get("hours") or corpus.DEFAULT_HOURS
        identity = {"kind": "speak", "hours": hours, "language": data.language}
        if any(existing.get(key) != value for key, value in identity.items()):
            return write_corpus(home, hours, language=data.language)
        if corpus.is_complete(home, existing):
            return home  # a corpus that `prepare` made is used as it is, whatever its text and voices
        if existing.get("text"):
            raise UserError(
                f"{home} lacks files, and does not store the text that was spoken; make it anew with w2v_jax.prepare"
            )
        voices, speakers, seed = existing.get("voices", ()), existing.get("speakers", 0), existing.get("seed", 0)
        return write_corpus(home, hours, language=data.language, voices=voices, speakers=speakers, seed=seed)

    return corpus.part_source(data, root, write)


def speak(text: str, voice: Voice) -> np.ndarray:
    """The sound of a text, int16 at 16 kHz."""
    import soxr

    engine = espeak.engine()
    wave = soxr.resample(engine.say(text, voice).astype(np.float32), engine.rate, SAMPLE_RATE)
    return np.clip(np.rint(wave), -32768, 32767).astype(np.int16)


def transcribe(text: str) -> str:
    """The text as upper-case words without punctuation. Apostrophes and hyphens inside a word stay."""
    letters = "".join(c if unicodedata.category(c)[0] in "LMN" or c in "'’-" else " " for c in text)
    return " ".join(word.strip("'’-") for word in letters.upper().split() if word.strip("'’-"))


def _render(recording: corpus.Recording) -> np.ndarray:
    voice, sentence = recording.voice
    return speak(sentence, voice)


def _recordings(
    split: str, voices: dict[int, Voice], *, sentence: Callable[[np.random.Generator], str], seed: int
) -> Iterator[corpus.Recording]:
    for number in itertools.count():
        for speaker, voice in voices.items():
            text = sentence(corpus.generator(VERSION, seed, speaker, number))
            yield corpus.Recording(split, speaker, number, transcript=transcribe(text), voice=(voice, text))


def _voice(accents: Sequence[str], variants: Sequence[str], rng: np.random.Generator) -> Voice:
    rate, pitch, spread = (int(rng.integers(*limits)) for limits in (RATES, PITCHES, RANGES))
    accent, variant = accents[int(rng.integers(len(accents)))], variants[int(rng.integers(len(variants)))]
    return Voice(f"{accent}+{variant}", rate=rate, pitch=pitch, spread=spread)


def _english(rng: np.random.Generator) -> str:
    """A sentence of one to three clauses, about 2 to 10 s long."""

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    def noun_phrase() -> list[str]:
        words = [pick(ADJECTIVES), pick(NOUNS)] if rng.random() < 0.6 else [pick(NOUNS)]
        article = pick(ARTICLES)
        return ["an" if article == "a" and words[0][0] in "aeio" else article, *words]

    words: list[str] = []
    for clause in range(int(rng.integers(1, 4))):
        words += [pick(LINKS)] if clause else []
        words += [*noun_phrase(), pick(VERBS), *noun_phrase()]
        if rng.random() < 0.6:
            words.append(pick(ADVERBS) if rng.random() < 0.5 else pick(ADVERBIALS))
    return " ".join(words)


def _numbers(rng: np.random.Generator) -> str:
    count = int(rng.integers(2, 7))
    return " ".join(str(int(10 ** rng.uniform(0, 4))) for _ in range(count))


def _read_lines(text: str | os.PathLike) -> tuple[str, ...]:
    """The lines of a UTF-8 file that have words. Raises UserError."""
    numbered = numbered_lines(text, f"the text {os.fspath(text)}")
    lines = tuple(" ".join(line.split()) for _, line in numbered if transcribe(line))
    if not lines:
        raise UserError(f"the text {text} has no line with words")
    return lines


_README = """# Synthesised speech ({language})

Spoken by espeak-ng (`w2v_jax/data/sources/speak.py`), in many voices, rates and pitches;
`train` and `dev` have different voices. `manifest.jsonl` lists every recording with its transcript and SHA-256.
"""
