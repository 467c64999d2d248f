"""Arithmetic of frames: the counts of published stacks, and those of the convolutions themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2v_jax.nn.feature_encoder import ConvFrontend
from w2v_jax.ops.frames import num_frames, receptive_field, valid_frames

WAV2VEC2 = [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
CPC = [(512, k, s) for k, s in zip((10, 8, 4, 4, 4), (5, 4, 2, 2, 2), strict=True)]


@pytest.mark.parametrize(
    ("layers", "samples", "frames"),
    [
        *[(WAV2VEC2, n, f) for n, f in ((400, 1), (719, 1), (720, 2), (16000, 49), (32000, 99), (240_000, 749))],
        *[(WAV2VEC2, n, f) for n, f in ((250_000, 781), (320_000, 999), (399, 0), (9, 0), (0, 0))],
        *[(CPC, n, f) for n, f in ((10_000, 60), (16_000, 98), (20_480, 126), (150_000, 935), (464, 0), (465, 1))],
    ],
)
def test_num_frames_of_published_stacks(layers, samples, frames):
    assert num_frames(samples, layers) == frames
    assert num_frames(jnp.asarray([samples]), layers)[0] == frames
    assert num_frames(np.asarray([samples]), layers)[0] == frames


LAYER = st.integers(1, 12).flatmap(lambda kernel: st.tuples(st.just(1), st.just(kernel), st.integers(1, kernel)))


@given(st.lists(LAYER, min_size=1, max_size=7), st.integers(0, 20_000))
def test_one_division_counts_the_frames_that_the_layers_make_one_after_the_other(layers, samples):
    assert num_frames(np.asarray([samples]), layers)[0] == num_frames(samples, layers)


def test_receptive_field_of_published_stacks():
    assert receptive_field(WAV2VEC2) == (400, 320)
    assert receptive_field(CPC) == (465, 160)


def test_num_frames_is_what_the_convolutions_make():
    frontend, wave = ConvFrontend(WAV2VEC2, "group", False), jnp.zeros((1, 5000))
    made, _ = jax.eval_shape(lambda: frontend.init_with_output(jax.random.key(0), wave, jnp.asarray([720])))
    assert made.shape == (1, num_frames(5000, WAV2VEC2), 512)


def test_valid_frames_are_the_first_ones():
    np.testing.assert_array_equal(
        valid_frames(jnp.asarray([0, 2, 3]), 3), [[False] * 3, [True, True, False], [True] * 3]
    )
