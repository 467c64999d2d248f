"""Where a program's time goes: spans shared out, operations found in a text, and traces of a CPU and of a GPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from w2v_jax.profiling import trace
from w2v_jax.profiling.trace import Span


def test_operations_that_run_at_once_share_the_time():
    ran = [Span(0, 4e9, "a"), Span(6e9, 7e9, "a"), Span(2e9, 6e9, "b"), Span(6e9, 7e9, "a"), Span(9e9, 10e9, "c")]
    assert trace.shared_seconds(ran) == pytest.approx({"a": 2 + 1 + 1, "b": 1 + 2, "c": 1})


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
  %loop.5 = (f32[4]{0:T(128)}, s32[]) while(%copy.3), condition=%c, body=%b, metadata={op_name="jit(step)/while"}
  ROOT %dot.4 = f32[4]{0} dot(%copy.3, %x), metadata={op_name="jit(step)/optimizer/dot"}
}
"""


def test_operations_are_found_in_the_text_of_a_program():
    paths, containers = trace.operations(PROGRAM)
    assert paths["fusion.2"] == paths["last"] == "jit(step)/transpose(jvp(frontend))/mul"
    assert paths["dot.4"] == "jit(step)/optimizer/dot" and "copy.3" not in paths
    assert containers == {"loop.5"}


def plane(name: str, **lines: list[tuple[str, int, int, dict]]) -> str:
    """The text of a plane: {line: (operation, start and length in ns, further numbers)}."""
    keys = ("hlo_op", "hlo_module", "_p", "_c")
    text = f'planes {{ name: "{name}"'
    for number, key in enumerate(keys, 1):
        text += f' stat_metadata {{ key: {number} value {{ id: {number} name: "{key}" }} }}'
    events = sorted({event for ran in lines.values() for event, *_ in ran})
    for number, event in enumerate(events, 1):
        text += f' event_metadata {{ key: {number} value {{ id: {number} name: "{event}" }} }}'
    for line, ran in lines.items():
        text += f' lines {{ name: "{line.replace("_", " ")}"'
        for event, start, length, stats in ran:
            text += f" events {{ metadata_id: {events.index(event) + 1} offset_ps: {start}000 duration_ps: {length}000"
            for key, value in stats.items():
                kind = f'str_value: "{value}"' if isinstance(value, str) else f"uint64_value: {value}"
                text += f" stats {{ metadata_id: {keys.index(key) + 1} {kind} }}"
            text += " }"
        text += " }"
    return text + " }"


def read(*planes: str) -> ProfileData:
    return ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace("\n".join(planes)))


def of(name: str, module: str = "jit_step", **more) -> dict:
    return dict(hlo_op=name, hlo_module=module) | more


def test_on_cpu_an_operation_lasts_until_its_end_is_told():
    first = [("conv.1", 10, 2, of("conv.1", _p=7)), ("sum.2", 15, 1, of("sum.2"))]
    second = [("end: conv.1", 40, 1, dict(_c=7)), ("end: sum.2", 90, 1, dict(_c=8))]
    found = trace.spans(read(plane("/host:CPU", one=first, two=second)), "jit_step")
    assert sorted(found) == [Span(10, 40, "conv.1"), Span(15, 16, "sum.2")]


def test_on_a_gpu_its_streams_count_and_neither_the_host_nor_what_is_derived():
    kernels = [("gemm", 10, 5, of("dot.4")), ("gemm", 20, 5, of("dot.9", module="jit_other"))]
    gpu = plane("/device:GPU:0", Stream_1=kernels, XLA_Ops=[("dot.4", 10, 15, of("dot.4"))])
    host = plane("/host:CPU", thread=[("dot.4", 0, 99, of("dot.4"))])
    assert trace.spans(read(host, gpu), "jit_step") == [Span(10, 15, "dot.4")]


def test_a_folder_without_a_trace_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no trace"):
        trace.newest_trace(tmp_path)


def traced(folder, function, *args) -> str:
    """Runs a jitted function in a trace and returns the text of its program."""
    program = jax.jit(function).lower(*args).compile()
    with jax.profiler.trace(str(folder)):
        jax.block_until_ready(program(*args))
    return program.as_text() or ""


def test_a_convolution_of_a_real_trace_lasts_until_its_threads_are_done(tmp_path):
    """Where XLA gave it to threads: a small machine may compute it at once, and then its own event is all there is."""

    def step(x, kernel):
        with jax.named_scope("frontend"):
            y = jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC"))
        with jax.named_scope("quantizer"):
            return y.sum()

    text = traced(tmp_path, step, jnp.ones((2, 4000, 64)), jnp.ones((8, 64, 64)))
    paths, _ = trace.operations(text)
    profile = trace.newest_trace(tmp_path)
    (ran,) = [span for span in trace.spans(profile, "jit_step") if "conv_general_dilated" in paths.get(span.name, "")]
    events = [event for plane in profile.planes for line in plane.lines for event in line.events]
    ends = [event.start_ns for event in events if event.name == f"end: {ran.name}"]
    own = [event.start_ns + event.duration_ns for event in events if dict(event.stats).get("hlo_op") == ran.name]
    assert ran.end in (ends or own) and ran.end > ran.start
    assert trace.seconds_by_part(tmp_path, text)["feature encoder"]["forward"] > 0


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

    text = traced(tmp_path, step, jnp.ones((512, 512)) / 512, jnp.ones((512, 512)) / 512)
    found = trace.seconds_by_part(tmp_path, text)
    assert list(found)[:2] == ["feature encoder", "quantizer"]
    assert all(found[part][way] > 0 for part in ("feature encoder", "quantizer") for way in ("forward", "backward"))
    assert trace.seconds_by_part(tmp_path, text.replace("jit_step", "jit_other")) == {}
