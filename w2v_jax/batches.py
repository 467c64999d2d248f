"""Batches that need no data: what `bench` trains on and `plan` counts by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from w2v_jax.config import FIRST_CODE, SAMPLE_RATE, portable, with_outputs

TOKENS = 32  # of the alphabet that random transcripts are made of
WIDTH = 512  # of random features
LAYERS = ("attention", "Transformer layers")
"""The parts of a model (`flops.PARTS`) that LayerDrop drops."""


def with_alphabet(config: Any) -> Any:
    """The config with as many outputs as random transcripts have tokens, where it has outputs at all."""
    return with_outputs(config, config.acoustic.outputs or TOKENS) if "acoustic" in config else config


def thawed(config: Any) -> Any:
    """The config without first updates that leave the encoder as it is: what an update costs that trains it."""
    if not config.encoder.get("frozen_steps", 0):
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.encoder.frozen_steps = 0
    return config


def random_batch(config: Any, rows: int, samples: int) -> dict[str, np.ndarray]:
    """`rows` rows of noise, random codes or random features as the config's data are, with transcripts for CTC."""
    rng, name = np.random.default_rng(config.seed), config.data.name
    if name == "codes":
        codes = rng.integers(FIRST_CODE, config.data.vocab_size, (rows, samples // config.encoder.hop))
        batch: dict[str, np.ndarray] = {"codes": codes.astype(np.int32)}
    elif name == "features":
        batch = {"features": rng.standard_normal((rows, samples // config.encoder.hop, WIDTH), dtype=np.float32)}
    else:
        batch = {"wave": rng.standard_normal((rows, samples), dtype=np.float32)}
    batch |= dict(num_samples=np.full(rows, samples, np.int32), weight=np.ones(rows, np.float32))
    batch |= dict(row=np.arange(rows, dtype=np.int32))
    if "acoustic" in config:
        most = max(1, int(samples / SAMPLE_RATE * config.data.tokens_per_second / 2))
        batch["tokens"] = rng.integers(1, config.acoustic.outputs, (rows, most)).astype(np.int32)
        batch["num_tokens"] = np.full(rows, most, np.int32)
    return batch


def forward_flops(config: Any, batch: dict[str, Any]) -> dict[str, float]:
    """FLOP of the loss of one batch (arrays or shapes), by part of the model, whatever kernels the platform takes."""
    return _counted(config, batch, lambda loss: loss)


def step_flops(config: Any, batch: dict[str, Any]) -> dict[str, float]:
    """FLOP of the loss and its gradient: about three times the loss, but where nothing is trained.

    In the mean of LayerDrop, whose layers are not computed, and without what the config's rematerialisation computes
    twice. With encoder.frozen_steps, of the first updates.
    """
    import jax

    kept = 1.0 - config.encoder.get("layer_drop", 0.0)
    if config.encoder.get("frozen_steps", 0):
        config = thawed(config)
        with config.unlocked():
            config.encoder.frozen = True
    found = _counted(config, batch, jax.value_and_grad)
    return {part: flop * kept if part in LAYERS else flop for part, flop in found.items()}


def _counted(config: Any, batch: dict[str, Any], of: Callable[[Any], Any]) -> dict[str, float]:
    import jax

    from w2v_jax import flops, sharding
    from w2v_jax.runs import method_module
    from w2v_jax.step import zeros_like

    plain = portable(config)
    with plain.unlocked():
        plain.train.dtype = "float32"  # products in half precision have gradients of their own, with dead code in them
        kept = dict(remat_frontend="none", remat_layers="none")
        plain.encoder.update({key: value for key, value in kept.items() if key in plain.encoder})
    method, key = method_module(config.method).make(plain), jax.random.key(0)
    params, extra = sharding.bare(jax.eval_shape(lambda: method.init(key, zeros_like(batch))))
    step = jax.ShapeDtypeStruct((), np.int32)
    loss = lambda params, extra, batch, step: method.loss(params, extra, batch, key, step, train=True)[0].total
    return flops.count(of(loss), params, extra, batch, step)
