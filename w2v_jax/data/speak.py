"""A corpus by text-to-speech: espeak-ng from the `espeakng-loader` wheel (extra `demo`), many voices, any of its languages.

English sentences come from a small grammar, other languages speak numbers, or a text file is read line by line.
Train and dev have different voices. Transcripts and voices are a function of the settings; the sound is not bit for
bit (espeak's noise differs between calls), so that a corpus is made once and its manifest holds checksums.
"""

from __future__ import annotations

import ctypes
import difflib
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError
from w2v_jax.data import corpus

VERSION = 1
DEFAULT_HOURS = 0.5
DEV_SHARE = 0.05
DEV_EVERY = 8  # every eighth variant speaks only in dev
RATES, PITCHES, RANGES = (120, 210), (15, 85), (30, 80)  # words per minute; espeak's 0 to 100
EFFECTS = {"Demonic", "UniRobot", "Tweaky", "announcer", "croak", "fast", "whisper", "whisperf", "anikaRobot"}

ARTICLES = "the a this that every some my our their one".split()
ADJECTIVES = (
    "small old quiet green heavy bright cold early narrow golden empty broken warm gentle distant simple".split()
)
NOUNS = (
    "river teacher window engine garden doctor paper mountain bottle market letter winter sailor kitchen student "
    "bridge apple farmer picture forest village candle monkey station island question painter basket tower friend"
).split()
VERBS = (
    "finds carries watches repairs follows paints forgets answers visits opens hides remembers sells builds crosses "
    "covers touches draws moves brings"
).split()
ADVERBS = "slowly again today often quickly together never tomorrow carefully soon outside once".split()
PLACES = "near the harbour|behind the house|under the table|after the rain|in the city|before sunrise|by the sea".split(
    "|"
)


class Voice(NamedTuple):
    """An espeak voice ("en+f3"), speaking rate in words per minute, pitch and pitch range from 0 to 100."""

    name: str
    rate: int
    pitch: int
    spread: int


def write_corpus(
    root: str | os.PathLike,
    hours: float = DEFAULT_HOURS,
    *,
    language: str = "en",
    speakers: int = 0,
    text: str | os.PathLike = "",
    seed: int = 0,
    progress: bool = True,
) -> pathlib.Path:
    """Makes ROOT/train (`hours` of speech) and ROOT/dev (5 % more, other voices), or finds them made already.

    language: an espeak name such as "en", "en-us", "de", "ar". speakers: voices of train; 0 is one per 3 minutes,
    between 8 and 400. text: a file whose lines are spoken. Raises UserError for an unknown language, impossible
    hours, an empty text, or when the wheel is missing.
    """
    if not 0 < hours < 100_000:
        raise UserError(f"a corpus of {hours} hours cannot be made; set data.hours to e.g. {DEFAULT_HOURS}")
    language = _known_language(language)
    lines = _read_lines(text) if text else ()
    speakers = speakers or int(np.clip(hours * 20, 8, 400))
    settings = dict(kind="speak", version=VERSION, seed=seed, hours=float(hours), speakers=speakers, language=language)
    settings["text"] = hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""
    rows = {
        "train": _rows("train", language, lines, seed, 1, speakers),
        "dev": _rows("dev", language, lines, seed, 10_001, max(4, speakers // 8)),
    }
    hours_of = {"train": hours, "dev": hours * DEV_SHARE}
    readme = _README.format(language=language)
    return corpus.write(root, rows, hours_of, _render, settings=settings, readme=readme, progress=progress)


def make(data: Any, root: Any) -> Any:
    """The source of ROOT/train, made first if missing (`data.hours`, `data.language`). ROOT/dev names the other part."""

    def write(home: pathlib.Path, made: dict[str, Any]) -> pathlib.Path:
        wanted = {"kind": "speak", "hours": data.hours or made.get("hours"), "language": data.language}
        if made and all(made.get(key) == value for key, value in wanted.items()):
            return home  # whatever its text and voices: a corpus made by `prepare` is used as it is
        return write_corpus(home, data.hours or DEFAULT_HOURS, language=data.language)

    return corpus.source(data, root, write)


def languages() -> tuple[str, ...]:
    """The names that `language` may have."""
    return _engine().languages


def speak(text: str, voice: Voice) -> np.ndarray:
    """The sound of a text, int16 at 16 kHz."""
    import soxr

    engine = _engine()
    wave = engine.synthesise(text, voice).astype(np.float32) / 32768
    wave = soxr.resample(wave, engine.rate, SAMPLE_RATE)
    return np.clip(np.round(wave * 32767), -32768, 32767).astype(np.int16)


def _render(row: corpus.Row) -> np.ndarray:
    return speak(row.transcript.lower(), row.voice)


def _rows(
    split: str, language: str, lines: Sequence[str], seed: int, first: int, speakers: int
) -> Iterator[corpus.Row]:
    variants = _engine().variants
    of_dev = [v for i, v in enumerate(variants) if i % DEV_EVERY == 0]
    of_split = of_dev if split == "dev" else [v for v in variants if v not in of_dev]
    number = 0
    while True:
        for speaker in range(first, first + speakers):
            voice = _voice(language, of_split, _generator(seed, speaker))
            rng = _generator(seed, speaker, number)
            if lines:
                sentence = lines[int(rng.integers(len(lines)))]
            else:
                sentence = _english(rng) if language.split("-")[0] == "en" else _numbers(rng)
            yield corpus.Row(split, speaker, number, sentence.upper(), voice)
        number += 1


def _voice(language: str, variants: Sequence[str], rng: np.random.Generator) -> Voice:
    rate, pitch, spread = (int(rng.integers(*limits)) for limits in (RATES, PITCHES, RANGES))
    return Voice(f"{language}+{variants[int(rng.integers(len(variants)))]}", rate, pitch, spread)


def _english(rng: np.random.Generator) -> str:
    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    def thing() -> list[str]:
        return [pick(ARTICLES), *([pick(ADJECTIVES)] if rng.random() < 0.6 else []), pick(NOUNS)]

    words = [*thing(), pick(VERBS), *thing()]
    if rng.random() < 0.5:
        words.append(pick(ADVERBS) if rng.random() < 0.5 else pick(PLACES))
    if rng.random() < 0.4:
        words += ["and", *thing(), pick(VERBS), *thing()]
    return " ".join(words)


def _numbers(rng: np.random.Generator) -> str:
    count = int(rng.integers(2, 7))
    return " ".join(str(int(10 ** rng.uniform(0, 4))) for _ in range(count))


def _read_lines(text: str | os.PathLike) -> tuple[str, ...]:
    try:
        content = pathlib.Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the text {text} cannot be read as UTF-8: {error}") from None
    lines = tuple(line.strip() for line in content.splitlines() if line.strip())
    if not lines:
        raise UserError(f"the text {text} has no line to speak")
    return lines


def _known_language(language: str) -> str:
    known = languages()
    if language in known:
        return language
    near = difflib.get_close_matches(language, known, n=3) or [k for k in known if k.startswith(language[:2])][:3]
    hint = f"Did you mean {', '.join(near)}? " if near else ""
    raise UserError(f"espeak has no language {language!r} (data.language). {hint}It has: {' '.join(known)}")


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([VERSION, len(key), *key])))


class _VoiceStruct(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.POINTER(ctypes.c_char)),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


class _Engine:
    """espeak-ng in this process. Its state is global, so that there is one, used by one thread."""

    RATE, PITCH, RANGE = 1, 3, 4
    RETRIEVAL, DONT_EXIT, CHARACTERS, UTF8 = 1, 0x8000, 1, 1

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise UserError('speech synthesis needs the extra "demo": pip install "w2v_jax[demo]"') from None
        data = pathlib.Path(espeakng_loader.get_data_path())
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = self.library.espeak_Initialize(self.RETRIEVAL, 0, str(data).encode(), self.DONT_EXIT)
        if self.rate <= 0:
            raise UserError(f"espeak-ng does not start with the data in {data}; install espeakng-loader anew")
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._receive)  # kept: the library holds only the address
        self._pieces: list[np.ndarray] = []
        self.library.espeak_SetSynthCallback(self._callback)
        self.languages = tuple(sorted(set(self._list_languages())))
        self.variants = tuple(sorted(f.name for f in (data / "voices" / "!v").iterdir() if f.name not in EFFECTS))

    def _receive(self, samples: Any, count: int, _: Any) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def _list_languages(self) -> Iterator[str]:
        self.library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_VoiceStruct))
        voices = self.library.espeak_ListVoices(None)
        i = 0
        while voices[i]:
            place = ctypes.addressof(voices[i].contents.languages.contents)
            while ctypes.string_at(place):  # a priority byte and a name for each, ended by an empty one
                name = ctypes.string_at(place + 1)
                yield name.decode()
                place += len(name) + 2
            i += 1

    def synthesise(self, text: str, voice: Voice) -> np.ndarray:
        """int16 samples at `rate`. Raises UserError when the voice does not exist or nothing is said."""
        if self.library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise UserError(f"espeak has no voice {voice.name!r}")
        for parameter, value in ((self.RATE, voice.rate), (self.PITCH, voice.pitch), (self.RANGE, voice.spread)):
            self.library.espeak_SetParameter(parameter, value, 0)
        self._pieces.clear()
        content = text.encode() + b"\0"
        self.library.espeak_Synth(content, ctypes.c_size_t(len(content)), 0, self.CHARACTERS, 0, self.UTF8, None, None)
        self.library.espeak_Synchronize()
        if not self._pieces:
            raise UserError(f"espeak said nothing for {text!r} with the voice {voice.name}")
        return np.concatenate(self._pieces)


@functools.cache
def _engine() -> _Engine:
    return _Engine()


_README = """# Synthesised speech ({language})

Spoken by espeak-ng (`w2v_jax/data/speak.py`): many voices, rates and pitches; `train` and `dev` have different voices.
`manifest.jsonl` lists every recording with its transcript and SHA-256.
"""
