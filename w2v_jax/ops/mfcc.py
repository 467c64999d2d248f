"""HuBERT's first features in JAX: 13 mel-frequency cepstral coefficients with their first and second differences.

They are Kaldi's MFCC as HuBERT's recipe asks for them (fairseq, examples/hubert/simple_kmeans/dump_mfcc_feature.py, by
torchaudio): 25 ms windows every 10 ms, 23 mel bands, no energy, no dither, waves in [-1, 1]. The difference at a frame
is the slope of a line through five frames. Hsu et al. 2021, section IV-A.

A feature is within 2e-4 of the recipe's. `tests/golden/hubert_mfcc_kmeans.npz` holds the arrays to compare with.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.ops.frames import num_frames, valid_frames

FIELD, HOP, FFT, BANDS, CEPSTRA = 400, 160, 512, 23, 13
WIDTH = 3 * CEPSTRA
MFCC_LAYERS = ((WIDTH, FIELD, HOP),)
"""As a convolution of that shape, for the frame arithmetic of `frames.py`."""
CONTEXT_FRAMES = 4
"""How many frames on either side enter a second difference."""
PRE_EMPHASIS, LOWEST_HZ, LIFTER, FLOOR = 0.97, 20.0, 22, 1.1920929e-07


def mfcc(wave: jax.Array, num_samples: jax.Array) -> jax.Array:
    """wave [B T] at 16 kHz, num_samples [B] -> [B F 39] float32: cepstra, differences, second differences.

    F = 1 + (T - 400) // 160. Differences at the ends of a row repeat its first and its last real frame, so that padding
    changes no real frame. Frames of padding are 0.
    """
    cepstra = jnp.einsum("bfq,qc->bfc", kaldi_log_mel(wave), cosines(), precision="highest")
    frames = num_frames(jnp.asarray(num_samples), MFCC_LAYERS)
    first = deltas(cepstra, frames)
    features = jnp.concatenate([cepstra, first, deltas(first, frames)], axis=-1)
    return jnp.where(valid_frames(frames, features.shape[1])[..., None], features, 0)


def kaldi_log_mel(wave: jax.Array) -> jax.Array:
    """wave [B T] -> natural logarithm of the mel power spectrum [B F 23] float32."""
    frames = num_frames(wave.shape[1], MFCC_LAYERS)
    index = jnp.arange(frames)[:, None] * HOP + jnp.arange(FIELD)
    pieces = jnp.asarray(wave, jnp.float32)[:, index]  # [B F 400]
    pieces = pieces - pieces.mean(axis=-1, keepdims=True)
    before = jnp.concatenate([pieces[..., :1], pieces[..., :-1]], axis=-1)
    spectrum = jnp.fft.rfft((pieces - PRE_EMPHASIS * before) * povey_window(), FFT, axis=-1)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.einsum("bfs,qs->bfq", power[..., : FFT // 2], mel_banks(), precision="highest")
    return jnp.log(jnp.maximum(mel, FLOOR))


def deltas(x: jax.Array, frames: jax.Array) -> jax.Array:
    """The slope over five frames of x [B F C] with `frames` [B] real frames; the first and the last are repeated."""
    place, last = jnp.arange(x.shape[1])[None], jnp.maximum(frames - 1, 0)[:, None]
    at = lambda offset: jnp.take_along_axis(x, jnp.clip(place + offset, 0, last)[..., None], axis=1)
    return (at(1) - at(-1) + 2.0 * (at(2) - at(-2))) / 10.0


@functools.cache
def povey_window() -> np.ndarray:
    """[400] Kaldi's "povey" window: a Hann window to the power of 0.85."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FIELD) / (FIELD - 1))
    return (hann**0.85).astype(np.float32)


@functools.cache
def mel_banks() -> np.ndarray:
    """[23 256] triangles that are linear in mel, from 20 Hz to 8 kHz. Their areas differ; the last bin has no place."""
    mel = lambda hertz: 1127.0 * np.log(1.0 + hertz / 700.0)
    edges = np.linspace(mel(LOWEST_HZ), mel(SAMPLE_RATE / 2), BANDS + 2)[:, None]
    bins = mel(np.arange(FFT // 2) * SAMPLE_RATE / FFT)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


@functools.cache
def cosines() -> np.ndarray:
    """[23 13] the orthonormal DCT-II, whose columns the lifter scales."""
    order = np.arange(CEPSTRA)
    basis = np.sqrt(2.0 / BANDS) * np.cos(np.pi / BANDS * (np.arange(BANDS)[:, None] + 0.5) * order)
    basis[:, 0] = np.sqrt(1.0 / BANDS)
    return (basis * (1.0 + LIFTER / 2 * np.sin(np.pi * order / LIFTER))).astype(np.float32)
