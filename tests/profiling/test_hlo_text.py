"""The text of a program is read as instructions, in order, and arrays as what they take in memory."""

from __future__ import annotations

import pytest

from w2v_jax.profiling.hlo_text import Array, computations, instruction_in

LINE = (
    "  ROOT %while.3 = (s32[]{:T(128)}, /*index=1*/bf16[4,8]{1,0:T(8,128)(2,1)S(1)}) while(%tuple.1), "
    "condition=%until, "
    'body=%turn.2, metadata={op_name="jit(step)/while" stack_frame_id=2}'
)


def test_an_instruction_has_a_result_operands_and_a_path():
    found = instruction_in(LINE)
    assert found and (found.name, found.kind, found.operands) == ("while.3", "while", ["tuple.1"])
    assert [str(array) for array in found.arrays] == ["s32[]", "bf16[4,8]"]
    assert found.path == "jit(step)/while" and found.bodies == ["turn.2"]
    assert (found.bytes, found.size) == (4, 4 + 2 * 8 * 128), "the second array lies on the chip"
    assert instruction_in("HloModule jit_step, is_scheduled=true") is instruction_in("}") is None


def test_branches_and_elements_of_tuples_are_found():
    branch = instruction_in("  %y = f32[] conditional(%n, %a, %b), branch_computations={%low.1, %high.2}")
    element = instruction_in("  %z = f32[2]{0} get-tuple-element(%pair), index=12, metadata={}")
    assert branch and branch.bodies == ["low.1", "high.2"] and element and element.element == 12


def test_the_root_is_the_last_of_a_computation():
    text = "ENTRY %main (x: f32[2]) -> f32[2] {\n  %x = f32[2]{0} parameter(0)\n  ROOT %y = f32[2]{0} negate(%x)\n"
    found, entry = computations(text + "  %z = f32[2]{0} negate(%x)\n}\n")
    assert entry == "main" and found["main"].root.name == "y" and found["main"].parameters == ["x"]
    assert [user.name for user in found["main"].users["x"]] == ["z", "y"]


def test_arrays_take_whole_tiles():
    assert Array("f32", (12, 781, 781), "2,1,0:T(8,128)").size == 12 * 784 * 896 * 4
    assert Array("bf16", (781, 12, 781), "2,0,1:T(8,128)(2,1)").size == 12 * 784 * 896 * 2
    assert Array("pred", (3,), "0:T(512)").size == 512 and Array("f32", (3, 5), "1,0").size == 60
    assert Array("f32", (), ":T(128)").size == 4 and Array("f32", (8, 128), "1,0:T(8,128)S(1)").bytes == 0


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="begins with ENTRY"):
        computations("HloModule jit_step\n")
