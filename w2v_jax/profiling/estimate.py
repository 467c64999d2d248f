"""Memory and work of an update on devices that need not be present, and the settings that make it fit."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils, topologies
from jax.extend.core import Var
from jax.sharding import AbstractMesh, AxisType, Mesh

from w2v_jax import methods
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config, changed, flatten, from_json, portable, setting, to_json
from w2v_jax.core.types import PyTree, State
from w2v_jax.core.units import SAMPLE_RATE, batch_units, unit_rows
from w2v_jax.nn.layers import REMAT
from w2v_jax.profiling.chips import CHIPS
from w2v_jax.profiling.random_batch import forward_flops, random_batch, step_flops, unfrozen, with_alphabet
from w2v_jax.training import sharding, step

ROOM = 0.9
"""The share of the memory that a program may take; the rest is the runtime's."""
LESS = 0.8
"""Of an estimate that was too low, the share to which the suggested flags bring it."""
FEW_ROWS = 8
"""XLA cuts fewer rows than these into pieces for the convolutions of a TPU, and moves their activations many times."""
AUTO = (AxisType.Auto,) * 3


class Target(NamedTuple):
    """Devices of one kind. Of each: bytes of memory, dense bfloat16 FLOP/s, and bytes/s of memory bandwidth."""

    name: str
    devices: int
    memory: float
    flops: float
    bandwidth: float


class Estimate(NamedTuple):
    """The cost of an update for each device.

    mesh: devices along (data, fsdp, tensor). parameters: their number in the whole model. parts: micro-batches, each of
    `rows` rows of `samples` samples. state (parameters and optimizer), gradients, activations: bytes. flops: FLOP.
    first_share: the share of those FLOP in one of the first updates, which leave the encoder as it is. traffic: bytes
    that are read or written.
    """

    mesh: tuple[int, int, int]
    parameters: int
    parts: int
    rows: int
    samples: int
    state: float
    gradients: float
    activations: float
    flops: float
    first_share: float
    traffic: float

    @property
    def memory(self) -> float:
        return self.state + self.gradients + self.activations


def parse_target(text: str) -> Target:
    """ "v4-128" -> 64 chips. Raises UserError."""
    match = re.fullmatch(r"([a-z0-9]+)-([0-9]+)", text.lower())
    if not match or match[1] not in CHIPS or int(match[2]) < 1:
        raise UserError(f"--target={text}: must be a kind and a number, such as h200-8; kinds: {', '.join(CHIPS)}")
    chip, count = CHIPS[match[1]], int(match[2])
    if count % chip.cores:
        raise UserError(f"--target={text}: the number counts cores, and {match[1]} has {chip.cores} cores per chip")
    return Target(text.lower(), count // chip.cores, memory=chip.memory, flops=chip.flops, bandwidth=chip.bandwidth)


def estimated(config: Config, target: Target) -> Estimate:
    """The cost of one update of the config. Raises UserError where the devices cannot share the batch."""
    config, data = with_alphabet(portable(config)), config.data
    sizes = sharding.mesh_shape(config.sharding, target.devices)
    mesh = AbstractMesh(sizes, sharding.MESH_AXES, axis_types=AUTO)
    units, shards = batch_units(data), sharding.batch_shards(mesh)
    parts = sharding.accumulation(units, data.unit_seconds, data.device_seconds, shards=shards)
    samples = round(max(data.bucket_seconds) * SAMPLE_RATE)
    rows = units // shards // parts * unit_rows(data.unit_seconds, samples)
    trained = unfrozen(config)
    method, key, batch = methods.load(trained), jax.random.key(0), batch_shapes(trained, rows, samples)
    tx, _ = step.make_optimizer(trained, method, key, batch=batch)
    _, shapes = step.create_state(method, tx, key, batch=batch, mesh=mesh)
    costs = _costs(to_json(_without_mesh(config)), rows, samples)
    state = _device_bytes(shapes)
    return Estimate(
        mesh=sizes,
        parameters=sum(x.size for x in jax.tree.leaves(shapes.params)),
        parts=parts,
        rows=rows,
        samples=samples,
        state=state,
        gradients=_device_bytes(shapes.params) * (2 if parts > 1 else 1),
        activations=costs.activations,
        flops=costs.flops * parts / sizes[2],
        first_share=costs.first_flops / costs.flops,
        traffic=parts * 3 * costs.activations + 2 * state,
    )


def _device_bytes(shapes: PyTree) -> float:
    """The bytes that one device holds of arrays with these shapes and shardings."""
    pieces = ((x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in jax.tree.leaves(shapes))
    return float(sum(math.prod(shape) * itemsize for shape, itemsize in pieces))


def batch_shapes(config: Config, rows: int, samples: int) -> dict[str, Any]:
    """Shapes and types of a `random_batch`."""
    one_row = random_batch(config, 1, samples)
    return {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in one_row.items()}


def _without_mesh(config: Config) -> Config:
    """The config with the same mesh and batch for every config, so that those which differ only there share costs."""
    mesh = {"sharding.data": 0, "sharding.fsdp": 1, "sharding.tensor": 1, "sharding.slices": 0}
    return changed(config, mesh | {"data.batch_hours": 1.0, "data.device_seconds": config.data.unit_seconds})


class Costs(NamedTuple):
    """The cost of a micro-batch: bytes kept for the backward pass; FLOP of an update, and of one of the first ones."""

    activations: float
    flops: float
    first_flops: float


@functools.lru_cache(maxsize=64)
def _costs(config_json: str, rows: int, samples: int) -> Costs:
    """The costs of a micro-batch. Each config, which is given as JSON, is traced only once."""
    config = from_json(config_json)
    trained = unfrozen(config)
    method, key, batch = methods.load(trained), jax.random.key(0), batch_shapes(trained, rows, samples)
    params, extra = sharding.bare(step.initial_shapes(method, key, batch=batch))

    def backward(params: Any, extra: Any, batch: Any, *, number: Any) -> Any:
        loss = lambda params: method.loss(params, extra, batch, key, number, train=True)[0].total
        return jax.vjp(loss, params)[1]

    program = jax.make_jaxpr(backward)(params, extra, batch, number=jax.ShapeDtypeStruct((), np.int32)).jaxpr
    state = program.invars[: len(jax.tree.leaves(params))]  # kept anyway
    kept = {x for x in program.outvars if isinstance(x, Var)}.difference(state)
    forward = forward_flops(trained, batch)
    flops = sum(step_flops(trained, batch).values())
    flops += sum(forward[part] for part in recomputed_parts(trained) if part in forward)
    first_flops = sum(step_flops(config, batch).values()) if frozen_updates(config) else flops
    shapes: list[Any] = [x.aval for x in kept]
    return Costs(float(sum(x.size * x.dtype.itemsize for x in shapes)), flops, first_flops)


def recomputed_parts(config: Config) -> list[str]:
    """The parts of the model whose forward pass the backward pass computes once more."""
    if setting(config, "encoder.frozen"):  # a frozen encoder has no backward pass
        return []
    parts = ["feature encoder"] if setting(config, "encoder.remat_frontend") in ("auto", "full") else []
    layers = {"none": [], "products": ["attention"], "full": ["attention", "Transformer layers"]}
    return parts + layers[setting(config, "encoder.remat_layers")]


def frozen_updates(config: Config) -> int:
    """How many of the run's updates leave the encoder as it is, and so have no backward pass of it."""
    return min(setting(config, "encoder.frozen_steps"), config.train.steps)


def peak_flops(config: Config, target: Target) -> float:
    """Dense FLOP/s of a device in the config's type: GPUs use TF32 for float32, at half the rate, TPUs bfloat16."""
    return target.flops / (1 if config.train.dtype == "bfloat16" or target.name.startswith("v") else 2)


def with_fsdp(config: Config, target: Target) -> tuple[Config, Estimate]:
    """The config with the smallest sharding.fsdp that fits the target, or with the largest if none fits; its estimate.

    Raises UserError where data and tensor need more devices than there are.
    """
    data, tensor = config.sharding.data, config.sharding.tensor
    most = target.devices // (max(data, 1) * tensor)
    estimate = None
    for fsdp in (n for n in range(most if data else 1, most + 1) if most % n == 0):
        config = changed(config, {"sharding.fsdp": fsdp})
        estimate = estimated(config, target)
        if fits(estimate, target):
            break
    if estimate is None:
        raise UserError(f"sharding.data={data} x tensor={tensor} needs more than the {target.devices} devices")
    return config, estimate


def here() -> Target | None:
    """The devices of this run, with the memory that they report; None for devices that report none, such as CPUs."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    least = int(multihost_utils.process_allgather(np.array([limit >> 20], np.int32)).min()) << 20
    return of_this_run(float(least)) if least else None


def of_this_run(memory: float) -> Target:
    """The devices of this run, with so many bytes each. How fast they are is not known."""
    return Target("here", jax.device_count(), memory=memory, flops=math.nan, bandwidth=math.nan)


def moves_few_rows(config: Config, target: Target, estimate: Estimate) -> bool:
    """Whether XLA cuts the rows of a micro-batch into pieces for the feature encoder (docs/performance.md)."""
    convolutions = len(setting(config, "encoder.conv_layers")) > 1
    return target.name.startswith("v") and convolutions and estimate.rows < FEW_ROWS


def fits(estimate: Estimate, target: Target) -> bool:
    return estimate.memory <= ROOM * target.memory


def topology(target: Target) -> list[Any]:
    """The target's devices as XLA's TPU compiler describes them, without a TPU. Raises UserError."""
    kind = target.name.partition("-")[0]
    if not kind.startswith("v"):
        raise UserError("--compile is for TPUs: XLA compiles for a GPU only on a machine that has one")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--compile needs XLA's TPU compiler: pip install 'w2v-jax[tpu]'")
    jax.config.update("jax_platforms", "cpu")  # libtpu must compile, and must not look for a TPU
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # a compilation that was killed leaves a lock behind
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", target.name.replace("v5e", "v5litepod"))
    name = f"{kind}:{'x'.join(map(str, grid(target.devices, 3 if kind in ('v4', 'v5p') else 2)))}"
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}  # a chip is one device of JAX
    if target.devices == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    except Exception as error:  # the compiler's errors have no common type
        reason = str(error).partition("\n")[0]
        raise UserError(f"--target={target.name}: the compiler has no topology {name} ({reason})") from None
    if len(devices) != target.devices:
        raise UserError(f"--target={target.name}: the compiler has {len(devices)} devices in the topology {name}")
    return devices


def grid(chips: int, axes: int) -> tuple[int, ...]:
    """The grid of a slice of so many chips, a power of two: axes as equal as possible, the shorter ones first."""
    bits = chips.bit_length() - 1
    if chips != 1 << bits:
        raise UserError(f"--compile: there is no slice of {chips} chips; slices have 1, 2, 4, 8, ... chips")
    sizes = sorted(1 << (bits // axes + (axis < bits % axes)) for axis in range(axes))
    return tuple(sizes) if axes == 2 or chips >= 16 else tuple(reversed(sizes))


def compile_update(
    config: Config, mesh: Mesh, micro_batch: PyTree, *, batch: PyTree
) -> tuple[Callable[[], State], PyTree, Any, float]:
    """Compiles an update for the devices of a mesh. micro_batch: shapes; batch: shapes or arrays [A B ...].

    Returns a function that makes the state, the shapes of the state, the program, and the seconds of the compilation.
    """
    start = time.perf_counter()
    make, shapes, lowered = lower_update(config, mesh, micro_batch, batch=batch)
    return make, shapes, lowered.compile(), time.perf_counter() - start


def lower_update(
    config: Config, mesh: Mesh, micro_batch: PyTree, *, batch: PyTree
) -> tuple[Callable[[], State], PyTree, Any]:
    """The first two and the program of `compile_update` before XLA compiles it: what training lowers on these devices.

    The words "auto" of the config mean what is best on the devices of the mesh. Raises UserError for a formulation that
    they do not have.
    """
    method, key = methods.load(config), jax.random.key(config.seed)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        tx, rate = step.make_optimizer(config, method, key, batch=micro_batch)
        make, shapes = step.create_state(method, tx, key, batch=micro_batch, mesh=mesh)
        lowered = step.jitted(method, tx, rate, state=shapes).lower(shapes, batch, jax.eval_shape(lambda: key))
    return make, shapes, lowered


def planned_update(config: Config, devices: Sequence[Any], estimate: Estimate) -> tuple[Config, Mesh, PyTree, PyTree]:
    """The arguments of `compile_update` for an update on these devices: config, mesh, micro-batch, batch (shapes)."""
    config = with_alphabet(config)
    mesh = Mesh(np.array(devices).reshape(estimate.mesh), sharding.MESH_AXES, axis_types=AUTO)
    micro_batch = batch_shapes(config, estimate.rows * sharding.batch_shards(mesh), estimate.samples)
    placement = sharding.batch_sharding(mesh)
    stacked = lambda x: jax.ShapeDtypeStruct((estimate.parts, *x.shape), x.dtype, sharding=placement)
    return config, mesh, micro_batch, jax.tree.map(stacked, micro_batch)


def compiled_program(config: Config, devices: Sequence[Any], estimate: Estimate) -> tuple[str, dict[str, float]]:
    """The text of an update that XLA compiles for these devices, and what XLA reports of it.

    The report: bytes on each device, and the seconds of the compilation.
    """
    config, mesh, micro_batch, batch = planned_update(config, devices, estimate)
    _, _, program, seconds = compile_update(config, mesh, micro_batch, batch=batch)
    memory: Any = program.memory_analysis()
    sizes = {"memory": memory.peak_memory_in_bytes, "arguments": memory.argument_size_in_bytes}
    sizes |= {"temporaries": memory.temp_size_in_bytes, "code": memory.generated_code_size_in_bytes}
    return program.as_text(), {name: float(size) for name, size in sizes.items()} | {"seconds": seconds}


def memory_flags(config: Config, target: Target) -> list[str]:
    """The first flags with which the config fits, of those that lower the memory; empty if none of them suffice.

    Flags that cost little speed are tried first.
    """
    flags: dict[str, Any] = {}
    for values in memory_options(config, target):
        flags |= values
        config = changed(config, values)
        try:
            if fits(estimated(config, target), target):
                return [f"--config.{key}={value}".replace(" ", "") for key, value in flags.items()]
        except UserError:  # the devices cannot share such a batch
            continue
    return []


def exhausted(config: Config, reason: str) -> str:
    """What to say where the devices here have no memory for an update of the config: the flags with which they have.

    An estimate may be too low for the config that failed: the flags lower it to LESS of what it was at least. Asks no
    other process, which may have gone.
    """
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
    need = estimated(config, of_this_run(math.inf)).memory
    room = min(ROOM * limit, LESS * need)
    flags = memory_flags(config, of_this_run(room / ROOM))
    advice = f"give the same command with {' '.join(flags)}" if flags else "take a smaller model or shorter recordings"
    return (
        f"the devices have no memory for an update ({reason}), which takes {need / 1e9:.3g} GB on each by estimate: "
        f"{advice}. python -m w2v_jax.plan with your --config shows what takes the memory. A run goes on from its "
        "newest checkpoint"
    )


def memory_options(config: Config, target: Target) -> Iterator[dict[str, Any]]:
    """Values of keys that lower the memory, to be set one after another. The last ones leave long recordings out."""
    data, flat = config.data, flatten(config)
    for n in range(max(1, int(data.device_seconds / data.unit_seconds)) - 1, 0, -1):
        yield {"data.device_seconds": data.unit_seconds * n}
    if flat.get("encoder.remat_frontend") in ("none", "products"):
        yield {"encoder.remat_frontend": "full"}
    if "encoder.remat_layers" in flat:
        for policy in REMAT[REMAT.index(flat["encoder.remat_layers"]) + 1 :]:
            yield {"encoder.remat_layers": policy}
    for fsdp in (2**n for n in range(1, 12)):
        if target.devices % fsdp == 0:
            yield {"sharding.fsdp": fsdp}
    buckets = tuple(sorted(data.bucket_seconds))
    for n in range(len(buckets) - 1, 0, -1):
        longest = buckets[n - 1]
        yield {"data.bucket_seconds": buckets[:n], "data.unit_seconds": longest, "data.device_seconds": longest}


def speed_flags(config: Config, target: Target, estimate: Estimate) -> list[str]:
    """The flag that fills a device's memory, so that an update has fewer micro-batches; empty if the memory is full."""
    free = ROOM * target.memory - estimate.state - estimate.gradients
    unit_bytes = estimate.activations * config.data.unit_seconds / (estimate.rows * estimate.samples / SAMPLE_RATE)
    units = batch_units(config.data) // math.prod(estimate.mesh[:2])
    most = max((n for n in range(1, units + 1) if units % n == 0 and n * unit_bytes <= free), default=1)
    if units // most >= estimate.parts:
        return []
    return [f"--config.data.device_seconds={most * config.data.unit_seconds:g}"]
