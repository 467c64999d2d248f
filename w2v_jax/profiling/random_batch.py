"""Batches that need no data: `bench` trains on them, and `plan` counts with them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from w2v_jax import methods
from w2v_jax.core.config import Config, changed, from_json, portable, setting, to_json, with_outputs
from w2v_jax.core.types import Method
from w2v_jax.core.units import FIRST_CODE, SAMPLE_RATE, whole_batch
from w2v_jax.profiling import flops
from w2v_jax.training.sharding import bare
from w2v_jax.training.step import initial_shapes

TOKENS = 32  # in the alphabet of random transcripts
WIDTH = 512  # of random features
LAYERS = ("attention", "Transformer layers")
"""The parts of a model (`flops.PARTS`) that LayerDrop drops."""


def with_alphabet(config: Config) -> Config:
    """The config with as many outputs as random transcripts have tokens, if its method learns transcripts."""
    return with_outputs(config, config.acoustic.outputs or TOKENS) if setting(config, "data.labels") else config


def unfrozen(config: Config) -> Config:
    """The config without first updates that leave the encoder as it is. Its updates train the encoder."""
    return changed(config, {"encoder.frozen_steps": 0}, skip_missing=True)


def random_batch(config: Config, rows: int, samples: int) -> dict[str, np.ndarray]:
    """A batch of `rows` rows of `samples` samples: noise, random codes or random features, as the config's data.

    With transcripts or random speech units where the method learns them.
    """
    rng, name = np.random.default_rng(config.seed), config.data.name
    if name == "codes":
        codes = rng.integers(FIRST_CODE, config.data.vocab_size, (rows, samples // config.encoder.hop))
        elements: np.ndarray = codes.astype(np.int32)
    elif name == "features":
        elements = rng.standard_normal((rows, samples // config.encoder.hop, WIDTH), dtype=np.float32)
    else:
        name, elements = "wave", rng.standard_normal((rows, samples), dtype=np.float32)
    batch = whole_batch(name, elements, np.full(rows, samples))
    if setting(config, "data.labels"):
        tokens = max(1, int(samples / SAMPLE_RATE * config.data.tokens_per_second / 2))
        batch["tokens"] = rng.integers(1, config.acoustic.outputs, (rows, tokens)).astype(np.int32)
        batch["num_tokens"] = np.full(rows, tokens, np.int32)
    if setting(config, "data.targets") is not None:
        length = samples // config.data.targets_hop
        sets = [rng.integers(0, clusters, (rows, length)) for clusters in config.loss.classes]
        batch["targets"] = np.stack(sets, axis=1).astype(np.int32)
    return batch


def forward_flops(config: Config, batch: dict[str, Any]) -> dict[str, float]:
    """FLOP of the loss of one batch (arrays or shapes), by part of the model. They are the same on every platform."""
    return _count_flops(config, batch, lambda loss: loss)


def step_flops(config: Config, batch: dict[str, Any]) -> dict[str, float]:
    """FLOP of the loss and its gradient, by part of the model: about three times the loss for parts that are trained.

    Layers count by the share that LayerDrop keeps on average. Rematerialisation, which computes parts twice, is not
    counted. With encoder.frozen_steps these are the FLOP of one of the first updates.
    """
    share = 1.0 - setting(config, "encoder.layer_drop")
    if setting(config, "encoder.frozen_steps"):
        config = changed(config, {"encoder.frozen_steps": 0, "encoder.frozen": True})
    counts = _count_flops(config, batch, jax.value_and_grad)
    return {part: flop * share if part in LAYERS else flop for part, flop in counts.items()}


def _count_flops(config: Config, batch: dict[str, Any], transform: Callable[[Any], Any]) -> dict[str, float]:
    """FLOP of `transform(loss)`, by part of the model."""
    # Products in half precision define their own gradients, which contain dead code.
    plain = {"train.dtype": "float32", "encoder.remat_frontend": "none", "encoder.remat_layers": "none"}
    method, key = _method(to_json(changed(portable(config), plain, skip_missing=True))), jax.random.key(0)
    params, extra = bare(initial_shapes(method, key, batch=batch))
    step = jax.ShapeDtypeStruct((), np.int32)
    loss = lambda params, extra, batch, step: method.loss(params, extra, batch, key, step, train=True)[0].total
    return flops.count(transform(loss), params, extra, batch, step)


@functools.lru_cache(maxsize=64)
def _method(config_json: str) -> Method:
    """One method for all counts of a config, so that JAX traces its parameters once."""
    return methods.load(from_json(config_json))
