"""Formulations are chosen for the devices of the mesh, wherever the program is made."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from commands import varied
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from w2v_jax.core import config as configs
from w2v_jax.methods import wav2vec2
from w2v_jax.ops.devices import one_device, platform
from w2v_jax.profiling.random_batch import random_batch
from w2v_jax.training.sharding import bare

KINDS = {"cpu": "cpu", "gpu": "NVIDIA H200", "tpu": "TPU v5 lite"}


def mesh_of(name: str, size: int = 1) -> AbstractMesh:
    device = AbstractDevice(device_kind=KINDS[name], num_cores=None, platform=name)
    return AbstractMesh((size,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)


def test_the_platform_is_that_of_the_mesh_and_without_one_that_of_jax():
    assert platform() == jax.default_backend()
    for name in KINDS:
        with jax.sharding.use_abstract_mesh(mesh_of(name)):
            assert platform() == name and one_device("cpu") == (name == "cpu") and one_device("cpu", name)
    with jax.sharding.use_abstract_mesh(mesh_of("cpu", 2)):
        assert not one_device("cpu")


OTHER = {
    "kernel": "blocks",
    "blocks": "xla",
    "grouped": "split",
    "split": "grouped",
    "scan": "unroll",
    "unroll": "scan",
}
OTHER |= {"full": "none", "none": "full"}
BEST = {
    ("tpu", 8): dict(attention="kernel", positional="grouped", stack="scan", remat_frontend="full"),
    ("gpu", 1): dict(attention="blocks", positional="grouped", stack="scan", remat_frontend="full"),
    ("gpu", 8): dict(attention="blocks", positional="grouped", stack="scan", remat_frontend="full"),
    ("cpu", 8): dict(attention="blocks", positional="split", stack="scan", remat_frontend="none"),
    ("cpu", 1): dict(attention="blocks", positional="split", stack="unroll", remat_frontend="none"),
}


@pytest.mark.parametrize(("name", "size"), varied(BEST, ("gpu", 8)))
def test_auto_is_the_best_formulation_of_the_platform_of_the_mesh(name, size):
    """The program of the loss, operation by operation, beside one without a word "auto"."""

    def program(**words: str) -> str:
        dtype = "float32" if name == "gpu" else "bfloat16"  # tracing cuDNN's attention needs cuDNN
        base = {"train.dtype": dtype, "encoder.layer_drop": 0.0}
        words = {key: "auto" for key in BEST[name, size]} | words
        values = base | {f"encoder.{key}": word for key, word in words.items()}
        config = configs.changed(configs.load("configs/w2v2_base.py:tiny"), values)
        method, key, batch = wav2vec2.make(config), jax.random.key(0), random_batch(config, 2, 16_000)
        with jax.sharding.use_abstract_mesh(mesh_of(name, size)):
            params, extra = bare(jax.eval_shape(lambda: method.init(key, batch)))
            loss = lambda params: method.loss(params, extra, batch, key, jnp.int32(0), train=True)[0].total
            return str(jax.make_jaxpr(loss)(params))

    auto = program()
    assert auto == program(**BEST[name, size])
    assert all(auto != program(**{key: OTHER[word]}) for key, word in BEST[name, size].items())
