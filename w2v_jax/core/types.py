"""The types that every layer shares, and the letters of all shapes. Read this first.

    B batch   T samples (16 kHz)   F frames   C feature channels   D context width   H heads   L layers
    G code groups   V codes per group   E dims per group vector   P contrastive dims   N negatives
    S prediction offsets or label sets   M masked frames per utterance (static)   U label length
    A alphabet incl. blank   Q mel bins

`valid` is True on real frames, `masked` is True where self-supervised masking hides a frame, `num_*` is a length.
The paper's symbols: `local` is z, `context` is c, `targets` are q.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypedDict

import flax.struct
import jax
import jax.numpy as jnp

from w2v_jax.core.display import short_repr

PyTree = Any

MetricsRow = Mapping[str, Any]
"""A line of metrics.jsonl: step, split and what was measured."""

Levels = Mapping[str, float]
"""What a useless model reaches (`loss_chance`, ...): the value of `Method.levels()`."""


class Batch(TypedDict):
    """What a method is given. Rows of one unit (`units.unit_rows`) stand together.

    wave [B T] float32; num_samples [B] int32, the real samples of each row; weight [B] float32, 0 on rows
    that only fill up a batch (evaluation, unreadable files), else 1; row [B] int32, the row's number in the
    step's global batch. All randomness is a function of (key, row, position), so that sharding, accumulation
    and padding cannot change it.
    """

    wave: jax.Array
    num_samples: jax.Array
    weight: jax.Array
    row: jax.Array


class CodeBatch(TypedDict):
    """What a method that reads codes is given: codes [B F] int32, ids of a vocabulary (`data/code_vocabulary.py`).

    num_samples [B] still counts 16 kHz samples, of which each code spans `encoder.hop`; the others as in `Batch`.
    """

    codes: jax.Array
    num_samples: jax.Array
    weight: jax.Array
    row: jax.Array


class TargetBatch(Batch):
    """What a method that predicts given labels is given: targets [B S U] int32 of S label sets beside the wave.

    Label u of a row spans the samples from u * `data.targets_hop` on. Where there is none is NO_TARGET (`units.py`).
    """

    targets: jax.Array


class Mean(flax.struct.PyTreeNode):
    """A mean kept as (total, weight), so that adding micro-batches, devices or steps stays exact."""

    total: jax.Array
    weight: jax.Array

    __repr__ = short_repr

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    def value(self) -> jax.Array:
        """total / weight; 0 where nothing was counted."""
        return jnp.where(self.weight > 0, self.total / jnp.maximum(self.weight, 1e-30), 0.0)


class State(flax.struct.PyTreeNode):
    """Everything a run needs to go on. `extra` is what a method owns without a gradient (teacher, centroids)."""

    step: jax.Array
    params: PyTree
    extra: PyTree
    opt: PyTree

    __repr__ = short_repr


class Encoded(NamedTuple):
    """What every encoder returns.

    features [B F C], the raw output of the feature encoder; local [B F C], its normalised form (z); context [B F D]
    (c); hidden [L+1 B F D] (before and after each Transformer layer), [L B F D] (after each layer of a causal
    context) or None; num_frames [B], the valid frames of each row.
    """

    features: jax.Array
    local: jax.Array
    context: jax.Array
    hidden: jax.Array | None
    num_frames: jax.Array

    __repr__ = short_repr

    def record(self) -> dict[str, jax.Array]:
        """What `Method.predict` gives: local, context, hidden (without layers the context) and valid [B F] bool."""
        return {
            "local": self.local,
            "context": self.context,
            "hidden": self.context[None] if self.hidden is None else self.hidden,
            "valid": jnp.arange(self.context.shape[1])[None] < self.num_frames[:, None],
        }


class Encoder(Protocol):
    """A Linen module from a batch to `Encoded`, and what can be known of it without parameters.

    kind: the word in `encoder.kind` that builds it. reads: "wave", "codes" or "features", a key of the batch.
    hides_masked: whether `masked` and `channels` act inside; elsewhere whoever trains on top hides them in the output.
    hidden_states: how many `Encoded.hidden` holds, 0 for None. geometry: (16 kHz samples that one frame sees, samples
    between two frames). max_frames: the longest row that it can be given, None without a limit.
    """

    kind: ClassVar[str]
    reads: ClassVar[str]
    hides_masked: ClassVar[bool]

    @property
    def hidden_states(self) -> int: ...

    @property
    def geometry(self) -> tuple[int, int]: ...

    @property
    def max_frames(self) -> int | None: ...

    def frames(self, num_samples: Any) -> Any:
        """Frames of `num_samples` samples, an int or an array."""
        ...

    def __call__(
        self,
        x: Any,
        num_samples: Any,
        /,
        *,
        masked: Any = None,
        channels: Any = None,
        noise: Any = None,
        layer_key: Any = None,
        collect: bool = False,
    ) -> Encoded:
        """x: what it reads [B ...]; num_samples [B] at 16 kHz; masked [B F] frames and channels [B D] to hide, or None;
        noise [B] words and layer_key for the dropouts of training, or None; collect: with all hidden states."""
        ...


class Method(NamedTuple):
    """A learning method. Each file of `methods/` exports `make(config) -> Method`.

    init(key, batch) -> (params, extra), params boxed with logical axis names; reusable weights under "encoder".
    loss(params, extra, batch, key, step, *, train) -> (Mean, (extra, metrics)), metrics a dict of Means. The
        gradient that is applied is that of the summed `total` divided by the summed `weight`.
    predict(params, extra, batch) -> dict with `Encoded.record` and the method's own (codes, logits), without masking
        or noise.
    levels() -> what a useless model reaches (`loss_chance`, ...): drawn into the curves, watched by the watchdog.
    output_frames(num_samples) -> frames of the output of `num_samples` samples, an int or an array.
    encoder: the module under params["encoder"], unbound.
    reusable: whether another model can stand on that encoder alone.
    early: (n, loss) pairs, n rising: the loss of the updates up to the n-th, where it is not `loss`. Each is a program
        of its own. A condition inside of one would hold both, and on CPU XLA computes convolutions within it slowly.
    """

    init: Callable[..., Any]
    loss: Callable[..., Any]
    predict: Callable[..., Any]
    levels: Callable[[], Levels]
    output_frames: Callable[[Any], Any]
    encoder: Encoder
    reusable: bool = True
    early: tuple[tuple[int, Callable[..., Any]], ...] = ()
