"""The frames that k-means reads: HuBERT's MFCC, or a hidden state of a run, and how long recordings are cut for them.

MFCC are the same in one piece as in several. A model sees at most 100 s at once, in pieces of 1,600,000 samples one
after the other, as HuBERT's recipe feeds it (fairseq, examples/hubert/simple_kmeans/dump_hubert_feature.py). Frames
over a cut are lost, one at each cut of a HuBERT. `cut="even"` keeps them: equal pieces that overlap by those samples.
A model computes in float32 here, whatever it was trained in: in bfloat16, a unit would depend on the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from w2v_jax import methods
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import WAVE, Source
from w2v_jax.inference.encode import BATCH_FLAG, MAX_SECONDS, check_form, check_keys, encode
from w2v_jax.inference.run import Layer, Run, fixed_run
from w2v_jax.nn.encoders import MfccEncoder
from w2v_jax.ops import mfcc

RECIPE_SAMPLES = 1_600_000
"""The samples that HuBERT's recipe feeds to a model at once."""
CUTS = ("recipe", "even")
MARGIN_SECONDS = mfcc.CONTEXT_FRAMES * mfcc.HOP / SAMPLE_RATE


class FrameFeatures(NamedTuple):
    """What is clustered. `key` is local (of MFCC), context or hidden; `layer` numbers the hidden state."""

    run: Run
    key: str
    layer: Layer
    cut: str

    __repr__ = short_repr

    @property
    def is_mfcc(self) -> bool:
        return isinstance(self.run.method.encoder, MfccEncoder)

    @property
    def width(self) -> int:
        return self.run.outputs[self.key][-1]

    @property
    def geometry(self) -> tuple[int, int]:
        """(receptive field of a frame, hop between frames) in 16 kHz samples."""
        return self.run.geometry

    @property
    def name(self) -> str:
        if self.is_mfcc:
            return "MFCC"
        what = f"layer {self.layer}" if self.key == "hidden" else self.key
        return f"{what} of {self.run.path} ({self.run.config.method}, step {self.run.step:,})"

    @property
    def identity(self) -> dict[str, Any]:
        """What names these features in files. Equal identities give equal frames, up to rounding."""
        if self.is_mfcc:
            return dict(features="mfcc", layer=None, method=None, run=None, step=None)
        method, run, step = self.run.config.method, self.run.digest, self.run.step
        return dict(features=self.key, layer=self.layer, method=method, run=run, step=step)

    @property
    def cutting(self) -> dict[str, Any]:
        """How long recordings are cut, for metadata. `max_samples` is None where the cut changes nothing."""
        if self.is_mfcc:
            return dict(cut=None, max_samples=None)
        return dict(cut=self.cut, max_samples=self._max_samples)

    def num_frames(self, num_samples: np.ndarray) -> np.ndarray:
        """The frames of recordings of so many samples, with the cuts."""
        field, hop = self.geometry
        frames = lambda samples: np.maximum((samples - field) // hop + 1, 0)
        if self.is_mfcc or self.cut == "even":
            return frames(num_samples)
        whole, rest = np.divmod(num_samples, self._max_samples)
        return whole * frames(self._max_samples) + frames(rest)

    @property
    def _max_samples(self) -> int:
        if self.run.most_frames:
            field, hop = self.geometry
            return min(RECIPE_SAMPLES, (self.run.most_frames - 2) * hop + field)
        return RECIPE_SAMPLES

    def over(self, mesh: Mesh) -> FrameFeatures:
        """The same features, of batches that the devices of this process share."""
        return self._replace(run=self.run.over(mesh))

    def check_source(self, source: Source) -> None:
        """Raises UserError unless the source holds what the features are made of."""
        if self.is_mfcc and source.form != WAVE:
            raise UserError(f"MFCC are made of audio, but the source holds {source.form.name}; give a source of audio")
        check_form(self.run, source)

    def encode(
        self,
        source: Source,
        rows: np.ndarray,
        *,
        then: Callable[[Any], dict[str, Any]] | None = None,
        on_skip: Callable[[int, str], None] | None = None,
        **reading: Any,
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(row, arrays) of these rows: {"features": [F D]}, or what `then` makes of features [B F D] on the device.

        reading: batch_seconds and workers, as of `inference.encode`.
        """
        after = then or (lambda features: {"features": features})
        return encode(
            self.run,
            source,
            rows,
            keys=(self.key,),
            layer=self.layer,
            max_seconds=MAX_SECONDS if self.is_mfcc else RECIPE_SAMPLES / SAMPLE_RATE,
            margin_seconds=MARGIN_SECONDS if self.is_mfcc else 0.0,
            overlap=self.is_mfcc or self.cut == "even",
            then=lambda arrays: after(arrays[self.key]),
            on_skip=on_skip,
            flags=(BATCH_FLAG,),  # the length of a piece is the recipe's
            **reading,
        )


def mfcc_features() -> FrameFeatures:
    """HuBERT's MFCC: 39 numbers, 100 frames per second."""
    return FrameFeatures(fixed_run("mfcc", MfccEncoder()), key="local", layer=None, cut="even")


def layer_features(run: Run, layer: int | None, *, key: str = "hidden", cut: str = "recipe") -> FrameFeatures:
    """A hidden state of a run, or its context or local features. Raises UserError where the run has none such."""
    if key == "hidden" and layer is None:
        raise UserError(f"--run {run.path} needs --layer N: the number of a hidden state, where 0 is their input")
    check_keys(run, (key,), layer)
    return FrameFeatures(in_float32(run), key=key, layer=layer if key == "hidden" else None, cut=cut)


def in_float32(run: Run) -> Run:
    """The same parameters, with all products in float32, on accelerators too."""
    config = configs.changed(run.config, {"train.dtype": "float32"}, skip_missing=True)
    method = methods.load(config)

    def predict(params: Any, extra: Any, batch: Any) -> dict[str, Any]:
        with jax.default_matmul_precision("highest"):
            return method.predict(params, extra, batch)

    return dataclasses.replace(run, config=config, method=method._replace(predict=predict))
