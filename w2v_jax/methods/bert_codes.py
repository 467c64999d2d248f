"""BERT over the codes of vq-wav2vec (Baevski, Schneider, Auli 2020, arXiv 1910.05453, section 4).

Spans of a code stream are hidden, and a RoBERTa-style Transformer must name the hidden codes from the others. Each
frame is one id of a vocabulary of code combinations (`data/code_vocabulary.py`). With `encoder.positions="conv"` it is
the pretraining of Discrete BERT (Baevski, Auli, Mohamed 2019, arXiv 1911.03912).

A useless model does not reach ln(types) but the unigram entropy of the stream. The metric `unigram_loss` scores the
same hidden frames by how often each id occurred in the steps before; `extra` holds these counts.

Differs: no sentence marks, so that frame i of the output is frame i of the audio. Masking is that of wav2vec 2.0
(`masking.py`) with the paper's statistics: a span may not start in the last `masking.length` frames, the last frame
stays visible, and a row has at least `min_spans` spans; fairseq has none of these limits. Rows longer than the
longest bucket are cropped at a random place each epoch, where fairseq splits them.
As in fairseq, unknown codes are read and are targets like any other.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.display import short_repr
from w2v_jax.core.types import CodeBatch, Mean, Method, PyTree
from w2v_jax.core.units import CODE_MASK, CODE_UNKNOWN, FIRST_CODE
from w2v_jax.nn.encoders import code_encoder
from w2v_jax.nn.layers import Dense, LayerNorm, gelu, partitioned
from w2v_jax.ops import masking
from w2v_jax.ops import random as noises
from w2v_jax.ops.frames import valid_frames
from w2v_jax.ops.random import Stream

RIGHT, RANDOM = 0.1, 0.1
"""Shares of the masked frames whose code is left as it is, and replaced by a random one; the others are hidden."""


class Draws(NamedTuple):
    """Everything random in one pass but dropout: masked [B F] bool; slots [B M] int32 and used [B M] bool, the masked
    frames in order; codes [B F] int32, what the encoder is given."""

    masked: jax.Array
    slots: jax.Array
    used: jax.Array
    codes: jax.Array

    __repr__ = short_repr


class Head(nn.Module):
    """Context of masked frames [B M D] -> what is compared with the vectors of the codes; `bias` of each code."""

    vocab_size: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        init, zeros = nn.initializers.normal(0.02), nn.initializers.zeros
        dense = Dense(x.shape[-1], ("embed", "proj"), kernel_init=init, bias_init=zeros, dtype=self.dtype, name="dense")
        bias = self.param("bias", partitioned(zeros, ("vocab",)), (self.vocab_size,))
        return LayerNorm(dtype=self.dtype, name="norm")(gelu(dense(x))), bias


class BertCodes(nn.Module):
    """The model: params "encoder" (embedding and Transformer) and "head"."""

    config: Config

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.train.dtype)
        self.encoder = code_encoder(config, dtype)
        self.head = Head(config.data.vocab_size, dtype)

    def __call__(self, batch: CodeBatch, draws: Draws, *, noise=None, layer_key=None) -> jax.Array:
        """Logits [B M vocabulary] float32 of the masked slots; noise [B] words and layer_key as in the encoder."""
        encoded = self.encoder(draws.codes, batch["num_samples"], noise=noise, layer_key=layer_key)
        x, bias = self.head(jnp.take_along_axis(encoded.context, draws.slots[..., None], axis=1))
        logits = self.encoder.similarity(x) + bias
        return nn.with_logical_constraint(logits, ("batch", None, "vocab"))

    def features(self, batch: CodeBatch) -> dict[str, Any]:
        """The vectors of the codes, context and all hidden states, without masking or noise."""
        encoded = self.encoder(batch["codes"], batch["num_samples"], collect=True)
        return encoded.record()


def code_frames(config: Config, batch: CodeBatch) -> jax.Array:
    """Valid frames [B] of each row."""
    return jnp.minimum(batch["num_samples"] // config.encoder.hop, batch["codes"].shape[1])


@jax.named_scope("draws")
def draw(config: Config, batch: CodeBatch, key: jax.Array) -> Draws:
    """The random draws of one pass. Those of a row depend on nothing but (key, its number, its length)."""
    m, codes = config.masking, batch["codes"]
    noise, total = noises.row_noise(key, batch["row"]), codes.shape[1]
    frames = code_frames(config, batch)
    masked = masking.span_mask(
        noises.fold(noise, Stream.HIDDEN_CODES), frames, total, prob=m.prob, length=m.length, min_spans=m.min_spans
    )
    num_slots = masking.num_slots(total, prob=m.prob, length=m.length, min_spans=m.min_spans)
    slots, used = masking.masked_slots(masked, num_slots)
    used &= (batch["weight"] > 0)[:, None]
    choice = noises.uniform(noises.fold(noise, Stream.CODE_TREATMENT), total)
    types = config.data.vocab_size - FIRST_CODE
    other = (noises.uniform(noises.fold(noise, Stream.RANDOM_CODES), total) * types).astype(jnp.int32)
    other = FIRST_CODE + jnp.minimum(other, types - 1)
    given = jnp.where(choice < 1 - RIGHT - RANDOM, CODE_MASK, jnp.where(choice < 1 - RIGHT, other, codes))
    return Draws(masked, slots, used, codes=jnp.where(masked, given, codes))


@jax.named_scope("loss")
def objective(
    config: Config, batch: CodeBatch, *, draws: Draws, logits: jax.Array, counts: jax.Array
) -> tuple[Mean, dict[str, Mean]]:
    """(the summed cross-entropy of the masked frames with their number; the metrics). counts: see `first_counts`."""
    codes, used = batch["codes"], draws.used.astype(jnp.float32)
    targets = jnp.take_along_axis(codes, draws.slots, axis=1)  # [B M]
    known = (targets >= 0) & (targets < config.data.vocab_size)
    index = jnp.where(known, targets, 0)
    chosen = jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
    losses = jnp.where(known, jax.nn.logsumexp(logits, axis=-1) - chosen, jnp.nan)
    right = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    count, real = used.sum(), (batch["weight"] > 0).astype(jnp.float32)
    valid = real_code_frames(config, batch)
    total = Mean(jnp.where(draws.used, losses, 0.0).sum(), count)
    frames = valid.sum().astype(jnp.float32)
    metrics = {
        "loss": total,
        "unigram_loss": Mean((unigram(counts)[index] * used).sum(), count),
        "accuracy": Mean((right * used).sum(), count),
        "masked_share": Mean(count, frames),
        "unknown_share": Mean((valid & (codes == CODE_UNKNOWN)).sum().astype(jnp.float32), frames),
        "too_short_share": Mean((real * ~draws.used.any(axis=1)).sum(), real.sum()),
    }
    return total, metrics


def real_code_frames(config: Config, batch: CodeBatch) -> jax.Array:
    """[B F] bool: the frames that count."""
    return valid_frames(code_frames(config, batch), batch["codes"].shape[1]) & (batch["weight"] > 0)[:, None]


def unigram(counts: jax.Array) -> jax.Array:
    """-ln of the share of each id [vocabulary] among the counts, each id but PAD and MASK counted once more."""
    return jnp.log(counts.sum() + (len(counts) - CODE_UNKNOWN)) - jnp.log(counts + 1.0)


def first_counts(config: Config) -> dict[str, jax.Array]:
    """How often each id was read: "seen" in the steps before, "new" in the present step, whose number is "step".

    The two are apart so that all micro-batches of a step are scored by the same counts.
    """
    zeros = jnp.zeros(config.data.vocab_size, jnp.float32)
    return {"seen": zeros, "new": zeros, "step": jnp.zeros((), jnp.int32)}


def count_codes(
    config: Config, counts: dict[str, jax.Array], batch: CodeBatch, *, step: jax.Array
) -> dict[str, jax.Array]:
    """The counts after one more micro-batch of a step."""
    same = counts["step"] == step
    seen = jnp.where(same, counts["seen"], counts["seen"] + counts["new"])
    new = jnp.where(same, counts["new"], 0.0)
    add = real_code_frames(config, batch).astype(jnp.float32)
    new = new.at[batch["codes"]].add(add)
    return {"seen": seen, "new": new, "step": jnp.asarray(step, jnp.int32)}


def make(config: Config) -> Method:
    """BERT over codes for a config. Raises UserError for a vocabulary without codes."""
    model, encoder = BertCodes(config), code_encoder(config, jnp.dtype(config.train.dtype))
    if config.data.vocab_size <= FIRST_CODE:
        raise UserError(
            f"data.vocab_size={config.data.vocab_size}: needs {FIRST_CODE} special ids and at least one code; "
            'it is "size" in vocabulary.json'
        )

    def init(key: jax.Array, batch: CodeBatch) -> tuple[PyTree, PyTree]:
        return model.init(key, batch, draw(config, batch, key))["params"], first_counts(config)

    def loss(params, extra, batch, key, step, *, train):
        draws = draw(config, batch, key)
        noise = noises.fold(noises.row_noise(key, batch["row"]), Stream.CODE_NETWORK) if train else None
        layer_key = jax.random.fold_in(key, Stream.LAYER_DROP.number) if train else None
        logits: Any = model.apply({"params": params}, batch, draws, noise=noise, layer_key=layer_key)
        after = count_codes(config, extra, batch, step=step) if train else extra
        counts = after["seen"] if train else extra["seen"] + extra["new"]
        total, metrics = objective(config, batch, draws=draws, logits=logits, counts=counts)
        return total, (after, metrics)

    def predict(params, extra, batch):
        return model.apply({"params": params}, batch, method=BertCodes.features)

    def levels():
        types = config.data.vocab_size - FIRST_CODE  # one that only counts reaches the metric `unigram_loss`
        return {"loss_chance": math.log(types), "accuracy_chance": 1.0 / types}

    return Method(init, loss, predict, levels=levels, output_frames=encoder.frames, encoder=encoder)
