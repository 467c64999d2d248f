"""How many floating-point operations a program takes, counted on its text, and what devices can do at best.

Matrix products and convolutions are counted, no norms or activations; a multiply-add counts as two. What is counted is
the program that is given, before XLA.
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

PEAKS = (  # (in the device's name, dense bfloat16 FLOP/s of the whole device); the first match counts
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
)


PARTS = (  # (in the path of modules, part of the model); the first match counts
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

    A loop that runs as often as its data say counts once; of branches the largest counts. Dead code counts, too.
    """
    found = dict.fromkeys(part for _, part in PARTS)
    for path, flop in _products(jax.make_jaxpr(function)(*args).jaxpr, ""):
        part = part_of(path)
        found[part] = (found[part] or 0.0) + flop
    return {part: flop for part, flop in found.items() if flop}


def part_of(path: str) -> str:
    """The part of the model that a path of modules and named scopes is in."""
    return next(part for pattern, part in PARTS if re.search(pattern, path))


def _products(jaxpr: Any, path: str) -> Iterator[tuple[str, float]]:
    """(path of modules, FLOP) of every product in a program and the programs inside it."""
    for equation in jaxpr.eqns:
        name, here = equation.primitive.name, f"{path}/{equation.source_info.name_stack}"
        out: Any = equation.outvars[0].aval if equation.outvars else None
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            yield here, 2.0 * out.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            zeros = math.prod(equation.params["lhs_dilation"])  # a gradient spread by zeros, which are no work
            yield here, 2.0 * out.size * math.prod(kernel) / kernel[numbers.rhs_spec[0]] / zeros
        elif name == "cond":
            each = [list(_products(branch.jaxpr, here)) for branch in equation.params["branches"]]
            yield from max(each, key=lambda products: sum(flop for _, flop in products))
        else:
            times = equation.params["length"] if name == "scan" else 1
            for inner in _programs(equation.params):
                yield from ((place, times * flop) for place, flop in _products(inner, here))


def _programs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if hasattr(each, "eqns"):
                yield each
            elif hasattr(each, "jaxpr"):
                yield each.jaxpr


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Dense FLOP/s that the device's maker states for bfloat16 products; None for other types and unknown devices."""
    if dtype != "bfloat16":
        return None
    return next((peak for name, peak in PEAKS if name in device_kind), None)


def product_flops(dtype: str) -> float:
    """FLOP/s of a large matrix product on the first device, measured now: what a program could reach at best.

    The product is that of `products.py`: of `dtype`, summed in float32. The fastest of five.
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
