"""Where a program's time goes: spans of threads shared out, operations found in a text, and a real trace."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from w2v_jax import trace
from w2v_jax.trace import Operation, Span


def test_a_span_has_no_time_of_those_inside_it():
    line = [Span(0, 10, "loop"), Span(1, 4, "product"), Span(2, 3, "zeros"), Span(6, 8, "product"), Span(12, 13, "sum")]
    assert list(trace.innermost(line)) == [
        Span(0, 1, "loop"),
        Span(1, 2, "product"),
        Span(2, 3, "zeros"),
        Span(3, 4, "product"),
        Span(4, 6, "loop"),
        Span(6, 8, "product"),
        Span(8, 10, "loop"),
        Span(12, 13, "sum"),
    ]


def test_spans_that_end_together_are_closed_from_the_inside():
    line = [Span(0, 4, "loop"), Span(2, 4, "product"), Span(4, 5, "sum")]
    assert list(trace.innermost(line)) == [Span(0, 2, "loop"), Span(2, 4, "product"), Span(4, 5, "sum")]


def test_threads_that_work_at_once_share_the_time():
    first, second = [Span(0, 4e9, "a"), Span(6e9, 7e9, "a")], [Span(2e9, 6e9, "b"), Span(6e9, 7e9, "a")]
    assert trace.shared([first, second], {}) == pytest.approx({"a": 2 + 1 + 1, "b": 1 + 2})


def test_time_without_a_span_belongs_to_what_the_next_operation_waited_for():
    known = {"use": Operation(None, ("view",)), "view": Operation(None, ("conv", "early")), "sum": Operation(None, ())}
    ran = [("early", 0, 1), ("conv", 1, 2), ("sum", 2, 3), ("use", 7, 8), ("sum", 9, 10)]
    line = [Span(start * 1e9, end * 1e9, name) for name, start, end in ran] + [Span(20e9, 21e9, "use", 1)]
    assert trace.shared([line], known) == pytest.approx({"early": 1, "conv": 1 + 4, "sum": 2, "use": 1 + 1 + 1})
    assert trace.shared([line], {}) == pytest.approx({"early": 1, "conv": 1, "sum": 2, "use": 2})


PROGRAM = """HloModule jit_step, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %first = f32[4]{0} add(%p, %p), metadata={op_name="jit(step)/frontend/add"}
  ROOT %last = f32[4]{0} multiply(%first, %p), metadata={op_name="jit(step)/transpose(jvp(frontend))/mul"}
}

ENTRY %main.1 (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0), metadata={op_name="x"}
  %fusion.2 = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
  %copy.3 = f32[4]{0} copy(%fusion.2)
  ROOT %dot.4 = f32[4]{0} dot(%copy.3, %x), metadata={op_name="jit(step)/optimizer/dot"}
}
"""


def test_operations_are_found_in_the_text_of_a_program():
    found = trace.operations(PROGRAM)
    assert found["fusion.2"] == Operation("jit(step)/transpose(jvp(frontend))/mul", ("x",))
    assert found["dot.4"] == Operation("jit(step)/optimizer/dot", ("copy.3", "x"))
    assert found["copy.3"] == Operation(None, ("fusion.2",)) and found["x"].reads == ()


def test_a_convolution_has_its_time(tmp_path):
    def step(x, kernel):
        with jax.named_scope("frontend"):
            y = jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC"))
        with jax.named_scope("quantizer"):
            return y.sum()

    x, kernel = jnp.ones((2, 4000, 64)), jnp.ones((8, 64, 64))
    program = jax.jit(step).lower(x, kernel).compile()
    with jax.profiler.trace(str(tmp_path)):
        program(x, kernel).block_until_ready()
    found = trace.seconds_by_part(tmp_path, (program.as_text() or ""))
    assert found["feature encoder"]["forward"] > 2 * found["quantizer"]["forward"]


def test_a_traced_program_is_read_by_part_forward_and_backward(tmp_path):
    def step(x, kernel):
        def loss(kernel):
            with jax.named_scope("frontend"):
                y = jnp.tanh(x @ kernel)
            with jax.named_scope("quantizer"):
                return jnp.sum(jax.nn.softmax(y @ kernel) ** 2)

        gradient = jax.grad(loss)(kernel)
        with jax.named_scope("optimizer"):
            return kernel - 0.1 * gradient

    x = jnp.ones((512, 512)) / 512
    program = jax.jit(step).lower(x, x).compile()
    with jax.profiler.trace(str(tmp_path)):
        program(x, x).block_until_ready()
    found = trace.seconds_by_part(tmp_path, (program.as_text() or ""))
    assert {"feature encoder", "quantizer"} <= found.keys()
    assert all(found[part][way] > 0 for part in ("feature encoder", "quantizer") for way in ("forward", "backward"))
    assert trace.seconds_by_part(tmp_path, (program.as_text() or "").replace("jit_step", "jit_other")) == {}
