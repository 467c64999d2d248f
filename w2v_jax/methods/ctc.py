"""Acoustic models by CTC (Graves et al. 2006) on any encoder: fine-tuned, frozen, or log-mel features.

wav2vec 2.0 recipe (Baevski et al. 2020, sections 3.3 and 4.3): a linear layer on the pretrained context network, whose
first updates train that layer alone and do without a backward pass of the encoder; time and channel masks as in
pretraining regularise (SpecAugment). wav2vec and vq-wav2vec recipe (2019, section 4.2): the encoder stays as it is and
an acoustic model reads its features. With `encoder.kind="logmel"` the same model reads log-mel features: the baseline.

Differs: the wav2vec papers train with ASG and stochastic gradient descent. Transcripts that have no alignment weigh
nothing, where the reference counts them with loss 0. There is no separator after the last word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax import losses, masking
from w2v_jax import noise as noises
from w2v_jax.acoustic import acoustic_model
from w2v_jax.acoustic import stride as acoustic_stride
from w2v_jax.api import Batch, Mean, Method, PyTree
from w2v_jax.config import UserError
from w2v_jax.encoders import ENCODERS, Encoded, make_encoder, standardise
from w2v_jax.frontend import Dense, num_frames, part, valid_frames

Loss = Callable[[PyTree], tuple[jax.Array, Any]]

INPUTS = ("context", "local", "weighted")


class Recognizer(nn.Module):
    """Params "encoder", "acoustic" (unless it is linear), "head", and "layer_weights" for the weighted sum."""

    config: Any

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.train.dtype)
        self.encoder = make_encoder(config.encoder, config.data.vocab_size, dtype)
        self.acoustic = acoustic_model(config.acoustic, dtype)
        init, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros
        self.head = Dense(config.acoustic.outputs, ("embed", None), init, zeros)
        if config.acoustic.input == "weighted":
            layers = hidden_states(config.encoder)
            self.layer_weights = self.param("layer_weights", part(nn.initializers.zeros, (None,)), (layers,))

    def encode(self, batch: Batch, noise=None, layer_key=None, *, collect: bool) -> tuple[Encoded, jax.Array | None]:
        """The encoder's record, and the frames [B F] that were masked; with noise [B] in training.

        A Transformer then has its dropouts, that of wav2vec 2.0 time and channel masks too. collect: with the hidden
        states of its layers.
        """
        encoder, masked, channels = self.config.encoder, None, None
        x = batch[ENCODERS[encoder.kind]]
        if encoder.kind in ("logmel", "features", "causal"):
            return self.encoder(x, batch["num_samples"]), None
        if encoder.kind == "codes":
            return self.encoder(x, batch["num_samples"], noise, layer_key, collect=collect), None
        if noise is not None:
            frames = num_frames(batch["num_samples"], encoder.conv_layers)
            total = num_frames(batch["wave"].shape[1], encoder.conv_layers)
            masked, channels = draw_masks(self.config.masking, noises.fold(noise, 0), frames, total, encoder.width)
        noise = None if noise is None else noises.fold(noise, 6)
        given = dict(channels=channels, collect=collect)
        return self.encoder(x, batch["num_samples"], masked, noise, layer_key, **given), masked

    def __call__(self, batch: Batch, noise=None, layer_key=None) -> tuple[jax.Array, jax.Array]:
        """(logits [B F' A] float32, num_frames' [B])."""
        draws = (None, None) if self.config.encoder.frozen else (noise, layer_key)
        encoded, masked = self.encode(batch, *draws, collect=self.config.acoustic.input == "weighted")
        return self.recognise(encoded, masked, noise, layer_key)

    def recognise(self, encoded: Encoded, masked=None, noise=None, layer_key=None):
        """As above, from what `encode` gives."""
        encoder, acoustic = self.config.encoder, self.config.acoustic
        x: Any = {"context": encoded.context, "local": encoded.local, "weighted": encoded.hidden}[acoustic.input]
        x = jax.lax.stop_gradient(x) if encoder.frozen else x
        if acoustic.input == "weighted":
            weights = jax.nn.softmax(self.layer_weights.astype(jnp.float32))
            x = jnp.einsum("l,lbfd->bfd", weights.astype(x.dtype), x)
        if acoustic.standardise:
            x = standardise(x, encoded.num_frames, masked)
        if noise is not None and (encoder.frozen or encoder.kind != "wav2vec2"):
            frames, (total, width) = encoded.num_frames, x.shape[1:]
            masked, channels = draw_masks(self.config.masking, noises.fold(noise, 0), frames, total, width)
            x = jnp.where(masked[..., None] | channels[:, None], jnp.zeros((), x.dtype), x)
        noise = None if noise is None else noises.fold(noise, 7)
        x, frames = self.acoustic(x, encoded.num_frames, noise, layer_key)
        x = noises.dropout(x, acoustic.head_dropout, None if noise is None else noises.fold(noise, 1 << 18))
        return self.head(x.astype(jnp.float32)), frames

    def features(self, batch: Batch) -> dict[str, Any]:
        """Logits with their valid frames, and the encoder's record."""
        encoded, _ = self.encode(batch, collect=True)
        logits, frames = self.recognise(encoded)
        hidden = encoded.context[None] if encoded.hidden is None else encoded.hidden
        return {
            "local": encoded.local,
            "context": encoded.context,
            "hidden": hidden,
            "valid": valid_frames(encoded.num_frames, encoded.context.shape[1]),
            "logits": logits,
            "logits_valid": valid_frames(frames, logits.shape[1]),
        }


def hidden_states(encoder: Any) -> int:
    """How many hidden states an encoder has. Raises UserError for one without."""
    if encoder.kind in ("wav2vec2", "codes"):
        return encoder.layers + 1
    if encoder.kind == "causal":
        return len(encoder.context_kernels) if encoder.context == "conv" else encoder.layers
    raise UserError(f"acoustic.input='weighted' needs an encoder with layers; encoder.kind is {encoder.kind!r}")


@jax.named_scope("draws")
def draw_masks(law: Any, noise: jax.Array, frames: jax.Array, total: int, width: int) -> tuple[jax.Array, jax.Array]:
    """(frames [B F], channels [B D]) to hide in training: spans over time, and over neighbouring channels."""
    rows = len(frames)
    time, channel = jnp.zeros((rows, total), bool), jnp.zeros((rows, width), bool)
    if law.time_prob > 0:
        spans = dict(prob=law.time_prob, length=law.time_length, min_spans=law.time_spans)
        time = masking.span_mask(noises.fold(noise, 0), frames, total, **spans)
    if law.channel_prob > 0:
        spans = dict(prob=law.channel_prob, length=law.channel_length, min_spans=0)
        channel = masking.span_mask(noises.fold(noise, 1), jnp.full(rows, width), width, **spans)
    return time, channel


def output_frames(config: Any, num_samples: Any) -> Any:
    """Frames of the logits of `num_samples` samples (an int or an array): what an alignment can use."""
    encoder = config.encoder
    wave = ENCODERS[encoder.kind] == "wave"
    frames = num_frames(num_samples, encoder.conv_layers) if wave else num_samples // encoder.hop
    return -(-frames // acoustic_stride(config.acoustic))


@jax.named_scope("loss")
def objective(logits: jax.Array, frames: jax.Array, batch: Any, *, train: bool) -> tuple[Mean, dict[str, Mean]]:
    """The summed loss of the utterances that can be aligned, and their number; and the metrics."""
    nll, possible = losses.ctc(logits, frames, batch["tokens"], batch["num_tokens"])
    used = batch["weight"] * possible
    total, count = jnp.where(used > 0, nll * used, 0.0).sum(), used.sum()
    tokens = (used * batch["num_tokens"]).sum()
    valid = valid_frames(frames, logits.shape[1]) & (used > 0)[:, None]
    blank = ((jnp.argmax(logits, axis=-1) == 0) & valid).sum()
    metrics = {
        "loss": Mean(total, tokens),
        "blank_share": Mean(blank.astype(jnp.float32), valid.sum().astype(jnp.float32)),
        "impossible_share": Mean((batch["weight"] * ~possible).sum(), batch["weight"].sum()),
    }
    if not train:
        errors = losses.token_errors(logits, frames, batch["tokens"], batch["num_tokens"])
        metrics["token_error"] = Mean((used * errors).sum(), tokens)
    return Mean(total, count), metrics


def either(condition: jax.Array, one: Loss, other: Loss) -> Loss:
    """The function `one` where the condition holds, else `other`: params -> (a number, anything else).

    The gradient of the number, and of it alone, is formed within the branch that is taken. A `cond` that JAX
    differentiates would keep what the backward passes of both need. The program holds both.
    """

    @jax.custom_vjp
    def chosen(params):
        return jax.lax.cond(condition, one, other, params)

    def forward(params):
        with_gradient = functools.partial(jax.value_and_grad, has_aux=True)
        return jax.lax.cond(condition, with_gradient(one), with_gradient(other), params)

    def backward(gradient, cotangent):
        return (jax.tree.map(lambda x: cotangent[0] * x, gradient),)

    chosen.defvjp(forward, backward)
    return chosen


def levels(config: Any) -> dict[str, float]:
    """What a useless model reaches: one that says nothing errs in every token."""
    return {"error_silent": 1.0}


def make(config: Any) -> Method:
    """The three functions of CTC for a config."""
    if config.acoustic.input not in INPUTS:
        raise UserError(f"acoustic.input is {config.acoustic.input!r}; it is one of {', '.join(INPUTS)}")
    if config.acoustic.outputs < 2:
        raise UserError(f"acoustic.outputs={config.acoustic.outputs}: a blank and at least one token are needed")
    model = Recognizer(config)

    def init(key: jax.Array, batch: Batch) -> tuple[PyTree, PyTree]:
        return model.init(key, batch)["params"], {}

    def loss(params, extra, batch, key, step, *, train):
        noise = noises.row_noise(key, batch["row"]) if train else None
        layer_key = jax.random.fold_in(key, 7) if train else None

        def whole(params):
            logits, frames = cast(Any, model.apply({"params": params}, batch, noise, layer_key))
            total, metrics = objective(logits, frames, batch, train=train)
            return total.total, (total.weight, metrics)

        def head(params):
            return whole(params | {"encoder": jax.lax.stop_gradient(params["encoder"])})

        if train and config.encoder.frozen_steps and not config.encoder.frozen and "encoder" in params:
            found = either(step >= config.encoder.frozen_steps, whole, head)(params)
        else:
            found = whole(params)
        total, (weight, metrics) = found
        return Mean(total, weight), (extra, metrics)

    def predict(params, extra, batch):
        return model.apply({"params": params}, batch, method=Recognizer.features)

    return Method(init, loss, predict)
