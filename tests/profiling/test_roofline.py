"""Laws of the table beside a compiled update: its sums, its floor, its seconds."""

from __future__ import annotations

import jax
import pytest

from w2v_jax.core.config import load
from w2v_jax.profiling import estimate as estimates
from w2v_jax.profiling import roofline
from w2v_jax.profiling.estimate import Estimate, Target, estimated
from w2v_jax.profiling.hlo import Operation
from w2v_jax.profiling.random_batch import step_flops

TINY = "configs/w2v2_base.py:tiny"
TARGET = Target("v5e-1", 1, 1e12, 1e9, 1e6)
PROGRAM = """HloModule jit_step

ENTRY %main (x: bf16[8,16], w: f32[16,16]) -> f32[8,16] {
  %x = bf16[8,16]{1,0} parameter(0)
  %w = f32[16,16]{1,0} parameter(1)
  %turned = f32[16,16]{0,1} copy(%w)
  %wide = f32[8,16]{1,0} convert(%x), metadata={op_name="jit(step)/jvp(model)/encoder/layers/convert"}
  %y = f32[8,16]{1,0} dot(%wide, %turned), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/jvp(model)/encoder/layers/dot_general"}
  ROOT %z = f32[8,16]{1,0} multiply(%y, %wide), metadata={op_name="jit(step)/transpose(jvp(model))/encoder/layers/mul"}
}
"""  # noqa: E501 - as XLA prints programs
SMALL, SQUARE = 8 * 16, 16 * 16


@pytest.fixture(scope="module")
def found():
    config = load(TINY)
    return roofline.explained(PROGRAM, config, TARGET, estimate=estimated(config, TARGET))


def test_sums_are_those_of_the_operations(found):
    copied, widened, multiplied, last = 8 * SQUARE, 6 * SMALL, 8 * SMALL + 4 * SQUARE, 12 * SMALL
    assert found["bytes"] == copied + widened + multiplied + last
    assert found["flops"] == found["float32"] == 2 * 8 * SQUARE
    assert found["parts"].keys() == {"added by XLA", "Transformer layers, forward", "Transformer layers, backward"}
    for key in ("bytes", "flops", "seconds"):
        assert sum(part[key] for part in found["parts"].values()) == pytest.approx(found[key])
    assert found["moves"]["bytes"] == copied and [x["name"] for x in found["moves"]["largest"]] == ["turned"]
    assert [x["name"] for x in found["largest_float32"]] == ["y"] and found["collectives"] == []
    assert [(x["array"], x["bytes"]) for x in found["kept"]] == [("f32[8,16]", 4 * SMALL)] * 2


def test_an_operation_takes_the_longer_of_arithmetic_and_traffic(found):
    seconds = {x["name"]: x["seconds"] for x in found["largest"]}
    assert seconds["y"] == (8 * SMALL + 4 * SQUARE) / 1e6 and found["seconds"] == pytest.approx(sum(seconds.values()))
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)
    slow = roofline.explained(PROGRAM, load(TINY), TARGET._replace(flops=1e3), estimate=estimated(load(TINY), TARGET))
    assert {x["name"]: x["seconds"] for x in slow["largest"]}["y"] == 2 * 8 * SQUARE / 1e3
    assert found["share"] == pytest.approx(found["counted_flops"] / 1e9 / found["seconds"])


def test_our_count_is_that_of_the_products_without_a_second_computation(found):
    config = load(TINY, [("encoder.remat_layers", "full"), ("encoder.remat_frontend", "full")])
    estimate = estimated(config, TARGET)
    again = roofline.explained(PROGRAM, config, TARGET, estimate=estimate)
    assert again["counted_flops"] == found["counted_flops"] < estimate.flops
    batch = estimates.batch_shapes(config, estimate.rows, estimate.samples)
    assert found["counted_flops"] == estimate.parts * sum(step_flops(config, batch).values())


def estimate_of(**changes) -> Estimate:
    given = dict(mesh=(1, 1, 1), parameters=0, parts=2, rows=3, samples=32_000, state=1e6, gradients=4e5)
    return Estimate(**given | dict(activations=0, flops=0, first_share=1.0, traffic=0) | changes)


def test_the_floor_is_what_its_definition_says():
    """Seven convolutions of 32 channels, two layers of width 32 and what enters them, kept in bfloat16."""
    frames = (6399, 3199, 1599, 799, 399, 199, 99)
    kept = 2 * 3 * 32 * (sum(frames) + 3 * 99)
    inputs = 3 * (4 * 32_000 + 4 + 4 + 4)
    assert roofline.floor_bytes(load(TINY), estimate_of()) == 2 * 1e6 + 2 * (inputs + 2 * 2e5 + 2 * kept)
    one = roofline.floor_bytes(load(TINY), estimate_of(parts=1, gradients=2e5))
    assert one == 2 * 1e6 + inputs + 2 * 2e5 + 2 * kept


def test_the_floor_does_not_move_with_what_is_kept():
    flags = [("encoder.remat_layers", "full"), ("encoder.remat_frontend", "full"), ("encoder.attention", "blocks")]
    other = load(TINY, [*flags, ("train.dtype", "bfloat16")])
    assert roofline.floor_bytes(other, estimate_of()) == roofline.floor_bytes(load(TINY), estimate_of())


@pytest.mark.parametrize(
    "name", ["cpc", "wav2vec_small", "bert_codes_base", "finetune", "hubert_base", "acoustic_logmel"]
)
def test_every_kind_of_encoder_has_a_floor(name):
    floor = roofline.floor_bytes(load(f"configs/{name}.py:tiny"), estimate_of())
    assert floor > 2 * 1e6 + 2 * 2 * 2e5


def test_a_part_has_a_direction():
    path = "jit(step)/transpose(jvp(model))/encoder/frontend/dot"
    operation = Operation("x", "dot", path, "", times=1, flops=0, float32=0, read=0, written=0, moves=False)
    assert roofline.part(operation) == "feature encoder, backward"
    assert roofline.part(operation._replace(path="jit(step)/optimizer/mul")) == "optimizer"
    assert roofline.part(operation._replace(path="")) == "added by XLA"


@pytest.mark.slow
def test_a_compiled_update_has_the_flop_that_are_counted():
    config = load(TINY, [("train.dtype", "float32"), ("encoder.convolution", "xla")])
    estimate = estimated(config, Target("here", jax.device_count(), 1e12, 1e9, 1e6))
    text, _ = estimates.compiled_program(config, jax.devices(), estimate)
    found = roofline.explained(text, config, TARGET, estimate=estimate)
    assert found["unknown_loops"] == [] and found["bytes"] > found["floor_bytes"]
    assert found["flops"] == pytest.approx(found["counted_flops"], rel=0.05)
