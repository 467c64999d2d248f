"""Versions: those of what is installed."""

import importlib.metadata
import platform

from w2v_jax.core.environment import installed_versions


def test_versions_are_those_of_the_installed_packages():
    found = installed_versions(("numpy", "no-such-package"))
    assert found == {"Python": platform.python_version(), "numpy": importlib.metadata.version("numpy")}
    assert {"jax", "jaxlib", "flax"} <= installed_versions().keys()
