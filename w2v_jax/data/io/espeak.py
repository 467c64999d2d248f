"""Text-to-speech with espeak-ng through ctypes, from the `espeakng-loader` wheel (extra `demo`).

The library keeps global state. A process therefore has one engine, which only one thread may use. Two calls do not give
the same samples bit for bit.
"""

from __future__ import annotations

import ctypes
import difflib
import functools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError, needing

EFFECTS = re.compile(r"robo|robot|whisper|croak|fast|announcer|demonic|tweaky|anxious|ricishay", re.IGNORECASE)
"""Variants that sound like effects rather than people."""

_SCRIPT = re.compile(r"-(latn|shaw|qaaa)", re.IGNORECASE)  # the same language in another script
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _PITCH, _RANGE = 1, 3, 4


class Voice(NamedTuple):
    """An espeak voice ("gmw/en-US+f3"), its words per minute, its pitch and its pitch range (both 0 to 100)."""

    name: str
    rate: int
    pitch: int
    spread: int


class Accent(NamedTuple):
    """An espeak voice without a variant: its path, its English name, and its (priority, language code) pairs."""

    path: str
    name: str
    codes: tuple[tuple[int, str], ...]


class _Struct(ctypes.Structure):
    """The first fields of espeak_VOICE, which is only read through pointers."""

    _fields_ = [("name", ctypes.c_char_p), ("languages", ctypes.c_void_p), ("identifier", ctypes.c_char_p)]


class Engine:
    """espeak-ng in this process; `engine()` returns the only instance. `rate` is its sampling rate in Hz."""

    def __init__(self) -> None:
        with needing('text-to-speech needs the extra "demo" ({error}): pip install "w2v_jax[demo]"', OSError):
            import espeakng_loader

            self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = pathlib.Path(espeakng_loader.get_data_path())
        self.rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _DONT_EXIT)
        if self.rate <= 0:
            raise UserError(f"espeak-ng does not start with the data in {data}; reinstall espeakng-loader")
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = prototype(self._receive)  # an attribute, because the library holds only the address
        self._pieces: list[np.ndarray] = []
        self.library.espeak_SetSynthCallback(self._callback)
        self.accents = tuple(sorted(a for a in self._list_accents() if _has_dictionary(data, a.path)))
        names = sorted(file.name for file in (data / "voices" / "!v").iterdir())
        self.variants = tuple(name for name in names if not EFFECTS.search(name))
        self.effects = tuple(name for name in names if EFFECTS.search(name))

    def say(self, text: str, voice: Voice) -> np.ndarray:
        """The sound of a text, int16 at `rate`. Raises UserError where the voice does not exist or stays silent."""
        if self.library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise UserError(f"espeak has no voice {voice.name!r}")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.spread)):
            self.library.espeak_SetParameter(parameter, value, 0)
        self._pieces.clear()
        content = text.encode() + b"\0"
        self.library.espeak_Synth(content, ctypes.c_size_t(len(content)), 0, 1, 0, _UTF8, None, None)
        wave = np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.int16)
        if not wave.any():
            raise UserError(f"espeak is silent for {text[:80]!r} with the voice {voice.name}; leave this line out")
        return wave

    def accents_of(self, language: str) -> list[str]:
        """Paths of the voices that speak a language: for "en" every English voice, for "en-us" the American ones.

        Raises UserError with near matches for an unknown language.
        """
        code = language.lower()
        primary = [a for a in self.accents if f"{a.codes[0][1].lower()}-".startswith(f"{code}-")]
        accents = [a for a in primary if not _SCRIPT.search(a.path) or _SCRIPT.search(code)]
        if not accents:  # no voice has the code as its first: take those that give it the best priority
            secondary = [(priority, a) for a in self.accents for priority, c in a.codes if c.lower() == code]
            best = min((priority for priority, _ in secondary), default=0)
            accents = [a for priority, a in secondary if priority == best and not _SCRIPT.search(a.path)]
        if not accents:
            raise UserError(f"espeak has no language {language!r} (data.language){self._suggestion(language)}")
        return [a.path for a in accents]

    def languages(self) -> list[str]:
        """The language codes that are the first of some voice."""
        return sorted({a.codes[0][1] for a in self.accents} | {a.codes[0][1].split("-")[0] for a in self.accents})

    def checked_variants(self, names: Sequence[str]) -> tuple[str, ...]:
        """`names` without repetitions, or every variant that sounds like a person where there are none.

        Raises UserError for an unknown variant, which espeak itself would ignore.
        """
        known = (*self.variants, *self.effects)
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3) or known
                raise UserError(f"espeak has no voice variant {name!r}; it has e.g. {', '.join(near[:12])}")
        return tuple(dict.fromkeys(names)) or self.variants

    def _suggestion(self, language: str) -> str:
        text = language.lower()
        near = [f"{a.codes[0][1]} ({a.name})" for a in self.accents if len(text) > 2 and text in a.name.lower()]
        near = near or difflib.get_close_matches(text, self.languages(), n=3, cutoff=0.4)
        return f". Did you mean {' or '.join(near[:3])}?" if near else f". It has: {' '.join(self.languages())}"

    def _receive(self, samples: Any, count: int, _: Any) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def _list_accents(self) -> Iterator[Accent]:
        self.library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Struct))
        voices, i = self.library.espeak_ListVoices(None), 0
        while voices[i]:
            voice, address, codes = voices[i].contents, voices[i].contents.languages, []
            while ctypes.string_at(address, 1) != b"\0":  # entries of a priority byte and a code; a zero ends them
                code = ctypes.string_at(address + 1)
                codes.append((ctypes.string_at(address, 1)[0], code.decode()))
                address += len(code) + 2
            if codes:
                yield Accent(voice.identifier.decode(), voice.name.decode(), tuple(codes))
            i += 1


@functools.cache
def engine() -> Engine:
    """The engine of this process. Raises UserError, which names the extra, where the wheel is missing."""
    return Engine()


def _has_dictionary(data: pathlib.Path, path: str) -> bool:
    """Whether the wheel has pronunciations for a voice. A few languages lack them."""
    file = data / "lang" / path
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    entry = re.search(r"^dictionary\s+(\S+)", text, re.MULTILINE)
    name = entry[1] if entry else file.name.split("-")[0].lower()
    return (data / f"{name}_dict").is_file()
