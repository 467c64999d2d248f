"""The text of a compiled program is read as what the program does: FLOP, bytes, loops, what is kept, collectives."""

from __future__ import annotations

import collections
import itertools

import jax
import jax.numpy as jnp
import pytest

from w2v_jax.profiling import flops, hlo
from w2v_jax.profiling.hlo import Program, Window

PROGRAM = """HloModule jit_step, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%put (stack: bf16[4,8,256], row: bf16[8,256], n: s32[]) -> bf16[4,8,256] {
  %stack = bf16[4,8,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %row = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(1)
  %view = bf16[1,8,256]{2,1,0:T(8,128)(2,1)} bitcast(%row)
  %n = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %new = bf16[4,8,256]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%stack, %view, %n, %zero, %zero), metadata={op_name="jit(step)/jvp()/while/body/dynamic_update_slice"}
}

%take (stack: f32[4,64,256], n: s32[]) -> bf16[64,256] {
  %stack = f32[4,64,256]{2,1,0:T(8,128)} parameter(0)
  %n = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %part = f32[1,64,256]{2,1,0:T(8,128)} dynamic-slice(%stack, %n, %zero, %zero), dynamic_slice_sizes={1,64,256}
  %half = bf16[1,64,256]{2,1,0:T(8,128)(2,1)} convert(%part)
  ROOT %weight = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} bitcast(%half)
}

%multiply (x: bf16[8,256], w: bf16[256,256]) -> bf16[8,256] {
  %x = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %y = bf16[8,256]{1,0:T(8,128)(2,1)} convolution(%x, %w), dim_labels=bf_io->bf, metadata={op_name="jit(step)/jvp()/while/body/layers/dot_general"}
}

%begin (w: bf16[64,256]) -> (bf16[64,256], bf16[256,256], u32[]) {
  %w = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} all-gather(%w), channel_id=7, replica_groups={}, dimensions={0}
  ROOT %started = (bf16[64,256]{1,0:T(8,128)(2,1)S(1)}, bf16[256,256]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%finish (w: bf16[64,256], begun: bf16[256,256], flag: u32[]) -> bf16[256,256] {
  %w = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %begun = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %flag = u32[]{:S(2)} parameter(2)
  %all-gather.2 = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} all-gather(%w), channel_id=7, replica_groups={}, dimensions={0}
  ROOT %done = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} custom-call(%all-gather.2, %begun, %flag), custom_call_target="AsyncCollectiveDone"
}

%forward (state: (s32[], bf16[8,256], bf16[4,8,256], f32[4,64,256])) -> (s32[], bf16[8,256], bf16[4,8,256], f32[4,64,256]) {
  %state = (s32[]{:T(128)}, bf16[8,256]{1,0:T(8,128)(2,1)}, bf16[4,8,256]{2,1,0:T(8,128)(2,1)}, f32[4,64,256]{2,1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[8,256]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %stack = bf16[4,8,256]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %weights = f32[4,64,256]{2,1,0:T(8,128)} get-tuple-element(%state), index=3
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%n, %one)
  %taken = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} fusion(%weights, %n), kind=kLoop, calls=%take, metadata={op_name="jit(step)/jvp()/while/body/dynamic_slice"}
  %begun = (bf16[64,256]{1,0:T(8,128)(2,1)S(1)}, bf16[256,256]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) fusion(%taken), kind=kCustom, calls=%begin
  %begun.0 = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%begun), index=0
  %begun.1 = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%begun), index=1
  %begun.2 = u32[]{:S(2)} get-tuple-element(%begun), index=2
  %gathered = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} fusion(%begun.0, %begun.1, /*index=2*/%begun.2), kind=kCustom, calls=%finish
  %put.1 = bf16[4,8,256]{2,1,0:T(8,128)(2,1)} fusion(%stack, %x, %n), kind=kLoop, calls=%put
  %product = bf16[8,256]{1,0:T(8,128)(2,1)} fusion(%x, %gathered), kind=kOutput, calls=%multiply
  ROOT %turned = (s32[]{:T(128)}, bf16[8,256]{1,0:T(8,128)(2,1)}, bf16[4,8,256]{2,1,0:T(8,128)(2,1)}, f32[4,64,256]{2,1,0:T(8,128)}) tuple(%next, %product, %put.1, %weights)
}

%until (state: (s32[], bf16[8,256], bf16[4,8,256], f32[4,64,256])) -> pred[] {
  %state = (s32[]{:T(128)}, bf16[8,256]{1,0:T(8,128)(2,1)}, bf16[4,8,256]{2,1,0:T(8,128)(2,1)}, f32[4,64,256]{2,1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%state), index=0
  %limit = s32[]{:T(128)} constant(4)
  ROOT %more = pred[]{:T(512)} compare(%n, %limit), direction=LT
}

ENTRY %main (weights.1: f32[4,64,256], x.1: f32[8,256]) -> (f32[8,4,256], f32[8,256]) {
  %weights.1 = f32[4,64,256]{2,1,0:T(8,128)} parameter(0)
  %x.1 = f32[5,256]{1,0:T(8,128)} parameter(1)
  %zero.1 = s32[]{:T(128)} constant(0)
  %copy-start = (f32[5,256]{1,0:T(8,128)S(1)}, f32[5,256]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x.1)
  %copy-done = f32[5,256]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %first = bf16[8,256]{1,0:T(8,128)(2,1)} custom-call(%copy-done), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/jvp(frontend)/kernel"}
  %empty = bf16[4,8,256]{2,1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %start = (s32[]{:T(128)}, bf16[8,256]{1,0:T(8,128)(2,1)}, bf16[4,8,256]{2,1,0:T(8,128)(2,1)}, f32[4,64,256]{2,1,0:T(8,128)}) tuple(%zero.1, %first, %empty, %weights.1)
  %loop = (s32[]{:T(128)}, bf16[8,256]{1,0:T(8,128)(2,1)}, bf16[4,8,256]{2,1,0:T(8,128)(2,1)}, f32[4,64,256]{2,1,0:T(8,128)}) while(%start), condition=%until, body=%forward, metadata={op_name="jit(step)/jvp()/while"}
  %inputs = bf16[4,8,256]{2,1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=2
  %same = f32[4,64,256]{2,1,0:T(8,128)} get-tuple-element(%loop), index=3
  %turned.1 = bf16[4,8,256]{1,2,0:T(8,128)(2,1)} copy(%inputs)
  %used = f32[8,256]{1,0:T(8,128)} custom-call(%turned.1, %same), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/transpose(jvp())/kernel"}
  %gradient = f32[8,4,256]{2,1,0:T(8,128)} custom-call(%inputs, %same), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/transpose(jvp())/kernel"}
  %sums = f32[8,256]{1,0:T(8,128)} all-reduce(%used), channel_id=9, replica_groups={}, to_apply=%add.1
  ROOT %result = (f32[8,4,256]{2,1,0:T(8,128)}, f32[8,256]{1,0:T(8,128)}) tuple(%gradient, %sums)
}
"""  # noqa: E501 - as XLA prints programs for a TPU
ROW, WEIGHT = 2 * 8 * 256, 4 * 64 * 256


@pytest.fixture(scope="module")
def operations():
    return {each.name: each for each in Program(PROGRAM).operations()}


def test_operations_in_a_loop_run_as_often_as_the_loop_turns(operations):
    assert {name: x.times for name, x in operations.items() if x.times != 1} == dict.fromkeys(
        ["next", "taken", "begun", "gathered", "put.1", "product"], 4
    )
    assert Program(PROGRAM).unknown_loops() == []
    endless = Program(PROGRAM.replace("direction=LT", "direction=NE"))
    assert endless.unknown_loops() == ["jit(step)/jvp()/while"] and all(x.times == 1 for x in endless.operations())


def test_a_product_has_its_flop_wherever_it_stands(operations):
    assert {name: x.flops for name, x in operations.items() if x.flops} == {"product": 2.0 * 8 * 256 * 256}
    told = 'metadata={op_name="jit(step)/jvp(frontend)/kernel"}, backend_config={"cost_estimate":{"flops":"77","trans'
    kernel = Program(PROGRAM.replace('metadata={op_name="jit(step)/jvp(frontend)/kernel"}', told + 'cendentals":"8"}}'))
    assert [x.flops for x in kernel.operations() if x.name == "first"] == [77.0], "a kernel of Pallas says it"


def test_a_fusion_reads_and_writes_only_parts_that_it_slices(operations):
    """Of the stack of weights one layer, and into the stack of activations one row."""
    assert (operations["taken"].read, operations["taken"].written) == (WEIGHT + 4, 0)
    assert (operations["put.1"].read, operations["put.1"].written) == (ROW + 4, ROW)


def test_what_lies_on_the_chip_is_no_traffic(operations):
    assert (operations["product"].read, operations["product"].written) == (ROW, ROW)
    assert operations["begun"].bytes == operations["gathered"].bytes == operations["empty"].bytes == 0
    assert (operations["copy-start"].read, operations["copy-start"].written) == (4 * 8 * 256, 0), "with padding"
    assert "copy-done" not in operations


def test_copies_and_changes_of_layout_are_told_from_work(operations):
    assert {name for name, x in operations.items() if x.moves} == {"copy-start", "turned.1"}


def test_a_collective_that_xla_cuts_in_two_counts_once():
    found = {each.kind: each for each in Program(PROGRAM).collectives()}
    assert len(Program(PROGRAM).collectives()) == 2
    assert (found["all-gather"].times, found["all-gather"].bytes) == (4, 2 * 256 * 256)
    assert (found["all-reduce"].times, found["all-reduce"].bytes) == (1, 4 * 8 * 256)


def test_stacks_of_the_forward_pass_are_kept_and_parameters_are_not():
    (kept,) = Program(PROGRAM.replace("custom-call(%turned.1", "custom-call(%inputs")).kept()
    assert (kept.array, kept.bytes) == ("bf16[4,8,256]", 4 * ROW)


def scanned(w, x):
    """A scan of products and a strided convolution."""

    def layer(x, w):
        with jax.named_scope("layers"):
            return jnp.tanh(x @ w), None

    y, _ = jax.lax.scan(layer, x, w)
    with jax.named_scope("frontend"):
        z = jax.lax.conv_general_dilated(
            y[None], jnp.ones((2, 32, 16)), (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
    return (z * z).sum()


@pytest.mark.parametrize("gradient", [False, True])
def test_flop_of_a_compiled_program_are_those_counted_before_xla(gradient):
    function = jax.grad(scanned, argnums=(0, 1)) if gradient else scanned
    arrays = jnp.ones((5, 32, 32)), jnp.ones((12, 32))
    program = Program(jax.jit(function).lower(*arrays).compile().as_text())
    found = collections.Counter[str]()
    for each in program.operations():
        found[flops.part_of(each.path)] += each.times * each.flops
    forward, convolved = 5 * 2 * 12 * 32 * 32, 2 * 6 * 2 * 32 * 16
    times = (3, 2) if gradient else (1, 1)  # the kernel of the convolution has no gradient
    expected = {"Transformer layers": times[0] * forward, "feature encoder": times[1] * convolved}
    assert +found == expected == flops.count(function, *arrays)
    assert sum(x.times * x.float32 for x in program.operations()) == sum(expected.values())


def test_a_scan_keeps_its_states_for_the_gradient():
    arrays = jnp.ones((5, 32, 32)), jnp.ones((12, 32))
    kept = Program(jax.jit(jax.grad(scanned)).lower(*arrays).compile().as_text()).kept()
    assert kept[0].array == "f32[5,12,32]" and kept[0].bytes == 5 * 12 * 32 * 4
    assert not any(each.array == "f32[5,32,32]" for each in kept)


def test_a_branch_with_the_most_work_counts():
    function = lambda w: jax.lax.cond(w[0, 0] > 0, lambda w: w @ w @ w, lambda w: w @ w, w)
    program = Program(jax.jit(function).lower(jnp.ones((16, 16))).compile().as_text())
    assert sum(x.flops for x in program.operations()) == 2 * 2 * 16**3


@pytest.mark.parametrize(("entries", "outputs", "size"), [(5, 4, 3), (8, 8, 8), (3, 2, 9)])
def test_positions_of_a_kernel_that_meet_an_entry_are_counted(entries, outputs, size):
    for stride, pad, spread, dilation in itertools.product((1, 2, 7), (-1, 0, 2), (1, 2, 8), (1, 3)):
        pairs = itertools.product(range(outputs), range(size))
        places = [o * stride + k * dilation - pad for o, k in pairs]
        meeting = sum(place % spread == 0 and 0 <= place // spread < entries for place in places)
        assert hlo.meetings(entries, outputs, Window(size, stride, pad, spread, dilation)) == meeting
