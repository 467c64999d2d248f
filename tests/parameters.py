"""Parameters of models and modules: shapes for tests that need no values, and random values."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax.core.tree import nest
from w2v_jax.interop.tensor_mapping import parameter_shapes


def shapes_of(config):
    """The parameters of a config's model as nested ShapeDtypeStructs of float32."""
    return nest({path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in parameter_shapes(config).items()})


def random_params(module, *args, scale: float = 1.0):
    """Random values for all parameters of a Linen module, so that none is at a neutral value."""
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *args))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), shapes)


def applied(module, *args):
    """(output, params) of a module with random parameters."""
    params = random_params(module, *args)
    return jax.jit(module.apply)({"params": params}, *args), params
