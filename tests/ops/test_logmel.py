"""Log-mel features against librosa's, and under padding."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.ops.frames import num_frames
from w2v_jax.ops.logmel import LOGMEL_LAYERS, filters, log_mel


def wave(samples: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    time = np.arange(samples) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * (200 + 900 * time) * time)
    return (tone + 0.02 * rng.normal(size=samples)).astype(np.float32)


WAVES = {
    "chirp": wave(16_000),
    "quiet": 1e-3 * wave(16_000),
    "one frame": wave(512),
    "noise": 0.1 * np.random.default_rng(1).normal(size=16_000),
    "tone": 0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000),
    "click in silence": np.where(np.arange(16_000) == 8_000, 0.5, 0.0),
}


@pytest.mark.parametrize("name", WAVES)
def test_log_mel_equals_librosas_within_the_stated_tolerance(name):
    librosa = pytest.importorskip("librosa")
    x = WAVES[name].astype(np.float32)
    law = dict(sr=16_000, n_fft=512, win_length=400, hop_length=160, n_mels=80, center=False)
    theirs = np.log(np.maximum(librosa.feature.melspectrogram(y=x, **law), 1e-10)).T
    apart = np.abs(log_mel(jnp.asarray(x[None]))[0] - theirs)
    strong = theirs >= theirs.max(axis=1, keepdims=True) - 7 * np.log(10)  # at most 70 dB below
    assert apart[strong].max() < 2e-4 and apart.max() < 2e-2


def test_filters_equal_librosas():
    librosa = pytest.importorskip("librosa")
    np.testing.assert_allclose(filters(), librosa.filters.mel(sr=16_000, n_fft=512, n_mels=80).T, atol=1e-7)


def test_number_of_frames_is_that_of_a_convolution():
    for samples in (400, 511, 512, 671, 672, 16_000):
        assert log_mel(jnp.zeros((1, samples))).shape == (1, num_frames(samples, LOGMEL_LAYERS), 80)


def test_padding_changes_no_frame_of_the_wave():
    x = wave(4000)
    padded = np.pad(x, (0, 3000))
    frames = num_frames(4000, LOGMEL_LAYERS)
    np.testing.assert_array_equal(log_mel(jnp.asarray(padded[None]))[0, :frames], log_mel(jnp.asarray(x[None]))[0])


def test_silence_is_finite():
    assert np.isfinite(log_mel(jnp.zeros((1, 2000)))).all()
