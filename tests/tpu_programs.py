"""Programs compiled for a TPU, without one: `python tpu_programs.py NAME` prints facts about one of them as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from w2v_jax.nn.feature_encoder import ConvFrontend
from w2v_jax.ops.attention import attention
from w2v_jax.profiling.estimate import parse_target, topology
from w2v_jax.profiling.hlo import Program

RULES = (("batch", ("data", "fsdp")), ("heads", "tensor"), ("frames", None), ("kv", None))
HALF, WORDS, COUNTS = jnp.bfloat16, jnp.uint32, jnp.int32


def compiled(function: Any, *args: Any, devices: int = 1) -> Any:
    """The function's program for so many chips of a v5e; args are trees of arrays or of their shapes, cut by rows."""
    chips = np.array(topology(parse_target("v5e-4"))[:devices]).reshape(devices, 1, 1)
    mesh = Mesh(chips, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        return jax.jit(function).lower(*jax.tree.map(place, args)).compile()


def shaped(*shape: int, dtype: Any = HALF) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def scores() -> dict[str, Any]:
    """Attention and its gradient on a mesh of four: [temporary bytes, whether there is a kernel] by formulation."""
    found = {}
    heads = (shaped(64, 781, 12, 64),) * 3
    for name in ("xla", "auto"):
        words = dict(dropout=0.1, implementation=name)
        call = lambda q, k, v, n, w: attention(q, k, v, num_frames=n, noise=w, **words)  # noqa: B023
        gradient = jax.grad(lambda *x: call(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))  # noqa: B023
        program = compiled(gradient, *heads, shaped(64, dtype=COUNTS), shaped(64, dtype=WORDS), devices=4)
        found[name] = program.memory_analysis().temp_size_in_bytes, "tpu_custom_call" in program.as_text()
    return found


def feature_encoder() -> list[str]:
    """The first convolution of wav2vec 2.0 Base, its norm and gradients: arrays of float32 as long as its frames."""
    module = ConvFrontend(((512, 10, 5), (512, 8, 8)), "group", False, remat="full", dtype=HALF)
    wave, lengths = shaped(8, 160_005, dtype=jnp.float32), shaped(8, dtype=COUNTS)
    params = jax.eval_shape(
        lambda: nn.meta.unbox(module.init(jax.random.key(0), jnp.zeros((1, 400)), jnp.ones(1, int)))
    )
    loss = lambda *args: jnp.square(module.apply(*args).astype(jnp.float32)).sum()
    program = Program(compiled(jax.grad(loss), params, wave, lengths).as_text())
    results = {array for x in program.operations() for array in x.result.split(", ")}
    return sorted(array for array in results if array.startswith(("f32[8,31999,", "f32[8,32000,")))


if __name__ == "__main__":
    print(json.dumps({"scores": scores, "feature_encoder": feature_encoder}[sys.argv[1]]()))
