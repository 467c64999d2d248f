"""vq-wav2vec: the context sees codes alone, what is kept of them, what is random.

Its maths is compared with fairseq's arrays in tests/test_golden_wav2vec.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import wave_batch
from commands import ROOT

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.methods import vq_wav2vec
from w2v_jax.training.sharding import bare

SAMPLES, KEY = 1_600, jax.random.key(3)
BATCH = wave_batch([1_600, 1_600, 1_000], SAMPLES)
SMALL = {"encoder.conv_layers": ((8, 10, 5), (8, 8, 4)), "encoder.context_kernels": (2, 3), "loss.steps": 2}
SMALL |= {"data.unit_seconds": 3 * SAMPLES / 16_000}
REVIVED = {"quantizer.restart": 0.5}


def method_of(kind: str, changes=()):
    variant = {"gumbel": "tiny", "kmeans": "kmeans_tiny"}[kind]
    config = configs.load(f"{ROOT / 'configs' / 'vq_wav2vec.py'}:{variant}")
    return vq_wav2vec.make(configs.changed(config, SMALL | dict(changes)))


def traced(method, train: bool):
    """(extra as the loss was given it, extra as the loss has left it), traced and not computed."""
    params, extra = bare(jax.eval_shape(method.init, KEY, BATCH))
    seen = []

    def loss(params, extra):
        total, (after, _) = method.loss(params, extra, BATCH, KEY, jnp.int32(4), train=train)
        seen.append((extra, after))
        return total

    jax.eval_shape(loss, params, extra)
    return seen[0]


def test_the_context_knows_of_the_sound_through_its_codes_alone():
    """With one vector for all codes it is the same at every frame, whatever was said."""
    method = method_of("gumbel")
    params = jax.jit(lambda: bare(method.init(KEY, BATCH)[0]))()
    params["quantizer"]["codebook"] = jnp.ones_like(params["quantizer"]["codebook"])
    found = jax.jit(method.predict)(params, {}, BATCH)
    assert np.ptp(found["local"], axis=1).max() > 0.1 and len(np.unique(found["codes"])) > 1
    first = np.broadcast_to(found["context"][:1, :1], found["context"].shape)
    np.testing.assert_allclose(found["context"], first, atol=1e-5)


@pytest.mark.parametrize(("shared", "books"), [(True, 1), (False, 2)])
def test_codes_that_are_revived_have_a_state_for_every_codebook(shared, books):
    method = method_of("kmeans", REVIVED | {"quantizer.shared": shared})
    _, extra = jax.eval_shape(method.init, KEY, BATCH)
    assert {name: leaf.shape for name, leaf in extra.items()} == {"moved": (books, 16, 4), "usage": (books, 16)}


@pytest.mark.parametrize("kind", ["gumbel", "kmeans"])
def test_codes_that_are_never_revived_have_no_state(kind):
    assert jax.eval_shape(method_of(kind).init, KEY, BATCH)[1] == {}


def test_codes_are_revived_in_training_only():
    for train in (True, False):
        before, after = traced(method_of("kmeans", REVIVED), train)
        assert any(after[name] is not before[name] for name in before) == train


def test_the_choice_of_codes_is_noisy_in_training_only(monkeypatch):
    drawn, real = [], vq_wav2vec.noises.gumbel
    monkeypatch.setattr(vq_wav2vec.noises, "gumbel", lambda *args: drawn.append(args) or real(*args))
    for kind, train, draws in (("gumbel", True, 1), ("gumbel", False, 0), ("kmeans", True, 0)):
        drawn.clear()
        traced(method_of(kind), train)
        assert len(drawn) == draws, (kind, train)


def test_another_model_cannot_stand_on_the_encoder_without_its_codes():
    assert not method_of("gumbel").reusable


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kind", "vector", "quantizer.kind is 'vector'; it is 'gumbel' or 'kmeans'"),
        ("depth", 3, "quantizer.depth is 3; it is 1 or 2"),
    ],
)
def test_settings_that_cannot_be_are_named(key, value, message):
    with pytest.raises(UserError, match=message):
        method_of("gumbel", {f"quantizer.{key}": value})
