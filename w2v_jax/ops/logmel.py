"""Log-mel features in JAX: the input that learned features are measured against.

80 bands of 25 ms windows every 10 ms (Schneider et al. 2019, section 4.2), as librosa computes them with its defaults
(Slaney's mel scale and norm, periodic Hann window) and center=False: a frame is 512 samples, its window the middle 400.

A feature is within 2e-4 (natural logarithm) of librosa's, which computes spectra in float64, wherever a band is at most
70 dB below the strongest of its frame. Deeper bands, as between the harmonics of a pure tone, hold the rounding of
float32: within 2e-2. Measured on CPU, on noise, tones, clicks in silence, and waves as quiet as 1e-3 of full scale.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.ops.frames import num_frames

BANDS, WINDOW, FIELD, HOP = 80, 400, 512, 160
LOGMEL_LAYERS = ((BANDS, FIELD, HOP),)
"""As a convolution of that shape, for the frame arithmetic of `frames.py`."""
FLOOR = 1e-10


def log_mel(wave: jax.Array) -> jax.Array:
    """Natural logarithm of the mel power spectrum: wave [B T] at 16 kHz -> [B F 80] float32, F = (T - 512) // 160 + 1.

    Frames do not overlap the ends, so that waves of fewer than 512 samples have none; a frame of padding alone is
    ln(1e-10), and padding changes no other frame.
    """
    frames = num_frames(wave.shape[1], LOGMEL_LAYERS)
    index = jnp.arange(frames)[:, None] * HOP + jnp.arange(FIELD)
    pieces = jnp.asarray(wave, jnp.float32)[:, index] * window()  # [B F 512]
    spectrum = jnp.fft.rfft(pieces, axis=-1)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.einsum("bfs,sq->bfq", power, filters(), precision="highest")
    return jnp.log(jnp.maximum(mel, FLOOR))


@functools.cache
def window() -> np.ndarray:
    """[512] a periodic Hann window of 400 samples between zeros."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    return np.pad(hann, (FIELD - WINDOW) // 2).astype(np.float32)


@functools.cache
def filters() -> np.ndarray:
    """[257 80] triangles of equal area between mel-spaced frequencies from 0 to 8 kHz."""
    edges = mel_to_hertz(np.linspace(0.0, hertz_to_mel(SAMPLE_RATE / 2), BANDS + 2))
    hertz = np.arange(FIELD // 2 + 1) * SAMPLE_RATE / FIELD
    rising = (hertz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz[:, None]) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * 2.0 / (edges[2:] - edges[:-2])).astype(np.float32)


BREAK, STEP = 1000.0, np.log(6.4) / 27.0
"""Slaney's mel scale: 15 mel up to 1000 Hz, then logarithmic."""


def hertz_to_mel(hertz: float) -> float:
    """Mel of a frequency of at least 1000 Hz."""
    return 15.0 + float(np.log(hertz / BREAK)) / STEP


def mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15.0, mel * BREAK / 15.0, BREAK * np.exp(STEP * (mel - 15.0)))
