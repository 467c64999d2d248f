"""Parts of a model that are computed only under a condition, with gradients that keep no more than needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from w2v_jax.core.types import PyTree


def unless_dropped(layer: Callable[..., jax.Array], keep: jax.Array, inputs: tuple[Any, ...]) -> jax.Array:
    """layer(*inputs) where keep is True, else x; a layer that is dropped is not computed, nor its gradient.

    inputs: (params, x, ...); those after x are integers and have no gradient.

    JAX's own gradient of a `cond` would return everything that it needs from the branches, with copies of the
    parameters. Here the branches return only what the layer has computed, and the gradient reads the inputs themselves.
    """

    @jax.custom_vjp
    def chosen(keep, *inputs):
        return jax.lax.cond(keep, layer, lambda params, x, *rest: x, *inputs)

    def forward(keep, *inputs):
        made: list[Any] = []

        def kept(params, x, *rest):
            y, vjp = jax.vjp(lambda params, x: layer(params, x, *rest), params, x)
            leaves, tree = jax.tree.flatten(vjp)
            places = {id(each): i for i, each in enumerate(jax.tree.leaves((params, x, *rest)))}
            made[:] = tree, [places.get(id(leaf)) for leaf in leaves]
            return y, [leaf for leaf in leaves if id(leaf) not in places]

        def dropped(params, x, *rest):
            return x, jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)

        _, shapes = jax.eval_shape(kept, *inputs)
        y, computed = jax.lax.cond(keep, kept, dropped, *inputs)
        tree, places = made

        def gradient(g, computed, *inputs):
            flat, others = jax.tree.leaves(inputs), iter(computed)
            return jax.tree.unflatten(tree, [next(others) if i is None else flat[i] for i in places])(g)

        return y, (keep, inputs, computed, jax.tree_util.Partial(gradient))

    def backward(saved, g):
        keep, inputs, computed, gradient = saved
        nothing = lambda g, computed, params, *rest: (jax.tree.map(jnp.zeros_like, params), g)
        of_params, of_x = jax.lax.cond(keep, gradient, nothing, g, computed, *inputs)
        return None, of_params, of_x, *jax.tree.map(lambda _: None, inputs[2:])

    chosen.defvjp(forward, backward)
    return chosen(keep, *inputs)


def not_a_broadcast(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint`: keeps all but broadcasts, which cost nothing to make anew."""
    return primitive.name != "broadcast_in_dim"


Loss = Callable[[PyTree], tuple[jax.Array, Any]]


def either(condition: jax.Array, one: Loss, other: Loss) -> Loss:
    """The function `one` where the condition holds, else `other`: params -> (a number, anything else).

    The gradient of the number, and of it alone, is formed within the branch that is taken. A `cond` that JAX
    differentiates would keep what the backward passes of both need. The program holds both.
    """

    @jax.custom_vjp
    def chosen(params):
        return jax.lax.cond(condition, one, other, params)

    def forward(params):
        with_gradient = functools.partial(jax.value_and_grad, has_aux=True)
        return jax.lax.cond(condition, with_gradient(one), with_gradient(other), params)

    def backward(gradient, cotangent):
        return (jax.tree.map(lambda x: cotangent[0] * x, gradient),)

    chosen.defvjp(forward, backward)
    return chosen
