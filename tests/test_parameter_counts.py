"""The published models' sizes, to the last parameter, by shape evaluation."""

from __future__ import annotations

import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

from w2v_jax import methods
from w2v_jax.core import config as configs
from w2v_jax.training.sharding import bare

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def counts(config) -> dict[str, int]:
    """Parameters by top-level name, and of "encoder/*"."""
    method = methods.load(config)
    shape = jax.ShapeDtypeStruct
    ints = shape((1,), jnp.int32)
    batch = dict(wave=shape((1, 32_000), jnp.float32), num_samples=ints, weight=shape((1,), jnp.float32), row=ints)
    params, extra = jax.eval_shape(lambda batch: method.init(jax.random.key(0), batch), batch)
    assert not extra
    params = bare(params)
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    return {name: count(tree) for name, tree in params.items()} | {"all": count(params)}


@pytest.mark.parametrize(
    ("file", "overrides", "total", "trunk"),
    [
        ("w2v2_base.py", {}, 95_044_608, 94_371_712),
        ("w2v2_large.py", {}, 317_390_592, 315_438_720),
        ("w2v2_large.py", dict(conv_norm="group", conv_bias=False), 317_380_864, 315_428_992),
        ("xlsr.py:1b", {}, 965_514_752, 962_497_408),
        ("xlsr.py:2b", {}, 2_162_932_352, 2_159_259_648),
        ("xlsr.py:3b", {}, 3_064_124_672, 3_060_320_896),
        ("xlsr.py:7b", {}, 6_488_487_168, 6_484_683_392),
        ("hubert_base.py", {}, 94_697_600, 94_371_712),
        ("hubert_large.py", {}, 316_609_408, 315_435_136),
        ("hubert_xlarge.py", {}, 964_321_664, 962_493_824),
        ("wavlm_base.py", {}, 94_707_824, 94_381_936),
        ("wavlm_base_plus.py", {}, 94_707_824, 94_381_936),
        ("wavlm_large.py", {}, 316_627_392, 315_453_120),
    ],
    ids=lambda value: value.replace(".py", "") if isinstance(value, str) else "",
)
def test_model_has_as_many_parameters_as_the_published_one(file, overrides, total, trunk):
    config = configs.load(str(CONFIGS / file))
    with config.unlocked():
        config.encoder.update(overrides)
    found = counts(config)
    assert found["all"] == total
    assert found["encoder"] == trunk


@pytest.mark.parametrize("variant", ["10m", "960h"])
def test_fine_tuned_base_has_as_many_parameters_as_the_published_one(variant):
    config = configs.with_outputs(configs.load(str(CONFIGS / f"finetune.py:{variant}")), 32)
    assert counts(config)["all"] == 94_396_320


def test_base_has_the_published_parts():
    found = counts(configs.load(str(CONFIGS / "w2v2_base.py")))
    assert found["quantizer"] == 410_240
    assert found["target_proj"] + found["context_proj"] == 262_656


@pytest.mark.parametrize(
    ("file", "conv", "kernels", "total"),
    [
        ("wav2vec_large.py", None, None, 32_537_088),
        ("wav2vec_large.py", 5, (3,) * 9, 15_491_072),
        ("vq_wav2vec.py:gumbel", None, None, 34_063_488),
        ("vq_wav2vec.py:kmeans", None, None, 33_014_272),
    ],
    ids=["large", "small", "gumbel", "kmeans"],
)
def test_wav2vec_has_as_many_parameters_as_the_reference(file, conv, kernels, total):
    config = configs.load(str(CONFIGS / file))
    with config.unlocked():
        config.encoder.conv_layers = config.encoder.conv_layers[:conv]
        config.encoder.context_kernels = kernels or config.encoder.context_kernels
    assert counts(config)["all"] == total


@pytest.mark.parametrize(("norm", "cell", "gates"), [("none", "gru", 3), ("frame", "gru", 3), ("frame", "lstm", 4)])
def test_cpc_has_the_published_parts(norm, cell, gates):
    config = configs.load(str(CONFIGS / "cpc.py"))
    with config.unlocked():
        config.encoder.update(conv_norm=norm, context=cell)
    found = counts(config)
    inputs, width, steps = 512, 256, 12
    convolutions = inputs * (10 + inputs * (8 + 4 + 4 + 4)) + 5 * inputs
    norms = 5 * 2 * inputs if norm == "frame" else 0
    context = gates * (width * (inputs + width) + 2 * width)
    assert convolutions == 5_250_560 and (cell != "gru" or context == 591_360)
    assert found["encoder"] == convolutions + norms + context
    assert found["predictor"] == steps * width * inputs == 1_572_864
    if (norm, cell) == ("none", "gru"):
        assert found["all"] == 7_414_784
