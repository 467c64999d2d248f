"""Device mesh, and where each array lives on it.

Mesh axes: "data" (batch), "fsdp" (batch, and parameters cut into pieces), "tensor" (attention heads and
feed-forward width). Where the devices are in several slices with a slow network between them, data (then fsdp) goes
across slices and the rest stays inside. Every parameter names its logical axes in the module that owns it; `RULES`
maps those names to mesh axes. A name that is not in `RULES` is an error, because Flax would silently replicate it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from w2v_jax.core.cli import UserError
from w2v_jax.core.types import PyTree
from w2v_jax.ops.devices import partition

MESH_AXES = ("data", "fsdp", "tensor")
RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("conv", "fsdp"),
    ("proj", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("kv", None),
    ("frames", None),
    ("layers", None),
    ("groups", None),
    ("codes", None),
)


def make_mesh(sharding: Any) -> Mesh:
    """The mesh of config.sharding (data, fsdp, tensor, slices) over all devices. Raises UserError."""
    shape = mesh_shape(sharding, jax.device_count())
    parts = slices_across(shape, num_slices(sharding.slices, jax.devices()))
    if math.prod(parts) == 1:
        return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    return Mesh(arranged(shape, parts, jax.devices()), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_shape(sharding: Any, devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) of config.sharding on so many devices; data = 0 takes what the others leave."""
    data, fsdp, tensor = sharding.data, sharding.fsdp, sharding.tensor
    data = data or devices // (fsdp * tensor)
    if data * fsdp * tensor != devices:
        raise UserError(
            f"sharding.data x fsdp x tensor = {data} x {fsdp} x {tensor} does not make the {devices} devices that are "
            "here; sharding.data=0 takes what the other two leave"
        )
    return data, fsdp, tensor


def num_slices(wanted: int, devices: Sequence[Any]) -> int:
    """The groups of devices with a fast network inside and a slow one between them: `wanted`, 0 to find them.

    The devices of a TPU slice name it (`slice_index`); others are one group, or with `wanted` those of each process.
    Raises UserError where the devices are not in so many groups.
    """
    slices, processes = (len(_by(name, devices)) for name in ("slice_index", "process_index"))
    if wanted in (0, slices, 1):
        return wanted or slices
    if wanted == processes:
        return processes
    raise UserError(
        f"sharding.slices={wanted}: the {len(devices)} devices here are in {slices} slice(s) and {processes} "
        f"process(es); it is one of these numbers, 1 for none, or 0 to find the slices"
    )


def slices_across(shape: tuple[int, int, int], slices: int) -> tuple[int, int, int]:
    """How many slices lie along (data, fsdp, tensor): as many as can along data, the others along fsdp.

    The slow network then carries sums of gradients, once per micro-batch. tensor never leaves a slice: UserError.
    """
    data, fsdp, tensor = shape
    along = math.gcd(data, slices)
    rest = slices // along
    if fsdp % rest:
        raise UserError(
            f"{slices} slices cannot be shared by sharding.data={data} and fsdp={fsdp}: choose them so that {slices} "
            f"divides data or data x fsdp (tensor={tensor} stays inside a slice); or sharding.slices=1 takes no notice"
        )
    return along, rest, 1


def arranged(shape: tuple[int, int, int], parts: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """The devices [data fsdp tensor], of which `parts` slices lie along each axis."""
    inside = tuple(size // part for size, part in zip(shape, parts))
    by_slice = len(_by("slice_index", devices)) == math.prod(parts)
    return mesh_utils.create_hybrid_device_mesh(inside, parts, devices, process_is_granule=not by_slice)


def _by(name: str, devices: Sequence[Any]) -> set[int]:
    return {getattr(device, name, 0) for device in devices}


def row_mesh(devices: Sequence[Any]) -> Mesh:
    """A mesh of these devices that cuts rows alone: each holds all parameters. For programs that train nothing."""
    return Mesh(np.asarray(devices).reshape(-1, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """How many pieces a batch is cut into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shardings(abstract: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """NamedSharding of each leaf of a tree whose parameters are boxed with logical axis names.

    A mesh axis that does not divide a dimension is left out there: that array is kept whole along it.
    """
    known = {name for name, _ in RULES}

    def place(leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return NamedSharding(mesh, P())
        unknown = {name for name in leaf.names if name is not None} - known
        if unknown:
            raise ValueError(f"logical axis {sorted(unknown)} is not in sharding.RULES")
        return NamedSharding(mesh, partition(leaf.names, leaf.value.shape, mesh=mesh, rules=RULES))

    return jax.tree.map(place, abstract, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def bare(tree: PyTree) -> PyTree:
    """The tree without its boxes of axis names. (`flax.linen.unbox` also constrains, which abstract values refuse.)"""
    boxed = dict(is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    return jax.tree.map(lambda x: x.value if isinstance(x, nn.LogicallyPartitioned) else x, tree, **boxed)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [A B ...] of A micro-batches: rows over the data and fsdp axes."""
    return NamedSharding(mesh, P(None, ("data", "fsdp")))


def local_units(mesh: Mesh, units: int, accumulation: int) -> tuple[int, ...]:
    """The units of a step that this process reads, in the order in which `put_batch` wants them."""
    grid = np.arange(units).reshape(accumulation, -1)
    pieces: Any = batch_sharding(mesh).addressable_devices_indices_map(grid.shape).values()
    columns = sorted({column for _, piece in pieces for column in range(grid.shape[1])[piece]})
    return tuple(grid[:, columns].reshape(-1).tolist())


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, accumulation: int) -> dict[str, jax.Array]:
    """Global arrays [A B ...] from this process' rows [A * b ...], which stand micro-batch by micro-batch."""
    place = batch_sharding(mesh)

    def put(x: np.ndarray) -> jax.Array:
        local = x.reshape(accumulation, -1, *x.shape[1:])
        return jax.make_array_from_process_local_data(place, local)

    return {name: put(x) for name, x in batch.items()}


def put_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Global arrays, cut into rows, from NumPy arrays [B ...] that every process holds whole."""
    place = NamedSharding(mesh, P(("data", "fsdp")))
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, place, x.__getitem__), tree)


def whole_everywhere(mesh: Mesh) -> NamedSharding:
    """Of an array that each device has a copy of, which the processes can therefore read."""
    return NamedSharding(mesh, P())


def put_whole(tree: PyTree, mesh: Mesh) -> PyTree:
    """Global arrays that are whole on each device, from arrays that every process holds."""
    return jax.device_put(tree, whole_everywhere(mesh))


def to_first_host(tree: PyTree) -> PyTree:
    """NumPy arrays of global arrays, in process 0; None in the others, each of which must call it, too.

    The devices hold one whole array at a time besides what they hold anyway.
    """
    first = jax.process_index() == 0

    def fetch(x: jax.Array) -> np.ndarray | None:
        if x.is_fully_addressable:
            return np.array(x) if first else None
        if not x.is_fully_replicated:
            x = jax.jit(_same, out_shardings=NamedSharding(x.sharding.mesh, P()))(x)  # pyright: ignore[reportAttributeAccessIssue]
        return np.array(x.addressable_data(0)) if first else None

    fetched = jax.tree.map(fetch, tree)
    return fetched if first else None


def _same(x: jax.Array) -> jax.Array:
    return x


def accumulation(units: int, unit_seconds: float, device_seconds: float, *, shards: int) -> int:
    """The fewest micro-batches per update such that a device holds at most device_seconds of audio at once.

    Each device takes whole units in every micro-batch. Raises UserError when the units cannot be dealt evenly.
    """
    if units % shards:
        near = sorted({max(1, units // shards) * shards, (units // shards + 1) * shards})
        hours = ", ".join(f"{n * unit_seconds / 3600:.6g} ({n} units)" for n in near)
        raise UserError(
            f"data.batch_hours makes {units} units of data.unit_seconds={unit_seconds:g} s, which {shards} "
            f"devices cannot share evenly; batch_hours that fit: {hours}"
        )
    per_device = units // shards
    room = max(1, int(device_seconds / unit_seconds + 1e-6))
    return next(a for a in range(1, per_device + 1) if per_device % a == 0 and per_device // a <= room)
