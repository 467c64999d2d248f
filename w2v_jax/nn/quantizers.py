"""Vector quantizers: continuous frames -> discrete codes and their vectors.

`GumbelQuantizer` is the product quantizer of vq-wav2vec (Baevski et al. 2020a, section 3.1) and wav2vec 2.0
(2020b, section 2): G groups of V codes; straight-through, so that the forward value is a code and the gradient
that of the soft sample. `KMeansQuantizer` is the other one of vq-wav2vec (2020a, section 3.2): the nearest code.
Logits, distances, softmax and perplexities are float32.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.types import Mean
from w2v_jax.nn.layers import Dense, UtteranceNorm, activate, gathered, linear, partitioned, symmetric_uniform
from w2v_jax.ops import random as noises

stop_gradient = jax.lax.stop_gradient


class Quantized(NamedTuple):
    """vectors [B M G*E] of the chosen codes [B M G]; codes [B M G], the choice without noise.

    Gumbel has logits [B M G V]. K-means has inputs [B M G*E], what was compared with the codes, and entries
    [B M G*E], the vectors of the codes with a gradient to the codebook.
    """

    vectors: jax.Array
    chosen: jax.Array
    codes: jax.Array
    logits: Any = None
    inputs: Any = None
    entries: Any = None

    __repr__ = short_repr


def temperature(step: jax.Array, schedule: tuple[float, float, float]) -> jax.Array:
    """max(start * decay ** step, end) of a schedule (start, end, decay), where step counts optimizer updates.

    The logarithm is taken in double precision: 0.999995 rounded to float32 would be off by 0.4 % after 600k updates.
    """
    start, end, decay = schedule
    return jnp.maximum(start * jnp.exp(math.log(decay) * step.astype(jnp.float32)), end)


def group_width(dim: int, groups: int) -> int:
    """E, the width of a group's vector. Raises UserError when the groups do not divide dim = G * E."""
    if dim % groups:
        raise UserError(f"quantizer.dim {dim} is not divisible by {groups} groups")
    return dim // groups


class GumbelQuantizer(nn.Module):
    """groups G, codes V per group, dim = G * E, the width of the concatenated code vectors.

    With `inputs`, the width of x, a layer of twice that width and `activation` stand before the logits (depth 2 of
    fairseq). `shared` is one codebook for all groups.
    """

    groups: int
    codes: int
    dim: int
    dtype: Any = jnp.float32
    inputs: int = 0
    activation: str = "gelu"
    shared: bool = False

    def setup(self) -> None:
        width = group_width(self.dim, self.groups)
        # N(0, 1) weights on layer-normed input make each frame's softmax nearly one-hot from the start, which
        # keeps codes alive; small weights average to a uniform softmax (fairseq gumbel_vector_quantizer). With a
        # hidden layer fairseq leaves PyTorch's defaults.
        init, bias = nn.initializers.normal(1.0), nn.initializers.zeros
        if self.inputs:
            self.hidden = linear(2 * self.inputs, self.inputs, ("conv", None), dtype=jnp.float32)
            init = bias = symmetric_uniform(1.0 / math.sqrt(2 * self.inputs))
        self.weight_proj = Dense(self.groups * self.codes, ("conv", "codes"), kernel_init=init, bias_init=bias)
        book = partitioned(nn.initializers.uniform(1.0), ("groups", "codes", "proj"))
        codebook = self.param("codebook", book, (1 if self.shared else self.groups, self.codes, width))
        self.codebook = gathered(codebook, ("groups", "codes", "proj"))

    def __call__(self, x: jax.Array, temperature: jax.Array, gumbel: jax.Array | None) -> Quantized:
        """x [B M C]; gumbel [B M G V] standard Gumbel noise for a sample at the temperature, None for the arg-max."""
        x = x.astype(jnp.float32)
        if self.inputs:
            x = activate(self.hidden(x), self.activation)
        logits = self.weight_proj(x).reshape(*x.shape[:-1], self.groups, self.codes)
        codes = jnp.argmax(logits, axis=-1)
        if gumbel is None:
            return Quantized(self.lookup(codes), chosen=codes, codes=codes, logits=logits)
        soft = jax.nn.softmax((logits + gumbel) / temperature, axis=-1)
        chosen = jnp.argmax(soft, axis=-1)
        hard = jax.nn.one_hot(chosen, self.codes, dtype=jnp.float32)
        sample = hard + (soft - jax.lax.stop_gradient(soft))  # the bracket is exactly 0 forward
        book = jnp.broadcast_to(self.codebook, (self.groups, *self.codebook.shape[1:]))
        vectors = jnp.einsum("bmgv,gve->bmge", sample, book)
        return Quantized(
            vectors.reshape(*x.shape[:-1], self.dim).astype(self.dtype), chosen=chosen, codes=codes, logits=logits
        )

    def lookup(self, codes: jax.Array) -> jax.Array:
        """The concatenated vectors [... G*E] of codes [... G]."""
        return look_up(self.codebook, codes).astype(self.dtype)


class KMeansQuantizer(nn.Module):
    """The nearest of V codes in each of G groups, after a grouped projection and a norm; dim = G * E.

    `shared` is one codebook for all groups. The vectors are the codes', their gradient goes to the inputs as if they
    were the inputs (straight-through); the codes learn from `commitment` alone.
    """

    groups: int
    codes: int
    dim: int
    dtype: Any = jnp.float32
    shared: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array | None, moved: jax.Array | None = None) -> Quantized:
        """x [B F C]; valid [B F] keeps padding out of the norm; moved [G V E] is added to the codebook (`restart`)."""
        width, groups = group_width(self.dim, self.groups), self.groups
        fan_in = group_width(x.shape[-1], groups)
        init = partitioned(symmetric_uniform(1.0 / math.sqrt(fan_in)), ("groups", None, "proj"))
        kernel = self.param("projection", init, (groups, fan_in, width))
        book = partitioned(nn.initializers.normal(0.01), ("groups", "codes", "proj"))
        codebook = self.param("codebook", book, (1 if self.shared else groups, self.codes, width))
        kernel, codebook = (gathered(x, ("groups", None, "proj")) for x in (kernel, codebook))
        codebook = codebook if moved is None else codebook + moved
        y = jnp.einsum(
            "bfgc,gce->bfge", x.astype(jnp.float32).reshape(*x.shape[:2], groups, -1), kernel, precision="highest"
        )
        y = UtteranceNorm(jnp.float32, groups, name="norm")(y.reshape(*x.shape[:2], -1), valid)
        codes = jnp.argmin(
            distances(stop_gradient(y).reshape(*x.shape[:2], groups, width), stop_gradient(codebook)), axis=-1
        )
        entries = look_up(codebook, codes)
        vectors = stop_gradient(entries) + (y - stop_gradient(y))  # the bracket is exactly 0 forward
        return Quantized(vectors.astype(self.dtype), codes, codes, inputs=y, entries=entries)


def look_up(codebook: jax.Array, codes: jax.Array) -> jax.Array:
    """The concatenated vectors [... G*E] of codes [... G] in a codebook [G V E], or [1 V E] for all groups."""
    groups = codes.shape[-1]
    vectors = [codebook[g % len(codebook)][codes[..., g]] for g in range(groups)]
    return jnp.concatenate(vectors, axis=-1)


def distances(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """Squared distances [B F G V], less |x|^2, of x [B F G E] to a codebook [G V E] or [1 V E], in float32.

    |x - e|^2 = |x|^2 - 2 x e + |e|^2, so that no [V B F G E] tensor is made.
    """
    book = jnp.broadcast_to(codebook, (x.shape[2], *codebook.shape[1:]))
    return jnp.sum(book * book, axis=-1) - 2.0 * jnp.einsum("bfge,gve->bfgv", x, book, precision="highest")


def commitment(quantized: Quantized, valid: jax.Array, gamma: float) -> jax.Array:
    """Per row [B]: mean of (e - sg(x))^2 + gamma (x - sg(e))^2 over its valid frames, x the inputs, e their codes.

    sg stops the gradient (vq-wav2vec, equation 3, with means instead of sums, as in fairseq).
    """
    x, e = quantized.inputs, quantized.entries
    square = jnp.square(e - stop_gradient(x)) + gamma * jnp.square(x - stop_gradient(e))
    count = jnp.maximum(valid.sum(axis=1), 1)
    return jnp.where(valid, square.mean(axis=-1), 0.0).sum(axis=1) / count


def first_life(groups: int, codes: int, width: int) -> dict[str, jax.Array]:
    """The state of `revive` before the first step: how far codes were moved [G V E], and how often they are used."""
    return {"moved": jnp.zeros((groups, codes, width)), "usage": jnp.full((groups, codes), 1.0 / codes)}


def revive(
    life: dict[str, jax.Array],
    quantized: Quantized,
    codebook: jax.Array,
    *,
    valid: jax.Array,
    noise: jax.Array,
    step: jax.Array,
    threshold: float,
    iterations: int,
) -> dict[str, jax.Array]:
    """Moves the codes of k-means that nobody uses onto frames of the batch; the new state holds from the next step.

    A code is dead when its running share of the frames is below `threshold` / V (0: never). At step 0 with
    `iterations` all codes become the centres of so many rounds of k-means over the batch. The codebook [G V E] of
    the parameters stays as it is: what is added to it is state without a gradient. valid [B F], noise [B].
    """
    groups, size, width = codebook.shape
    x = stop_gradient(quantized.inputs).reshape(-1, quantized.codes.shape[-1], width)  # [frames G E]
    weight, chosen = valid.reshape(-1), quantized.codes.reshape(len(x), -1)
    score = jnp.where(valid, noises.uniform(noise, valid.shape[1]), -1.0).reshape(-1)
    best, order = jax.lax.top_k(score, min(size, len(score)))
    place = jnp.arange(size) % len(order)
    spare, is_spare = x[order[place]], (best[place] >= 0)[:, None]  # [V G E]: as many frames as there are codes
    if groups == 1:  # one codebook for all groups: their frames in turn
        spare = jnp.take_along_axis(spare, (jnp.arange(size) % spare.shape[1])[:, None, None], axis=1)
        x, weight, chosen = x.reshape(-1, 1, width), jnp.repeat(weight, x.shape[1]), chosen.reshape(-1, 1)
    spare = spare.swapaxes(0, 1)  # [G V E]
    hits = (jax.nn.one_hot(chosen, size) * weight[:, None, None]).sum(axis=0)
    usage = 0.99 * life["usage"] + 0.01 * hits / jnp.maximum(hits.sum(axis=-1, keepdims=True), 1.0)
    dead = (usage < threshold / size) & is_spare[:, 0]
    moved = jnp.where(dead[..., None], spare - codebook, life["moved"])
    new = {"moved": moved, "usage": jnp.where(dead, 1.0 / size, usage)}
    if not iterations:
        return new
    start = jnp.where(is_spare, spare, codebook)
    begun = lambda: {"moved": k_means(x, weight, start, iterations=iterations) - codebook, "usage": life["usage"]}
    return jax.lax.cond(step == 0, begun, lambda: new)


def k_means(x: jax.Array, weight: jax.Array, centres: jax.Array, *, iterations: int) -> jax.Array:
    """Lloyd's rounds over x [N G E] with weight [N] from centres [G V E]; a centre without points stays."""

    def one(_, centres):
        near = jax.nn.one_hot(jnp.argmin(distances(x[None], centres)[0], axis=-1), centres.shape[1])
        near = near * weight[:, None, None]  # [N G V]
        sums = jnp.einsum("ngv,nge->gve", near, x, precision="highest")
        count = near.sum(axis=0)[..., None]
        return jnp.where(count > 0, sums / jnp.maximum(count, 1.0), centres)

    return jax.lax.fori_loop(0, iterations, one, centres)


def perplexity(probs: jax.Array) -> jax.Array:
    """Sum over groups of exp(entropy): probs [... G V] -> [...]; from G (collapse) to G * V (uniform)."""
    return jnp.sum(jnp.exp(-jnp.sum(probs * jnp.log(probs + 1e-7), axis=-1)), axis=-1)


def code_perplexity(codes: jax.Array, used: jax.Array, units: int, *, size: int) -> jax.Array:
    """Perplexity [units] of the codes [B M G] that each unit chose in its used frames [B M]; size is V."""
    return _unit_perplexity(jax.nn.one_hot(codes, size), used, units)


def prob_perplexity(logits: jax.Array, used: jax.Array, units: int) -> jax.Array:
    """Perplexity [units] of the mean softmax of the logits [B M G V], without noise or temperature."""
    return _unit_perplexity(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), used, units)


def code_usage(codes: jax.Array, used: jax.Array, *, size: int) -> Mean:
    """How often each code occurs [G V], of the codes [B M G] in the used frames [B M]: counts, and their sum per group.

    A metric of evaluations: it is an array, which the loop keeps in usage.jsonl.
    """
    counts = (jax.nn.one_hot(codes, size) * used[..., None, None].astype(jnp.float32)).sum(axis=(0, 1))
    return Mean(counts, used.sum().astype(jnp.float32))


def _unit_perplexity(probabilities: jax.Array, used: jax.Array, units: int) -> jax.Array:
    """Of the mean over the used frames [B M] of each unit; probabilities [B M G V]."""
    weight = used.astype(jnp.float32).reshape(units, -1, 1, 1)  # [units R*M 1 1]
    total = (probabilities.reshape(units, -1, *probabilities.shape[2:]) * weight).sum(axis=1)
    return perplexity(total / jnp.maximum(weight.sum(axis=1), 1.0))
