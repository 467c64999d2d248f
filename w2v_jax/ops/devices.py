"""The devices that a program is made for. They need not be those of this machine: `plan --compile` has others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P


def platform() -> str:
    """ "cpu", "gpu" or "tpu": of the mesh in which a program is made now; without a mesh, of JAX's own devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def one_device(*platforms: str) -> bool:
    """Whether a program that is made now is for a single device of one of these platforms."""
    return platform() in platforms and jax.sharding.get_abstract_mesh().size <= 1


def partition(names: Sequence[str | None], shape: Sequence[int], *, mesh: Mesh | AbstractMesh, rules: Any = None) -> P:
    """The mesh axes that cut an array with these logical axes, by the rules, or those of the context.

    An axis that does not divide a dimension is left out there: the array is kept whole along it.
    """

    def fits(axes: Any, dim: int) -> bool:
        return dim % math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes)) == 0

    spec: Any = nn.logical_to_mesh_axes(tuple(names), rules)
    return P(*(axes if axes is not None and fits(axes, dim) else None for axes, dim in zip(spec, shape, strict=True)))


def on_each_device(function: Callable[..., jax.Array], names: Sequence[Any], *arrays: Any) -> jax.Array:
    """function(*arrays), where each device computes its own part of the batch and of the heads.

    names: the logical axes of each array, or trees of them. The result is cut as the first array is.
    The compiler is not asked how to divide the function: it holds loops or kernels that it would not.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return function(*arrays)
    specs = [
        jax.tree.map(lambda x, axes: partition(axes, x.shape, mesh=mesh), array, axes)
        for array, axes in zip(arrays, names, strict=True)
    ]
    first = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))[0]
    return jax.shard_map(function, in_specs=tuple(specs), out_specs=first, check_vma=False)(*arrays)
