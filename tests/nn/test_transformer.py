"""The context network: padding, the forms of computing it that must agree, LayerDrop."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import random_params
from small_transformer import LENGTHS, PLAIN, VALID, B, D, F, L

from w2v_jax.core.cli import UserError
from w2v_jax.nn.transformer import PositionalConv, Transformer
from w2v_jax.ops import random as noises


def run(params, x, lengths=LENGTHS, noise=None, layer_key=None, collect=False, **fields):
    model = Transformer(**(PLAIN | fields))
    return jax.jit(
        lambda p, x: model.apply({"params": p}, x, lengths, noise=noise, layer_key=layer_key, collect=collect)
    )(params, x)


@pytest.fixture(scope="module", params=[False, True], ids=["post_norm", "pre_norm"])
def plain(request, params, x):
    """(pre_norm, the plain pass with all hidden states)"""
    return request.param, run(params, x, collect=True, pre_norm=request.param)


def test_output_is_the_last_hidden_state(plain, params):
    pre_norm, context = plain
    assert context.hidden.shape == (L + 1, B, F, D)
    if not pre_norm:
        np.testing.assert_array_equal(context.output, context.hidden[-1])
    else:
        last = np.asarray(context.hidden[-1])
        normed = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-5)
        normed = normed * params["norm"]["scale"] + params["norm"]["bias"]
        np.testing.assert_allclose(context.output, normed, atol=1e-5)


def test_padding_changes_nothing_on_valid_frames(plain, params, x):
    """Neither what stands in the padding nor how much of it there is."""
    pre_norm, context = plain
    longer = jnp.pad(jnp.where(VALID[..., None], x, 1e3), ((0, 0), (0, 5), (0, 0)), constant_values=-50.0)
    again = run(params, longer, collect=True, pre_norm=pre_norm)
    np.testing.assert_allclose(again.output[:, :F][VALID], context.output[VALID], atol=1e-5)
    np.testing.assert_allclose(again.hidden[:, :, :F][:, VALID], context.hidden[:, VALID], atol=1e-5)


@pytest.mark.parametrize("positional", ["split", "grouped"])
def test_padding_never_enters_a_stack_of_positional_convolutions(x, positional):
    model = Transformer(**(PLAIN | dict(pre_norm=False, pos_layers=3, positional=positional)))
    params = jax.jit(model.init)(jax.random.key(0), x, LENGTHS)["params"]
    together = jax.jit(model.apply)({"params": params}, x, LENGTHS).output
    for row, length in enumerate(LENGTHS.tolist()):
        alone = jax.jit(model.apply)({"params": params}, x[row : row + 1, :length], LENGTHS[row : row + 1]).output
        np.testing.assert_allclose(together[row, :length], alone[0], atol=1e-5)


RELATIVE = dict(relative_buckets=8, relative_distance=5)
"""The fields with which attention has a gated bias of the distance."""


@pytest.fixture(scope="module", params=[{}, RELATIVE], ids=["plain", "relative"])
def kind(request, x):
    """(fields, parameters that fit them)"""
    return request.param, random_params(Transformer(**(PLAIN | request.param)), x, LENGTHS, scale=0.3)


def gradient_of(params, x, noise, layer_key, **fields):
    """(outputs, gradients in the parameters) with dropout and LayerDrop on."""
    model = Transformer(**(PLAIN | dict(dropout=0.2, attention_dropout=0.2, mlp_dropout=0.2, layer_drop=0.5) | fields))

    def loss(params):
        context = model.apply({"params": params}, x, LENGTHS, noise=noise, layer_key=layer_key, collect=True)
        return (jnp.where(VALID[..., None], context.output, 0.0) * jnp.arange(D)).sum(), context

    (_, context), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return context, gradient


OTHERS = [("unroll", "none", "split"), ("unroll", "full", "split"), ("scan", "products", "grouped")]


def test_stacks_policies_and_positional_convolutions_agree(kind, x):
    """Outputs and gradients, dropout and LayerDrop included: how it is computed does not change what."""
    relative, params = kind
    noise = noises.row_noise(jax.random.key(1), jnp.arange(B))
    key = jax.random.key(1)
    keep = np.asarray(jax.random.uniform(key, (L,)) > 0.5)
    assert keep.any() and not keep.all(), "the key is to drop some layers, not all"
    context, gradient = gradient_of(params, x, noise, key, **relative)
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(gradient))
    for stack, remat, positional in OTHERS:
        fields = relative | dict(stack=stack, remat=remat, positional=positional)
        other, other_gradient = gradient_of(params, x, noise, key, **fields)
        np.testing.assert_allclose(other.hidden, context.hidden, atol=1e-5, err_msg=str(fields))
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * largest, err_msg=str(fields))
    for layer in range(L):  # a dropped layer passes its input on and gets no gradient
        passes = np.array_equal(context.hidden[layer], context.hidden[layer + 1])
        assert passes != keep[layer]
        learns = any(np.any(leaf[layer]) for leaf in jax.tree.leaves(gradient["layers"]))
        assert learns == keep[layer]


@pytest.mark.parametrize("pre_norm", [False, True])
def test_padding_changes_nothing_on_valid_frames_with_a_bias_of_the_distance(x, pre_norm):
    """In each formulation of attention, which agree; and the bias is not without effect."""
    fields = PLAIN | RELATIVE | dict(pre_norm=pre_norm)
    params = random_params(Transformer(**fields), x, LENGTHS, scale=0.3)
    whole = run(params, x, **fields).output
    longer = jnp.pad(jnp.where(VALID[..., None], x, 1e3), ((0, 0), (0, 5), (0, 0)), constant_values=-50.0)
    for attention in ("xla", "blocks"):
        again = run(params, longer, **(fields | dict(attention=attention))).output
        np.testing.assert_allclose(again[:, :F][VALID], whole[VALID], atol=1e-5)
    without = params | dict(relative_bias=jnp.zeros_like(params["relative_bias"]))
    assert np.abs(run(without, x, **fields).output - whole)[VALID].max() > 1e-3


@pytest.mark.parametrize("kept", range(L))
def test_every_layer_has_the_bias_whichever_layers_are_dropped(x, kept):
    """Of a bias that one layer made, nothing would be left where that layer is dropped."""
    fields = PLAIN | RELATIVE | dict(layer_drop=0.5)
    params = random_params(Transformer(**fields), x, LENGTHS, scale=0.3)
    draws = (jax.random.uniform(jax.random.key(n), (L,)) > 0.5 for n in range(100))
    key = jax.random.key(next(n for n, keep in enumerate(draws) if keep.tolist() == [i == kept for i in range(L)]))
    loss = lambda table: run(params | dict(relative_bias=table), x, layer_key=key, **fields).output[:, 0].sum()
    assert np.abs(jax.grad(loss)(params["relative_bias"])).max() > 1e-4


@pytest.mark.parametrize(("buckets", "distance"), [(7, 9), (2, 9), (16, 4)])
def test_buckets_that_cannot_be_are_an_error(params, x, buckets, distance):
    with pytest.raises(UserError, match=f"encoder.relative_buckets={buckets} and encoder.relative_distance={distance}"):
        run(params, x, relative_buckets=buckets, relative_distance=distance)


def test_layer_drop_of_all_layers_leaves_the_input_and_of_none_the_model(plain, params, x):
    pre_norm, context = plain
    key = jax.random.key(0)
    nothing = run(params, x, layer_key=key, collect=True, pre_norm=pre_norm, layer_drop=1.0)
    for layer in range(L + 1):
        np.testing.assert_array_equal(nothing.hidden[layer], nothing.hidden[0])
    np.testing.assert_allclose(nothing.hidden[0], context.hidden[0], atol=1e-6)
    whole = run(params, x, layer_key=key, collect=True, pre_norm=pre_norm, layer_drop=0.0)
    np.testing.assert_array_equal(whole.output, context.output)


def test_dropout_is_off_without_noise_and_differs_by_layer_and_row(params, x):
    twins = jnp.broadcast_to(x[:1], x.shape)
    rates = dict(dropout=0.5, attention_dropout=0.5, mlp_dropout=0.5)
    lengths = jnp.asarray([F, F])
    quiet = run(params, twins, lengths, collect=True, **rates)
    np.testing.assert_allclose(quiet.output[0], quiet.output[1], atol=1e-6)
    noisy = run(params, twins, lengths, noises.row_noise(jax.random.key(1), jnp.arange(B)), collect=True, **rates)
    assert np.abs(noisy.hidden[:, 0] - noisy.hidden[:, 1]).max(axis=(1, 2)).min() > 0.01


def test_positional_conv_split_equals_grouped(x):
    params = random_params(PositionalConv(4, 2, False), x, scale=0.3)
    outputs = [PositionalConv(4, 2, split).apply({"params": params}, x) for split in (False, True)]
    np.testing.assert_allclose(*outputs, atol=1e-5)


@pytest.mark.parametrize("kernel", [4, 5])
def test_positional_conv_is_that_of_numpy(kernel, x):
    """Weight norm per tap, groups, and the window of an even kernel: one frame less of the future."""
    params = jax.tree.map(np.asarray, random_params(PositionalConv(kernel, 2, False), x, scale=0.3))
    ours = PositionalConv(kernel, 2, False).apply({"params": params}, x)
    v = params["direction"]
    w = params["scale"][:, None, None] * v / np.sqrt((v**2).sum(axis=(1, 2), keepdims=True))  # [K D/G D]
    np.testing.assert_allclose(np.sqrt((w**2).sum(axis=(1, 2))), np.abs(params["scale"]), rtol=1e-6)
    wave = np.pad(np.asarray(x), ((0, 0), (kernel // 2, kernel), (0, 0)))
    half = D // 2
    expected = np.zeros((B, F, D))
    for f, k in np.ndindex(F, kernel):
        for group in (slice(0, half), slice(half, D)):
            expected[:, f, group] += wave[:, f + k, group] @ w[k][:, group]
    np.testing.assert_allclose(ours, jax.nn.gelu(expected + params["bias"], approximate=False), atol=1e-5)


def test_positional_conv_starts_with_a_scale_equal_to_the_norm():
    params = nn.unbox(PositionalConv(4, 2, False).init(jax.random.key(0), jnp.zeros((1, 5, 64))))["params"]
    norm = np.sqrt((np.asarray(params["direction"]) ** 2).sum(axis=(1, 2)))
    np.testing.assert_allclose(params["scale"], norm, rtol=1e-5)
    np.testing.assert_allclose(params["direction"].std(), np.sqrt(4 / (4 * 64)), rtol=0.05)


def test_layers_are_unrolled_where_that_pays_and_scanned_elsewhere(params, x):
    """That is training in bfloat16 on one CPU device without remat, by measurement (docs/performance.md)."""
    words = noises.row_noise(jax.random.key(0), jnp.arange(len(x)))

    def scanned(stack, noise=words, **fields):
        model = Transformer(**(PLAIN | dict(dtype=jnp.bfloat16, stack=stack) | fields))
        lowered = jax.jit(lambda p, x: model.apply({"params": p}, x, LENGTHS, noise=noise)).lower(params, x)
        return "stablehlo.while" in lowered.as_text()

    assert [scanned(stack) for stack in ("scan", "unroll", "auto")] == [True, False, False]
    assert scanned("auto", noise=None) and scanned("auto", dtype=jnp.float32) and scanned("auto", remat="full")
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        assert [scanned(stack) for stack in ("scan", "unroll", "auto")] == [True, False, True]


@pytest.mark.parametrize(
    ("field", "key"), [("positional", "positional"), ("stack", "stack"), ("remat", "remat_layers")]
)
def test_unknown_formulation_is_an_error(field, key, params, x):
    with pytest.raises(UserError, match=f"encoder.{key} is 'fast'"):
        run(params, x, **{field: "fast"})
