"""A made-up language whose letters are sounds, spoken by a formant synthesiser in NumPy: speech without downloads.

It has twenty letters: five vowels, six stops, five fricatives, two nasals and two liquids. Syllables make the words of
a fixed lexicon. Words with Zipf frequencies make sentences of 2 to 15 s. A speaker has a pitch, a vocal tract length, a
rate, a breathiness and a noise floor. Formants glide from letter to letter, and no two tokens of a letter are alike. A
model can learn a letter from its sound (CTC), yet not from one spectrum alone.

The source is a glottal pulse train with noise. A cascade of five resonators shapes it, computed in the frequency domain
for all short overlapping windows at once. Bands of noise are added for bursts and fricatives. Each utterance is a pure
function of (seed, speaker, number). It is float64 until the last rounding to int16, so that the same seed gives the
same samples wherever NumPy computes the same. It does not try to sound like any language.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import path_argument
from w2v_jax.core.display import short_repr
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.io import corpus

VERSION = 1
"""Raise it when the sound or the language changes, so that an old corpus on disk is not mistaken for a new one."""

DEV_SPEAKERS = 4
NUM_WORDS = 500

# Columns of a sound: duration in ms; formants F1 F2 F3 in Hz (NaN: interpolated between the neighbours); bandwidth
# factor; amplitudes of voice, aspiration and friction; centre and width of the friction band in Hz; edge in ms.
_MS, _F1, _F3, _DAMP, _VOICE, _BREATH, _HISS, _CENTRE, _WIDTH, _EDGE = 0, 1, 3, 4, 5, 6, 7, 8, 9, 10
_NAN = float("nan")


def _vowel(f1: float, f2: float, f3: float) -> list[tuple[float, ...]]:
    return [(115, f1, f2, f3, 1, 1, 0, 0, 4000, 2000, 20)]


def _stop(f2: float, f3: float, *, centre: float, width: float, is_voiced: bool) -> list[tuple[float, ...]]:
    closure = (60, 220, f2, f3, 4, 0.25 if is_voiced else 0, 0, 0, centre, width, 8)
    burst = (14, 300, f2, f3, 1, 0, 0.1, 0.8 if is_voiced else 1.6, centre, width, 3)
    release = (32, _NAN, _NAN, _NAN, 1.5, 0, 0.35, 0, centre, width, 10)
    return [closure, burst] if is_voiced else [closure, burst, release]


def _fricative(
    f2: float, f3: float, *, hiss: float, centre: float, width: float, voice: float = 0.0
) -> list[tuple[float, ...]]:
    return [(95, 320, f2, f3, 1.5, voice, 0, hiss, centre, width, 20)]


SOUNDS = {
    "A": _vowel(750, 1200, 2500),
    "E": _vowel(500, 1850, 2550),
    "I": _vowel(280, 2300, 3000),
    "O": _vowel(500, 850, 2450),
    "U": _vowel(310, 1150, 2150),
    "P": _stop(900, 2300, centre=700, width=600, is_voiced=False),
    "B": _stop(900, 2300, centre=700, width=600, is_voiced=True),
    "T": _stop(1750, 2700, centre=4800, width=1300, is_voiced=False),
    "D": _stop(1750, 2700, centre=4800, width=1300, is_voiced=True),
    "K": _stop(1950, 2200, centre=2000, width=450, is_voiced=False),
    "G": _stop(1950, 2200, centre=2000, width=450, is_voiced=True),
    "S": _fricative(1700, 2600, hiss=0.9, centre=6300, width=900),
    "Z": _fricative(1700, 2600, hiss=0.5, centre=6300, width=900, voice=0.5),
    "X": _fricative(1900, 2400, hiss=1.1, centre=3100, width=700),
    "F": _fricative(1000, 2300, hiss=0.3, centre=4500, width=3000),
    "H": [(80, _NAN, _NAN, _NAN, 1.5, 0, 0.6, 0, 4000, 2000, 20)],
    "M": [(80, 260, 950, 2250, 3, 0.55, 0, 0, 4000, 2000, 12)],
    "N": [(80, 260, 1750, 2700, 3, 0.55, 0, 0, 4000, 2000, 12)],
    "L": [(75, 370, 1000, 2900, 1.3, 0.65, 0, 0, 4000, 2000, 20)],
    "R": [(75, 430, 1300, 1650, 1.3, 0.65, 0, 0, 4000, 2000, 20)],
    " ": [(70, _NAN, _NAN, _NAN, 1, 0, 0, 0, 4000, 2000, 12)],
}
"""The pieces of each letter in time. The space is the pause between words."""

VOWELS = "AEIOU"
CONSONANTS = "".join(sorted(set(SOUNDS) - set(VOWELS) - {" "}))
ALPHABET = "".join(sorted(set(SOUNDS) - {" "}))
_TABLE = {letter: np.array(pieces, np.float64) for letter, pieces in SOUNDS.items()}


class Speaker(NamedTuple):
    """A voice: `f0` in Hz. `tract` scales every formant. A `rate` above 1 is faster.

    `noise` is the RMS of the noise floor relative to the peak.
    """

    number: int
    f0: float
    tract: float
    rate: float
    breath: float
    tilt: float
    noise: float
    level: float


def write_corpus(
    root: str | os.PathLike, hours: float, *, seed: int = 0, speakers: int = 0, progress: bool = True
) -> pathlib.Path:
    """Makes ROOT/train (`hours` of speech) and ROOT/dev (5 % more, other speakers), unless they are complete.

    Train has `speakers` speakers; 0 means one per 1.5 minutes, between 8 and 200. `corpus.py` lists the files. Raises
    UserError for impossible hours, or where ROOT holds something else.
    """
    corpus.check_hours(hours)
    home = path_argument(root).absolute()
    speakers = speakers or int(np.clip(hours * 40, 8, 200))
    settings = {"kind": "synthetic", "version": VERSION, "seed": seed, "hours": float(hours), "speakers": speakers}
    render = lambda recording: utterance(recording.speaker, recording.number, seed=seed)[0]
    train = corpus.CorpusPart(hours, _recordings("train", seed=seed, first=1, speakers=speakers))
    dev = corpus.CorpusPart(
        hours * corpus.DEV_SHARE, _recordings("dev", seed=seed, first=10_001, speakers=DEV_SPEAKERS)
    )
    return corpus.make_corpus(home, (train, dev), render, settings=settings, readme=_README, progress=progress)


def make(data: Any, root: Any) -> Any:
    """The source of ROOT/train or ROOT/dev. Makes a missing corpus of `data.hours` hours first."""

    def write(home: pathlib.Path, existing: dict[str, Any]) -> pathlib.Path:
        hours = data.hours or existing.get("hours") or corpus.DEFAULT_HOURS
        return write_corpus(home, hours, seed=existing.get("seed", 0), speakers=existing.get("speakers", 0))

    return corpus.part_source(data, root, write)


def utterance(speaker: int, number: int, *, seed: int = 0) -> tuple[np.ndarray, str, np.ndarray]:
    """(wave [T] int16 at 16 kHz, transcript, ends [characters of the transcript] in samples).

    The i-th character of the transcript (a letter or a space) ends at sample `ends[i]`.
    """
    rng, voice, text = _draw_utterance(speaker, number, seed)
    wave, ends = render(text, voice, rng)
    return wave, text, ends


def letter_times(speaker: int, number: int, *, seed: int = 0) -> tuple[str, np.ndarray]:
    """(transcript, ends) of the same `utterance`, without synthesising it."""
    rng, voice, text = _draw_utterance(speaker, number, seed)
    return text, _ends(_timeline(text, voice, rng))


def letter_bounds(speaker: int, number: int, *, seed: int = 0) -> tuple[str, np.ndarray]:
    """(transcript, bounds [characters + 1] in samples) of the same `utterance`: character i lasts from bounds[i].

    The first one follows a pause, which is no character.
    """
    rng, voice, text = _draw_utterance(speaker, number, seed)
    timeline = _timeline(text, voice, rng)
    pause = int(timeline.stops[timeline.letter == 0][-1] * SAMPLE_RATE)
    return text, np.concatenate([[pause], _ends(timeline)])


def _draw_utterance(speaker: int, number: int, seed: int) -> tuple[np.random.Generator, Speaker, str]:
    """(generator for the sound, voice, transcript) of an utterance."""
    rng, voice = corpus.generator(VERSION, seed, speaker, number), make_speaker(speaker, seed=seed)
    return rng, voice, _sentence(rng, voice.rate)


def make_speaker(number: int, *, seed: int = 0) -> Speaker:
    """The voice of a speaker: a pure function of (seed, number)."""
    rng = corpus.generator(VERSION, seed, number)
    height = rng.uniform(-1, 1)  # from a large, low voice to a small, high one
    return Speaker(
        number=number,
        f0=float(150 * 2 ** (0.65 * height + 0.15 * rng.normal())),
        tract=float(1.04 + 0.11 * height + 0.02 * rng.normal()),
        rate=float(rng.uniform(0.82, 1.22)),
        breath=float(rng.uniform(0.02, 0.25)),
        tilt=float(rng.uniform(2500, 5000)),
        noise=float(10 ** rng.uniform(-3.2, -2.2)),
        level=float(rng.uniform(0.3, 0.8)),
    )


@functools.cache
def lexicon() -> tuple[tuple[str, ...], np.ndarray]:
    """(words, probabilities), the same for every corpus, frequent words first. No letter occurs twice in a row."""
    rng = corpus.generator(VERSION, 20)
    syllables = []
    for _ in range(120):
        onset = rng.choice(list(CONSONANTS)) if rng.random() < 0.9 else ""
        coda = rng.choice(list("KLMNRSTX")) if rng.random() < 0.35 else ""
        syllables.append(f"{onset}{rng.choice(list(VOWELS))}{coda}")
    weights = 1 / np.arange(3, 123)
    words: dict[str, None] = {}
    while len(words) < NUM_WORDS:
        length = rng.choice([1, 2, 3], p=[0.25, 0.5, 0.25])
        word = "".join(rng.choice(syllables, size=length, p=weights / weights.sum()))
        if len(word) > 1 and all(a != b for a, b in zip(word, word[1:], strict=False)):
            words[word] = None
    zipf = 1 / np.arange(2, NUM_WORDS + 2)
    return tuple(words), zipf / zipf.sum()


def render(text: str, voice: Speaker, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Synthesises a text of letters of ALPHABET and spaces: (wave [T] int16, ends [len(text)] in samples)."""
    timeline = _timeline(text, voice, rng)
    sound, stops = timeline.sound, timeline.stops
    is_vowel = np.array([c in VOWELS for c in f" {text} "])[timeline.letter]
    num_samples = int(stops[-1] * SAMPLE_RATE)

    excitation, hiss = _excitation(timeline, is_vowel, voice=voice, rng=rng, num_samples=num_samples)
    centres = (np.arange(-(-num_samples // _HOP) + 1)) * _HOP / SAMPLE_RATE  # of the windows
    formants, damp = _formant_tracks(timeline, voice, rng=rng, centres=centres)
    piece = np.minimum(np.searchsorted(stops, centres), len(stops) - 1)
    shift = np.exp(0.06 * rng.normal(size=len(sound)))
    band = _band_response(sound[:, _CENTRE] * shift * voice.tract**0.5, sound[:, _WIDTH])[piece]
    wave = _filtered(excitation, _tract_response(formants, damp, voice), num_samples)
    wave += 0.35 * _filtered(hiss, band, num_samples)

    peak = np.abs(wave).max()
    wave = voice.level * (wave / max(peak, 1e-9) + voice.noise * rng.normal(size=num_samples))
    return np.clip(np.rint(wave * 32767), -32768, 32767).astype(np.int16), _ends(timeline)


class Timeline(NamedTuple):
    """The pieces of a text in time, with a pause before and after it.

    `sound` [pieces columns], `letter` [pieces] the position of each piece's letter in f" {text} ", and `starts` and
    `stops` [pieces] in seconds.
    """

    sound: np.ndarray
    letter: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    __repr__ = short_repr


def _timeline(text: str, voice: Speaker, rng: np.random.Generator) -> Timeline:
    pieces = [_TABLE[" "], *(_TABLE[letter] for letter in text), _TABLE[" "]]
    sound = np.concatenate(pieces)
    letter = np.repeat(np.arange(len(pieces)), [len(p) for p in pieces])
    is_pause = np.array([c == " " for c in f" {text} "])[letter]
    seconds = sound[:, _MS] / 1000 / voice.rate * np.exp(0.16 * rng.normal(size=len(sound)))
    count = len(sound)
    longer = np.where(rng.random(count) < 0.15, rng.uniform(0.2, 0.5, count), rng.uniform(0, 0.06, count))
    seconds = seconds + np.where(is_pause, longer, 0.0)
    stops = np.cumsum(seconds)
    return Timeline(sound, letter, starts=stops - seconds, stops=stops)


def _ends(timeline: Timeline) -> np.ndarray:
    """The last sample of each letter, without the pauses before and after the text."""
    return (timeline.stops[np.flatnonzero(np.diff(timeline.letter))][1:] * SAMPLE_RATE).astype(np.int64)


_HOP, _WINDOW, _FFT = 128, 256, 1024
_HZ = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)


def _excitation(
    timeline: Timeline, is_vowel: np.ndarray, *, voice: Speaker, rng: np.random.Generator, num_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """(excitation of the vocal tract [T], friction noise that does not pass through it [T])."""
    sound, _, starts, stops = timeline
    times = np.arange(num_samples) / SAMPLE_RATE
    edge = np.minimum(sound[:, _EDGE] / 2000, 0.45 * (stops - starts))
    knots = np.stack([starts + edge, stops - edge], axis=1).ravel()
    strength = np.where(is_vowel, np.exp(0.2 * rng.normal(size=len(sound))), 1.0)
    voiced, breath, hiss = (
        np.interp(times, knots, np.repeat(sound[:, column] * strength, 2)) for column in (_VOICE, _BREATH, _HISS)
    )
    middle = (starts + stops)[is_vowel] / 2
    fall = 1.12 - 0.27 * middle / max(times[-1], 1.0)  # the pitch of a sentence falls towards its end
    melody = voice.f0 * fall * np.exp(0.08 * rng.normal(size=len(middle)))
    wander = np.arange(0, times[-1] + 0.02, 0.01)
    f0 = np.interp(times, middle, melody) * np.interp(times, wander, 1 + 0.008 * rng.normal(size=len(wander)))
    phase = np.cumsum(f0 / SAMPLE_RATE) % 1.0
    opening = phase / 0.6
    pulse = np.where(opening < 1, 2 * opening - 3 * opening**2, 0.0)  # derivative of the glottal flow x^2 - x^3
    noise = rng.normal(size=(2, len(times)))
    breath = breath + voice.breath * voiced * (opening < 1)
    return voiced * pulse + 0.25 * breath * noise[0], hiss * noise[1]


def _formant_tracks(
    timeline: Timeline, voice: Speaker, *, rng: np.random.Generator, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(F1 F2 F3 [windows 3] in Hz, bandwidth factor [windows]). Formants rest inside a sound and glide in between."""
    sound, _, starts, stops = timeline
    has_target = ~np.isnan(sound[:, _F1])
    target = sound[has_target, _F1 : _F3 + 1]
    target = target * np.exp(0.035 * rng.normal(size=target.shape))
    padded = np.concatenate([target[:1], target, target[-1:]])
    target = 0.8 * target + 0.1 * (padded[:-2] + padded[2:])  # a short sound does not quite reach its target
    third = 0.3 * (stops - starts)
    knots = np.stack([starts + third, stops - third], axis=1)
    goal = np.repeat(target, 2, axis=0) * voice.tract
    formants = np.stack([np.interp(centres, knots[has_target].ravel(), goal[:, k]) for k in range(3)], axis=1)
    return formants, np.interp(centres, knots.ravel(), np.repeat(sound[:, _DAMP], 2))


def _tract_response(formants: np.ndarray, damp: np.ndarray, voice: Speaker) -> np.ndarray:
    """Transfer function [windows bins] of the cascade of resonators, with the speaker's spectral tilt."""
    constant = 1 + 1j * _HZ / voice.tilt
    for centre, bandwidth in ((3600.0 * voice.tract, 200.0), (4600.0 * voice.tract, 250.0)):
        constant = constant * (1 - (_HZ / centre) ** 2 + 1j * (_HZ * bandwidth / centre**2))
    bandwidths = np.stack([np.full_like(damp, 70.0), 90.0 * damp, 130.0 * damp], axis=1)
    inverse_squares = 1 / formants**2
    slopes = bandwidths * inverse_squares
    response = np.empty((len(formants), len(_HZ)), np.complex128)
    for start in range(0, len(formants), 32):  # 32 windows fit in the cache
        block = slice(start, start + 32)
        product = np.broadcast_to(constant, response[block].shape).copy()
        for k in range(3):
            product *= 1 - _HZ**2 * inverse_squares[block, k, None] + 1j * (_HZ * slopes[block, k, None])
        np.divide(1.0, product, out=response[block])
    return response


def _band_response(centre: np.ndarray, width: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((_HZ - centre[:, None]) / width[:, None]) ** 2)


def _filtered(wave: np.ndarray, response: np.ndarray, num_samples: int) -> np.ndarray:
    """Filters each short window of the wave with its own response [windows bins] and overlap-adds: [num_samples]."""
    num_windows, parts = len(response), _FFT // _HOP
    padded = np.zeros((num_windows + 1) * _HOP)
    padded[_HOP : _HOP + num_samples] = wave
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP] * _HANN
    ringing = np.fft.irfft(np.fft.rfft(windows, _FFT) * response, _FFT).reshape(num_windows, parts, _HOP)
    out = np.zeros((num_windows + parts, _HOP))
    for k in range(parts):
        out[k : k + num_windows] += ringing[:, k]
    return out.ravel()[_HOP : _HOP + num_samples]


_HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)


def _sentence(rng: np.random.Generator, rate: float) -> str:
    """Words of about a random length in all. The sentence takes 2 to 15 seconds when spoken."""
    words, probabilities = lexicon()
    target = np.clip(5.5 * np.exp(0.5 * rng.normal()), 3.0, 12.0) * rate
    drawn = rng.choice(len(words), size=60, p=probabilities)
    seconds = np.cumsum([_word_seconds(words[i]) for i in drawn])
    return " ".join(words[i] for i in drawn[: max(1, int(np.searchsorted(seconds, target)))])


@functools.cache
def _word_seconds(word: str) -> float:
    return sum(_TABLE[c][:, _MS].sum() for c in f"{word} ") / 1000 + 0.075


def _recordings(split: str, *, seed: int, first: int, speakers: int) -> Iterator[corpus.Recording]:
    number = 0
    while True:
        for speaker in range(first, first + speakers):
            yield corpus.Recording(
                split, speaker, number, transcript=_draw_utterance(speaker, number, seed)[2], voice=None
            )
        number += 1


_README = """# Synthetic speech

A made-up language, spoken by a formant synthesiser (`w2v_jax/data/sources/synthetic.py`). Letters are sounds, words
have Zipf frequencies, `train` and `dev` have different speakers. Same settings (`corpus.json`), same samples.
`manifest.jsonl` lists every recording with its transcript and SHA-256. Free of rights: delete and make anew at will.
"""
