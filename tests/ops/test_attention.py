"""Attention: against NumPy, its formulations against each other, what it holds in memory, its errors."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from w2v_jax.core.cli import UserError
from w2v_jax.ops import random as noises
from w2v_jax.ops.attention import GatedBias, attention
from w2v_jax.training import sharding

B, F, H = 2, 12, 2
LENGTHS = jnp.asarray([F, 7])


@pytest.fixture(scope="module")
def heads():
    return [jax.random.normal(jax.random.key(i), (B, F, H, 4)) for i in range(3)]


@pytest.fixture(scope="module")
def bias():
    return GatedBias(
        jax.random.normal(jax.random.key(4), (B, F, H)), jax.random.normal(jax.random.key(5), (H, 2 * F - 1))
    )


@pytest.mark.parametrize("biased", [False, True])
def test_attention_is_that_of_numpy(heads, bias, biased):
    ours = attention(*heads, num_frames=LENGTHS, bias=bias if biased else None, implementation="xla")
    q, k, v = (np.asarray(a, np.float64) for a in heads)
    for b, h in np.ndindex(B, H):
        n = int(LENGTHS[b])
        logits = q[b, :, h] @ k[b, :n, h].T / 2.0
        for i, j in np.ndindex(F, n) if biased else ():
            logits[i, j] += bias.gates[b, i, h] * bias.by_distance[h, j - i + F - 1]
        probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(ours[b, :, h], probs @ v[b, :n, h], atol=1e-5)


def test_attention_without_any_valid_key_is_finite(heads):
    def total(*heads):
        return attention(*heads, num_frames=jnp.asarray([0, F])).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*heads)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


BLOCKS = [(block, dropout, False) for block in (1, 2 * F * F, 2**21) for dropout in (0.0, 0.3)]


@pytest.mark.parametrize(("block", "dropout", "biased"), [*BLOCKS, (1, 0.3, True), (2**21, 0.0, True)])
def test_attention_in_blocks_equals_the_whole_with_its_gradients(heads, bias, block, dropout, biased, monkeypatch):
    for name in ("CPU_BLOCK", "GPU_BLOCK"):
        monkeypatch.setattr(f"w2v_jax.ops.attention.{name}", block)
    noise, lengths = noises.row_noise(jax.random.key(0), jnp.arange(B)), LENGTHS.at[0].set(0)
    target = jax.random.normal(jax.random.key(9), heads[0].shape)

    def found(implementation):
        settings = dict(dropout=dropout, noise=noise, implementation=implementation)
        call = lambda bias, *x: attention(*x, num_frames=lengths, bias=bias, **settings)
        out, back = jax.vjp(jax.jit(call), bias if biased else None, *heads)
        return jax.tree.leaves((out, back(target)))

    for blocks, whole in zip(found("blocks"), found("xla"), strict=True):
        np.testing.assert_allclose(blocks, whole, atol=2e-6)


@pytest.mark.parametrize("name", ["blocks", "kernel"])
def test_each_device_of_a_mesh_computes_its_rows_and_heads(heads, bias, name):
    """Output and gradients, those of the bias summed over devices, are those of one device; no scores are exchanged."""
    noise, biased = noises.row_noise(jax.random.key(0), jnp.arange(B)), bias if name == "blocks" else None
    mesh = jax.make_mesh((2, 1, 2), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:4])

    def found(bias, *x):
        call = lambda bias, *x: attention(
            *x, num_frames=LENGTHS, bias=bias, dropout=0.3, noise=noise, implementation=name
        )
        out, back = jax.vjp(call, bias, *x)
        return out, back(jnp.cos(out))

    whole = jax.jit(found)(biased, *heads)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        place = jax.NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
        program = jax.jit(found).lower(biased, *(jax.device_put(x, place) for x in heads)).compile()
        cut = program(biased, *(jax.device_put(x, place) for x in heads))
    for ours, theirs in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert "all-gather" not in program.as_text()


@pytest.mark.parametrize("biased", [False, True])
def test_attention_in_blocks_holds_no_matrix_of_all_scores(biased):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    heads, bias = shape(4, 1024, 8, 16), GatedBias(shape(4, 1024, 8), shape(8, 2047)) if biased else None
    whole = 4 * 8 * 1024 * 1024 * 4

    def bytes_of(implementation):
        total = lambda bias, *x: attention(
            *x, num_frames=jnp.full(4, 1024), bias=bias, implementation=implementation
        ).sum()
        program = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3))).lower(bias, heads, heads, heads).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert bytes_of("blocks") < 0.5 * whole < whole < bytes_of("xla")


def test_attention_errors_name_the_setting(heads, bias):
    half = [a.astype(jnp.bfloat16) for a in heads]
    noise = noises.row_noise(jax.random.key(0), jnp.arange(B))
    with pytest.raises(UserError, match="encoder.attention is 'flash'"):
        attention(*heads, num_frames=LENGTHS, implementation="flash")
    with pytest.raises(UserError, match="train.dtype='bfloat16' and encoder.attention_dropout=0"):
        attention(*heads, num_frames=LENGTHS, implementation="cudnn")
    with pytest.raises(UserError, match="train.dtype='bfloat16' and encoder.attention_dropout=0"):
        attention(*half, num_frames=LENGTHS, dropout=0.1, noise=noise, implementation="cudnn")
    with pytest.raises(UserError, match="cannot add the gated bias of encoder.relative_buckets; 'auto', 'blocks' and"):
        attention(*half, num_frames=LENGTHS, bias=bias, implementation="cudnn")
    long = jax.ShapeDtypeStruct((1, 5000, 1, 8), jnp.bfloat16)
    with pytest.raises(UserError, match="needs a TPU and at most 4096 frames"):
        attention(long, long, long, num_frames=LENGTHS[:1], implementation="kernel")  # type: ignore[arg-type]


def test_attention_auto_with_a_bias_is_never_cudnn(heads, bias, monkeypatch):
    half = [a.astype(jnp.bfloat16) for a in heads]
    monkeypatch.setattr("w2v_jax.ops.attention.platform", lambda: "gpu")
    monkeypatch.setattr("w2v_jax.ops.attention._cudnn", lambda *_, **__: pytest.fail("cuDNN cannot add a bias"))
    assert attention(*half, num_frames=LENGTHS, bias=bias).dtype == jnp.bfloat16


ODD = 11, jnp.asarray([11, 6])


def half_precision(implementation):
    """Output and gradients of valid frames of a batch with an odd number of frames, in bfloat16."""
    frames, lengths = ODD
    rng = jax.random.key(3)
    query, key, value, target = jax.random.normal(rng, (4, B, frames, H, 8)).astype(jnp.bfloat16)
    valid = (jnp.arange(frames)[None] < lengths[:, None])[..., None, None]
    call = lambda *x: jnp.where(valid, attention(*x, num_frames=lengths, implementation=implementation), 0)
    out, back = jax.vjp(call, query, key, value)
    return [x.astype(jnp.float32) for x in (out, *back(target))]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
def test_cudnn_attention_agrees_for_an_odd_number_of_frames():
    for ours, xla in zip(half_precision("cudnn"), half_precision("xla"), strict=True):
        np.testing.assert_allclose(ours, xla, atol=0.03)


def test_cudnn_gets_an_even_number_of_frames_and_no_key_of_them_counts(monkeypatch):
    """JAX refuses an odd number where it needs gradients. The same arguments make XLA's own formulation here."""
    whole, seen = jax.nn.dot_product_attention, []

    def even(query, key, value, *, implementation, **lengths):
        seen.append((query.shape[1], key.shape[1], value.shape[1], implementation))
        return whole(query, key, value, implementation="xla", **lengths)

    monkeypatch.setattr("w2v_jax.ops.attention.platform", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", even)
    for ours, xla in zip(half_precision("cudnn"), half_precision("xla"), strict=True):
        np.testing.assert_allclose(ours, xla, atol=0.03)
    assert seen == [(ODD[0] + 1,) * 3 + ("cudnn",)]


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="a GPU has cuDNN")
def test_cudnn_attention_on_cpu_is_a_clear_error(heads):
    half = [a.astype(jnp.bfloat16) for a in heads]
    with pytest.raises(UserError, match="encoder.attention='cudnn' needs an NVIDIA GPU"):
        attention(*half, num_frames=LENGTHS, implementation="cudnn")
