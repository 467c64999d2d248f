"""The devices that a program is made for. They need not be those of this machine: `plan --compile` has others."""

from __future__ import annotations

import jax


def platform() -> str:
    """ "cpu", "gpu" or "tpu": of the mesh in which a program is made now; without a mesh, of JAX's own devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def one_device(*platforms: str) -> bool:
    """Whether a program that is made now is for a single device of one of these platforms."""
    return platform() in platforms and jax.sharding.get_abstract_mesh().size <= 1
