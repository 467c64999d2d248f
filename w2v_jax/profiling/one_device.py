"""An update of a config on the first device, compiled and ready to be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from w2v_jax.core.config import Config
from w2v_jax.profiling.estimate import AUTO, compile_update
from w2v_jax.training import sharding


class ReadyUpdate(NamedTuple):
    """run() does a whole update, waits for it, and returns the loss in nats per prediction. program: as XLA made it."""

    run: Callable[[], float]
    parameters: int
    compile_seconds: float
    program: Any


def ready_update(config: Config, batch: Mapping[str, np.ndarray]) -> ReadyUpdate:
    """The update of `step.train_step` on a batch (arrays [B ...]), with a state of its own."""
    key = jax.random.key(config.seed)
    mesh = jax.make_mesh((1, 1, 1), sharding.MESH_AXES, axis_types=AUTO, devices=jax.devices()[:1])
    micro_batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    placed = sharding.put_batch(dict(batch), mesh, 1)
    make, shapes, program, compile_seconds = compile_update(config, mesh, micro_batch, batch=placed)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        state = make()

    def run() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(program(state, placed, key))
        return float(metrics["loss"])

    parameters = sum(x.size for x in jax.tree.leaves(shapes.params))
    return ReadyUpdate(run, parameters, compile_seconds=compile_seconds, program=program)
