"""Losses of self-supervised learning and of CTC, in float32, over masked and valid frames only.

The contrastive loss never gathers distractor vectors: one matrix of cosines per block of frames and one matrix
of how often each frame was drawn give the same value (exact for draws with replacement).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from w2v_jax.core.display import short_repr
from w2v_jax.ops import random as noises


def draw_distractors(noise: jax.Array, used: jax.Array, count: int) -> jax.Array:
    """Indices [B M N] of N distractor slots per slot: uniform over the other used slots of the same row.

    noise [B] words, used [B M] with the used slots first. With replacement, never the slot itself. Rows with
    fewer than two used slots have no distractor; they get index 0, which `distractor_counts` ignores.
    """
    num_used = used.sum(axis=1)[:, None, None]
    others = jnp.maximum(num_used - 1, 1)
    draw = jnp.floor(noises.uniform(noise, used.shape[1], count) * others).astype(jnp.int32)
    draw = jnp.minimum(draw, others - 1)
    own = jnp.arange(used.shape[1])[None, :, None]
    return jnp.where(num_used > 1, draw + (draw >= own), 0)


def draw_cross_distractors(
    noise: jax.Array, used: jax.Array, count: int, *, rows: int, other_rows: bool = False
) -> jax.Array:
    """Indices [B M N] into the rows * M slots of each unit: uniform over its used slots but the slot itself.

    `rows` is the number of rows of a unit. As in fairseq the own row is among the candidates; with `other_rows`
    it is not. Where there is no candidate a slot gets its own index, which `distractor_counts` ignores.
    """
    batch, slots = used.shape
    per_row = used.sum(axis=1).reshape(-1, rows)  # [units rows]
    ends = jnp.cumsum(per_row, axis=1)
    begins = ends - per_row
    total = jnp.repeat(ends[:, -1], rows)[:, None, None]
    first, slot = begins.reshape(batch, 1, 1), jnp.arange(slots)[None, :, None]
    hole, length = (first, per_row.reshape(batch, 1, 1)) if other_rows else (first + slot, 1)  # who may not be drawn
    others = jnp.maximum(total - length, 1)
    draw = jnp.minimum(jnp.floor(noises.uniform(noise, slots, count) * others).astype(jnp.int32), others - 1)
    draw = draw + jnp.where(draw >= hole, length, 0)
    ends, begins = (jnp.repeat(x, rows, axis=0)[:, None, None] for x in (ends, begins))  # [B 1 1 rows]
    row = jnp.minimum((draw[..., None] >= ends).sum(axis=-1), rows - 1)
    within = draw - jnp.take_along_axis(jnp.broadcast_to(begins, (*draw.shape, rows)), row[..., None], -1)[..., 0]
    own = (jnp.arange(batch) % rows)[:, None, None] * slots + slot
    return jnp.where(total > length, row * slots + within, own)


def draw_from_blocks(
    used: jax.Array, *, own: tuple[jax.Array, int], cross: tuple[jax.Array, int], rows: int
) -> jax.Array:
    """Indices [K J N + N'] into the J slots of each block: N other slots of the row, then N' slots of the unit.

    own, cross: (noise, N) of `draw_distractors`, and (noise, N') of `draw_cross_distractors`. A block is a unit of
    `rows` rows, or a row where N' is 0.
    """
    index = draw_distractors(own[0], used, own[1])
    if not cross[1]:
        return index
    batch, slots = used.shape
    row = jnp.arange(batch).reshape(-1, 1, 1) % rows
    index = jnp.concatenate([index + row * slots, draw_cross_distractors(cross[0], used, cross[1], rows=rows)], axis=-1)
    return index.reshape(-1, rows * slots, index.shape[-1])


def distractor_counts(index: jax.Array, used: jax.Array) -> jax.Array:
    """How often each slot was drawn: index [K J N] into J, used [K J] -> counts [K J J] float32.

    Draws of a slot by itself and draws of or by unused slots count 0.
    """
    size = used.shape[1]
    zeros, slot = jnp.zeros((size, size), jnp.float32), jnp.arange(size)[:, None]
    # block by block: a scatter with the number of the block among its indices would join the blocks of all devices
    counts = jax.vmap(lambda drawn: zeros.at[slot, drawn].add(1.0))(index)
    allowed = used[:, :, None] & used[:, None, :] & ~jnp.eye(size, dtype=bool)
    return jnp.where(allowed, counts, 0.0)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosines [K J I] of the rows of a [K J P] and b [K I P], in float32; 0 for zero vectors."""
    return jnp.einsum("kjp,kip->kji", unit_length(a), unit_length(b), precision="highest")


def unit_length(x: jax.Array) -> jax.Array:
    """x [... P] scaled to length 1 in float32; zero vectors stay zero with a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-16))


class Contrast(NamedTuple):
    """Per slot [K J] float32: loss in nats, and whether the positive had the highest similarity (1 or 0)."""

    loss: jax.Array
    correct: jax.Array

    __repr__ = short_repr


def contrastive(
    context: jax.Array,
    targets: jax.Array,
    codes: jax.Array,
    *,
    counts: jax.Array,
    temperature: float,
    extra: tuple[jax.Array, jax.Array] | None = None,
) -> Contrast:
    """Contrastive loss of wav2vec 2.0 (equation 3): -log softmax of the positive among its distractors.

    context, targets [K J P]: slot j of block k is its own positive. codes [K J G]: distractors with the codes of
    the positive are left out (they are the positive). counts [K J J] from `distractor_counts`. extra: vectors
    [K J X P] and codes [K J X G] of further distractors (codebook entries), each drawn once.
    A slot without any distractor has loss 0.
    """
    sims = cosine(context, targets) / temperature
    same = jnp.all(codes[:, :, None] == codes[:, None], axis=-1)
    drawn = jnp.where(same, 0.0, counts)
    positive = jnp.diagonal(sims, axis1=1, axis2=2)
    weights, logits, excluded = drawn, sims, jnp.any(same & (counts > 0), axis=-1)
    if extra is not None:
        vectors, extra_codes = extra
        more = jnp.einsum("kjp,kjxp->kjx", unit_length(context), unit_length(vectors), precision="highest")
        extra_same = jnp.all(extra_codes == codes[:, :, None], axis=-1)
        logits = jnp.concatenate([logits, more / temperature], axis=-1)
        weights = jnp.concatenate([weights, jnp.where(extra_same, 0.0, 1.0)], axis=-1)
        excluded |= jnp.any(extra_same, axis=-1)
    return weighted_info_nce(positive, logits, weights, excluded=excluded)


def weighted_info_nce(
    positive: jax.Array, logits: jax.Array, weights: jax.Array, *, excluded: jax.Array | None = None
) -> Contrast:
    """-log softmax of the positive [... J] among the distractors' logits [... J I], each as often as weights say.

    Logits of weight 0 are not there, whatever they are. Where all logits are equal the positive is not right, unless
    `excluded` [... J] says that distractors were left out because they are the positive. Without any distractor the
    loss is 0.
    """
    live = weights > 0
    highest = jnp.max(jnp.where(live, logits, -jnp.inf), axis=-1)
    lowest = jnp.min(jnp.where(live, logits, jnp.inf), axis=-1)
    peak = jax.lax.stop_gradient(jnp.maximum(positive, highest))
    spread = jnp.where(live, weights * jnp.exp(jnp.where(live, logits, 0.0) - peak[..., None]), 0.0).sum(axis=-1)
    loss = jnp.log(jnp.exp(positive - peak) + spread) + peak - positive
    flat = (highest == positive) & (lowest == positive)  # all equal: a dead model is not right
    if excluded is not None:
        flat &= ~excluded
    return Contrast(loss, ((positive >= highest) & ~flat).astype(jnp.float32))


def info_nce(logits: jax.Array) -> Contrast:
    """-log softmax of the first of logits [... 1+N] float32, in nats: the positive among N distractors."""
    return Contrast(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0], highest_first(logits))


def noise_contrastive(logits: jax.Array, negative_weight: float) -> Contrast:
    """Binary cross-entropies of logits [... 1+N] float32, summed: the first is real, the others are noise.

    -log s(x) - w * sum log s(-y), s the logistic function; wav2vec (Schneider et al. 2019, equation 2) has w = 1.
    """
    loss = jax.nn.softplus(-logits[..., 0]) + negative_weight * jax.nn.softplus(logits[..., 1:]).sum(axis=-1)
    return Contrast(loss, highest_first(logits))


def highest_first(logits: jax.Array) -> jax.Array:
    """1 where the first of logits [... 1+N] is the highest, unless all are equal: a dead model is not right."""
    positive, others = logits[..., 0], logits[..., 1:]
    flat = (others.max(axis=-1) == positive) & (others.min(axis=-1) == positive)
    return ((positive >= others.max(axis=-1)) & ~flat).astype(jnp.float32)


def future_info_nce(predictions: jax.Array, local: jax.Array, counts: jax.Array, *, scale: float) -> Contrast:
    """InfoNCE of CPC (van den Oord et al. 2018, equation 4) for each step apart: loss and correct [K J S].

    predictions [K J S C]: what slot j of block k should hold, as each step predicts it; local [K J C] what the slots
    hold; counts [K J J] from `distractor_counts`. Logits are dot products times `scale`. One step at a time, computed
    again for the gradient, so that memory holds the products of one step only.
    """

    def step(prediction: jax.Array) -> Contrast:
        logits = jnp.einsum("kjc,kic->kji", prediction, local, preferred_element_type=jnp.float32) * scale
        return weighted_info_nce(jnp.diagonal(logits, axis1=1, axis2=2), logits, counts)

    steps = jax.lax.map(jax.checkpoint(step), jnp.moveaxis(predictions, 2, 0))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), steps)


def ctc(logits: jax.Array, *, num_frames: jax.Array, tokens: jax.Array, num_tokens: jax.Array) -> tuple[Any, Any]:
    """(negative log likelihood [B] in nats, possible [B] bool) of tokens [B U] given logits [B F A]; blank is 0.

    Graves et al. 2006. Where num_frames [B] are fewer than the tokens with a blank between equal neighbours, no
    alignment exists: the loss and its gradient are then exactly 0, where optax gives a large finite one, fairseq
    0 with `zero_infinity`, and PyTorch infinity.
    """
    place = jnp.arange(tokens.shape[1])[None]
    repeats = (tokens[:, 1:] == tokens[:, :-1]) & (place[:, 1:] < num_tokens[:, None])
    possible = num_frames >= num_tokens + repeats.sum(axis=1)
    outside = (jnp.arange(logits.shape[1])[None] >= num_frames[:, None]).astype(jnp.float32)
    beyond = (place >= num_tokens[:, None]).astype(jnp.float32)
    safe = jnp.where(possible[:, None, None], logits.astype(jnp.float32), 0.0)  # before the loss: no NaN in gradients
    nll = optax.losses.ctc_loss(safe, outside, tokens, beyond)
    return jnp.where(possible, nll, 0.0), possible


def disagreement(members: jax.Array, num_frames: jax.Array) -> jax.Array:
    """How far N passes over the same audio disagree: logits [N B F A], num_frames [B] -> [B] in nats.

    KL(q || p) of each pass p and each other one q, over the valid frames; summed over p, the mean over q. The gradient
    moves p towards q, which is held fixed (Yao et al. 2024, CR-CTC, arXiv 2410.05101, section 3.1, for two passes).
    """
    log_p = jax.nn.log_softmax(members.astype(jnp.float32))
    log_q = jax.lax.stop_gradient(log_p)
    q, others = jnp.exp(log_q), len(members) - 1
    # sum over q != p of q (log q - log p); the term of q = p is 0 and has no gradient
    entropy, mean = (q * log_q).sum(axis=(0, -1)), q.sum(axis=0)
    distance = len(members) * entropy - (mean * log_p.sum(axis=0)).sum(axis=-1)  # [B F]
    valid = jnp.arange(members.shape[2])[None] < num_frames[:, None]
    return jnp.where(valid, distance, 0.0).sum(axis=-1) / others


def token_errors(logits: jax.Array, *, num_frames: jax.Array, tokens: jax.Array, num_tokens: jax.Array) -> jax.Array:
    """Edit distance [B] between tokens [B U] and the best path of logits [B F A], repeats and blanks removed.

    Levenshtein's table row by row, one row per frame that says a new token; insertions by a running minimum.
    """
    best = jnp.argmax(logits, axis=-1)
    before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)))
    says = (best != 0) & (best != before) & (jnp.arange(best.shape[1])[None] < num_frames[:, None])
    place = jnp.arange(tokens.shape[1] + 1)

    def frame(row: jax.Array, this: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        token, new = this  # [B]
        moved = row[:, :-1] + (tokens != token[:, None])
        distance = jnp.concatenate([row[:, :1] + 1, jnp.minimum(row[:, 1:] + 1, moved)], axis=1)
        distance = jax.lax.cummin(distance - place, axis=1) + place
        return jnp.where(new[:, None], distance, row), None

    first = jnp.broadcast_to(place, (len(tokens), len(place)))
    last, _ = jax.lax.scan(frame, first, (best.T, says.T))
    return jnp.take_along_axis(last, num_tokens[:, None], axis=1)[:, 0]
