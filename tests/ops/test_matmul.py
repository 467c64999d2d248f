"""Products and strided convolutions by products: XLA's own results and gradients, on CPU alone, whatever follows."""

from __future__ import annotations

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import environment

from w2v_jax.core.cli import UserError
from w2v_jax.ops.matmul import CONVOLUTIONS, plus, product, strided_conv

CASES = [(11, 3, 2, 5), (12, 3, 2, 5), (13, 2, 2, 5), (10, 4, 2, 5), (13, 4, 2, 5), (31, 8, 4, 5), (7, 1, 1, 5)]
CASES += [(40, 10, 5, 1), (43, 10, 5, 1), (10, 10, 5, 1), (29, 7, 5, 1), (26, 5, 5, 1)]
"""(samples, taps, stride, channels); of one channel, as the first layer of the papers."""


def draw(*shapes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32).astype(dtype) for shape in shapes]


def with_gradients(function, *inputs):
    """The value, and the gradients from a random one of it; all float32."""
    value, back = jax.vjp(jax.jit(function), *inputs)
    (g,) = draw(value.shape, dtype=value.dtype)
    return [np.asarray(x, np.float32) for x in (value, *back(g))]


@pytest.mark.parametrize("shape", [(6, 8), (3, 5, 8), (2, 3, 5, 9), (1, 1)])
@pytest.mark.parametrize("outputs", [1, 4, 7])
def test_a_product_of_bfloat16_is_that_of_float32_rounded_once(shape, outputs):
    x, kernel = draw(shape, (shape[-1], outputs), dtype=jnp.bfloat16)
    wide = lambda x, kernel: jnp.dot(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(jnp.bfloat16)
    for found, expected in zip(with_gradients(product, x, kernel), with_gradients(wide, x, kernel), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2**-7, atol=2**-7)


def test_a_product_of_float32_is_the_plain_one():
    x, kernel = draw((3, 5, 8), (8, 4))
    for found, expected in zip(with_gradients(product, x, kernel), with_gradients(jnp.dot, x, kernel), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_bias_is_added_in_the_type_of_the_frames_and_its_gradient_summed_in_float32():
    x, bias = draw((3, 333, 8), dtype=jnp.bfloat16)[0], draw((8,))[0]
    value, back = jax.vjp(jax.jit(plus), x, bias)
    assert value.dtype == jnp.bfloat16 and (value == x + bias.astype(jnp.bfloat16)).all()
    of_x, of_bias = back(jnp.ones_like(value))
    assert of_x.dtype == jnp.bfloat16 and of_bias.dtype == jnp.float32
    np.testing.assert_array_equal(of_bias, 999.0)  # 1000 in bfloat16


@pytest.mark.parametrize(("length", "taps", "stride", "channels"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-5)])
def test_strided_convolutions_and_their_gradients_are_those_of_xla(length, taps, stride, channels, dtype, tolerance):
    inputs = draw((2, length, channels), (taps, channels, 6), dtype=dtype)

    def plain(x, kernel):
        x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
        y = jax.lax.conv_general_dilated(x, kernel, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        return y.astype(dtype)

    theirs = with_gradients(plain, *inputs)
    for formulation in CONVOLUTIONS:
        ours = with_gradients(functools.partial(strided_conv, stride=stride, formulation=formulation), *inputs)
        for found, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance, err_msg=formulation)


@pytest.mark.parametrize(("channels", "formulation"), [(1, "xla"), (1, "patches"), (6, "xla"), (6, "products")])
def test_a_formulation_that_is_named_is_that_of_all_platforms(channels, formulation):
    def both(x, kernel):
        return jax.grad(lambda *a: (strided_conv(*a, stride=5, formulation=formulation) ** 2).sum(), (0, 1))(x, kernel)

    for dtype in (jnp.float32, jnp.bfloat16):
        shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((2, 31, channels), (10, channels, 8))]
        for platform in ("cpu", "cuda", "tpu"):
            text = jax.jit(both).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
            assert text.count("stablehlo.convolution") == (3 if formulation == "xla" else 0), (dtype, platform)


def test_unknown_formulation_is_an_error():
    with pytest.raises(UserError, match="encoder.convolution is 'fast'"):
        strided_conv(*draw((2, 31, 1), (10, 1, 8)), stride=5, formulation="fast")


def test_formulations_of_cpu_are_for_cpu_alone():
    def gradients(x, kernel, weight):
        return jax.grad(lambda *a: product(strided_conv(*a[:2], stride=2), a[2]).sum(), (0, 1, 2))(x, kernel, weight)

    for dtype, of_cpu in ((jnp.float32, 1), (jnp.bfloat16, 0)):  # float32 keeps the convolution forward
        shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((2, 11, 6), (3, 6, 8), (8, 4))]
        for platform in ("cpu", "cuda", "tpu"):
            text = jax.jit(gradients).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
            assert text.count("stablehlo.convolution") == (of_cpu if platform == "cpu" else 3), (dtype, platform)
            assert ("optimization_barrier" in text) == (platform == "cpu"), (dtype, platform)


FOLLOWED = """
import jax, jax.numpy as jnp, numpy as np
from w2v_jax.ops.matmul import product, strided_conv

def gradients(function, *inputs):
    value, back = jax.vjp(function, *inputs)
    return value, *back(value)

for rows, width, outputs in ((1, 2, 1), (33, 7, 6), (500, 256, 1), (500, 256, 256)):
    x, kernel = jnp.ones((2, rows, width), jnp.bfloat16), jnp.ones((width, outputs), jnp.bfloat16)
    for after in (lambda y: y, lambda y: y.T, lambda y: y.astype(jnp.float32).T, lambda y: y.reshape(-1)):
        for out in jax.jit(lambda *a: [after(y) for y in gradients(product, *a)])(x, kernel):
            assert np.isfinite(np.asarray(out, np.float32)).all()
    x, kernel = jnp.ones((2, rows + 3, width), jnp.bfloat16), jnp.ones((3, width, outputs), jnp.bfloat16)
    for out in jax.jit(lambda *a: [y.T for y in gradients(lambda x, k: strided_conv(x, k, stride=2), *a)])(x, kernel):
        assert np.isfinite(np.asarray(out, np.float32)).all()
    x, kernel = jnp.ones((2, 5 * rows + 8, 1), jnp.bfloat16), jnp.ones((10, 1, outputs), jnp.bfloat16)
    patches = lambda x, k: strided_conv(x, k, stride=5, formulation="patches")
    for out in jax.jit(lambda *a: [y.T for y in gradients(patches, *a)])(x, kernel):
        assert np.isfinite(np.asarray(out, np.float32)).all()
print("all computed")
"""


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--xla_cpu_max_isa=AVX2"])
def test_xla_has_a_program_for_bfloat16_whatever_follows_on_cpus_with_and_without_a_matrix_unit(flags):
    """XLA folds a transposed result into a product of mixed types, for which it then says UNIMPLEMENTED."""
    command = [sys.executable, "-c", FOLLOWED]
    done = subprocess.run(command, env=environment() | {"XLA_FLAGS": flags}, capture_output=True, text=True)
    assert done.returncode == 0 and "all computed" in done.stdout, done.stderr
