"""Does a config fit a machine that one does not own, and how long would it train? Nothing is computed or started.

    python -m w2v_jax.plan --config=configs/w2v2_base.py --target=h200-8
    python -m w2v_jax.plan --config=configs/w2v2_large.py --target=v5e-64 --price=1.2
    python -m w2v_jax.plan --config=configs/w2v2_base.py --target=v5e-16 --compile      # pip install 'w2v-jax[tpu]'

Parameters, optimizer and gradients are exact, piece by piece as the mesh cuts them. Activations are the arrays that JAX
keeps for the backward pass, before XLA fuses or frees any, so that they are rather too many. With `--compile`
XLA's TPU compiler makes the very program of an update for the target, in minutes, and tells the memory that it will
take. The floor of the time is what the makers' figures of the chip allow; the expectation takes a share of it that
`--share` names, which has to cover what devices say to each other. `bench` measures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.config import (
    REMAT,
    SAMPLE_RATE,
    UserError,
    add_config_argument,
    batch_units,
    load,
    portable,
    run_command,
    split_overrides,
    unit_rows,
)
from w2v_jax.report import duration, table

SHARE = 0.35
ROOM = 0.9
"""The share of the memory that a program may take; the rest is the runtime's."""


class Target(NamedTuple):
    """Devices of one kind: bytes of memory, dense bfloat16 FLOP/s and bytes/s of the memory of each."""

    name: str
    devices: int
    memory: float
    flops: float
    bandwidth: float


KINDS = {  # the makers' figures; names of v4 and v5p count two cores per chip
    "a100": (80e9, 312e12, 2.04e12, 1),
    "h100": (80e9, 989e12, 3.35e12, 1),
    "h200": (141e9, 989e12, 4.8e12, 1),
    "v4": (32 * 2**30, 275e12, 1.2e12, 2),
    "v5e": (16 * 2**30, 197e12, 0.82e12, 1),
    "v5p": (95 * 2**30, 459e12, 2.77e12, 2),
    "v6e": (32 * 2**30, 918e12, 1.64e12, 1),
}


class Estimate(NamedTuple):
    """Per device: bytes of state (parameters, optimizer), gradients and activations; FLOP and bytes of an update."""

    mesh: tuple[int, int, int]
    parameters: int
    parts: int
    rows: int
    samples: int
    state: float
    gradients: float
    activations: float
    flops: float
    first_share: float  # of the FLOP: what one of the first updates takes, which leave the encoder as it is
    traffic: float

    @property
    def memory(self) -> float:
        return self.state + self.gradients + self.activations


def main(argv: Sequence[str]) -> int:
    argv, overrides = split_overrides(argv)
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_argument(parser)
    parser.add_argument("--target", required=True, metavar="KIND-N", help=f"e.g. h200-8; kinds: {', '.join(KINDS)}")
    parser.add_argument("--price", type=float, default=0.0, help="of a device for an hour, to tell the cost")
    parser.add_argument("--share", type=float, default=SHARE, help=f"of the peak that is expected (default {SHARE})")
    parser.add_argument("--compile", action="store_true", help="of TPUs: have XLA compile the update (minutes; no TPU)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if not 0 < args.share <= 1:
        raise UserError(f"--share={args.share:g}: it is above 0 and at most 1")
    target, config = parse_target(args.target), load(args.config, overrides)
    devices = topology(target) if args.compile else []
    if config.sharding.fsdp == 0:
        config, estimate = with_fsdp(config, target)
    else:
        estimate = estimated(config, target)
    flags = roomier(config, target, estimate) if fits(estimate, target) else suggestion(config, target)
    result = summary(config, target, estimate, args.share, args.price) | {"suggestion": flags}
    if devices:
        result |= {"compiled": (program := compiled(config, devices, estimate))}
        result["fits"] = program["memory"] <= target.memory
    print(json.dumps(result) if args.json else describe(config, target, estimate, result))
    return 0 if result["fits"] else 1


def parse_target(text: str) -> Target:
    """ "v4-128" -> 64 chips. Raises UserError."""
    found = re.fullmatch(r"([a-z0-9]+)-([0-9]+)", text.lower())
    if not found or found[1] not in KINDS or int(found[2]) < 1:
        raise UserError(f"--target={text}: it is a kind and a number, e.g. h200-8; kinds: {', '.join(KINDS)}")
    memory, flops, bandwidth, cores = KINDS[found[1]]
    if int(found[2]) % cores:
        raise UserError(f"--target={text}: names of {found[1]} count {cores} cores per chip")
    return Target(text.lower(), int(found[2]) // cores, memory, flops, bandwidth)


def estimated(config: Any, target: Target) -> Estimate:
    """What one update of the config takes on each device. Raises UserError where the batch cannot be dealt out."""
    import jax
    from jax.sharding import AbstractMesh, AxisType

    from w2v_jax import sharding, step
    from w2v_jax.batches import forward_flops, random_batch, step_flops, thawed, with_alphabet
    from w2v_jax.runs import method_module

    given, d = with_alphabet(portable(config)), config.data
    config = thawed(given)
    sizes = sharding.mesh_shape(config.sharding, target.devices)
    mesh = AbstractMesh(sizes, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    units, shards = batch_units(d), sharding.batch_shards(mesh)
    parts = sharding.accumulation(units, d.unit_seconds, d.device_seconds, shards)
    samples = round(max(d.bucket_seconds) * SAMPLE_RATE)
    rows = units // shards // parts * unit_rows(d.unit_seconds, samples)
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    batch = jax.tree.map(shape, random_batch(config, rows, samples))
    method, key = method_module(config.method).make(config), jax.random.key(0)
    tx, _ = step.make_optimizer(config, method, key, batch)
    _, shapes = step.create_state(method, tx, key, batch, mesh)
    params, extra = jax.tree.map(shape, (shapes.params, shapes.extra))
    held = lambda tree: float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves(tree)))
    leaves = jax.tree.leaves

    def backward(params: Any, extra: Any, batch: Any, n: Any) -> Any:
        loss = lambda params: method.loss(params, extra, batch, key, n, train=True)[0].total
        return jax.vjp(loss, params)[1]

    kept = leaves(jax.eval_shape(backward, params, extra, batch, jax.ShapeDtypeStruct((), np.int32)))
    activations = float(sum(x.size * x.dtype.itemsize for x in kept))
    forward = forward_flops(config, batch)
    passes = sum(step_flops(config, batch).values())
    passes += sum(forward[part] for part in recomputed(config) if part in forward)
    first = sum(step_flops(given, batch).values()) if frozen_updates(given) else passes
    gradients = held(shapes.params) * (2 if parts > 1 else 1)
    return Estimate(
        mesh=sizes,
        parameters=sum(x.size for x in leaves(params)),
        parts=parts,
        rows=rows,
        samples=samples,
        state=held(shapes),
        gradients=gradients,
        activations=activations,
        flops=passes * parts / sizes[2],
        first_share=first / passes,
        traffic=parts * 3 * activations + 2 * held(shapes),
    )


def recomputed(config: Any) -> list[str]:
    """The parts of the model whose forward pass the backward pass computes once more."""
    encoder = config.encoder
    if encoder.get("frozen", False):  # it has no backward pass
        return []
    parts = ["feature encoder"] if encoder.get("remat_frontend", "none") in ("auto", "full") else []
    layers = {"none": [], "products": ["attention"], "full": ["attention", "Transformer layers"]}
    return parts + layers[encoder.get("remat_layers", "none")]


def frozen_updates(config: Any) -> int:
    """How many of the run's updates leave the encoder as it is and have no backward pass of it."""
    return min(config.encoder.get("frozen_steps", 0), config.train.steps)


def peak_flops(config: Any, target: Target) -> float:
    """Dense FLOP/s of a device in the config's type: GPUs take TF32 for float32, at half the rate, TPUs bfloat16."""
    return target.flops / (1 if config.train.dtype == "bfloat16" or target.name.startswith("v") else 2)


def with_fsdp(config: Any, target: Target) -> tuple[Any, Estimate]:
    """The config with the smallest sharding.fsdp that fits the target, and its estimate; the largest if none does.

    Raises UserError where data and tensor leave no number.
    """
    data, tensor = config.sharding.data, config.sharding.tensor
    left = target.devices // (max(data, 1) * tensor)
    config = config.copy_and_resolve_references()
    estimate = None
    for fsdp in (n for n in range(left if data else 1, left + 1) if left % n == 0):
        with config.unlocked():
            config.sharding.fsdp = fsdp
        estimate = estimated(config, target)
        if fits(estimate, target):
            break
    if estimate is None:
        raise UserError(f"sharding.data={data} x tensor={tensor} is more than the {target.devices} devices")
    return config, estimate


def here() -> Target | None:
    """The devices of this run by what they say of their memory; None where they say nothing, as CPUs do."""
    import jax
    from jax.experimental import multihost_utils

    said = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    least = int(multihost_utils.process_allgather(np.array([said >> 20], np.int32)).min()) << 20
    return Target("here", jax.device_count(), float(least), math.nan, math.nan) if least else None


def fits(estimate: Estimate, target: Target) -> bool:
    return estimate.memory <= ROOM * target.memory


def topology(target: Target) -> list[Any]:
    """The target's devices as XLA's TPU compiler knows them; none of them is here. Raises UserError without one."""
    kind = target.name.partition("-")[0]
    if not kind.startswith("v"):
        raise UserError("--compile is for TPUs: XLA compiles for a GPU only where one is")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--compile needs XLA's TPU compiler: pip install 'w2v-jax[tpu]'")
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # libtpu is to compile, and not to look for a TPU
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", target.name.replace("v5e", "v5litepod"))
    name = f"{kind}:{'x'.join(map(str, grid(target.devices, 3 if kind in ('v4', 'v5p') else 2)))}"
    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except Exception as error:  # of whatever kind the compiler has
        reason = str(error).partition("\n")[0]
        raise UserError(f"--target={target.name}: the compiler knows no topology {name} ({reason})") from None


def grid(chips: int, axes: int) -> tuple[int, ...]:
    """So many chips in a grid as a cloud lends them: a power of two, axes as equal as can be, the shorter first."""
    bits = chips.bit_length() - 1
    if chips != 1 << bits:
        raise UserError(f"--compile: {chips} chips are no slice; slices have 1, 2, 4, 8, ... chips")
    sizes = sorted(1 << (bits // axes + (axis < bits % axes)) for axis in range(axes))
    return tuple(sizes) if axes == 2 or chips >= 16 else tuple(reversed(sizes))


def compiled(config: Any, devices: Sequence[Any], estimate: Estimate) -> dict[str, float]:
    """What XLA says of the program of an update on these devices: bytes on each of them, and the seconds it took."""
    import flax.linen as nn
    import jax
    from jax.sharding import AxisType, Mesh

    from w2v_jax import sharding, step
    from w2v_jax.batches import random_batch, with_alphabet
    from w2v_jax.runs import method_module

    config = with_alphabet(portable(config))
    mesh = Mesh(np.array(devices).reshape(estimate.mesh), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    rows, place = estimate.rows * sharding.batch_shards(mesh), sharding.batch_sharding(mesh)
    row, key = random_batch(config, 1, estimate.samples), jax.random.key(0)
    micro = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), row)
    whole = lambda x: jax.ShapeDtypeStruct((estimate.parts, *x.shape), x.dtype, sharding=place)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        method = method_module(config.method).make(config)
        tx, rate = step.make_optimizer(config, method, key, micro)
        _, state = step.create_state(method, tx, key, micro, mesh)
        update = step.jitted(method, tx, rate, state)
        began = time.perf_counter()
        program = update.lower(state, jax.tree.map(whole, micro), jax.eval_shape(lambda: key)).compile()
    memory: Any = program.memory_analysis()
    found = {"memory": memory.peak_memory_in_bytes, "arguments": memory.argument_size_in_bytes}
    found |= {"temporaries": memory.temp_size_in_bytes, "code": memory.generated_code_size_in_bytes}
    return {name: float(size) for name, size in found.items()} | {"seconds": time.perf_counter() - began}


def suggestion(config: Any, target: Target) -> list[str]:
    """The first flags, of those that cost least speed first, with which the config fits; empty where none do."""
    config = config.copy_and_resolve_references()
    found: dict[str, Any] = {}
    for tries in changes(config, target):
        for flags in tries:
            found |= flags
            for key, value in flags.items():
                section, name = key.split(".")
                with config.unlocked():
                    config[section][name] = value
            try:
                if fits(estimated(config, target), target):
                    return [f"--config.{key}={value}".replace(" ", "") for key, value in found.items()]
            except UserError:  # a batch that so many devices cannot share
                continue
    return []


def roomier(config: Any, target: Target, estimate: Estimate) -> list[str]:
    """The flag that fills a device's memory, so that an update has fewer micro-batches; empty if it is full."""
    room = ROOM * target.memory - estimate.state - estimate.gradients
    per_unit = estimate.activations * config.data.unit_seconds / (estimate.rows * estimate.samples / SAMPLE_RATE)
    units = batch_units(config.data) // math.prod(estimate.mesh[:2])
    most = max((n for n in range(1, units + 1) if units % n == 0 and n * per_unit <= room), default=1)
    if units // most >= estimate.parts:
        return []
    return [f"--config.data.device_seconds={most * config.data.unit_seconds:g}"]


def changes(config: Any, target: Target) -> list[list[dict[str, Any]]]:
    """Flags that lower the memory, each with the values to try; the last ones leave long recordings out."""
    d = config.data
    ratio = max(1, int(d.device_seconds / d.unit_seconds))
    law: list[list[dict[str, Any]]] = [[{"data.device_seconds": d.unit_seconds * n} for n in range(ratio - 1, 0, -1)]]
    if config.encoder.get("remat_frontend", "full") in ("none", "products"):
        law.append([{"encoder.remat_frontend": "full"}])
    stronger = REMAT[REMAT.index(config.encoder.get("remat_layers", "full")) + 1 :]
    law.append([{"encoder.remat_layers": each} for each in stronger])
    law.append([{"sharding.fsdp": 2**n} for n in range(1, 12) if target.devices % 2**n == 0])
    buckets = tuple(sorted(d.bucket_seconds))
    shorter = [buckets[:n] for n in range(len(buckets) - 1, 0, -1)]
    names = ("data.bucket_seconds", "data.unit_seconds", "data.device_seconds")
    law.append([dict(zip(names, (kept, kept[-1], kept[-1]), strict=True)) for kept in shorter])
    return law


def summary(config: Any, target: Target, estimate: Estimate, share: float, price: float) -> dict[str, Any]:
    """What `--json` prints: bytes per device, seconds of an update, hours of the run, cost."""
    peak = peak_flops(config, target)
    floor = max(estimate.flops / peak, estimate.traffic / target.bandwidth)
    expected = max(estimate.flops / (share * peak), estimate.traffic / target.bandwidth)
    hours = expected * (config.train.steps - frozen_updates(config) * (1 - estimate.first_share)) / 3600
    result = {"target": target.name, "devices": target.devices, "fits": fits(estimate, target)}
    result |= estimate._asdict() | {"memory": estimate.memory, "device_memory": target.memory}
    result |= {"floor_seconds": floor, "expected_seconds": expected, "hours": hours}
    result |= {"device_hours": hours * target.devices}
    result |= {"audio_hours_per_hour": config.data.batch_hours * 3600 / expected}
    return result | ({"cost": result["device_hours"] * price} if price else {})


def describe(config: Any, target: Target, estimate: Estimate, result: dict[str, Any]) -> str:
    """The same for people."""
    gigabytes = lambda count: f"{count / 1e9:,.2f} GB"
    data, fsdp, tensor = estimate.mesh
    bound = (
        "arithmetic"
        if estimate.flops / peak_flops(config, target) > estimate.traffic / target.bandwidth
        else "memory traffic"
    )
    rows = {
        "method": f"{config.method}, {estimate.parameters:,} parameters, {config.train.dtype}",
        "devices": f"{target.devices} x {target.name.split('-')[0]}, mesh: data {data}, fsdp {fsdp}, tensor {tensor}",
        "update": f"{config.data.batch_hours:.4g} h of audio; {estimate.parts} micro-batch(es) of {estimate.rows} x "
        f"{estimate.samples / SAMPLE_RATE:g} s on each device",
        "memory": f"{gigabytes(estimate.memory)} of {gigabytes(target.memory)} on each device\n"
        f"state {gigabytes(estimate.state)}, gradients {gigabytes(estimate.gradients)}, activations "
        f"{gigabytes(estimate.activations)} (before XLA fuses)",
        "work": f"{estimate.flops / 1e12:,.2f} TFLOP and {gigabytes(estimate.traffic)} of memory traffic per update",
        "time": f"{result['floor_seconds']:.3g} s per update at least (by {bound}), "
        f"{result['expected_seconds']:.3g} s expected",
        "run": f"{config.train.steps:,} updates in about {duration(result['hours'] * 3600)} "
        f"({result['device_hours']:,.0f} device-hours), {result['audio_hours_per_hour']:,.0f} hours of audio per hour",
    }
    if first := frozen_updates(config):
        rows["run"] += (
            f"\nthe first {first:,} have no backward pass of the encoder: {estimate.first_share:.0%} of the work"
        )
    if "compiled" in result:
        c = result["compiled"]
        rows["compiled"] = (
            f"{gigabytes(c['memory'])} on each device at the most: arguments {gigabytes(c['arguments'])}, temporaries "
            f"{gigabytes(c['temporaries'])}, program {gigabytes(c['code'])}; {duration(c['seconds'])} to compile"
        )
    if "cost" in result:
        rows["cost"] = f"{result['cost']:,.0f} at this price"
    if result["fits"]:
        more = " ".join(result["suggestion"])
        rows["verdict"] = f"fits; fewer micro-batches with {more}" if more else "fits"
    else:
        flags = result["suggestion"]
        way = f"try {' '.join(flags)}" if flags else "take more or larger devices"
        way += "; longer recordings are then left out" if any("bucket_seconds" in flag for flag in flags) else ""
        rows["verdict"] = f"does not fit {ROOM:.0%} of the memory: {way}"
    return table(rows, f"{config.method} on {target.name}")


if __name__ == "__main__":
    run_command(main)
