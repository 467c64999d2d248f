"""Meshes, where arrays live, how units are dealt to devices and micro-batches."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import w2v_jax
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.methods import wav2vec2
from w2v_jax.training import optimizer, sharding, step

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "w2v2_base.py"
PACKAGE = pathlib.Path(w2v_jax.__file__).parent
eight = pytest.mark.skipif(jax.device_count() != 8, reason="needs the eight CPU devices of conftest.py")


def mesh_of(data: int, fsdp: int, tensor: int = 1):
    return sharding.make_mesh(SimpleNamespace(data=data, fsdp=fsdp, tensor=tensor, slices=0))


@eight
def test_mesh_takes_what_is_left_for_data():
    assert dict(mesh_of(0, 2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert dict(mesh_of(0, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert sharding.batch_shards(mesh_of(0, 2, 2)) == 4


@eight
@pytest.mark.parametrize("axes", [(3, 1, 1), (0, 3, 1), (8, 2, 1), (0, 16, 1), (1, 1, 1)])
def test_mesh_that_does_not_fit_the_devices_is_an_error(axes):
    with pytest.raises(UserError, match="does not make the 8 devices"):
        mesh_of(*axes)


@eight
def test_a_mesh_of_rows_cuts_rows_alone_and_may_have_some_of_the_devices():
    mesh = sharding.row_mesh(jax.devices()[2:6])
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 1} and sharding.batch_shards(mesh) == 4
    x = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    rows, whole = sharding.put_rows({"x": x}, mesh)["x"], sharding.put_whole({"x": x}, mesh)["x"]
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}
    assert whole.is_fully_replicated and whole.devices() == rows.devices() == set(jax.devices()[2:6])
    np.testing.assert_array_equal(rows, x)
    np.testing.assert_array_equal(whole, x)


def stand_ins(slices: int, each: int, processes: int = 1) -> list:
    """Devices of TPU slices that are not here, in an order that mixes the slices."""
    count = slices * each
    return [
        SimpleNamespace(id=i, slice_index=i % slices, process_index=i * processes // count, platform="", device_kind="")
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("shape", "slices", "parts"),
    [
        ((8, 1, 1), 2, (2, 1, 1)),
        ((4, 2, 1), 4, (4, 1, 1)),
        ((2, 4, 2), 2, (2, 1, 1)),
        ((1, 8, 1), 2, (1, 2, 1)),  # data has no room: fsdp goes across
        ((2, 4, 1), 4, (2, 2, 1)),
        ((8, 1, 1), 1, (1, 1, 1)),
    ],
)
def test_data_goes_across_slices_and_the_rest_stays_inside(shape, slices, parts):
    devices = stand_ins(slices, np.prod(shape) // slices)
    assert sharding.num_slices(0, devices) == slices
    assert sharding.slices_across(shape, slices) == parts
    grid = sharding.arranged(shape, parts, devices)
    assert grid.shape == shape and len({device.id for device in grid.flat}) == np.prod(shape)
    number = np.vectorize(lambda device: device.slice_index)(grid)
    inside = number.reshape(*(n for size, part in zip(shape, parts) for n in (part, size // part)))
    inside = inside.transpose(0, 2, 4, 1, 3, 5).reshape(slices, -1)
    assert (inside == inside[:, :1]).all() and len(set(inside[:, 0])) == slices


def test_slices_that_the_mesh_or_the_devices_cannot_make_are_named():
    with pytest.raises(UserError, match="2 slices cannot be shared by sharding.data=1 and fsdp=3"):
        sharding.slices_across((1, 3, 2), 2)
    with pytest.raises(UserError, match=r"sharding.slices=3: the 8 devices here are in 2 slice\(s\) and 4 process"):
        sharding.num_slices(3, stand_ins(2, 4, processes=4))
    assert sharding.num_slices(4, stand_ins(2, 4, processes=4)) == 4
    assert sharding.num_slices(1, stand_ins(2, 4)) == 1


@pytest.mark.parametrize(
    ("units", "device_units", "shards", "expected"),
    [
        (64, 1, 1, 64),  # one device that holds one unit
        (64, 64, 1, 1),
        (64, 8, 8, 1),
        (64, 1, 8, 8),
        (64, 3, 8, 4),  # 3 fit, 2 divide the 8 units of a device
        (12, 5, 1, 3),
        (7, 6, 1, 7),
        (8, 0.5, 8, 1),  # less than a unit: one unit all the same
    ],
)
def test_accumulation_is_the_fewest_micro_batches_that_fit(units, device_units, shards, expected):
    parts = sharding.accumulation(units, 87.5, device_units * 87.5, shards=shards)
    assert parts == expected
    assert units % (parts * shards) == 0
    assert units // (parts * shards) <= max(1, device_units)


@pytest.mark.parametrize(("units", "shards"), [(10, 8), (3, 8), (63, 64), (1, 2)])
def test_units_that_cannot_be_dealt_are_an_error_with_hours_that_fit(units, shards):
    with pytest.raises(UserError, match=f"makes {units} units") as error:
        sharding.accumulation(units, 87.5, 87.5, shards=shards)
    proposals = re.findall(r"([\d.]+) \((\d+) units\)", str(error.value))
    assert proposals
    for hours, proposed in proposals:
        assert round(float(hours) * 3600 / 87.5) == int(proposed)
        assert sharding.accumulation(int(proposed), 87.5, 87.5, shards=shards)


@eight
@pytest.mark.parametrize(("axes", "parts"), [((8, 1), 1), ((8, 1), 2), ((4, 2), 2), ((2, 2, 2), 4)])
def test_batch_goes_to_the_devices_by_whole_units_and_comes_back(axes, parts):
    mesh, units, rows = mesh_of(*axes), 16, 3
    order = sharding.local_units(mesh, units, parts)
    assert sorted(order) == list(range(units))
    row = np.concatenate([np.arange(u * rows, (u + 1) * rows) for u in order]).astype(np.int32)
    wave = (row[:, None] + np.linspace(0, 0.5, 7)).astype(np.float32)
    batch = sharding.put_batch(dict(row=row, wave=wave), mesh, parts)
    shards = sharding.batch_shards(mesh)
    assert batch["wave"].shape == (parts, units * rows // parts, 7)
    np.testing.assert_array_equal(np.asarray(batch["row"]).reshape(-1), np.arange(units * rows))
    np.testing.assert_array_equal(np.asarray(batch["wave"]).reshape(-1, 7), wave[np.argsort(row)])
    for shard in batch["row"].addressable_shards:
        for piece in np.asarray(shard.data):
            assert len(piece) == units * rows // parts // shards
            assert piece[0] % rows == 0 and np.all(np.diff(piece) == 1)


def tiny():
    return configs.load(f"{CONFIG}:tiny")


def micro_batch(rows: int = 8, samples: int = 16_000):
    shape = jax.ShapeDtypeStruct
    wave = shape((rows, samples), jnp.float32)
    ints, floats = shape((rows,), jnp.int32), shape((rows,), jnp.float32)
    return dict(wave=wave, num_samples=ints, weight=floats, row=ints)


@pytest.fixture(scope="module")
def parts_of_a_run():
    """(method, optimizer, rate, boxed abstract state)"""
    config = tiny()
    method, key = wav2vec2.make(config), jax.random.key(0)
    tx, rate = step.make_optimizer(config, method, key, batch=micro_batch())
    state = jax.eval_shape(lambda: step.init_state(method, tx, key, batch=step.zeros_like(micro_batch())))
    return method, tx, rate, state


EXPECTED = {
    "encoder/frontend/conv0/kernel": P(None, None, "fsdp"),
    "encoder/frontend/conv0/norm/scale": P("fsdp"),
    "encoder/projection/kernel": P(None, "fsdp"),
    "encoder/mask_vector": P("fsdp"),
    "encoder/transformer/positional/direction": P(None, None, "fsdp"),
    "encoder/transformer/positional/scale": P(),
    "encoder/transformer/layers/query/kernel": P(None, "fsdp", "tensor"),
    "encoder/transformer/layers/query/bias": P(None, "tensor"),
    "encoder/transformer/layers/out/kernel": P(None, "tensor", "fsdp"),
    "encoder/transformer/layers/mlp_in/kernel": P(None, "fsdp", "tensor"),
    "encoder/transformer/layers/mlp_out/kernel": P(None, "tensor", "fsdp"),
    "encoder/transformer/layers/mlp_norm/scale": P(None, "fsdp"),
    "quantizer/codebook": P(None, None, "fsdp"),
    "quantizer/weight_proj/kernel": P("fsdp"),
    "context_proj/kernel": P("fsdp"),
    "target_proj/kernel": P(None, "fsdp"),
}


def by_name(tree) -> dict:
    return {optimizer.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def short(spec: P) -> P:
    """Without trailing Nones."""
    axes = list(spec)
    while axes and axes[-1] is None:
        axes.pop()
    return P(*axes)


@eight
def test_parameters_and_optimizer_state_live_where_they_are_declared(parts_of_a_run):
    method, tx, _, _ = parts_of_a_run
    mesh = mesh_of(2, 2, 2)
    averaged = optax.chain(tx, optimizer.average(0.9))
    _, shapes = step.create_state(method, averaged, jax.random.key(0), batch=micro_batch(), mesh=mesh)
    params, (opt, average) = by_name(shapes.params), shapes.opt
    for name, spec in EXPECTED.items():
        assert short(params[name].sharding.spec) == short(spec), name
    moments = next(s for s in opt if isinstance(s, optimizer.AdamState))
    for tree in (moments.mu, moments.nu, average.mean):
        for name, leaf in by_name(tree).items():
            assert (leaf.shape, leaf.sharding) == (params[name].shape, params[name].sharding), name
    assert moments.count.sharding.spec == P() and shapes.step.sharding.spec == P()
    whole = [name for name, leaf in params.items() if short(leaf.sharding.spec) == P()]
    assert set(whole) <= {"encoder/transformer/positional/scale", "quantizer/weight_proj/bias"}, "kept whole everywhere"


@eight
def test_dimension_that_does_not_divide_is_kept_whole():
    box = functools.partial(nn.LogicallyPartitioned, mesh=None, rules=None)
    tree = {"a": box(jax.ShapeDtypeStruct((7, 6), jnp.float32), names=("embed", "mlp"))}
    assert sharding.shardings(tree, mesh_of(2, 2, 2))["a"].spec == P(None, "tensor")
    assert short(sharding.shardings(tree, mesh_of(2, 4))["a"].spec) == P(None, "tensor")


@eight
def test_unknown_logical_axis_is_an_error():
    tree = {"a": nn.LogicallyPartitioned(jnp.zeros((2, 2)), names=("embed", "embd"))}
    with pytest.raises(ValueError, match="'embd'.* not in sharding.RULES"):
        sharding.shardings(tree, mesh_of(8, 1))


@eight
def test_activation_constraints_are_in_the_lowered_program(parts_of_a_run):
    """Flax drops them without a word outside of jax.set_mesh: the test fails if they ever vanish."""
    method, _, _, state = parts_of_a_run
    state, mesh = sharding.bare(state), mesh_of(2, 2, 2)
    batches = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), micro_batch())

    def lowered() -> str:
        function = jax.jit(lambda s, b, k: step.accumulated_gradients(method, s, b, key=k))
        return function.lower(state, batches, jax.random.key(0)).as_text()

    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        lines = [line for line in lowered().splitlines() if "sharding_constraint" in line]
    rows = [line for line in lines if re.search(r'\{"data", "fsdp"\}', line)]
    wide = [line for line in rows if '"tensor"' in line]
    assert len(rows) >= 10, "blocks and convolutions keep the batch cut over data and fsdp"
    assert wide, "the feed-forward width is cut over tensor"


CALLS = {"partitioned", "with_logical_partitioning", "with_logical_constraint", "linear", "_dense", "LayerNorm"}


def axis_names(file: pathlib.Path) -> set[str]:
    """Logical axis names written in a file: strings in tuples that are arguments of CALLS, and LayerNorm's axis."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "axis" and node.value is not None:
            names.add(ast.literal_eval(node.value))
        if not isinstance(node, ast.Call):
            continue
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called not in CALLS:
            continue
        for argument in node.args:
            if isinstance(argument, ast.Tuple):
                names |= {e.value for e in argument.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)}
            if called == "LayerNorm" and isinstance(argument, ast.Constant):
                names.add(argument.value)
    return names


def test_every_logical_axis_in_the_package_has_a_rule():
    found = {name: axis_names(file) for file in PACKAGE.rglob("*.py") for name in [file.relative_to(PACKAGE)]}
    known = {name for name, _ in sharding.RULES}
    used = set().union(*found.values())
    surely = {"batch", "frames", "conv", "embed", "heads", "mlp", "groups", "codes", "proj"}
    assert surely <= used, f"the search is blind to {surely - used}"
    for file, names in found.items():
        assert names <= known, f"{file}: {names - known} not in sharding.RULES"
