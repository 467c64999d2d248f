"""Encoders: batch -> one record of local features, context and hidden states, the same for every method.

`Wav2Vec2Encoder` is waveform -> convolutions -> (masking) -> Transformer (Baevski et al. 2020, section 2);
`CausalEncoder` is waveform -> convolutions -> causal convolutions or a recurrent network (CPC, wav2vec, vq-wav2vec),
`CodeEncoder` codes -> Transformer. `LogMelEncoder`, `MfccEncoder` and `GivenEncoder` learn nothing.
Their parameters live under params["encoder"], so that fine-tuning, probes, extraction and conversion can reuse them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError, imported
from w2v_jax.core.config import Config, check_divides
from w2v_jax.core.types import Encoded
from w2v_jax.nn.causal_conv import ConvContext
from w2v_jax.nn.feature_encoder import ConvFrontend
from w2v_jax.nn.layers import LayerNorm, gathered, linear, partitioned, scale_gradient
from w2v_jax.nn.recurrent import Recurrent
from w2v_jax.nn.transformer import Transformer, transformer_fields
from w2v_jax.ops import logmel, mfcc
from w2v_jax.ops import random as noises
from w2v_jax.ops.frames import ConvSpec, num_frames, receptive_field, valid_frames
from w2v_jax.ops.random import Stream


class FrameEncoder(nn.Module):
    """What all encoders here share; `types.Encoder` says what each name means.

    `frame_layers` are the convolutions whose frames these are: (channels, kernel, stride) of each.
    """

    kind: ClassVar[str]
    reads: ClassVar[str]
    hides_masked: ClassVar[bool] = False

    @property
    def frame_layers(self) -> ConvSpec:
        raise NotImplementedError

    @property
    def hidden_states(self) -> int:
        return 0

    @property
    def max_frames(self) -> int | None:
        return None

    @property
    def geometry(self) -> tuple[int, int]:
        return receptive_field(self.frame_layers)

    @nn.nowrap
    def frames(self, num_samples: Any) -> Any:
        return num_frames(num_samples, self.frame_layers)


class Wav2Vec2Encoder(FrameEncoder):
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

    kind: ClassVar[str] = "wav2vec2"
    reads: ClassVar[str] = "wave"
    hides_masked: ClassVar[bool] = True

    @property
    def hidden_states(self) -> int:
        return self.transformer["layers"] + 1

    @property
    def frame_layers(self) -> ConvSpec:
        return self.conv_layers

    @nn.compact
    def __call__(self, wave, num_samples, *, masked=None, channels=None, noise=None, layer_key=None, collect=False):
        """wave [B T]. Masked frames become the learned vector; hidden channels of the Transformer's input become 0."""
        frontend = ConvFrontend(
            self.conv_layers,
            norm=self.conv_norm,
            use_bias=self.conv_bias,
            padding_aware=self.padding_aware,
            remat=self.remat_frontend,
            convolution=self.convolution,
            dtype=self.dtype,
            name="frontend",
        )
        features = scale_gradient(frontend(wave, num_samples), self.conv_grad_scale)
        valid = self.frames(num_samples)
        local = LayerNorm("conv", self.dtype, name="local_norm")(features)
        x = linear(self.width, features.shape[-1], ("conv", "embed"), dtype=self.dtype, name="projection")(local)
        x = noises.dropout(x, self.input_dropout, noises.fold(noise, Stream.NETWORK_INPUT))
        mask_vector = self.param("mask_vector", partitioned(nn.initializers.uniform(1.0), ("embed",)), (self.width,))
        if masked is not None:
            x = jnp.where(masked[..., None], mask_vector.astype(self.dtype), x)
        if channels is not None:
            x = jnp.where(channels[:, None], jnp.zeros((), x.dtype), x)
        x = nn.with_logical_constraint(x, ("batch", "frames", None))
        transformer = Transformer(**self.transformer, dtype=self.dtype, name="transformer")
        context = transformer(x, valid, noise=noise, layer_key=layer_key, collect=collect)
        return Encoded(features, local=local, context=context.output, hidden=context.hidden, num_frames=valid)


def wav2vec2_encoder(config: Config, dtype: Any) -> Wav2Vec2Encoder:
    """The encoder that a config's `encoder` section describes. Raises UserError for widths that do not divide."""
    encoder = config.encoder
    check_divides(encoder, "width", ("heads", "pos_groups"), where="encoder.")
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
        transformer=transformer_fields(encoder) | dict(remat=encoder.remat_layers),
    )


class CausalEncoder(FrameEncoder):
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

    kind: ClassVar[str] = "causal"
    reads: ClassVar[str] = "wave"

    @property
    def hidden_states(self) -> int:
        return self.context_net.hidden_states

    @property
    def frame_layers(self) -> ConvSpec:
        return self.conv_layers

    def setup(self) -> None:
        self.frontend = ConvFrontend(
            self.conv_layers,
            norm=self.conv_norm,
            use_bias=self.conv_bias,
            padding_aware=self.padding_aware,
            remat=self.remat_frontend,
            convolution=self.convolution,
            dtype=self.dtype,
            activation=self.activation,
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
        frames = self.frames(num_samples)
        return self.aggregator(z, valid_frames(frames, z.shape[1]) if self.padding_aware else None)

    def __call__(self, wave, num_samples, *, masked=None, channels=None, noise=None, layer_key=None, collect=False):
        """wave [B T]. It has no dropout; its hidden states are always there."""
        z = self.local(wave, num_samples)
        context, hidden = self.context(z, num_samples)
        return Encoded(z, local=z, context=context, hidden=hidden, num_frames=self.frames(num_samples))


def causal_encoder(config: Config, dtype: Any) -> CausalEncoder:
    """The causal encoder that a config's `encoder` section describes. Raises UserError for an unknown context."""
    encoder = config.encoder
    if encoder.context == "conv":
        net: Any = ConvContext(
            encoder.context_kernels,
            skip=encoder.context_skip,
            zero_pad=encoder.context_zero_pad,
            activation=encoder.activation,
            convolution=encoder.convolution,
            dtype=dtype,
        )
    elif encoder.context in ("gru", "lstm"):
        net = Recurrent(encoder.context, encoder.width, encoder.layers, dtype=dtype)
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


class CodeEncoder(FrameEncoder):
    """The trunk of BERT over codes: one vector per code of the vocabulary -> Transformer, one frame per code.

    `fields` are those of `Transformer`.
    """

    vocab_size: int
    width: int
    hop: int
    fields: dict[str, Any]
    dtype: Any = jnp.float32

    kind: ClassVar[str] = "codes"
    reads: ClassVar[str] = "codes"

    @property
    def hidden_states(self) -> int:
        return self.fields["layers"] + 1

    @property
    def frame_layers(self) -> ConvSpec:
        return ((0, self.hop, self.hop),)  # one frame per `hop` samples

    @property
    def max_frames(self) -> int | None:
        return self.fields["max_frames"] if self.fields["positions"] == "learned" else None

    def setup(self) -> None:
        init = partitioned(nn.initializers.normal(0.02), ("vocab", "embed"))
        self.embedding = gathered(self.param("embedding", init, (self.vocab_size, self.width)), ("vocab", "embed"))
        self.transformer = Transformer(**self.fields, dtype=self.dtype)

    def __call__(self, codes, num_samples, *, masked=None, channels=None, noise=None, layer_key=None, collect=False):
        """codes [B F], ids of the vocabulary.

        A code outside the vocabulary becomes NaN: an error that is seen, not another code's vector.
        """
        known = (codes >= 0) & (codes < self.vocab_size)
        local = jnp.take(self.embedding, jnp.where(known, codes, 0), axis=0)
        local = jnp.where(known[..., None], local, jnp.nan).astype(self.dtype)
        local = nn.with_logical_constraint(local, ("batch", "frames", None))
        frames = jnp.minimum(self.frames(num_samples), codes.shape[1])
        context = self.transformer(local, frames, noise=noise, layer_key=layer_key, collect=collect)
        return Encoded(local, local=local, context=context.output, hidden=context.hidden, num_frames=frames)

    def similarity(self, x: jax.Array) -> jax.Array:
        """Inner products of x [... D] with the vector of each code, float32 [... vocabulary]: the tied output."""
        return jnp.einsum("...d,vd->...v", x, self.embedding.astype(x.dtype), preferred_element_type=jnp.float32)


def code_encoder(config: Config, dtype: Any) -> CodeEncoder:
    """The encoder of codes that a config's `encoder` section describes. Raises UserError for what cannot be."""
    encoder = config.encoder
    if encoder.positions not in ("learned", "conv"):
        raise UserError(f"encoder.positions is {encoder.positions!r}; it is 'learned' or 'conv'")
    keys = ("heads", "pos_groups") if encoder.positions == "conv" else ("heads",)
    check_divides(encoder, "width", keys, where="encoder.")
    fields = transformer_fields(encoder) | dict(remat=encoder.remat_layers)
    return CodeEncoder(config.data.vocab_size, encoder.width, hop=encoder.hop, fields=fields, dtype=dtype)


class LogMelEncoder(FrameEncoder):
    """80 log-mel bands as local features and context: the baseline. It has no parameters."""

    dtype: Any = jnp.float32

    kind: ClassVar[str] = "logmel"
    reads: ClassVar[str] = "wave"

    @property
    def frame_layers(self) -> ConvSpec:
        return logmel.LOGMEL_LAYERS

    @nn.compact
    def __call__(self, wave, num_samples, *, masked=None, channels=None, noise=None, layer_key=None, collect=False):
        """wave [B T]."""
        mel = logmel.log_mel(wave).astype(self.dtype)
        return Encoded(mel, local=mel, context=mel, hidden=None, num_frames=self.frames(num_samples))


class MfccEncoder(FrameEncoder):
    """HuBERT's 39 MFCC as local features and context: what its first units are made of. It has no parameters."""

    dtype: Any = jnp.float32

    kind: ClassVar[str] = "mfcc"
    reads: ClassVar[str] = "wave"

    @property
    def frame_layers(self) -> ConvSpec:
        return mfcc.MFCC_LAYERS

    @nn.compact
    def __call__(self, wave, num_samples, *, masked=None, channels=None, noise=None, layer_key=None, collect=False):
        """wave [B T]."""
        cepstra = mfcc.mfcc(wave, num_samples).astype(self.dtype)
        return Encoded(cepstra, local=cepstra, context=cepstra, hidden=None, num_frames=self.frames(num_samples))


def log_mel_encoder(config: Config, dtype: Any) -> LogMelEncoder:
    """Log-mel features, whose `encoder.conv_layers` is fixed. Raises UserError for another one."""
    if tuple(config.encoder.conv_layers) != logmel.LOGMEL_LAYERS:
        raise UserError(f"encoder.conv_layers of log-mel features is {logmel.LOGMEL_LAYERS}; it cannot be changed")
    return LogMelEncoder(dtype)


class GivenEncoder(FrameEncoder):
    """Features that were extracted before, as local features and context. It has no parameters."""

    hop: int
    dtype: Any = jnp.float32

    kind: ClassVar[str] = "features"
    reads: ClassVar[str] = "features"

    @property
    def frame_layers(self) -> ConvSpec:
        return ((0, self.hop, self.hop),)  # one frame per `hop` samples

    @nn.compact
    def __call__(self, features, num_samples, *, masked=None, channels=None, noise=None, layer_key=None, collect=False):
        """features [B F C], one frame per `hop` of the num_samples [B] at 16 kHz."""
        x = features.astype(self.dtype)
        return Encoded(x, local=x, context=x, hidden=None, num_frames=jnp.minimum(self.frames(num_samples), x.shape[1]))


def given_encoder(config: Config, dtype: Any) -> GivenEncoder:
    """Extracted features, one frame per `encoder.hop` samples."""
    return GivenEncoder(config.encoder.hop, dtype)


BUILDERS = {"wav2vec2": wav2vec2_encoder, "causal": causal_encoder, "codes": code_encoder}
BUILDERS |= {"logmel": log_mel_encoder, "features": given_encoder}
"""The words of `encoder.kind`. Another one is the path of a module with `make_encoder(config, dtype)`."""


def make_encoder(config: Config, dtype: Any) -> Any:
    """The encoder (`types.Encoder`) that `encoder.kind` names: one of BUILDERS, or that of an importable module.

    Raises UserError for a word that is neither, and for a module that cannot be imported or has no `make_encoder`.
    """
    kind = config.encoder.kind
    if kind in BUILDERS:
        return BUILDERS[kind](config, dtype)
    if "." not in kind:
        raise UserError(f"encoder.kind is {kind!r}; it is one of {', '.join(BUILDERS)}, or the path of a module")
    return imported(kind, "encoder.kind", "make_encoder")(config, dtype)


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
