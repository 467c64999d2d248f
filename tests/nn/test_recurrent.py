"""Recurrent contexts against loops in NumPy, which always run, and against PyTorch's modules (extra `parity`)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.nn import recurrent
from w2v_jax.nn.recurrent import Recurrent

B, F, C, D, LAYERS = 3, 9, 5, 4, 2
GATES = {"gru": 3, "lstm": 4}
CELLS = sorted(GATES)
MISSING = "live parity with PyTorch did NOT run: torch is not installed (extra `parity`)"


class Case:
    """A network with random weights, an input, and its output."""

    def __init__(self, cell: str, dtype=jnp.float32):
        self.x = np.random.default_rng(0).normal(size=(B, F, C)).astype(np.float32)
        self.net = Recurrent(cell, D, LAYERS, dtype)
        self.params = nn.unbox(self.net.init(jax.random.key(1), self.x)["params"])
        total = lambda params, x: number(self.apply(params, x)[1])
        self.gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
        self.output = jax.jit(self.apply)

    def apply(self, params, x):
        return self.net.apply({"params": params}, x)

    def __call__(self, x):
        return self.output(self.params, x)


def number(x: jax.Array) -> jax.Array:
    """One that depends on every element."""
    return (x * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)).sum()


@pytest.fixture(scope="module", params=CELLS)
def case(request) -> Case:
    return Case(request.param)


def logistic(x):
    return 1.0 / (1.0 + np.exp(-x))


def loop_layer(cell: str, p: dict, x: np.ndarray) -> np.ndarray:
    """[F C] -> [F D], frame by frame and gate by gate in float64."""
    p = {name: np.asarray(value, np.float64) for name, value in p.items()}
    h, memory, outputs = np.zeros(D), np.zeros(D), []

    def both(frame: np.ndarray, gate: int) -> tuple[np.ndarray, np.ndarray]:
        cut = slice(gate * D, (gate + 1) * D)
        return frame @ p["kernel"][:, cut] + p["bias"][cut], h @ p["state_kernel"][:, cut] + p["state_bias"][cut]

    for frame in x:
        if cell == "gru":
            reset, update = logistic(sum(both(frame, 0))), logistic(sum(both(frame, 1)))
            from_x, from_h = both(frame, 2)
            h = (1 - update) * np.tanh(from_x + reset * from_h) + update * h
        else:
            into, forget, new, out = (sum(both(frame, gate)) for gate in range(4))
            memory = logistic(forget) * memory + logistic(into) * np.tanh(new)
            h = logistic(out) * np.tanh(memory)
        outputs.append(h)
    return np.stack(outputs)


def test_layers_equal_loops_over_frames(case):
    context, hidden = case(case.x)
    assert hidden.shape == (LAYERS, B, F, D)
    for row in range(B):
        x = case.x[row]
        for n in range(LAYERS):
            x = loop_layer(case.net.cell, case.params[f"layer{n}"], x)
            np.testing.assert_allclose(hidden[n, row], x, atol=1e-5)
    np.testing.assert_array_equal(context, hidden[-1])


def test_gradients_equal_those_through_an_unrolled_loop(case):
    """The backward pass is written by hand; here each frame is a plain call that JAX differentiates."""
    cell, _, vectors = recurrent.CELLS[case.net.cell]

    def unrolled(params, x):
        hidden = []
        for n in range(LAYERS):
            p, outputs = params[f"layer{n}"], []
            state = (jnp.zeros((B, D)),) * vectors
            for t in range(F):
                products = x[:, t] @ p["kernel"] + p["bias"], state[0] @ p["state_kernel"] + p["state_bias"]
                state = cell(state, *products)
                outputs.append(state[0])
            x = jnp.stack(outputs, axis=1)
            hidden.append(x)
        return number(jnp.stack(hidden))

    ours = case.gradient(case.params, case.x)
    theirs = jax.jit(jax.grad(unrolled, argnums=(0, 1)))(case.params, case.x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_context_knows_nothing_of_the_future(case):
    changed = case.x.copy()
    changed[:, 6:] = 9.0
    a, b = case(case.x)[0], case(changed)[0]
    np.testing.assert_array_equal(a[:, :6], b[:, :6])
    assert np.abs(a[:, 6:] - b[:, 6:]).max() > 0.1


def test_rows_do_not_see_each_other(case):
    np.testing.assert_allclose(case(case.x)[0][1:2], case(case.x[1:2])[0], atol=1e-6)


@pytest.mark.parametrize("frames", [0, 1])
def test_no_frame_and_one_frame_pass(case, frames):
    context, hidden = case(case.x[:, :frames])
    assert context.shape == (B, frames, D) and hidden.shape == (LAYERS, B, frames, D)


def test_parameters_start_as_in_pytorch(case):
    for n in range(LAYERS):
        for leaf in case.params[f"layer{n}"].values():
            assert np.abs(leaf).max() <= 1 / math.sqrt(D)
            assert np.abs(leaf).max() > 0.7 / math.sqrt(D)
    shapes = {name: leaf.shape for name, leaf in case.params["layer0"].items()}
    wide = GATES[case.net.cell] * D
    assert shapes == dict(kernel=(C, wide), bias=(wide,), state_kernel=(D, wide), state_bias=(wide,))


def equations(jaxpr, inside: bool = False):
    """(equation, whether it stands in a loop) of a jaxpr and all that it calls."""
    for eqn in jaxpr.eqns:
        yield eqn, inside
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner, inside or eqn.primitive.name == "scan")


@pytest.mark.parametrize("cell", CELLS)
def test_state_and_gates_stay_in_float32(cell):
    """In bfloat16 only the factors of products are rounded."""
    half, exact = Case(cell, jnp.bfloat16), Case(cell)
    found = equations(jax.make_jaxpr(half.apply)(half.params, half.x).jaxpr)
    loop = [eqn for eqn, inside in found if inside]
    assert {"tanh", "logistic", "dot_general"} <= {eqn.primitive.name for eqn in loop}
    rounded = {eqn.primitive.name for eqn in loop for out in eqn.outvars if out.aval.dtype == jnp.bfloat16}
    assert rounded == {"convert_element_type"}
    a, b = half.gradient(half.params, half.x), exact.gradient(half.params, half.x)
    for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, atol=0.1 * np.abs(theirs).max())


def test_only_the_product_with_the_state_stands_in_the_loop(case):
    """Forward and backward: one product of a frame each; those of all frames together stand outside."""
    gradient = jax.grad(lambda params, x: number(case.apply(params, x)[1]), argnums=(0, 1))
    found = equations(jax.make_jaxpr(gradient)(case.params, case.x).jaxpr)
    shapes = [(inside, eqn.outvars[0].aval.shape) for eqn, inside in found if eqn.primitive.name == "dot_general"]
    wide = GATES[case.net.cell] * D
    assert [shape for inside, shape in shapes if inside] == [(B, wide)] * LAYERS + [(B, D)] * LAYERS
    assert (F, B, wide) in [shape for inside, shape in shapes if not inside]


def test_unknown_cell_is_named():
    with pytest.raises(UserError, match="'rnn'.*gru or lstm"):
        Recurrent("rnn", D, 1).init(jax.random.key(0), np.zeros((B, F, C), np.float32))


@pytest.mark.parity
@pytest.mark.parametrize("cell", CELLS)
def test_network_equals_that_of_pytorch(cell):
    """Output, gradient of the input and of every parameter, with the same weights."""
    torch = pytest.importorskip("torch", reason=MISSING)
    case = Case(cell)
    theirs = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](C, D, LAYERS, batch_first=True)
    names = dict(kernel="weight_ih", bias="bias_ih", state_kernel="weight_hh", state_bias="bias_hh")
    pairs = [(n, ours, f"{name}_l{n}") for n in range(LAYERS) for ours, name in names.items()]
    for n, ours, name in pairs:
        getattr(theirs, name).data = torch.tensor(np.asarray(case.params[f"layer{n}"][ours]).T.copy())
    x = torch.tensor(case.x, requires_grad=True)
    output = theirs(x)[0]
    context, _ = case(case.x)
    np.testing.assert_allclose(context, output.detach().numpy(), atol=2e-6)
    weight = np.random.default_rng(2).normal(size=context.shape).astype(np.float32)
    (output * torch.tensor(weight)).sum().backward()
    weighted = lambda params, x: (case.apply(params, x)[0] * weight).sum()
    ours, to_x = jax.jit(jax.grad(weighted, argnums=(0, 1)))(case.params, case.x)
    np.testing.assert_allclose(to_x, x.grad.numpy(), atol=1e-5)
    for n, leaf, name in pairs:
        found = getattr(theirs, name).grad.numpy().T
        np.testing.assert_allclose(ours[f"layer{n}"][leaf], found, atol=1e-5, err_msg=name)
