"""A corpus by text-to-speech: many voices and accents, any language that espeak-ng has (extra `demo`).

English sentences come from a small grammar, other languages speak numbers, or a text file is read line by line.
Train and dev have different voices. Transcripts and voices are a function of the settings; the sound is not bit for
bit (espeak's noise differs between calls), so that a corpus is made once and its manifest holds checksums.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError
from w2v_jax.data import corpus, espeak
from w2v_jax.data.espeak import Voice

VERSION = 2
"""Raise it when the texts, the voices or their choice change, so that an old corpus is not taken for a new one."""

DEFAULT_HOURS = 0.5
DEV_SHARE = 0.05
DEV_EVERY = 8  # every eighth variant speaks only in dev
RATES, PITCHES, RANGES = (120, 210), (15, 85), (30, 80)  # words per minute; espeak's 0 to 100

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
PLACES = (
    "near the harbour|behind the house|under the table|after the rain|in the city|before sunrise|by the sea|uphill|"
    "without a word|at five o'clock|through the fog|beside the fire|for nineteen years|across the square|during lunch"
).split("|")
LINKS = "and but while because when although so".split()


def write_corpus(
    root: str | os.PathLike,
    hours: float = DEFAULT_HOURS,
    *,
    language: str = "en",
    voices: Sequence[str] = (),
    speakers: int = 0,
    text: str | os.PathLike = "",
    seed: int = 0,
    progress: bool = True,
) -> pathlib.Path:
    """Makes ROOT/train (`hours` of speech) and ROOT/dev (5 % more, other voices), or finds them made already.

    language: an espeak code such as "en" (all its accents), "en-us", "de", "ar". voices: espeak variants ("f1", "m3",
    "klatt"), an eighth of which speak dev; all that sound like people if empty. speakers of train, each with a voice,
    an accent, a rate and a pitch: 0 is one per 3 minutes, between 8 and 400. text: a UTF-8 file whose lines are spoken.
    Raises UserError for an unknown language or voice, impossible hours, an empty text, or when the wheel is missing.
    """
    if not 0 < hours < 100_000:
        raise UserError(f"a corpus of {hours} hours cannot be made; set data.hours to e.g. {DEFAULT_HOURS}")
    lines = _read_lines(text) if text else ()
    speakers = speakers or int(np.clip(hours * 20, 8, 400))
    settings: dict[str, Any] = dict(
        kind="speak", version=VERSION, seed=seed, hours=float(hours), speakers=speakers, language=language
    )
    settings["voices"] = list(voices)
    settings["text"] = hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""
    home = pathlib.Path(root).expanduser().absolute()
    if corpus.is_complete(home, settings):  # no espeak is needed for a corpus that is there
        return home
    engine = espeak.engine()
    accents, variants = engine.accents_of(language), engine.checked_variants(voices)
    if len(variants) < 2:
        raise UserError("a speak corpus needs at least two voices, one of which speaks the dev part")
    of_dev = variants[::DEV_EVERY]
    of_train = [name for name in variants if name not in of_dev]
    rows = {
        "train": _rows("train", accents, of_train, language, lines, seed, range(1, 1 + speakers)),
        "dev": _rows("dev", accents, of_dev, language, lines, seed, range(10_001, 10_001 + max(4, speakers // 8))),
    }
    hours_of = {"train": hours, "dev": hours * DEV_SHARE}
    readme = _README.format(language=language)
    return corpus.write(home, rows, hours_of, _render, settings=settings, readme=readme, progress=progress)


def make(data: Any, root: Any) -> Any:
    """The source of ROOT/train, made first if missing (`data.hours`, `data.language`). ROOT/dev is the other part."""

    def write(home: pathlib.Path, made: dict[str, Any]) -> pathlib.Path:
        wanted = {"kind": "speak", "hours": data.hours or made.get("hours"), "language": data.language}
        is_this = all(made.get(key) == value for key, value in wanted.items())
        if is_this and corpus.is_complete(home, made):
            return home  # whatever its text and voices: a corpus that `prepare` made is used as it is
        if is_this and made.get("text"):
            raise UserError(f"{home} has lost files, and the text it was made from: make it again with w2v_jax.prepare")
        kept = {key: made[key] for key in ("voices", "speakers", "seed") if is_this and key in made}
        return write_corpus(home, wanted["hours"] or DEFAULT_HOURS, language=data.language, **kept)

    return corpus.source(data, root, write)


def speak(text: str, voice: Voice) -> np.ndarray:
    """The sound of a text, int16 at 16 kHz."""
    import soxr

    engine = espeak.engine()
    wave = soxr.resample(engine.say(text, voice).astype(np.float32), engine.rate, SAMPLE_RATE)
    return np.clip(np.rint(wave), -32768, 32767).astype(np.int16)


def transcribe(text: str) -> str:
    """Upper-case words without punctuation; apostrophes and hyphens inside a word stay."""
    letters = "".join(c if unicodedata.category(c)[0] in "LMN" or c in "'’-" else " " for c in text)
    return " ".join(word.strip("'’-") for word in letters.upper().split() if word.strip("'’-"))


def _render(row: corpus.Row) -> np.ndarray:
    voice, sentence = row.voice
    return speak(sentence, voice)


def _rows(
    split: str,
    accents: Sequence[str],
    variants: Sequence[str],
    language: str,
    lines: Sequence[str],
    seed: int,
    speakers: Iterable[int],
) -> Iterator[corpus.Row]:
    voices = {speaker: _voice(accents, variants, _generator(seed, speaker)) for speaker in speakers}
    for number in itertools.count():
        for speaker, voice in voices.items():
            rng = _generator(seed, speaker, number)
            if lines:
                sentence = lines[int(rng.integers(len(lines)))]
            else:
                sentence = _english(rng) if language.lower().split("-")[0] == "en" else _numbers(rng)
            yield corpus.Row(split, speaker, number, transcribe(sentence), (voice, sentence))


def _voice(accents: Sequence[str], variants: Sequence[str], rng: np.random.Generator) -> Voice:
    rate, pitch, spread = (int(rng.integers(*limits)) for limits in (RATES, PITCHES, RANGES))
    accent, variant = accents[int(rng.integers(len(accents)))], variants[int(rng.integers(len(variants)))]
    return Voice(f"{accent}+{variant}", rate, pitch, spread)


def _english(rng: np.random.Generator) -> str:
    """One to three clauses, about 2 to 10 s."""

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    def thing() -> list[str]:
        words = [pick(ADJECTIVES), pick(NOUNS)] if rng.random() < 0.6 else [pick(NOUNS)]
        article = pick(ARTICLES)
        return ["an" if article == "a" and words[0][0] in "aeio" else article, *words]

    words: list[str] = []
    for clause in range(int(rng.integers(1, 4))):
        words += [pick(LINKS)] if clause else []
        words += [*thing(), pick(VERBS), *thing()]
        if rng.random() < 0.6:
            words.append(pick(ADVERBS) if rng.random() < 0.5 else pick(PLACES))
    return " ".join(words)


def _numbers(rng: np.random.Generator) -> str:
    count = int(rng.integers(2, 7))
    return " ".join(str(int(10 ** rng.uniform(0, 4))) for _ in range(count))


def _read_lines(text: str | os.PathLike) -> tuple[str, ...]:
    """The lines of a file that have something to say."""
    try:
        content = pathlib.Path(text).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the text {text} cannot be read as UTF-8: {error}") from None
    lines = tuple(" ".join(line.split()) for line in content.replace("\0", " ").split("\n") if transcribe(line))
    if not lines:
        raise UserError(f"the text {text} has no line to speak")
    return lines


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([VERSION, len(key), *key])))


_README = """# Synthesised speech ({language})

Spoken by espeak-ng (`w2v_jax/data/speak.py`): many voices, rates and pitches; `train` and `dev` have different voices.
`manifest.jsonl` lists every recording with its transcript and SHA-256.
"""
