"""Every method on every mesh of eight devices, and on four with tensor alone: test_contract.py has one of them."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from collectives import Collective, collectives
from test_contract import METHODS, VARIANTS, Job, Run, assert_agree, assert_meant, assert_state_is_cut, mesh_of

PRODUCTS = ((8, 1, 1), (1, 8, 1), (1, 1, 4), (2, 1, 4), (1, 2, 4), (4, 2, 1), (4, 1, 2), (1, 4, 2))
eight = pytest.mark.skipif(jax.device_count() != 8, reason="needs the eight CPU devices of conftest.py")


@eight
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", [*METHODS, *VARIANTS])
def test_every_mesh_gives_the_losses_of_one_device_with_the_collectives_that_were_meant(name):
    job = Job(name)
    one = Run(job, mesh_of(1, 1, 1))
    for shape in PRODUCTS:
        run = Run(job, mesh_of(*shape))
        assert_agree(one, run)
        assert_state_is_cut(run)
        assert_meant(run)


@eight
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_meshes_agree_where_layers_are_dropped():
    """All devices take the same branch; what they say to each other inside is what is said elsewhere."""
    job = Job("wav2vec2", [("encoder.layer_drop", "0.5"), ("encoder.layers", "4")])
    leaf = jax.tree.leaves(job.whole[0]["encoder"]["transformer"]["layers"])[0]
    learns = [bool(np.any(layer)) for layer in leaf]
    assert any(learns) and not all(learns), "some layers are to be dropped in the first update, not all"
    one = job.runs["one"]
    for run in (job.runs["eight"], Run(job, mesh_of(8, 1, 1))):
        for a, b in zip(one.metrics, run.metrics, strict=True):
            np.testing.assert_allclose(b["loss"], a["loss"], rtol=1e-5, err_msg=str(run.mesh.shape))
        assert_meant(run)


PROGRAM = """
%body.1 (p: (f32[8])) -> (f32[8]) {
  %gathered = f32[8,4]{1,0} all-gather(%p), replica_groups=[4,2]<=[2,2,2]T(0,2,1), metadata={op_name="a/b"}
  ROOT %either = f32[8] conditional(%i, %p, %p), branch_computations={%kept.1, %dropped.1}
}
%kept.1 (p: f32[8]) -> f32[8] {
  ROOT %inside = f32[8] all-reduce(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}
}
%dropped.1 (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8] parameter(0)
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %sum = (f32[3]{0}, bf16[]) all-reduce(%p, %q), replica_groups=mesh['x'=2,'y'=4] {'x'}, to_apply=%add
  %moved = f32[2]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
  %all = f32[] all-reduce(%p), replica_groups={}, to_apply=%add
  %listed = f32[] all-reduce(%p), replica_groups={{0,2},{1,3},{4,6},{5,7}}, to_apply=%add
  %turned = f32[] all-reduce(%p), replica_groups=mesh['x'=2,'y'=4], device_ids=([2,2,2]T(1,0,2)) {'x'}, to_apply=%add
  ROOT %loop = (f32[8]) while(%t), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"12"}}
}
"""


def test_collectives_are_read_from_a_program():
    names = "data", "fsdp", "tensor"
    gathered, inside, added, moved, everywhere, listed, turned = collectives(PROGRAM, dict.fromkeys(names, 2))
    assert gathered == Collective("all-gather", frozenset({"fsdp"}), (("f32", (8, 4)),), 12, "a/b")
    assert gathered.bytes == 12 * 8 * 4 * 4
    assert (inside.axes, inside.times) == ({"tensor"}, 12), "a branch in a loop turns with it"
    assert (added.kind, added.axes, added.bytes, added.times) == ("all-reduce", {"data"}, 3 * 4 + 2, 1)
    assert (moved.kind, moved.axes) == ("collective-permute", {"tensor"})
    assert everywhere.axes == set(names)
    assert listed.axes == turned.axes == {"fsdp"}
