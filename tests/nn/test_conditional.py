"""Parts that are computed under a condition: nothing of them is computed or kept where it does not hold."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import random_params
from small_transformer import LENGTHS, PLAIN, B, L

from w2v_jax.nn.conditional import either
from w2v_jax.nn.transformer import Transformer
from w2v_jax.ops import random as noises


@pytest.mark.parametrize(("stack", "remat"), [("scan", "none"), ("unroll", "products"), ("scan", "full")])
def test_layers_that_may_be_dropped_keep_no_more_for_the_gradient_than_others(stack, remat, params, x):
    """No copies of parameters, no broadcasts; and a layer that stays computes what it does without LayerDrop."""
    noise, key = noises.row_noise(jax.random.key(1), jnp.arange(B)), jax.random.key(1)

    def loss(rate, params):
        model = Transformer(**(PLAIN | dict(dropout=0.2, mlp=64, stack=stack, remat=remat, layer_drop=rate)))
        return (model.apply({"params": params}, x, LENGTHS, noise=noise, layer_key=key).output ** 2).sum()

    def kept(rate):
        leaves = jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(functools.partial(loss, rate), p)[1], wide))
        return sum(each.size * each.dtype.itemsize for each in leaves)

    wide = random_params(Transformer(**(PLAIN | dict(mlp=64))), x, LENGTHS, scale=0.3)
    rare = 1e-6
    assert bool((jax.random.uniform(key, (L,)) > rare).all())
    flags = 64 * L
    assert kept(rare) <= kept(0.0) + flags
    whole, dropping = (jax.jit(jax.grad(functools.partial(loss, rate)))(wide) for rate in (0.0, rare))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(dropping), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(a).max()) + 1e-6)


def test_a_dropped_layer_is_not_computed(params, x):
    """Products stand in the branches of the program, but for those of the position embedding."""

    def products(rate):
        model = Transformer(**(PLAIN | dict(layer_drop=rate)))
        loss = lambda p: model.apply({"params": p}, x, LENGTHS, layer_key=jax.random.key(0)).output.sum()
        program = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
        return outside(program)

    def outside(program):
        found = 0
        for equation in program.eqns:
            found += equation.primitive.name == "dot_general"
            if equation.primitive.name != "cond":
                found += sum(
                    outside(getattr(each, "jaxpr", each)) for each in jax.core.jaxprs_in_params(equation.params)
                )
        return found

    assert products(0.5) == 0 < products(0.0)


@pytest.mark.parametrize("condition", [True, False])
def test_the_branch_that_is_taken_gives_value_and_gradient_and_keeps_no_more(condition):
    cube, square = (lambda p, n=n: (jnp.sum(p["x"] ** n), {"power": jnp.int32(n)}) for n in (3, 2))
    params = {"x": jnp.arange(4.0)}
    chosen = lambda p: either(jnp.bool_(condition), cube, square)(p)
    (value, aux), gradient = jax.jit(jax.value_and_grad(chosen, has_aux=True))(params)
    power = 3 if condition else 2
    assert value == jnp.sum(params["x"] ** power) and aux["power"] == power
    np.testing.assert_allclose(gradient["x"], power * params["x"] ** (power - 1))
    assert chosen(params)[0] == value
    kept = jax.tree.leaves(jax.vjp(chosen, params, has_aux=True)[1])
    assert sum(x.size for x in kept) == params["x"].size
