"""HuBERT's MFCC against the arrays of its own recipe (tests/golden, or the folder in W2V_JAX_GOLDEN), and padding."""

from __future__ import annotations

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.ops import mfcc
from w2v_jax.ops.frames import num_frames

GOLDEN = pathlib.Path(os.environ.get("W2V_JAX_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden")
FILES = sorted(GOLDEN.glob("hubert_*mfcc*.npz"))
TOLERANCE = 2e-4
JITTED = jax.jit(mfcc.mfcc)


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def arrays(request):
    return dict(np.load(request.param))


def features(wave: np.ndarray, num_samples=None) -> np.ndarray:
    """[B T] -> [B F 39]."""
    lengths = np.full(len(wave), wave.shape[1]) if num_samples is None else np.asarray(num_samples)
    return np.asarray(JITTED(jnp.asarray(wave), jnp.asarray(lengths)))


def test_golden_files_are_there():
    assert FILES, f"no hubert_*mfcc*.npz in {GOLDEN}"


def test_features_are_those_of_the_recipe(arrays):
    found = features(arrays["in/source"])
    assert found.dtype == np.float32 and found.shape == arrays["out/mfcc_deltas"].shape
    assert np.abs(mfcc.kaldi_log_mel(arrays["in/source"]) - arrays["out/log_mel"]).max() < TOLERANCE
    assert np.abs(found[..., :13] - arrays["out/mfcc"]).max() < TOLERANCE
    assert np.abs(found - arrays["out/mfcc_deltas"]).max() < TOLERANCE


def test_window_and_bands_are_those_of_the_recipe(arrays):
    np.testing.assert_allclose(mfcc.povey_window(), arrays["out/window"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(mfcc.mel_banks(), arrays["out/mel_banks"], rtol=0, atol=1e-5)


def test_number_of_frames_counts_whole_windows_only():
    for samples in (400, 559, 560, 16_000):
        frames = features(np.zeros((1, samples), np.float32)).shape[1]
        assert frames == 1 + (samples - 400) // 160 == num_frames(samples, mfcc.MFCC_LAYERS)


@pytest.mark.parametrize("samples", [400, 720, 7_999])
def test_padding_changes_no_frame_of_a_row(arrays, samples):
    """Whatever stands in the padding: the differences at the end repeat the last real frame."""
    wave = arrays["in/source"][1:2, :samples]
    padding = np.random.default_rng(0).normal(size=(1, 3_000)).astype(np.float32)
    alone, padded = features(wave), features(np.concatenate([wave, padding], axis=1), [samples])
    frames = alone.shape[1]
    np.testing.assert_allclose(padded[:, :frames], alone, rtol=0, atol=TOLERANCE)
    assert not padded[:, frames:].any()


def test_differences_of_a_straight_line_are_its_slope_and_those_are_constant():
    line = 3.0 * jnp.arange(30.0)[None, :, None]
    slope = mfcc.deltas(line, jnp.array([30]))
    np.testing.assert_allclose(slope[0, 2:-2], 3.0, rtol=1e-6)
    assert float(slope[0, 0, 0]) == pytest.approx((3 + 2 * 6) / 10)  # the first frame stands for those before it


def test_frames_beyond_the_context_of_the_differences_do_not_enter():
    wave = np.random.default_rng(1).normal(size=(1, 8_000)).astype(np.float32)
    whole, begin = features(wave), 10 * mfcc.HOP
    piece = features(wave[:, begin:])
    np.testing.assert_allclose(piece[0, mfcc.CONTEXT_FRAMES :], whole[0, 10 + mfcc.CONTEXT_FRAMES :], atol=1e-4)


def test_silence_is_finite():
    assert np.isfinite(features(np.zeros((1, 2_000), np.float32))).all()
