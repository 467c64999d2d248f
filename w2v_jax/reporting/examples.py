"""A few held-out recordings as the model has them: samples, hidden spans, codes or units, and words.

They are read as training reads them. Where recordings or checkpoint are missing, a note says so; no corpus is made.
"""

from __future__ import annotations

import io
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.display import short_repr
from w2v_jax.core.units import SAMPLE_RATE, batch_units
from w2v_jax.data.corpora import read_corpora
from w2v_jax.data.index import WAVE, ReadError, root_entries
from w2v_jax.decoding.beam_search import greedy
from w2v_jax.decoding.confidence import words
from w2v_jax.decoding.error_rates import alignment
from w2v_jax.inference.model import Model, open_model
from w2v_jax.ops import masking
from w2v_jax.ops import random as noises
from w2v_jax.reporting.run_folder import RunFolder
from w2v_jax.training.dataset import Data, open_data
from w2v_jax.training.workdir import has_checkpoint

MADE = ("synthetic", "speak")
"""The sources that make their recordings where there are none."""
LONGEST = 8.0
"""Seconds of a recording that are shown: at 16 kHz some 150 kB of FLAC."""
MASKS = (("prob", "length", "min_spans"), ("time_prob", "time_length", "time_spans"))
"""The keys of `masking` that say how frames are hidden: in pretraining, and of recognisers."""


class Spoken(NamedTuple):
    """A word of a hypothesis, from `start` to `end` in seconds, and how sure the model is of it."""

    text: str
    start: float
    end: float
    confidence: float


class Example(NamedTuple):
    """A held-out recording: its first LONGEST seconds.

    wave [T] float32, 16 kHz. hop: samples between two frames. masked [F] bool: spans as the run's settings draw them.
    codes [F G]: the model's own. units [S U]: those that it must name, every unit_hop samples. reference and
    hypothesis, their alignment and the words belong to recognisers. checkpoint: which one the model is of.
    """

    id: str
    seconds: float
    wave: np.ndarray
    hop: int
    masked: np.ndarray | None
    codes: np.ndarray | None = None
    units: np.ndarray | None = None
    unit_hop: int = 0
    reference: str | None = None
    hypothesis: str | None = None
    alignment: str = ""
    words: tuple[Spoken, ...] = ()
    checkpoint: str = ""

    __repr__ = short_repr


def read_examples(run: RunFolder, count: int) -> tuple[list[Example], str]:
    """(at most `count` held-out recordings of the run, why there are not more or none; "" where there are)."""
    try:
        if reason := _why_none(run):
            return [], reason
        data = open_data(run.config, batch_units(run.config.data), 1, path=run.path)
        if data.eval.form != WAVE:
            return [], f"the run reads {data.eval.form.name}, which cannot be listened to"
        if not len(data.eval.index):
            return [], "the run holds no recording out (data.eval_share, data.eval_root)"
        model, rows = open_model(run.path), len(data.eval.index)
        chosen = np.unique(np.linspace(0, rows - 1, min(count, rows)).round().astype(int))
        found = [_example(run, data, model, row=int(row)) for row in chosen]
    except (UserError, ReadError) as error:
        return [], str(error).partition("\n")[0]
    return found, "" if len(found) == count else f"the run holds out no more than {rows}"


def _why_none(run: RunFolder) -> str:
    """What is missing; "" where recordings and checkpoint are there."""
    if not has_checkpoint(run.path):
        return "there is no checkpoint yet"
    data = run.config.data
    parts = [(data.name, [*root_entries(data.root), *root_entries(data.eval_root)])]
    if configs.setting(run.config, "data.corpora"):
        parts = [(g.section.name, root_entries(g.section.root)) for g in read_corpora(data.corpora, data)]
    roots = [root for name, roots in parts if name in MADE for root in roots]
    missing = [root for root in roots if not pathlib.Path(root).exists()]
    return f"the recordings are not here ({missing[0]})" if missing else ""


def _example(run: RunFolder, data: Data, model: Model, *, row: int) -> Example:
    """Raises ReadError where the recording cannot be read, and UserError."""
    index, hop = data.eval.index, model.run.geometry[1]
    samples = min(int(index.num_samples[row]), int(LONGEST * SAMPLE_RATE))
    wave = data.eval.read(row, 0, samples)
    frames = int(model.run.method.encoder.frames(len(wave)))
    example = Example(
        str(index.ids[row]),
        float(index.durations[row]),
        wave,
        hop=hop,
        masked=hidden_frames(run.config, row, frames),
        checkpoint=model.run.at_step(),
    )
    if data.eval_targets is not None:
        units = data.eval_targets.read(row, 0, len(wave))
        example = example._replace(units=units, unit_hop=data.eval_targets.hop)
    if "codes" in model.keys:
        example = example._replace(codes=model(wave, SAMPLE_RATE, keys=("codes",)).codes)
    if model.alphabet is not None:
        whole = len(wave) == int(index.num_samples[row])
        example = _recognised(example, model, reference=str(index.transcripts[row]) if whole else None)
    return example


def hidden_frames(config: Config, row: int, frames: int) -> np.ndarray | None:
    """[F] bool: spans drawn for a row by the config's settings of `masking`; None where it has none."""
    flat = configs.flatten(config)
    for prob, length, min_spans in MASKS:
        if flat.get(f"masking.{prob}", 0) > 0 and frames > 1:
            noise = noises.row_noise(jax.random.key(config.seed), jnp.array([row], jnp.int32))
            m = config.masking
            spans = dict(prob=m[prob], length=m[length], min_spans=m[min_spans])
            return np.asarray(masking.span_mask(noise, jnp.array([frames], jnp.int32), frames, **spans))[0]
    return None


def _recognised(example: Example, model: Model, reference: str | None) -> Example:
    """The example with its best path. A reference is that of the whole recording; None where the rest is cut off."""
    record, alphabet = model(example.wave, SAMPLE_RATE, keys=("text", "log_probs")), model.alphabet
    assert alphabet is not None
    times = record.log_prob_times
    ids = greedy(record.log_probs)
    spoken = tuple(
        Spoken(word.text, float(times[word.first]), float(times[word.last]), confidence=word.confidence)
        for word in words(record.log_probs, ids, alphabet.tokens, boundary=alphabet.boundary)
        if word.text != alphabet.delimiter
    )
    example = example._replace(hypothesis=record.text, words=spoken)
    if reference is None:
        return example
    reference = alphabet.clean(reference)
    aligned = alignment(reference, alphabet.clean(record.text or ""))
    return example._replace(reference=reference, alignment=aligned)


def flac(wave: np.ndarray) -> bytes:
    """A wave [T] at 16 kHz as a FLAC file of 16 bits, without loss beyond them, as loud as it may be without clipping.

    All browsers play FLAC. It takes half of WAV's space.
    """
    import soundfile

    loudest = float(np.abs(wave).max(initial=0.0))
    file = io.BytesIO()
    soundfile.write(file, wave * (0.9 / loudest if loudest > 0 else 1.0), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
