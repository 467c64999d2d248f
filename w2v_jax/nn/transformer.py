"""The context network of wav2vec 2.0 and of BERT: a position embedding and Transformer blocks.

Post-norm (Base) and pre-norm (Large) of Baevski et al. 2020, section 2, with convolutional positions; with learned
ones, post-norm, it is the encoder of BERT and RoBERTa. With `relative_buckets` the attention has WavLM's gated bias of
the distance. All layers are one module with stacked parameters [L ...], compiled once (`stack="scan"`) or layer by
layer ("unroll"); the parameters are the same either way.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.display import short_repr
from w2v_jax.nn.conditional import not_a_broadcast, unless_dropped
from w2v_jax.nn.layers import Dense, LayerNorm, gathered, gelu, partitioned, rematerialised, symmetric_uniform
from w2v_jax.ops import random as noises
from w2v_jax.ops.attention import GatedBias, attention
from w2v_jax.ops.devices import one_device, platform
from w2v_jax.ops.frames import valid_frames
from w2v_jax.ops.matmul import plus, product
from w2v_jax.ops.random import Stream
from w2v_jax.ops.relative_bias import by_distance, gate


class PositionalConv(nn.Module):
    """Grouped convolution over time with one weight norm per tap, then GELU: the position embedding.

    Kernel w[k] = g[k] * v[k] / |v[k]| with the norm over outputs and inputs of a tap (fairseq's dim=2).
    An even kernel sees one frame less of the future. Input frames beyond the utterance must be 0.
    """

    kernel: int
    groups: int
    split: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B F D] -> [B F D]."""
        width = x.shape[-1]
        init = nn.initializers.normal(math.sqrt(4.0 / (self.kernel * width)))
        v = self.param(
            "direction", partitioned(init, (None, None, "embed")), (self.kernel, width // self.groups, width)
        )
        g = self.param("scale", partitioned(lambda *_: jnp.sqrt(jnp.sum(v * v, axis=(1, 2))), (None,)))
        bias = self.param("bias", partitioned(nn.initializers.zeros, ("embed",)), (width,))
        v, bias = gathered(v, (None, None, "embed")), gathered(bias, ("embed",))
        norm = jnp.sqrt(jnp.sum(v * v, axis=(1, 2), keepdims=True))
        weight = (v * (g[:, None, None] / norm)).astype(self.dtype)
        return gelu(plus(convolved(x.astype(self.dtype), weight, self.groups, split=self.split), bias))


class PositionalStack(nn.Module):
    """data2vec's position embedding: grouped convolutions over time one after the other, each with norm and GELU.

    The norm is over the channels and has no parameters. Input frames beyond the utterance must be 0, and are made 0
    again before each convolution: padding never enters a frame. (Baevski et al. 2022, for audio.)
    """

    layers: int
    kernel: int
    groups: int
    split: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, num_frames: jax.Array) -> jax.Array:
        """x [B F D], num_frames [B] -> [B F D]."""
        width, valid = x.shape[-1], valid_frames(num_frames, x.shape[1])[..., None]
        bound = 1.0 / math.sqrt(self.kernel * width // self.groups)
        init, shape = symmetric_uniform(bound), (self.kernel, width // self.groups, width)
        for i in range(self.layers):
            kernel = self.param(f"kernel{i}", partitioned(init, (None, None, "embed")), shape)
            bias = self.param(f"bias{i}", partitioned(init, ("embed",)), (width,))
            kernel, bias = gathered(kernel, (None, None, "embed")), gathered(bias, ("embed",))
            x = jnp.where(valid, x, 0).astype(self.dtype)
            x = plus(convolved(x, kernel.astype(self.dtype), self.groups, split=self.split), bias)
            x = gelu(LayerNorm(affine=False, dtype=self.dtype, name=f"norm{i}")(x))
        return x


def convolved(x: jax.Array, weight: jax.Array, groups: int, *, split: bool) -> jax.Array:
    """x [B F D] by weight [K D/groups D], as many frames as before.

    `split` computes group by group, which XLA's CPU back end does much faster. The barriers keep XLA on
    GPUs from joining the convolution with the sums around it: cuDNN took ten times longer for the joint operation.
    """
    kernel = weight.shape[0]
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1,),
        padding=[(kernel // 2, (kernel - 1) // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    if not split:
        alone = jax.lax.optimization_barrier
        return alone(convolve(alone(x), weight, feature_group_count=groups))
    pieces = zip(jnp.split(x, groups, axis=-1), jnp.split(weight, groups, axis=-1), strict=True)
    return jnp.concatenate([convolve(piece, own) for piece, own in pieces], axis=-1)


class Context(NamedTuple):
    """output [B F D], and hidden [L+1 B F D], the input of the blocks and the output of each, or None."""

    output: jax.Array
    hidden: jax.Array | None

    __repr__ = short_repr


class RelativeGate(nn.Module):
    """The gates of the bias of the distance, from the input of attention (not from its queries), cut into heads.

    All heads share a linear layer to eight numbers, each head has a scale (Chen et al. 2021). Every device
    of the mesh axis "tensor" computes the gates of all heads: cut by heads, the gradient would cut the channels of x.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B F D] -> [B F H] float32."""
        x = nn.with_logical_constraint(x, ("batch", "frames", None))
        x = x.reshape(*x.shape[:-1], self.heads, -1).astype(self.dtype)  # [B F H K]
        kernel = self.param("kernel", partitioned(nn.initializers.normal(0.02), ("kv", None)), (x.shape[-1], 8))
        bias = self.param("bias", partitioned(nn.initializers.zeros, (None,)), (8,))
        scale = self.param("scale", partitioned(nn.initializers.ones, (None,)), (self.heads,))
        gates = gate(plus(product(x, kernel.astype(self.dtype)), bias), scale)
        return nn.with_logical_constraint(gates, ("batch", "frames", None))


class Block(nn.Module):
    """One Transformer layer: self-attention and a feed-forward network, pre- or post-norm.

    remat: None without LayerDrop. With it, a function that wraps the layer and decides which activations are kept.
    """

    heads: int
    mlp: int
    pre_norm: bool
    dropout: float
    attention_dropout: float
    mlp_dropout: float
    attention: str
    collect: bool
    remat: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, layer, num_frames, noise, bias):
        """x [B F D]; layer (number, keep): LayerDrop leaves x as it is where keep is False -> (x, x if collect).

        bias: None, or that of attention by head and distance [H 2F-1].
        """
        number, keep = layer
        if self.remat is not None and not self.is_initializing():
            bare = self.clone(parent=None, remat=None, collect=False)
            apply = lambda learned, x, *others: bare.apply({"params": learned[0]}, x, *others, learned[1])[0]
            learned = self.variables["params"], bias  # what has a gradient besides x
            y = unless_dropped(self.remat(apply), keep, (learned, x, layer, num_frames, noise))
            return y, (y if self.collect else None)
        streams = [noises.fold(noises.fold(noise, number), i) for i in range(4)]
        norm = functools.partial(LayerNorm, dtype=self.dtype)
        y = norm(name="attention_norm")(x) if self.pre_norm else x
        y = x + noises.dropout(self._attend(y, num_frames, noise=streams[0], bias=bias), self.dropout, streams[1])
        y = y if self.pre_norm else norm(name="attention_norm")(y)
        z = norm(name="mlp_norm")(y) if self.pre_norm else y
        z = gelu(self._dense(self.mlp, ("embed", "mlp"), "mlp_in")(z))
        z = nn.with_logical_constraint(z, ("batch", "frames", "mlp"))
        z = self._dense(x.shape[-1], ("mlp", "embed"), "mlp_out")(noises.dropout(z, self.mlp_dropout, streams[2]))
        y = y + noises.dropout(z, self.dropout, streams[3])
        y = y if self.pre_norm else norm(name="mlp_norm")(y)
        y = nn.with_logical_constraint(y, ("batch", "frames", None))
        return y, (y if self.collect else None)

    def _attend(
        self, x: jax.Array, num_frames: jax.Array, *, noise: jax.Array | None, bias: jax.Array | None
    ) -> jax.Array:
        batch, frames, width = x.shape
        split = (batch, frames, self.heads, width // self.heads)
        query, key, value = (
            self._dense(width, ("embed", "heads"), n)(x).reshape(split) for n in ("query", "key", "value")
        )
        y = attention(
            query,
            key,
            value,
            num_frames=num_frames,
            dropout=self.attention_dropout,
            noise=noise,
            bias=None if bias is None else GatedBias(RelativeGate(self.heads, self.dtype, name="gate")(x), bias),
            implementation=self.attention,
        )
        return self._dense(width, ("heads", "embed"), "out")(y.reshape(x.shape))

    def _dense(self, features: int, axes: tuple[str, str], name: str) -> Dense:
        init, zeros = nn.initializers.normal(0.02), nn.initializers.zeros
        return Dense(features, axes, kernel_init=init, bias_init=zeros, dtype=self.dtype, gather=False, name=name)


class Transformer(nn.Module):
    """Position embedding and L blocks. Frames beyond num_frames are zeroed and never attended to.

    positions: "conv" has pos_layers convolutions (pos_kernel, pos_groups, positional); more than one are data2vec's.
    "learned" has a vector for each of max_frames positions. stack: "scan" compiles one layer and stacks the arrays that
    the gradient needs. "unroll" compiles every layer, which is faster in bfloat16 on CPU. "auto" unrolls training in
    bfloat16 on a single CPU device without remat, and scans elsewhere. remat: a policy of `rematerialised`, per layer.
    relative_buckets: 0, or the buckets of the distances up to relative_distance frames, in which all layers have the
    same bias of attention and gates of their own (`ops/relative_bias.py`).
    """

    layers: int
    heads: int
    mlp: int
    pre_norm: bool
    pos_kernel: int
    pos_groups: int
    dropout: float
    attention_dropout: float
    mlp_dropout: float
    layer_drop: float
    attention: str = "auto"
    positional: str = "auto"
    stack: str = "auto"
    remat: str = "none"
    dtype: Any = jnp.float32
    positions: str = "conv"
    pos_layers: int = 1
    max_frames: int = 0
    relative_buckets: int = 0
    relative_distance: int = 0

    @nn.compact
    def __call__(self, x, num_frames, *, noise=None, layer_key=None, collect: bool = False) -> Context:
        """x [B F D], num_frames [B], noise [B] words or None, layer_key for LayerDrop or None."""
        x = jnp.where(valid_frames(num_frames, x.shape[1])[..., None], x, 0)
        x = x + (self._learned(x) if self.positions == "learned" else self._convolved(x, num_frames))
        if not self.pre_norm:
            x = LayerNorm(dtype=self.dtype, name="norm")(x)
        x = noises.dropout(x, self.dropout, noises.fold(noise, Stream.TRANSFORMER_INPUT))
        keep, drops = jnp.ones(self.layers, bool), False
        if layer_key is not None and self.layer_drop > 0.0:
            keep, drops = jax.random.uniform(layer_key, (self.layers,)) > self.layer_drop, True
        first, layers = x, (jnp.arange(self.layers), keep)
        bias = self._relative(x.shape[1]) if self.relative_buckets else None
        x, outputs = self._stack(collect, noise is not None, drops)(x, layers, num_frames, noise, bias)
        hidden = jnp.concatenate([first[None], outputs]) if collect else None
        if self.pre_norm:
            x = LayerNorm(dtype=self.dtype, name="norm")(x)
        return Context(x, hidden)

    def _convolved(self, x: jax.Array, num_frames: jax.Array) -> jax.Array:
        if self.positional not in ("auto", "split", "grouped"):
            raise UserError(f"encoder.positional is {self.positional!r}; it is one of 'auto', 'split', 'grouped'")
        split = self.positional == "split" or (self.positional == "auto" and platform() == "cpu")
        shape = (self.pos_kernel, self.pos_groups, split, self.dtype)
        if self.pos_layers > 1:
            return PositionalStack(self.pos_layers, *shape, name="positional")(x, num_frames)
        return PositionalConv(*shape, name="positional")(x)

    def _learned(self, x: jax.Array) -> jax.Array:
        """The learned position vectors of the frames of x: [F D], the first F of max_frames."""
        if x.shape[1] > self.max_frames:
            raise UserError(
                f"rows of {x.shape[1]} frames are longer than encoder.max_frames={self.max_frames} learned positions; "
                'lower data.bucket_seconds, raise encoder.max_frames, or train with encoder.positions="conv"'
            )
        init = partitioned(nn.initializers.normal(0.02), ("frames", "embed"))
        table = self.param("position_table", init, (self.max_frames, x.shape[-1]))
        return gathered(table, ("frames", "embed"))[: x.shape[1]].astype(self.dtype)

    def _relative(self, frames: int) -> jax.Array:
        """The bias [H 2F-1] of the distances between so many frames: made here, so that LayerDrop cannot lose it."""
        buckets, distance = self.relative_buckets, self.relative_distance
        if buckets % 2 or buckets < 4 or distance <= buckets // 4:
            raise UserError(
                f"encoder.relative_buckets={buckets} and encoder.relative_distance={distance}: the buckets must be an "
                "even number of at least 4, and the distance above a quarter of it"
            )
        init = partitioned(nn.initializers.normal(0.02), (None, "heads"))
        return by_distance(self.param("relative_bias", init, (buckets, self.heads)), frames, distance)

    def _stack(self, collect: bool, training: bool, drops: bool):
        if self.stack not in ("auto", "scan", "unroll"):
            raise UserError(f"encoder.stack is {self.stack!r}; it is one of 'auto', 'scan', 'unroll'")
        pays = training and self.remat == "none" and self.dtype == jnp.bfloat16 and one_device("cpu")
        unrolled = self.stack == "unroll" or (self.stack == "auto" and pays)
        remat = functools.partial(rematerialised, policy=self.remat, key="encoder.remat_layers", prevent_cse=unrolled)
        as_function = functools.partial(remat, by=jax.checkpoint)
        if self.remat == "none":  # a scan keeps a broadcast once, a branch inside it one for each layer
            as_function = functools.partial(jax.checkpoint, policy=not_a_broadcast, prevent_cse=False)
        stack: Any = nn.scan(
            Block if drops else remat(Block),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.layers,
            unroll=self.layers if unrolled else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(
            heads=self.heads,
            mlp=self.mlp,
            pre_norm=self.pre_norm,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            mlp_dropout=self.mlp_dropout,
            attention=self.attention,
            collect=collect,
            remat=as_function if drops else None,
            dtype=self.dtype,
            name="layers",
        )


def transformer_fields(section: Config) -> dict[str, Any]:
    """The fields of `Transformer` that are keys of a section of a config."""
    return {name: section[name] for name in Transformer.__dataclass_fields__.keys() & section.keys()}
