"""Versions of what computes, for people who compare runs or report a fault. Imports none of the packages."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

VERSION = "0.1.0"
"""The version of this package."""
TENSORFLOW = ("tensorflow", "tensorflow-cpu")
"""The packages that bring TensorFlow, in the same folder."""
STACK = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", *TENSORFLOW, "tensorflow-datasets", "librosa")
"""The packages whose versions can change what a run computes or reads."""


def installed_versions(packages: Iterable[str] = STACK) -> dict[str, str]:
    """{"Python": its version, and each of the packages that is installed: its own}."""
    known = {"Python": platform.python_version()}
    for name in packages:
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return known
