"""The TPU kernel of attention: interpreted, beside the other formulation; and compiled, where a TPU's compiler is."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import environment

from w2v_jax.ops import random as noises
from w2v_jax.ops.attention import attention

B, H = 2, 2


def test_the_kernel_equals_the_whole_with_its_gradients(monkeypatch):
    """Interpreted: frames that fill no tile, tiles of queries, a row without keys, the same dropout."""
    monkeypatch.setattr("w2v_jax.ops.attention_kernel.SCORES", 1)
    frames, lengths = 300, jnp.asarray([0, 290])
    noise, words = noises.row_noise(jax.random.key(0), jnp.arange(B)), dict(num_frames=lengths, dropout=0.3)
    query, key, value, target = jax.random.normal(jax.random.key(1), (4, B, frames, H, 8))

    def found(name):
        out, back = jax.vjp(lambda *x: attention(*x, **words, noise=noise, implementation=name), query, key, value)
        return out, *back(target)

    for kernel, whole in zip(found("kernel"), found("xla"), strict=True):
        np.testing.assert_allclose(kernel, whole, atol=4e-6)


COMPILE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from w2v_jax.ops.attention import attention
from w2v_jax.profiling.estimate import parse_target, topology

mesh = Mesh(np.array(topology(parse_target("v5e-4"))).reshape(4, 1, 1), ("data", "fsdp", "tensor"),
            axis_types=(AxisType.Auto,) * 3)
place = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P("data")))
heads, rows = place((64, 781, 12, 64), jnp.bfloat16), place((64,), jnp.int32)
rules = (("batch", ("data", "fsdp")), ("heads", "tensor"), ("frames", None), ("kv", None))
found = {}
with jax.set_mesh(mesh), __import__("flax").linen.logical_axis_rules(rules):
    for name in ("xla", "auto"):
        call = lambda q, k, v, n, w: attention(q, k, v, num_frames=n, noise=w, dropout=0.1, implementation=name)
        gradient = jax.grad(lambda *x: call(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))
        program = jax.jit(gradient).lower(heads, heads, heads, rows, place((64,), jnp.uint32)).compile()
        found[name] = program.memory_analysis().temp_size_in_bytes, "tpu_custom_call" in program.as_text()
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs XLA's TPU compiler: pip install libtpu")
def test_a_program_for_tpus_holds_no_scores():
    """On a mesh of four; of each device, 16 rows of twelve heads, whose scores do not fit on the chip."""
    env = environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    found, scores = json.loads(done.stdout.splitlines()[-1]), 16 * 12 * 781 * 781 * 2
    assert found["auto"][0] < scores < found["xla"][0] and found["auto"][1] and not found["xla"][1]
