"""The only import of TensorFlow: without its log lines, and without the accelerators, which belong to JAX."""

from __future__ import annotations

import contextlib
import os
from typing import Any


def import_tensorflow() -> Any:
    """The package `tensorflow`, which sees no GPU and no TPU. Raises ImportError where it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # otherwise every run begins with its notice
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        with contextlib.suppress(RuntimeError):  # TensorFlow runs already: an earlier call did this
            tf.config.set_visible_devices([], kind)
    return tf
