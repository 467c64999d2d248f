"""Encoders: batch -> one record of local features, context and hidden states, the same for every method.

`Wav2Vec2Encoder` is waveform -> convolutions -> (masking) -> Transformer (Baevski et al. 2020, section 2);
`CausalEncoder` is waveform -> convolutions -> causal convolutions or a recurrent network (CPC, wav2vec, vq-wav2vec),
`CodeEncoder` codes -> Transformer. `LogMelEncoder` and `GivenEncoder` learn nothing: the inputs to compare with.
Their parameters live under params["encoder"], so that fine-tuning, probes, extraction and conversion can reuse them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax import logmel
from w2v_jax import noise as noises
from w2v_jax.config import UserError
from w2v_jax.context import ConvContext
from w2v_jax.frontend import (
    ConvFrontend,
    ConvSpec,
    LayerNorm,
    gathered,
    linear,
    num_frames,
    part,
    scale_gradient,
    valid_frames,
)
from w2v_jax.recurrent import Recurrent
from w2v_jax.transformer import Transformer


class Encoded(NamedTuple):
    """features [B F C], the raw output of the frontend; local [B F C], its normalised form (z); context [B F D] (c);
    hidden [L+1 B F D] (before and after each Transformer layer) or [L B F D] (after each layer of a causal context),
    or None; num_frames [B] valid frames of each row."""

    features: jax.Array
    local: jax.Array
    context: jax.Array
    hidden: jax.Array | None
    num_frames: jax.Array


class Wav2Vec2Encoder(nn.Module):
    """The trunk of wav2vec 2.0; `transformer` holds the fields of `Transformer`."""

    conv_layers: ConvSpec
    conv_norm: str
    conv_bias: bool
    conv_grad_scale: float
    padding_aware: bool
    width: int
    input_dropout: float
    transformer: dict[str, Any]
    remat_frontend: str = "none"
    convolution: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, wave, num_samples, masked=None, noise=None, layer_key=None, *, channels=None, collect: bool = False
    ) -> Encoded:
        """wave [B T]; num_samples [B]; masked [B F] frames to hide or None; noise [B] words and layer_key for the
        dropouts of training, or None; channels [B D] of the Transformer's input to hide in all frames, or None;
        collect: return the hidden states of all layers."""
        frontend = ConvFrontend(
            self.conv_layers,
            self.conv_norm,
            self.conv_bias,
            self.padding_aware,
            self.remat_frontend,
            self.convolution,
            self.dtype,
            name="frontend",
        )
        features = scale_gradient(frontend(wave, num_samples), self.conv_grad_scale)
        valid = num_frames(num_samples, self.conv_layers)
        local = LayerNorm("conv", self.dtype, name="local_norm")(features)
        x = linear(self.width, features.shape[-1], ("conv", "embed"), self.dtype, "projection")(local)
        x = noises.dropout(x, self.input_dropout, None if noise is None else noises.fold(noise, 1 << 17))
        mask_vector = self.param("mask_vector", part(nn.initializers.uniform(1.0), ("embed",)), (self.width,))
        if masked is not None:
            x = jnp.where(masked[..., None], mask_vector.astype(self.dtype), x)
        if channels is not None:
            x = jnp.where(channels[:, None], jnp.zeros((), x.dtype), x)
        x = nn.with_logical_constraint(x, ("batch", "frames", None))
        transformer = Transformer(**self.transformer, dtype=self.dtype, name="transformer")
        context = transformer(x, valid, noise, layer_key, collect=collect)
        return Encoded(features, local, context.output, context.hidden, valid)


def wav2vec2_encoder(encoder: Any, dtype: Any) -> Wav2Vec2Encoder:
    """The encoder that a config's `encoder` section describes. Raises UserError for widths that do not divide."""
    for key in ("heads", "pos_groups"):
        if encoder.width % encoder[key]:
            raise UserError(f"encoder.width={encoder.width} is not divisible by encoder.{key}={encoder[key]}")
    return Wav2Vec2Encoder(
        conv_layers=encoder.conv_layers,
        conv_norm=encoder.conv_norm,
        conv_bias=encoder.conv_bias,
        conv_grad_scale=encoder.conv_grad_scale,
        padding_aware=encoder.padding_aware,
        width=encoder.width,
        input_dropout=encoder.input_dropout,
        remat_frontend=encoder.remat_frontend,
        convolution=encoder.convolution,
        dtype=dtype,
        transformer=dict(
            layers=encoder.layers,
            heads=encoder.heads,
            mlp=encoder.mlp,
            pre_norm=encoder.pre_norm,
            pos_kernel=encoder.pos_kernel,
            pos_layers=encoder.pos_layers,
            pos_groups=encoder.pos_groups,
            dropout=encoder.dropout,
            attention_dropout=encoder.attention_dropout,
            mlp_dropout=encoder.mlp_dropout,
            layer_drop=encoder.layer_drop,
            attention=encoder.attention,
            positional=encoder.positional,
            stack=encoder.stack,
            remat=encoder.remat_layers,
        ),
    )


class CausalEncoder(nn.Module):
    """The trunk of CPC, wav2vec and vq-wav2vec: `local` and `context` are apart, for what stands between them."""

    conv_layers: ConvSpec
    conv_norm: str
    conv_bias: bool
    activation: str
    log_compression: bool
    padding_aware: bool
    context_net: Any
    remat_frontend: str = "none"
    convolution: str = "auto"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.frontend = ConvFrontend(
            self.conv_layers,
            self.conv_norm,
            self.conv_bias,
            self.padding_aware,
            self.remat_frontend,
            self.convolution,
            self.dtype,
            self.activation,
            kaiming=False,
        )
        self.aggregator = self.context_net.copy()

    def local(self, wave: jax.Array, num_samples: jax.Array) -> jax.Array:
        """wave [B T], num_samples [B] -> z [B F C]; with log compression ln(|z| + 1)."""
        z = self.frontend(wave, num_samples)
        return jnp.log(jnp.abs(z) + 1.0) if self.log_compression else z

    def context(self, z: jax.Array, num_samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z [B F C], or what a quantizer made of it -> (context [B F D], output of every layer [L B F D])."""
        if not isinstance(self.aggregator, ConvContext):
            return self.aggregator(z)
        frames = num_frames(num_samples, self.conv_layers)
        return self.aggregator(z, valid_frames(frames, z.shape[1]) if self.padding_aware else None)

    def __call__(self, wave: jax.Array, num_samples: jax.Array) -> Encoded:
        z = self.local(wave, num_samples)
        context, hidden = self.context(z, num_samples)
        return Encoded(z, z, context, hidden, num_frames(num_samples, self.conv_layers))


def causal_encoder(encoder: Any, dtype: Any) -> CausalEncoder:
    """The causal encoder that a config's `encoder` section describes. Raises UserError for an unknown context."""
    if encoder.context == "conv":
        law = (encoder.context_kernels, encoder.context_skip, encoder.context_zero_pad, encoder.activation)
        net: Any = ConvContext(*law, encoder.convolution, dtype)
    elif encoder.context in ("gru", "lstm"):
        net = Recurrent(encoder.context, encoder.width, encoder.layers, dtype)
    else:
        raise UserError(f"encoder.context is {encoder.context!r}; it is 'conv', 'gru' or 'lstm'")
    return CausalEncoder(
        conv_layers=encoder.conv_layers,
        conv_norm=encoder.conv_norm,
        conv_bias=encoder.conv_bias,
        activation=encoder.activation,
        log_compression=encoder.log_compression,
        padding_aware=encoder.padding_aware,
        context_net=net,
        remat_frontend=encoder.remat_frontend,
        convolution=encoder.convolution,
        dtype=dtype,
    )


class CodeEncoder(nn.Module):
    """The trunk of BERT over codes: one vector per code of the vocabulary -> Transformer, one frame per code.

    `fields` are those of `Transformer`.
    """

    vocab_size: int
    width: int
    hop: int
    fields: dict[str, Any]
    dtype: Any = jnp.float32

    def setup(self) -> None:
        init = part(nn.initializers.normal(0.02), ("vocab", "embed"))
        self.embedding = gathered(self.param("embedding", init, (self.vocab_size, self.width)), ("vocab", "embed"))
        self.transformer = Transformer(**self.fields, dtype=self.dtype)

    def __call__(self, codes, num_samples, noise=None, layer_key=None, *, collect: bool = False) -> Encoded:
        """codes [B F] ids of the vocabulary; num_samples [B] at 16 kHz; noise, layer_key and collect as above.

        A code outside the vocabulary becomes NaN: an error that is seen, not another code's vector.
        """
        known = (codes >= 0) & (codes < self.vocab_size)
        local = jnp.take(self.embedding, jnp.where(known, codes, 0), axis=0)
        local = jnp.where(known[..., None], local, jnp.nan).astype(self.dtype)
        local = nn.with_logical_constraint(local, ("batch", "frames", None))
        frames = jnp.minimum(num_samples // self.hop, codes.shape[1])
        context = self.transformer(local, frames, noise, layer_key, collect=collect)
        return Encoded(local, local, context.output, context.hidden, frames)

    def similarity(self, x: jax.Array) -> jax.Array:
        """Inner products of x [... D] with the vector of each code, float32 [... vocabulary]: the tied output."""
        return jnp.einsum("...d,vd->...v", x, self.embedding.astype(x.dtype), preferred_element_type=jnp.float32)


def code_encoder(encoder: Any, vocab_size: int, dtype: Any) -> CodeEncoder:
    """The encoder of codes that a config's `encoder` section describes. Raises UserError for what cannot be."""
    if encoder.positions not in ("learned", "conv"):
        raise UserError(f"encoder.positions is {encoder.positions!r}; it is 'learned' or 'conv'")
    for key in ("heads", "pos_groups") if encoder.positions == "conv" else ("heads",):
        if encoder.width % encoder[key]:
            raise UserError(f"encoder.width={encoder.width} is not divisible by encoder.{key}={encoder[key]}")
    same = ("layers", "heads", "mlp", "pre_norm", "positions", "max_frames", "pos_kernel", "pos_groups", "positional")
    same += ("dropout", "attention_dropout", "mlp_dropout", "layer_drop", "attention", "stack")
    fields = {key: encoder[key] for key in same} | dict(remat=encoder.remat_layers)
    return CodeEncoder(vocab_size, encoder.width, encoder.hop, fields, dtype)


class LogMelEncoder(nn.Module):
    """80 log-mel bands as local features and context: the baseline. It has no parameters."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, wave: jax.Array, num_samples: jax.Array) -> Encoded:
        """wave [B T], num_samples [B]."""
        mel = logmel.log_mel(wave).astype(self.dtype)
        return Encoded(mel, mel, mel, None, num_frames(num_samples, logmel.LAYERS))


class GivenEncoder(nn.Module):
    """Features that were extracted before, as local features and context. It has no parameters."""

    hop: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, num_samples: jax.Array) -> Encoded:
        """features [B F C], one frame per `hop` of the num_samples [B] at 16 kHz."""
        x = features.astype(self.dtype)
        return Encoded(x, x, x, None, jnp.minimum(num_samples // self.hop, x.shape[1]))


ENCODERS = {"wav2vec2": "wave", "causal": "wave", "logmel": "wave", "codes": "codes", "features": "features"}
"""Kinds of encoders, and what of a batch each reads."""


def make_encoder(encoder: Any, vocab_size: int, dtype: Any) -> Any:
    """The encoder of a config's `encoder` section with a `kind`. Raises UserError."""
    if encoder.kind not in ENCODERS:
        raise UserError(f"encoder.kind is {encoder.kind!r}; it is one of {', '.join(ENCODERS)}")
    if encoder.kind == "logmel":
        if tuple(encoder.conv_layers) != logmel.LAYERS:
            raise UserError(f"encoder.conv_layers of log-mel features is {logmel.LAYERS}; it cannot be changed")
        return LogMelEncoder(dtype)
    if encoder.kind == "features":
        return GivenEncoder(encoder.hop, dtype)
    if encoder.kind == "codes":
        return code_encoder(encoder, vocab_size, dtype)
    return wav2vec2_encoder(encoder, dtype) if encoder.kind == "wav2vec2" else causal_encoder(encoder, dtype)


def standardise(x: jax.Array, num_frames: jax.Array, masked: jax.Array | None = None) -> jax.Array:
    """Each channel of x [B F C] with zero mean and unit variance over the num_frames [B] real frames; 0 on padding.

    In float32. What is constant, or a single frame, becomes 0. masked [B F]: frames that do not count, so that what
    masking does to a few frames in training does not change the scale of the others.
    """
    valid = valid_frames(num_frames, x.shape[1])
    counted = (valid if masked is None else valid & ~masked)[..., None]
    count = jnp.maximum(counted.sum(axis=1, keepdims=True), 1).astype(jnp.float32)
    y = x.astype(jnp.float32)
    y = y - jnp.where(counted, y, 0.0).sum(axis=1, keepdims=True) / count
    variance = jnp.square(jnp.where(counted, y, 0.0)).sum(axis=1, keepdims=True) / count
    return jnp.where(valid[..., None], y * jax.lax.rsqrt(variance + 1e-5), 0.0).astype(x.dtype)
