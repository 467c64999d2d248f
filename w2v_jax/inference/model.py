"""A trained run as a function of recordings in memory: `w2v_jax.load(path)` returns it, `model(wave, rate)` calls it.

It reads recordings as training does: `data/io/arrays.py` mixes channels and resamples, `encode.py` normalises and pads
without an effect. It transcribes as `python -m w2v_jax.transcribe` does. It writes nothing to disk.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import WAVE
from w2v_jax.data.io.arrays import Arrays, check_rate, check_wave
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet
from w2v_jax.decoding.beam_search import greedy
from w2v_jax.inference.encode import check_keys, encode
from w2v_jax.inference.recognizer import Recognizer, log_probs
from w2v_jax.inference.run import FEATURES, LOGITS, Layer, Run, open_run

MAX_BYTES = 4 << 30
"""The limit on the records of one call. `extract` writes larger ones to disk, part by part."""
TEXT = ("log_probs", "text")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """The outputs of a model for a recording; None for those that it lacks or was not asked for.

    local [F C], context [F D], hidden [L F D] (or [F D] of one layer or a weighted sum) are float32, codes [F G] int32.
    times [F] float64: the middle, in seconds, of the receptive field of each frame's local features. CTC runs also give
    log_probs [F' A] in nats, log_prob_times [F'] and text, which is the best path.
    """

    times: np.ndarray | None = None
    local: np.ndarray | None = None
    context: np.ndarray | None = None
    hidden: np.ndarray | None = None
    codes: np.ndarray | None = None
    log_probs: np.ndarray | None = None
    log_prob_times: np.ndarray | None = None
    text: str | None = None

    __repr__ = short_repr


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A run, the vq-wav2vec that makes its codes if it reads codes, and its alphabet if it writes text."""

    run: Run
    quantizer: Run | None
    alphabet: Alphabet | None

    __repr__ = short_repr

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that `model(wave, rate)` can compute."""
        features = tuple(key for key in FEATURES if key in self.run.outputs)
        return features + (TEXT if self.alphabet else ())

    def __call__(self, wave: Any, rate: Any, *, keys: Sequence[str] | None = None, layer: Layer = None) -> Any:
        """The Record of a recording [T] or [T, channels], or a list of Records for a list of recordings.

        wave: floats from -1 to 1, or int16, int32 or uint8 as in audio files. rate: Hz, shared by all recordings. keys:
        what to compute, of `model.keys` (default: all); text takes its own pass. layer: one hidden state, or one weight
        per state for their weighted sum. A recording gives the same in any batch. Long ones are computed in pieces, as
        in `extract` and `transcribe` (80 s, and 40 s for text), so that the device needs memory for 160 s at once.

        Raises UserError for arrays that are no recordings, recordings shorter than a frame, keys that the model does
        not have, and records of more than 4 GiB.
        """
        single = not isinstance(wave, (list, tuple))
        waves = [check_wave(wave, "wave")] if single else [check_wave(w, f"wave[{i}]") for i, w in enumerate(wave)]
        source = Arrays(waves, check_rate(rate))
        features, text = self._features_and_text(keys, layer)
        if not waves:
            return []
        self._check_size(source, features=features, layer=layer, text=text)
        outputs: list[dict[str, Any]] = [{} for _ in waves]

        def refuse(row: int, reason: str) -> None:
            raise UserError(f"{'wave' if single else f'wave[{row}]'}: {reason} (at {SAMPLE_RATE} Hz)")

        if features:
            quantizer = self.quantizer
            rows = encode(self.run, source, keys=features, layer=layer, quantizer=quantizer, on_skip=refuse, flags=())
            for row, arrays in rows:
                frames = next(iter(arrays.values())).shape[-2]
                outputs[row] |= arrays | {"times": (self.quantizer or self.run).times(np.arange(frames))}
        if text and self.alphabet:
            recognizer = Recognizer(self.run, self.alphabet, self.quantizer)
            for row, frames in log_probs(recognizer, source, on_skip=refuse, flags=()):
                times = recognizer.times(len(frames))
                best_path = self.alphabet.decode(greedy(frames))
                outputs[row] |= {"log_probs": frames, "log_prob_times": times, "text": best_path}
        records = [Record(**arrays) for arrays in outputs]
        return records[0] if single else records

    def _features_and_text(self, keys: Sequence[str] | None, layer: Layer) -> tuple[tuple[str, ...], bool]:
        """(the features to compute, whether to compute text as well). Raises UserError."""
        run = self.run
        requested = self.keys if keys is None else (keys,) if isinstance(keys, str) else tuple(keys)
        for key in requested:
            if key not in self.keys:
                raise UserError(f"{run.path} ({run.config.method}) has no {key}; it gives {', '.join(self.keys)}")
        features = tuple(key for key in requested if key not in TEXT)
        check_keys(run, features, layer)
        return features, len(features) < len(requested)

    def _check_size(self, source: Arrays, *, features: tuple[str, ...], layer: Layer, text: bool) -> None:
        hop = (self.quantizer or self.run).geometry[1]
        numbers = 0
        for key in features + (LOGITS if text else ()):
            shape = self.run.outputs[key]
            layers = shape[0] if len(shape) == 3 and layer is None else 1
            numbers += layers * shape[-1]
        size = 4 * numbers * (int(source.index.num_samples.sum()) // hop)
        if size > MAX_BYTES:
            raise UserError(
                f"the records of {source.index.hours:.2f} h would take {size / 2**30:.1f} GiB, more than the limit of "
                f'{MAX_BYTES / 2**30:g} GiB: ask for less (keys=("context",), or layer=N), give fewer recordings at a '
                "time, or write the features to disk with python -m w2v_jax.extract"
            )


def open_model(path: Any, *, step: int | str | None = None, quantizer: Any = None) -> Model:
    """The model that `w2v_jax.load` returns. Raises UserError."""
    if isinstance(path, Run) and step is not None:
        raise UserError(
            f"step={step}: the given run is open at step {path.step}; give its folder to choose another step"
        )
    run = path if isinstance(path, Run) else open_run(path, step=step)
    if run.form != WAVE and quantizer is None:
        raise UserError(
            f"{run.path} ({run.config.method}) reads {run.form.name}, not audio: name the run that makes its codes, "
            "load(path, quantizer=RUN)"
        )
    file = pathlib.Path(run.path) / ALPHABET_FILE
    alphabet = Alphabet.load(file) if "logits" in run.outputs and file.exists() else None
    return Model(run, open_run(quantizer) if quantizer else None, alphabet)
