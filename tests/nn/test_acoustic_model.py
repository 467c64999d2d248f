"""Acoustic models: gated convolutions against loops, frames, padding, and equal sizes for a fair comparison."""

from __future__ import annotations

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import shapes_of

from w2v_jax.core import config as configs
from w2v_jax.data.index import WAVE
from w2v_jax.methods import ctc
from w2v_jax.nn import acoustic_model as acoustic
from w2v_jax.nn.acoustic_model import GatedConv, GatedConvLayer, TransformerStack, acoustic_model
from w2v_jax.training import warm_start, workdir
from w2v_jax.training.sharding import bare


def gated_by_loops(x, params, stride: int):
    """One utterance [F C]: weight norm per output channel, zero padding, half the channels gate the others."""
    v, g, bias = (np.asarray(params[name], np.float64) for name in ("direction", "scale", "bias"))
    kernel, _, channels = v.shape
    out = np.zeros((math.ceil(len(x) / stride), channels))
    for f in range(len(out)):
        for c in range(channels):
            weight = g[c] * v[:, :, c] / np.linalg.norm(v[:, :, c])
            for k in range(kernel):
                at = f * stride + k - kernel // 2
                if 0 <= at < len(x):
                    out[f, c] += weight[k] @ x[at]
            out[f, c] += bias[c]
    a, gate = np.split(out, 2, axis=1)
    return a / (1 + np.exp(-gate))


@pytest.mark.parametrize(("kernel", "stride", "frames"), [(1, 1, 4), (3, 1, 5), (5, 2, 7), (7, 2, 8), (7, 3, 2)])
def test_gated_convolution_equals_the_formula(kernel, stride, frames):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, frames, 3)).astype(np.float32)
    layer = GatedConvLayer(8, kernel, stride)
    params = bare(layer.init(jax.random.key(0), x))["params"]
    params = jax.tree.map(lambda p: p + rng.normal(size=p.shape).astype(np.float32) * 0.3, params)
    np.testing.assert_allclose(layer.apply({"params": params}, x)[0], gated_by_loops(x[0], params, stride), atol=1e-5)


def models(kind: str):
    if kind != "transformer":
        return GatedConv(((16, 3, 1), (16, 5, 2), (16, 3, 1), (8, 3, 2)), 0.3, residual=kind == "residual"), 4
    fields = dict(layers=1, heads=2, mlp=16, pre_norm=True, pos_kernel=4, pos_groups=2, dropout=0.0)
    fields |= dict(attention_dropout=0.0, mlp_dropout=0.0, layer_drop=0.0)
    return TransformerStack(4, 8, 0.3, fields), 4


def test_residual_layers_are_normed_and_added_where_the_shape_agrees():
    model = GatedConv(((10, 3, 1), (10, 3, 1), (8, 3, 1)), 0.0, residual=True)
    rng = np.random.default_rng(0)
    x, frames = rng.normal(size=(1, 6, 4)).astype(np.float32), jnp.asarray([6])
    params = bare(jax.jit(model.init)(jax.random.key(0), x, frames))["params"]
    params = jax.tree.map(lambda p: p + rng.normal(size=p.shape).astype(np.float32) * 0.3, params)
    layer = lambda i, x: gated_by_loops(x, params[f"layer{i}"], 1)
    first = normed(layer(0, x[0]), params["norm0"])  # 4 -> 5 channels
    second = first + normed(layer(1, first), params["norm1"])
    third = normed(layer(2, second), params["norm2"])  # 5 -> 4 channels
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, x, frames)[0][0], third, atol=1e-5)


def normed(x, params):
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * np.asarray(params["scale"]) + np.asarray(params["bias"])


@pytest.mark.parametrize("kind", ["conv", "residual", "transformer"])
def test_padding_and_neighbours_change_no_real_frame(kind):
    model, stride = models(kind)
    rng = np.random.default_rng(0)
    x, frames = rng.normal(size=(3, 21, 5)).astype(np.float32), np.array([21, 13, 1])
    params, apply = jax.jit(model.init)(jax.random.key(0), x, frames), jax.jit(model.apply)
    y, count = apply(params, x, jnp.asarray(frames))
    np.testing.assert_array_equal(count, -(-frames // stride))
    wide = np.pad(x, ((0, 0), (0, 10), (0, 0)), constant_values=9.0)
    for row in range(len(frames)):
        alone, _ = apply(params, wide[row : row + 1], jnp.asarray(frames[row : row + 1]))
        np.testing.assert_allclose(y[row, : count[row]], alone[0, : count[row]], atol=1e-5)
    section = dict(kind=kind.replace("residual", "conv"), conv_layers=getattr(model, "layers", ()), stride=4)
    assert acoustic.stride(type("Section", (), section)) == 4


@pytest.mark.parametrize("kind", ["conv", "residual", "transformer"])
def test_dropout_is_drawn_per_row_and_in_training_only(kind):
    model, _ = models(kind)
    x, frames = np.ones((2, 12, 5), np.float32), jnp.asarray([12, 12])
    params, apply = jax.jit(model.init)(jax.random.key(0), x, frames), jax.jit(model.apply)
    noise = jnp.asarray([1, 2], jnp.uint32)
    dropped = apply(params, x, frames, noise=noise)[0]
    assert not np.allclose(dropped[0], dropped[1])
    np.testing.assert_allclose(*apply(params, x, frames)[0], atol=1e-6)


@pytest.mark.parametrize("spec", ["acoustic_logmel.py", "acoustic_logmel.py:demo"])
def test_transformer_is_as_large_as_the_convolutions(spec):
    """Within 6 %: what differs between their error rates is not their size."""
    config = configs.load(f"configs/{spec}")
    sizes = []
    for kind in ("conv", "transformer"):
        with config.unlocked():
            config.acoustic.kind = kind
        model, x = acoustic_model(config.acoustic, jnp.float32), jax.ShapeDtypeStruct((1, 100, 80), jnp.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.int32))
        sizes.append(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(bare(params))))
    assert abs(sizes[0] - sizes[1]) < 0.06 * sizes[0], sizes


@pytest.mark.parametrize(
    ("variant", "pretraining"),
    [
        ("demo", "w2v2_base.py:demo"),
        ("cpc", "cpc.py"),
        ("cpc_demo", "cpc.py:demo"),
        ("wav2vec", "wav2vec_large.py"),
        ("wav2vec_demo", "wav2vec_large.py:demo"),
    ],
)
def test_encoder_of_each_variant_is_that_of_its_pretraining(variant, pretraining, tmp_path, monkeypatch):
    other = configs.load(f"configs/{pretraining}")
    (tmp_path / "config.json").write_text(configs.to_json(other), encoding="utf-8")
    weights = types.SimpleNamespace(params=shapes_of(other), extra={})
    monkeypatch.setattr(workdir, "restore_params", lambda *_, **__: weights)
    config = configs.load(f"configs/acoustic_frozen.py:{variant}", [("init.run", str(tmp_path))])
    config = configs.with_outputs(config, 30)
    found = warm_start.warm_params(config, shapes_of(config), WAVE)
    assert found == {"encoder": weights.params["encoder"]}
    frames = 33 if variant in ("cpc_demo", "wav2vec_demo") else 50  # of 30 and 20 ms
    assert frames - 2 <= ctc.make(config).output_frames(16_000) <= frames


def test_recogniser_on_wav2vec_learns_and_leaves_the_encoder_as_it_is():
    overrides = [("acoustic.conv_layers", "((16, 5, 2),)")]
    method = ctc.make(configs.with_outputs(configs.load("configs/acoustic_frozen.py:wav2vec_demo", overrides), 8))
    rng = np.random.default_rng(0)
    batch = dict(
        wave=rng.normal(size=(2, 8_000)).astype(np.float32),
        num_samples=np.array([8_000, 6_000], np.int32),
        weight=np.ones(2, np.float32),
        row=np.arange(2, dtype=np.int32),
        tokens=rng.integers(1, 8, (2, 5)).astype(np.int32),
        num_tokens=np.array([5, 4], np.int32),
    )

    @jax.jit
    def gradient():
        params, extra = bare(method.init(jax.random.key(0), batch))
        loss = lambda p: method.loss(p, extra, batch, jax.random.key(1), jnp.int32(0), train=True)[0].total
        return jax.tree.map(lambda leaf: jnp.any(leaf != 0), jax.grad(loss)(params))

    moved = gradient()
    assert not any(jax.tree.leaves(moved["encoder"]))
    assert all(jax.tree.leaves((moved["acoustic"], moved["head"])))
