"""A trained run as a function of recordings in memory: `w2v_jax.load(path)` gives it, `model(wave, rate)` calls it.

It reads as training does (`data/arrays.py`: mixing, resampling; `runs.encode`: normalising, padding that changes
nothing) and writes down as `python -m w2v_jax.transcribe` does. Nothing is written to disk.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax import recognition, runs
from w2v_jax.acoustic import places
from w2v_jax.config import SAMPLE_RATE, UserError
from w2v_jax.data.arrays import Arrays, check_rate, check_wave
from w2v_jax.data.index import WAVE
from w2v_jax.data.labels import FILE, Alphabet
from w2v_jax.decode import greedy
from w2v_jax.runs import Layer, Run

MAX_BYTES = 4 << 30
"""Of the records of one call. More is refused: `extract` writes them to disk, part by part."""
TEXT = ("log_probs", "text")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """What a model says of a recording; None where it does not have it, or was not asked.

    local [F C], context [F D], hidden [L F D] (or [F D] of one layer or a weighted sum) float32; codes [F G] int32;
    times [F] float64, the middle of the samples that each frame's local features see, in seconds. Of runs of CTC
    log_probs [F' A] in nats, log_prob_times [F'] and text, the best path.
    """

    times: np.ndarray | None = None
    local: np.ndarray | None = None
    context: np.ndarray | None = None
    hidden: np.ndarray | None = None
    codes: np.ndarray | None = None
    log_probs: np.ndarray | None = None
    log_prob_times: np.ndarray | None = None
    text: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A run, the vq-wav2vec that makes the codes which it reads, and its alphabet, if it writes text."""

    run: Run
    quantizer: Run | None
    alphabet: Alphabet | None

    @property
    def keys(self) -> tuple[str, ...]:
        """What `model(wave, rate)` can give."""
        features = tuple(key for key in runs.FEATURES if key in self.run.outputs)
        return features + (TEXT if self.alphabet else ())

    def __call__(self, wave: Any, rate: Any, *, keys: Sequence[str] | None = None, layer: Layer = None) -> Any:
        """The Record of a recording [T] or [T, channels], or a list of Records of a list of recordings.

        wave: floats from -1 to 1, or int16, int32 or uint8 as audio files hold. rate: in Hz, of all of them. keys: what
        to compute, of `model.keys` (default: all); text takes a pass of its own. layer: of the hidden states one, or a
        weight for each in their sum. A recording gives the same in any batch. Long ones are computed in pieces, as
        `extract` and `transcribe` do (80 s, and 40 s for text), so that the device needs memory for 160 s at once.

        Raises UserError for arrays that are no recordings, recordings shorter than a frame, keys that the model does
        not have, and records that would take more than 4 GiB.
        """
        single = not isinstance(wave, (list, tuple))
        waves = [check_wave(wave, "wave")] if single else [check_wave(w, f"wave[{i}]") for i, w in enumerate(wave)]
        source = Arrays(waves, check_rate(rate))
        features, text = self._wanted(keys, layer)
        if not waves:
            return []
        self._check_size(source, features, layer, text)
        found: list[dict[str, Any]] = [{} for _ in waves]
        name = (lambda row: "wave") if single else (lambda row: f"wave[{row}]")

        def refuse(row: int, reason: str) -> None:
            raise UserError(f"{name(row)}: {reason} (at {SAMPLE_RATE} Hz)")

        if features:
            law: dict[str, Any] = dict(keys=features, layer=layer, quantizer=self.quantizer, on_skip=refuse)
            for row, arrays in runs.encode(self.run, source, **law):
                frames = next(iter(arrays.values())).shape[-2]
                found[row] |= arrays | {"times": self._times(np.arange(frames))}
        if text and self.alphabet:
            recognizer = recognition.Recognizer(self.run, self.alphabet, self.quantizer)
            for row, frames in recognition.log_probs(recognizer, source, on_skip=refuse):
                times = self._times(places(self.run.config.acoustic, np.arange(len(frames))))
                found[row] |= {"log_probs": frames, "log_prob_times": times}
                found[row]["text"] = self.alphabet.decode(greedy(frames))
        records = [Record(**arrays) for arrays in found]
        return records[0] if single else records

    def _wanted(self, keys: Sequence[str] | None, layer: Layer) -> tuple[tuple[str, ...], bool]:
        """The features to compute, and whether text is wanted. Raises UserError."""
        wanted = self.keys if keys is None else (keys,) if isinstance(keys, str) else tuple(keys)
        for key in wanted:
            if key not in self.keys:
                raise UserError(
                    f"{self.run.path} ({self.run.config.method}) has no {key}; it gives {', '.join(self.keys)}"
                )
        features = tuple(key for key in wanted if key not in TEXT)
        runs.check_keys(self.run, features, layer)
        return features, len(features) < len(wanted)

    def _check_size(self, source: Arrays, features: tuple[str, ...], layer: Layer, text: bool) -> None:
        hop = (self.quantizer or self.run).geometry[1]
        numbers = 0
        for key in features + (runs.LOGITS if text else ()):
            shape = self.run.outputs[key]
            layers = shape[0] if len(shape) == 3 and layer is None else 1
            numbers += layers * shape[-1]
        size = 4 * numbers * (int(source.index.num_samples.sum()) // hop)
        if size > MAX_BYTES:
            raise UserError(
                f"{source.index.hours:.2f} h at once would give {size / 2**30:.1f} GiB (limit: {MAX_BYTES / 2**30:g}): "
                'ask for less (keys=("context",), or layer=N), give fewer recordings at a time, or write the features '
                "to disk with python -m w2v_jax.extract"
            )

    def _times(self, frames: np.ndarray) -> np.ndarray:
        """Seconds of the middle of frames (numbers, perhaps between two)."""
        field, hop = (self.quantizer or self.run).geometry
        return (frames * hop + (field - 1) / 2) / SAMPLE_RATE


def open_model(path: Any, *, step: int | str | None = None, quantizer: Any = None) -> Model:
    """What `w2v_jax.load` returns. Raises UserError."""
    if isinstance(path, runs.Run) and step is not None:
        raise UserError(f"step={step}: an open run is that of step {path.step}; give its folder to choose another")
    run = path if isinstance(path, runs.Run) else runs.open_run(path, step=step)
    if run.form != WAVE and quantizer is None:
        raise UserError(
            f"{run.path} ({run.config.method}) reads {run.form.name}, not audio: name the run that makes its codes, "
            "load(path, quantizer=RUN)"
        )
    file = pathlib.Path(run.path) / FILE
    alphabet = Alphabet.load(file) if "logits" in run.outputs and file.exists() else None
    return Model(run, runs.open_run(quantizer) if quantizer else None, alphabet)
