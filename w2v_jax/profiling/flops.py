"""How many floating-point operations (FLOP) a program takes, counted on its jaxpr, and what devices reach at best.

Matrix products and convolutions are counted, norms and activations are not. A multiply-add counts as two. The program
is counted as JAX traces it, before XLA changes it.
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

PARTS = (  # (pattern in the path of modules, part of the model); the first match counts
    (r"\bdraws\b", "masks and distractors"),
    ("frontend", "feature encoder"),
    ("positional|encoder/projection", "projection and positional convolution"),
    (r"\battention\b", "attention"),
    ("transformer|layers", "Transformer layers"),
    ("aggregator", "context network"),
    ("quantizer", "quantizer"),
    ("acoustic|head", "acoustic model and head"),
    (r"\boptimizer\b", "optimizer"),
    ("", "predictions and loss"),
)


def count(function: Callable[..., Any], *args: Any) -> dict[str, float]:
    """FLOP of one call of `function`, by part of the model; args may be shapes. Nothing is computed.

    A loop whose length depends on data counts once. Of several branches the largest counts. Dead code counts as well.
    """
    counts = {part: 0.0 for _, part in PARTS}
    for path, flop in _products(jax.make_jaxpr(function)(*args).jaxpr, ""):
        counts[part_of(path)] += flop
    return {part: flop for part, flop in counts.items() if flop}


def part_of(path: str) -> str:
    """The part of the model to which a path of modules and named scopes belongs."""
    return next(part for pattern, part in PARTS if re.search(pattern, path))


def _products(jaxpr: Any, path: str) -> Iterator[tuple[str, float]]:
    """(path of modules, FLOP) of every product in a program and the programs inside it."""
    for equation in jaxpr.eqns:
        name, inner_path = equation.primitive.name, f"{path}/{equation.source_info.name_stack}"
        out: Any = equation.outvars[0].aval if equation.outvars else None
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            yield inner_path, 2.0 * out.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            zeros = math.prod(equation.params["lhs_dilation"])  # zeros between the entries of a gradient are no work
            yield inner_path, 2.0 * out.size * math.prod(kernel) / kernel[numbers.rhs_spec[0]] / zeros
        elif name == "cond":
            branches = [list(_products(branch.jaxpr, inner_path)) for branch in equation.params["branches"]]
            yield from max(branches, key=lambda products: sum(flop for _, flop in products))
        else:
            times = equation.params["length"] if name == "scan" else 1
            for program in _programs(equation.params):
                yield from ((where, times * flop) for where, flop in _products(program, inner_path))


def _programs(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr"):
                yield item.jaxpr


def product_flops(dtype: str) -> float:
    """FLOP/s of a large matrix product on the first device, measured now: an upper limit for a program.

    As in `ops/matmul.py`, the factors have `dtype` and the sums are float32. The fastest of five products counts.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
