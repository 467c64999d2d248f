"""An update on one device is that of training: it learns the batch that it is given."""

from w2v_jax.core.config import load
from w2v_jax.profiling.one_device import ready_update
from w2v_jax.profiling.random_batch import random_batch


def test_updates_on_one_batch_lower_its_loss():
    config = load("cpc.py:tiny")
    ready = ready_update(config, random_batch(config, 2, 16_000))
    losses = [ready.run() for _ in range(12)]
    assert losses[-1] < losses[0] and ready.parameters > 1000 and ready.compile_seconds > 0
