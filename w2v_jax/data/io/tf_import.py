"""The only import of TensorFlow: without its log lines, and without the accelerators, which belong to JAX."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
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


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Silences TFDS' warnings about its own parts and unprepared datasets, of which `sources/tfds.py` tells itself."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
