"""The libraries beneath: their versions, for people who compare runs or report a fault, and what they need to work.

Imports none of them.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import os
import pathlib
import platform
import shutil
import tempfile
import warnings
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


def prepare_libraries() -> None:
    """Makes libraries work, and keep quiet, where a process has no home that it may write to, or no shared memory.

    Where the system knows no home of the user, some libraries fail, and others make a folder called "~": there is one
    then. numba, with which librosa compiles, cannot be imported without a folder for its cache; matplotlib makes one
    and says so. Both get one that is removed when this process ends. Call it before they are imported.
    """
    warnings.filterwarnings("ignore", ".*joblib will operate in serial mode", UserWarning)
    os.environ.setdefault("HOME", home())
    if not _has_cache():
        folder = tempfile.mkdtemp(prefix="w2v-jax-cache-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for key in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
            os.environ.setdefault(key, folder)


def home() -> str:
    """The user's home. Where the system knows none, as in a container with a number for a user: a temporary folder."""
    known = os.path.expanduser("~")
    return known if known != "~" else os.path.join(tempfile.gettempdir(), f"w2v_jax-{os.getuid()}")


def _has_cache() -> bool:
    """Whether the folder in which libraries keep what they made can be written to."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(home(), ".cache"))
    there = next(folder for folder in (cache, *cache.parents) if os.path.exists(folder))
    return os.access(there, os.W_OK)
