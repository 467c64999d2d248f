"""Acoustic models by CTC (Graves et al. 2006) on any encoder: fine-tuned, frozen, or log-mel features.

wav2vec 2.0 recipe (Baevski et al. 2020, sections 3.3 and 4.3): a linear layer on the pretrained context network, whose
first updates train that layer alone, without a backward pass of the encoder; time and channel masks regularise, as in
SpecAugment. wav2vec and vq-wav2vec recipe (2019, section 4.2): the encoder stays as it is and
an acoustic model reads its features. With `encoder.kind="logmel"` the same model reads log-mel features: the baseline.
With `acoustic.members` several acoustic models learn side by side, and their mean probability is the output. With
`acoustic.consistency` they must agree, or one with itself under other dropout and masks (CR-CTC, Yao et al. 2024).

Differs: the wav2vec papers train with ASG and stochastic gradient descent. Transcripts that have no alignment weigh
nothing, where fairseq counts them with loss 0. There is no separator after the last word.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config, setting
from w2v_jax.core.types import Batch, Encoded, Mean, Method, PyTree
from w2v_jax.nn.acoustic_model import acoustic_model
from w2v_jax.nn.acoustic_model import stride as acoustic_stride
from w2v_jax.nn.conditional import either
from w2v_jax.nn.encoders import make_encoder, standardise
from w2v_jax.nn.layers import Dense, partitioned
from w2v_jax.ops import losses, masking
from w2v_jax.ops import random as noises
from w2v_jax.ops.frames import valid_frames
from w2v_jax.ops.random import Stream

INPUTS = ("context", "local", "weighted")


class Member(nn.Module):
    """One more acoustic model with its last layer, beside those of `CTCModel`."""

    config: Config

    def setup(self) -> None:
        self.acoustic, self.head = acoustic_part(self.config)

    def __call__(self, x, num_frames, *, noise, layer_key) -> tuple[jax.Array, jax.Array]:
        return token_logits(self, x, num_frames, noise=noise, layer_key=layer_key)


def acoustic_part(config: Config) -> tuple[nn.Module, nn.Module]:
    """(the acoustic model, the last layer)."""
    # Near zero: CTC would align to large random logits, and a model could then only learn its utterances by heart.
    init, zeros = nn.initializers.variance_scaling(1e-4, "fan_avg", "uniform"), nn.initializers.zeros
    head = Dense(config.acoustic.outputs, ("embed", None), kernel_init=init, bias_init=zeros)
    return acoustic_model(config.acoustic, jnp.dtype(config.train.dtype)), head


def token_logits(model: Any, x: jax.Array, num_frames: jax.Array, *, noise, layer_key) -> tuple[jax.Array, jax.Array]:
    """(logits [B F' A] float32, num_frames' [B]) of a model with an acoustic part, for features x [B F D]."""
    noise = noises.fold(noise, Stream.ACOUSTIC_MODEL)
    x, frames = model.acoustic(x, num_frames, noise=noise, layer_key=layer_key)
    x = noises.dropout(x, model.config.acoustic.head_dropout, noises.fold(noise, Stream.NETWORK_OUTPUT))
    return model.head(x.astype(jnp.float32)), frames


class CTCModel(nn.Module):
    """Params "encoder", "acoustic" (unless it is linear), "head", and "layer_weights" for the weighted sum.

    With acoustic.members above 1 also "others_0", ...: acoustic models with their last layers, on the same encoder.
    """

    config: Config

    def setup(self) -> None:
        config = self.config
        self.encoder = make_encoder(config, jnp.dtype(config.train.dtype))
        self.acoustic, self.head = acoustic_part(config)
        self.others = [Member(config) for _ in range(config.acoustic.members - 1)]
        if config.acoustic.input == "weighted":
            layers = self.encoder.hidden_states
            if not layers:
                kind = config.encoder.kind
                raise UserError(f"acoustic.input='weighted' needs an encoder with layers; encoder.kind is {kind!r}")
            self.layer_weights = self.param("layer_weights", partitioned(nn.initializers.zeros, (None,)), (layers,))

    def encode(self, batch: Batch, noise=None, layer_key=None, *, collect: bool) -> tuple[Encoded, jax.Array | None]:
        """(the encoder's record, the frames [B F] that were masked in it or None).

        noise [B] words switch on dropout and, in an encoder that hides frames itself, time and channel masks. collect:
        also return the hidden states of all layers.
        """
        encoder, masked, channels = self.encoder, None, None
        x, num_samples = batch[encoder.reads], batch["num_samples"]
        if noise is not None and encoder.hides_masked:
            width, total = self.config.encoder.width, encoder.frames(x.shape[1])
            frames = encoder.frames(num_samples)
            words = noises.fold(noise, Stream.SPEC_AUGMENT)
            masked, channels = draw_spec_augment(self.config.masking, words, frames, total=total, width=width)
            noise = noises.fold(noise, Stream.FINE_TUNED_ENCODER)
        encoded = encoder(
            x, num_samples, masked=masked, channels=channels, noise=noise, layer_key=layer_key, collect=collect
        )
        return encoded, masked

    def __call__(self, batch: Batch, noise=None, layer_key=None) -> tuple[jax.Array, jax.Array]:
        """(logits [N B F' A] float32 of the N members, num_frames' [B])."""
        draws = (None, None) if self.config.encoder.frozen else (noise, layer_key)
        encoded, masked = self.encode(batch, *draws, collect=self.config.acoustic.input == "weighted")
        return self.recognise(encoded, masked, noise, layer_key=layer_key)

    def recognise(self, encoded: Encoded, masked=None, noise=None, *, layer_key=None):
        """(logits [N B F' A] float32 of the N members, num_frames' [B]) from what `encode` returns.

        Each member has masks and dropout of its own.
        """
        encoder, acoustic = self.config.encoder, self.config.acoustic
        x: Any = {"context": encoded.context, "local": encoded.local, "weighted": encoded.hidden}[acoustic.input]
        x = jax.lax.stop_gradient(x) if encoder.frozen else x
        if acoustic.input == "weighted":
            weights = jax.nn.softmax(self.layer_weights.astype(jnp.float32))
            x = jnp.einsum("l,lbfd->bfd", weights.astype(x.dtype), x)
        if acoustic.standardise:
            x = standardise(x, encoded.num_frames, masked)
        hides = encoder.frozen or not self.encoder.hides_masked
        first = functools.partial(token_logits, self)
        outputs = []
        for number, member in enumerate((first, *self.others)):
            own = other_pass(noise, number)
            seen = self.hidden(x, encoded.num_frames, own) if hides and own is not None else x
            outputs.append(member(seen, encoded.num_frames, noise=own, layer_key=layer_key))
        return jnp.stack([logits for logits, _ in outputs]), outputs[0][1]

    def hidden(self, x: jax.Array, num_frames: jax.Array, noise: jax.Array) -> jax.Array:
        """Features [B F D] with zeros where SpecAugment hides them."""
        words, (total, width) = noises.fold(noise, Stream.SPEC_AUGMENT), x.shape[1:]
        masked, channels = draw_spec_augment(self.config.masking, words, num_frames, total=total, width=width)
        return jnp.where(masked[..., None] | channels[:, None], jnp.zeros((), x.dtype), x)

    def features(self, batch: Batch) -> dict[str, Any]:
        """Logits with their valid frames, and the encoder's record."""
        encoded, _ = self.encode(batch, collect=True)
        members, frames = self.recognise(encoded)
        logits = joined(members)
        return encoded.record() | {"logits": logits, "logits_valid": valid_frames(frames, logits.shape[1])}


def other_pass(noise: jax.Array | None, number: int) -> jax.Array | None:
    """The words [B] of a pass over the same rows. Those of pass 0 are the noise itself."""
    return noises.fold(noises.fold(noise, Stream.OTHER_PASS), number) if number else noise


def joined(members: jax.Array) -> jax.Array:
    """The logits [B F A] of members [N B F A]: those of one, or the logarithm of the mean probability of several."""
    return members[0] if len(members) == 1 else jax.nn.logsumexp(jax.nn.log_softmax(members), axis=0)


@jax.named_scope("draws")
def draw_spec_augment(
    settings: Config, noise: jax.Array, frames: jax.Array, *, total: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """(frames [B F], channels [B D]) to hide in training: spans over time, and over neighbouring channels."""
    rows = len(frames)
    time, channel = jnp.zeros((rows, total), bool), jnp.zeros((rows, width), bool)
    if settings.time_prob > 0:
        words, min_spans = noises.fold(noise, Stream.TIME_SPANS), settings.time_spans
        time = masking.span_mask(
            words, frames, total, prob=settings.time_prob, length=settings.time_length, min_spans=min_spans
        )
    if settings.channel_prob > 0:
        words, every = noises.fold(noise, Stream.CHANNEL_SPANS), jnp.full(rows, width)
        channel = masking.span_mask(
            words, every, width, prob=settings.channel_prob, length=settings.channel_length, min_spans=0
        )
    return time, channel


@jax.named_scope("loss")
def objective(logits: jax.Array, frames: jax.Array, batch: Any, *, train: bool) -> tuple[Mean, dict[str, Mean]]:
    """(the summed loss of the utterances that can be aligned, with their number; the metrics)."""
    nll, possible = losses.ctc(logits, num_frames=frames, tokens=batch["tokens"], num_tokens=batch["num_tokens"])
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
        errors = losses.token_errors(logits, num_frames=frames, tokens=batch["tokens"], num_tokens=batch["num_tokens"])
        metrics["token_error"] = Mean((used * errors).sum(), tokens)
    return Mean(total, count), metrics


def mean_objective(members: jax.Array, frames: jax.Array, batch: Any, *, train: bool) -> tuple[Mean, dict[str, Mean]]:
    """`objective` of logits [N B F A], summed over the N."""
    parts = [objective(logits, frames, batch, train=train) for logits in members]
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)


def make(config: Config) -> Method:
    """CTC for a config. Raises UserError for an input that no encoder gives."""
    if config.acoustic.input not in INPUTS:
        raise UserError(f"acoustic.input is {config.acoustic.input!r}; it is one of {', '.join(INPUTS)}")
    weight = config.acoustic.consistency
    model, encoder = CTCModel(config), make_encoder(config, jnp.dtype(config.train.dtype))

    def init(key: jax.Array, batch: Batch) -> tuple[PyTree, PyTree]:
        if config.acoustic.outputs < 2:
            raise UserError(f"acoustic.outputs={config.acoustic.outputs}: a blank and at least one token are needed")
        return model.init(key, batch)["params"], {}

    def loss(params, extra, batch, key, step, *, train, noisy=True):
        noise = noises.row_noise(key, batch["row"]) if train and noisy else None
        layer_key = jax.random.fold_in(key, Stream.LAYER_DROP.number) if train and noisy else None

        def whole(params):
            run = lambda noise: cast(Any, model.apply({"params": params}, batch, noise, layer_key))
            members, frames = run(noise)
            if not train:
                members = joined(members)[None]
            elif weight > 0 and len(members) == 1 and noise is not None:
                members = jnp.concatenate([members, run(other_pass(noise, 1))[0]])
            total, metrics = mean_objective(members, frames, batch, train=train)
            if weight > 0 and len(members) > 1:
                apart = (losses.disagreement(members, frames) * batch["weight"]).sum()
                metrics["disagreement"] = Mean(apart, metrics["loss"].weight)
                total = Mean(total.total + weight * apart, total.weight)
            return total.total, (total.weight, metrics)

        def head(params):
            return whole(params | {"encoder": jax.lax.stop_gradient(params["encoder"])})

        if train and config.encoder.frozen_steps and not config.encoder.frozen and "encoder" in params:
            outputs = either(step >= config.encoder.frozen_steps, whole, head)(params)
        else:
            outputs = whole(params)
        total, (count, metrics) = outputs
        return Mean(total, count), (extra, metrics)

    def predict(params, extra, batch):
        return model.apply({"params": params}, batch, method=CTCModel.features)

    def levels():
        return {"error_silent": 1.0}  # one that says nothing errs in every token

    def output_frames(num_samples):
        return -(-encoder.frames(num_samples) // acoustic_stride(config.acoustic))

    clean = setting(config, "acoustic.clean_steps")
    early = ((clean, functools.partial(loss, noisy=False)),) if clean else ()
    return Method(init, loss, predict, levels=levels, output_frames=output_frames, encoder=encoder, early=early)
