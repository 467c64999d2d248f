"""Laws of estimates: memory is what devices hold, work is what programs compute, and suggestions make a config fit."""

from __future__ import annotations

import json
import os
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax import plan
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import changed, load, portable
from w2v_jax.methods import wav2vec2
from w2v_jax.profiling import estimate as estimates
from w2v_jax.profiling import flops
from w2v_jax.profiling.estimate import (
    LESS,
    ROOM,
    Target,
    compiled_program,
    estimated,
    exhausted,
    fits,
    grid,
    lower_update,
    memory_flags,
    memory_options,
    moves_few_rows,
    parse_target,
    peak_flops,
    planned_update,
    recomputed_parts,
    with_fsdp,
)
from w2v_jax.profiling.random_batch import random_batch
from w2v_jax.training import sharding, step

BASE = "configs/w2v2_base.py"


@pytest.mark.parametrize(
    ("text", "devices"), [("h200-8", 8), ("V5E-16", 16), ("v4-128", 64), ("v5p-8", 4), ("a100-1", 1), ("v6e-4", 4)]
)
def test_names_of_clouds_are_read(text, devices):
    assert parse_target(text).devices == devices


@pytest.mark.parametrize("text", ["h200", "h200-0", "v4-3", "tpu-8", "v5e-", "8"])
def test_other_names_are_refused(text):
    with pytest.raises(UserError, match="--target"):
        parse_target(text)


def test_state_is_what_the_devices_hold():
    """Against real arrays on 8 CPU devices, cut by fsdp."""

    config = load(f"{BASE}:demo", [("sharding.fsdp", "4"), ("data.batch_hours", str(8 * 12 / 3600))])
    found = estimated(config, Target("here-8", 8, 1e9, 1e12, 1e12))
    mesh, method = sharding.make_mesh(config.sharding), wav2vec2.make(config)
    batch = random_batch(config, found.rows, found.samples)
    tx, _ = step.make_optimizer(config, method, jax.random.key(0), batch=batch)
    make, _ = step.create_state(method, tx, jax.random.key(0), batch=batch, mesh=mesh)
    with jax.set_mesh(mesh):
        state = make()
    device = jax.devices()[0]
    pieces = [piece for leaf in jax.tree.leaves(state) for piece in leaf.addressable_shards if piece.device == device]
    assert found.state == sum(piece.data.nbytes for piece in pieces)
    assert found.mesh == (2, 4, 1) and found.parameters == sum(x.size for x in jax.tree.leaves(state.params))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_program_takes_at_least_the_state_and_the_batch(parts):
    """Compiled for the 8 CPU devices here as for a TPU's."""
    overrides = [("sharding.fsdp", "4"), ("data.batch_hours", str(8 * parts * 12 / 3600)), ("train.dtype", "float32")]
    config = load(f"{BASE}:tiny", [*overrides, ("data.unit_seconds", "12.0"), ("data.device_seconds", "12.0")])
    estimate = estimated(config, Target("here-8", 8, 1e9, 1e12, 1e12))
    assert estimate.parts == parts
    _, found = compiled_program(config, jax.devices(), estimate)
    batch = 4 * estimate.parts * estimate.rows * estimate.samples
    assert estimate.state + batch <= found["arguments"] < 1.01 * (estimate.state + batch) + 1000
    assert found["memory"] >= found["arguments"] and found["temporaries"] > 0 and found["seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "base", "words"),
    [
        (f"{BASE}:tiny", {}, {"encoder.convolution": "xla", "encoder.attention": "xla"}),
        (
            "configs/acoustic_logmel.py:tiny",
            {"acoustic.kind": "transformer", "acoustic.layers": 2},
            {"acoustic.positional": "grouped", "acoustic.stack": "unroll"},
        ),
    ],
)
def test_the_planned_program_is_that_of_the_config(config, base, words):
    """Each formulation that the config names is another program; on these CPU devices "auto" is none of them."""
    devices, target = jax.devices(), Target("here-8", 8, 1e9, 1e12, 1e12)

    def text(**words):
        changed_config = changed(load(config), {"train.dtype": "bfloat16"} | base | words)
        given, mesh, micro_batch, batch = planned_update(changed_config, devices, estimated(changed_config, target))
        return lower_update(given, mesh, micro_batch, batch=batch)[2].as_text()

    auto = text()
    others = {key: text(**{key: word}) for key, word in words.items()}
    assert len({auto, *others.values()}) == 1 + len(words), "no two of them are one"


def test_a_formulation_that_the_target_lacks_is_refused():
    config = changed(load(f"{BASE}:tiny"), {"encoder.attention": "cudnn", "encoder.attention_dropout": 0.0})
    config = changed(config, {"train.dtype": "bfloat16"})
    estimate = estimated(config, Target("here-8", 8, 1e9, 1e12, 1e12))
    with pytest.raises(UserError, match="encoder.attention='cudnn' needs an NVIDIA GPU"):
        compiled_program(config, jax.devices(), estimate)


@pytest.mark.parametrize(("name", "options"), [("v4-8", {"chip_config_name": "megacore"}), ("v6e-4", {})])
def test_the_devices_of_a_topology_are_the_chips_of_the_target(name, options, monkeypatch):
    """Also of one chip. A chip of v4 is one device of JAX, though the compiler has a topology of two for it."""
    asked = []

    def described(topology, platform, **given):
        asked.append((topology, given))
        sizes = [int(n) for n in topology.partition(":")[2].split("x")]
        return SimpleNamespace(devices=["chip"] * int(np.prod(sizes)))

    monkeypatch.setattr(os, "environ", dict(os.environ))  # which `topology` changes
    monkeypatch.setattr(estimates.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(estimates.topologies, "get_topology_desc", described)
    target = parse_target(name)
    assert len(estimates.topology(target)) == target.devices
    one = parse_target(name.replace("8", "2").replace("-4", "-1"))
    assert len(estimates.topology(one)) == one.devices == 1
    assert asked[0][1] == options and asked[1][1] == options | {"chips_per_host_bounds": (1, 1, 1)}
    nine = SimpleNamespace(devices=["chip"] * 9)
    monkeypatch.setattr(estimates.topologies, "get_topology_desc", lambda *_, **__: nine)
    with pytest.raises(UserError, match=f"--target={name}: the compiler has 9 devices"):
        estimates.topology(target)


@pytest.mark.parametrize(
    ("chips", "axes", "expected"),
    [(1, 2, (1, 1)), (4, 2, (2, 2)), (8, 2, (2, 4)), (16, 2, (4, 4)), (128, 2, (8, 16))]
    + [(4, 3, (2, 2, 1)), (8, 3, (2, 2, 2)), (16, 3, (2, 2, 4)), (64, 3, (4, 4, 4)), (256, 3, (4, 8, 8))],
)
def test_chips_lie_in_the_grids_that_clouds_lend(chips, axes, expected):
    assert grid(chips, axes) == expected


def test_state_falls_with_fsdp_and_work_with_devices():
    one, eight = (estimated(load(BASE, [("sharding.fsdp", str(n))]), parse_target(f"h200-{n}")) for n in (1, 8))
    assert eight.state == pytest.approx(one.state / 8, rel=0.02)
    assert eight.gradients == pytest.approx(one.gradients / 8, rel=0.02)
    assert eight.flops * 8 == pytest.approx(one.flops) and eight.parts * 8 == one.parts


def test_fsdp_0_takes_the_smallest_that_fits(capsys):
    config = load(BASE, [("sharding.fsdp", "0"), ("data.batch_hours", "0.39")])
    sizes = [estimated(load(BASE, [("sharding.fsdp", str(n))]), parse_target("h200-8")) for n in (1, 2, 4, 8)]
    between = (sizes[1].memory + sizes[2].memory) / 2 / ROOM
    chosen, estimate = with_fsdp(config, Target("here", 8, between, 1e12, 1e12))
    assert chosen.sharding.fsdp == 4 and estimate.mesh == (2, 4, 1) and config.sharding.fsdp == 0
    for memory, expected in ((1e12, 1), (1e6, 8)):
        assert with_fsdp(config, Target("here", 8, memory, 1e12, 1e12))[0].sharding.fsdp == expected
    assert plan.main([f"--config={BASE}", "--target=h200-8", "--config.sharding.fsdp=0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mesh"] == [8, 1, 1]


def test_a_frozen_encoder_computes_nothing_anew():
    config = load("configs/acoustic_frozen.py", [("encoder.remat_layers", "full"), ("encoder.remat_frontend", "full")])
    assert recomputed_parts(config) == []


def test_remat_keeps_less():
    plain, products, full = (
        estimated(load(BASE, [("encoder.remat_layers", each)]), parse_target("h200-1"))
        for each in ("none", "products", "full")
    )
    assert full.activations < 0.6 * plain.activations
    assert full.activations < products.activations < 0.9 * plain.activations
    assert plain.flops < products.flops < full.flops
    assert 1.1 < full.flops / plain.flops < 4 / 3


def test_weights_that_are_used_again_are_no_activations():
    """A layer that is computed once more needs its float32 weights, which the state holds."""

    def activations(mlp):
        config = load(f"{BASE}:tiny", [("encoder.remat_layers", "full"), ("encoder.mlp", mlp)])
        return estimated(config, Target("here", 1, 1e9, 1e12, 1e12)).activations

    assert activations("64") == activations("256")


@pytest.mark.parametrize(("frontend", "layers"), [("none", "none"), ("products", "products"), ("auto", "full")])
def test_the_parts_that_are_computed_again_are_those_of_the_policies(frontend, layers):
    """Against a count of the products in the gradient."""

    from w2v_jax.methods import wav2vec2
    from w2v_jax.profiling.random_batch import random_batch

    def counted(frontend, layers):
        config = load(f"{BASE}:tiny", [("encoder.remat_frontend", frontend), ("encoder.remat_layers", layers)])
        method, key, batch = wav2vec2.make(portable(config)), jax.random.key(0), random_batch(config, 8, 32_000)
        params, extra = sharding.bare(jax.eval_shape(lambda: method.init(key, batch)))
        loss = lambda params: method.loss(params, extra, batch, key, jnp.int32(0), train=True)[0].total
        return config, flops.count(jax.grad(loss), params)

    (_, once), (config, found) = counted("none", "none"), counted(frontend, layers)
    again = [part for part in found if found[part] > once[part]]
    assert sorted(again) == sorted(recomputed_parts(config))


def test_policies_that_keep_less_than_the_config_are_suggested():
    target = parse_target("h200-1")
    full, products = {"encoder.remat_layers": "full"}, {"encoder.remat_layers": "products"}
    frontend = {"encoder.remat_frontend": "full"}
    found = [flags for flags in memory_options(load("configs/finetune.py"), target) if "remat" in str(flags)]
    assert found == [frontend, products, full]
    config = load(BASE, [("encoder.remat_layers", "products")])  # its frontend is "auto": "full" on the target
    assert [flags for flags in memory_options(config, target) if "remat" in str(flags)] == [full]


def test_an_update_without_memory_is_told_with_flags_that_take_clearly_less():
    config = load(f"{BASE}:tiny", [("data.device_seconds", "16.0"), ("data.batch_hours", repr(64 * 2 / 3600))])
    said = exhausted(config, "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes")
    (flag,) = re.findall(r"--config\.(\S+)", said)
    key, value = flag.rstrip(".").split("=")
    assert key == "data.device_seconds" and float(value) < 16
    one = Target("here", jax.device_count(), 1e9, 1e12, 1e12)
    before, after = (estimated(c, one).memory for c in (config, changed(config, {key: float(value)})))
    assert after <= LESS * before and "allocating 99 bytes" in said and "\n" not in said


def test_few_rows_of_convolutions_are_many_moves_on_tpus():
    few, many = (SimpleNamespace(rows=rows) for rows in (7, 8))
    tpu, gpu = parse_target("v6e-4"), parse_target("h200-4")
    assert moves_few_rows(load(BASE), tpu, few) and not moves_few_rows(load(BASE), tpu, many)
    assert not moves_few_rows(load(BASE), gpu, few)
    assert not moves_few_rows(load("configs/bert_codes_base.py"), tpu, few)


def test_float32_is_slower_where_the_device_is():
    halves = {"h200-1": 2, "v5e-1": 1}
    for name, factor in halves.items():
        target = parse_target(name)
        half, whole = (load(BASE, [("train.dtype", dtype)]) for dtype in ("bfloat16", "float32"))
        assert peak_flops(half, target) == target.flops == factor * peak_flops(whole, target)


@pytest.mark.slow
def test_where_nothing_else_fits_long_recordings_are_left_out():
    config, one = load("configs/finetune.py"), parse_target("h200-1")
    law = [("encoder.remat_frontend", "full"), ("encoder.remat_layers", "full"), ("data.device_seconds", "40.0")]
    short = [
        *law[:2],
        ("data.bucket_seconds", "(4.0,20.0)"),
        ("data.unit_seconds", "20.0"),
        ("data.device_seconds", "20.0"),
    ]
    memory = [estimated(load("configs/finetune.py", flags), one).memory for flags in (law, short)]
    assert memory[1] < memory[0]
    target = Target("here", 1, sum(memory) / 2 / ROOM, 1e12, 1e12)
    flags = memory_flags(config, target)
    kept = next(flag for flag in flags if "bucket_seconds" in flag)
    assert kept.startswith("--config.data.bucket_seconds=(4.0,") and "36.0" not in kept
    overrides = [tuple(flag.removeprefix("--config.").split("=")) for flag in flags]
    assert fits(estimated(load("configs/finetune.py", overrides), target), target)
