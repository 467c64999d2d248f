"""Laws of counting FLOP: each product counts as often as it runs, for the part of the model that it belongs to."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from w2v_jax.profiling import flops


def test_zeros_that_a_gradient_is_spread_by_are_not_counted():
    kernel, x = jax.numpy.ones((4, 3, 5)), jax.numpy.ones((1, 82, 3))
    numbers = ("NHC", "HIO", "NHC")
    conv = lambda x: jax.lax.conv_general_dilated(x, kernel, (2,), "VALID", dimension_numbers=numbers).sum()
    (forward,), (both,) = flops.count(conv, x).values(), flops.count(jax.value_and_grad(conv), x).values()
    assert forward == 2 * 40 * 4 * 3 * 5 and both / forward == pytest.approx(2, rel=0.05)


def test_flops_in_loops_and_branches_are_counted_as_often_as_they_run():
    a = jax.numpy.ones((4, 4))
    looped = lambda x: jax.lax.scan(lambda carry, _: (carry @ a, None), x, length=5)[0]
    assert sum(flops.count(looped, a).values()) == 5 * 2 * 4**3
    branched = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ a @ a, lambda x: x @ a, x)
    assert sum(flops.count(branched, a).values()) == 2 * 2 * 4**3
    conv = lambda x: jax.lax.conv_general_dilated(
        x, jax.numpy.ones((3, 2, 8)), (2,), "VALID", feature_group_count=2, dimension_numbers=("NHC", "HIO", "NHC")
    )
    assert sum(flops.count(conv, jax.numpy.ones((1, 11, 4))).values()) == 2 * 5 * 8 * 3 * 2


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/transpose(jvp(loss))/encoder/transformer/layers/attention/out", "attention"),
        ("/encoder/transformer/layers/attention_norm", "Transformer layers"),
        ("/encoder/transformer/positional", "projection and positional convolution"),
        ("/encoder/frontend/conv0", "feature encoder"),
        ("/draws/quantizer", "masks and distractors"),
        ("/optimizer/layers", "Transformer layers"),
        ("", "predictions and loss"),
    ],
)
def test_a_path_belongs_to_the_first_part_that_it_names(path, part):
    assert flops.part_of(path) == part


def test_products_count_for_the_scope_that_they_are_in_and_nothing_is_computed():
    def program(x):
        with jax.named_scope("quantizer"):
            x = x @ x
        return np.float32(2) * x @ x @ x

    shape = jax.ShapeDtypeStruct((10**6, 10**6), np.float32)
    assert flops.count(program, shape) == {"quantizer": 2e18, "predictions and loss": 4e18}


def test_a_batch_of_products_counts_every_one():
    a, b = jax.ShapeDtypeStruct((7, 2, 3), np.float32), jax.ShapeDtypeStruct((7, 3, 5), np.float32)
    assert sum(flops.count(jax.numpy.matmul, a, b).values()) == 7 * 2 * 2 * 3 * 5
