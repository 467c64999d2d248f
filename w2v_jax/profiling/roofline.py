"""A compiled update beside what it has to do: its operations, a floor of its memory traffic, and predicted seconds."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from w2v_jax.core.config import Config, setting
from w2v_jax.ops.frames import num_frames
from w2v_jax.profiling import estimate as estimates
from w2v_jax.profiling.estimate import Estimate, Target
from w2v_jax.profiling.flops import part_of
from w2v_jax.profiling.hlo import Operation, Program
from w2v_jax.profiling.random_batch import step_flops, unfrozen, with_alphabet

LARGEST = 10
"""How many operations are listed."""


class Timed(NamedTuple):
    """An operation and the seconds that all its runs take at the least."""

    operation: Operation
    seconds: float


def floor_bytes(config: Config, estimate: Estimate) -> float:
    """The memory traffic of an update on one device that is counted as needed: bytes read or written.

    Inputs, outputs and kept activations, once each way. Of the update: the state is read and written. Of each
    micro-batch: the batch and the parameters are read, their gradients written, and what is kept for the backward pass
    is written and read. Kept are in bfloat16 the inputs of the layers and nothing else: the results of all convolutions
    of the feature encoder that is trained, of all layers of the context network above it, and what enters the first.
    This does not depend on what a program keeps. Layers whose insides do not fit on the chip move more.
    """
    layers: tuple[Any, ...] = setting(config, "encoder.conv_layers")
    frames = num_frames(estimate.samples, layers) if layers else estimate.samples // config.encoder.hop
    trained = setting(config, "encoder.conv_grad_scale") > 0
    values = sum(
        num_frames(estimate.samples, layers[:n]) * layers[n - 1][0] for n in range(1, len(layers) + 1) if trained
    )
    depth = max(setting(config, "encoder.layers"), len(setting(config, "encoder.context_kernels")))
    values += (depth + 1) * frames * setting(config, "encoder.width")
    batch = estimates.batch_shapes(with_alphabet(config), estimate.rows, estimate.samples)
    inputs = sum(math.prod(x.shape) * x.dtype.itemsize for x in batch.values())
    parameters = estimate.gradients / (2 if estimate.parts > 1 else 1)
    return 2 * estimate.state + estimate.parts * (inputs + 2 * parameters + 2 * 2 * estimate.rows * values)


def explained(text: str, config: Config, target: Target, *, estimate: Estimate) -> dict[str, Any]:
    """What a compiled update does on one device of the target. text: the program, as XLA prints it.

    seconds: the sum over all operations of the longer of arithmetic and memory traffic, by published figures of the
    chip; elementwise arithmetic and the network are left out. share: that of the peak in these seconds, by our own
    count of products (`flops.count`), in which nothing is computed twice. Lists have the largest first; those of
    operations have LARGEST entries at most.
    """
    program, peak = Program(text), estimates.peak_flops(config, target)
    operations = [Timed(x, x.times * max(x.flops / peak, x.bytes / target.bandwidth)) for x in program.operations()]
    parts: dict[str, list[Timed]] = collections.defaultdict(list)
    for each in operations:
        parts[part(each.operation)].append(each)
    config = unfrozen(with_alphabet(config))
    batch = estimates.batch_shapes(config, estimate.rows, estimate.samples)
    counted = sum(step_flops(config, batch).values()) * estimate.parts / estimate.mesh[2]
    whole, by_part = totals(operations), {name: totals(several) for name, several in parts.items()}
    moves = [each for each in operations if each.operation.moves]
    return whole | {
        "counted_flops": counted,
        "floor_bytes": floor_bytes(config, estimate),
        "share": counted / (peak * whole["seconds"]),
        "parts": dict(sorted(by_part.items(), key=lambda each: -each[1]["seconds"])),
        "largest": largest(operations),
        "moves": totals(moves) | {"largest": largest(moves)},
        "largest_float32": largest(each for each in operations if each.operation.float32),
        "collectives": [each._asdict() for each in program.collectives()],
        "kept": [each._asdict() for each in program.kept()],
        "unknown_loops": program.unknown_loops(),
    }


def part(x: Operation) -> str:
    """The part of the model and the direction of an operation."""
    if not x.path:
        return "added by XLA"
    name = part_of(x.path)
    return name if name == "optimizer" else f"{name}, {'backward' if 'transpose(' in x.path else 'forward'}"


def totals(several: Sequence[Timed]) -> dict[str, float]:
    """FLOP, those of float32 products, bytes and seconds of all runs of some operations."""
    return {
        "flops": sum(x.times * x.flops for x, _ in several),
        "float32": sum(x.times * x.float32 for x, _ in several),
        "bytes": float(sum(x.times * x.bytes for x, _ in several)),
        "seconds": sum(seconds for _, seconds in several),
    }


def largest(several: Iterable[Timed]) -> list[dict[str, Any]]:
    """The operations that take longest, each as a row: FLOP and bytes of one run, seconds of all."""
    keys = ("name", "kind", "path", "result", "times", "flops", "bytes")
    first = sorted(several, key=lambda each: -each.seconds)[:LARGEST]
    return [{key: getattr(x, key) for key in keys} | {"seconds": seconds} for x, seconds in first]
