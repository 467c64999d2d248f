"""`w2v_jax.plan`: what a config takes on devices that are not here."""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import pytest

from w2v_jax import plan, sharding, step
from w2v_jax.config import UserError, load

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
BASE = "configs/w2v2_base.py"


@pytest.mark.parametrize(
    ("text", "devices"), [("h200-8", 8), ("V5E-16", 16), ("v4-128", 64), ("v5p-8", 4), ("a100-1", 1), ("v6e-4", 4)]
)
def test_names_of_clouds_are_read(text, devices):
    assert plan.parse_target(text).devices == devices


@pytest.mark.parametrize("text", ["h200", "h200-0", "v4-3", "tpu-8", "v5e-", "8"])
def test_other_names_are_refused(text):
    with pytest.raises(UserError, match="--target"):
        plan.parse_target(text)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_planned(path, capsys):
    overrides = ["--config.init.run="] if "init" in load(str(path)) else []
    assert plan.main([f"--config={path}", "--target=h200-1", *overrides]) == 0
    assert "verdict" in capsys.readouterr().out


def test_state_is_what_the_devices_hold():
    """Against real arrays on 8 CPU devices, cut by fsdp."""
    from w2v_jax.batches import random_batch
    from w2v_jax.methods import wav2vec2

    config = load(f"{BASE}:demo", [("sharding.fsdp", "4"), ("data.batch_hours", str(8 * 12 / 3600))])
    found = plan.estimated(config, plan.Target("here-8", 8, 1e9, 1e12, 1e12))
    mesh, method = sharding.make_mesh(config.sharding), wav2vec2.make(config)
    batch = random_batch(config, found.rows, found.samples)
    tx, _ = step.make_optimizer(config, method, jax.random.key(0), batch)
    make, _ = step.create_state(method, tx, jax.random.key(0), batch, mesh)
    with jax.set_mesh(mesh):
        state = make()
    device = jax.devices()[0]
    pieces = [piece for leaf in jax.tree.leaves(state) for piece in leaf.addressable_shards if piece.device == device]
    assert found.state == sum(piece.data.nbytes for piece in pieces)
    assert found.mesh == (2, 4, 1) and found.parameters == sum(x.size for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize("parts", [1, 2])
def test_program_takes_at_least_the_state_and_the_batch(parts):
    """Compiled for the 8 CPU devices here as for a TPU's."""
    overrides = [("sharding.fsdp", "4"), ("data.batch_hours", str(8 * parts * 12 / 3600)), ("train.dtype", "float32")]
    config = load(f"{BASE}:tiny", [*overrides, ("data.unit_seconds", "12.0"), ("data.device_seconds", "12.0")])
    estimate = plan.estimated(config, plan.Target("here-8", 8, 1e9, 1e12, 1e12))
    assert estimate.parts == parts
    found = plan.compiled(config, jax.devices(), estimate)
    batch = 4 * estimate.parts * estimate.rows * estimate.samples
    assert estimate.state + batch <= found["arguments"] < 1.01 * (estimate.state + batch) + 1000
    assert found["memory"] >= found["arguments"] and found["temporaries"] > 0 and found["seconds"] > 0


@pytest.mark.parametrize(
    ("chips", "axes", "expected"),
    [(1, 2, (1, 1)), (4, 2, (2, 2)), (8, 2, (2, 4)), (16, 2, (4, 4)), (128, 2, (8, 16))]
    + [(4, 3, (2, 2, 1)), (8, 3, (2, 2, 2)), (16, 3, (2, 2, 4)), (64, 3, (4, 4, 4)), (256, 3, (4, 8, 8))],
)
def test_chips_lie_in_the_grids_that_clouds_lend(chips, axes, expected):
    assert plan.grid(chips, axes) == expected


def test_what_cannot_be_compiled_for_is_said(monkeypatch):
    command = [f"--config={BASE}", "--compile"]
    with pytest.raises(UserError, match="--compile is for TPUs"):
        plan.main([*command, "--target=h200-8"])
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=r"pip install 'w2v-jax\[tpu\]'"):
        plan.main([*command, "--target=v5e-16"])


def test_state_falls_with_fsdp_and_work_with_devices():
    one, eight = (
        plan.estimated(load(BASE, [("sharding.fsdp", str(n))]), plan.parse_target(f"h200-{n}")) for n in (1, 8)
    )
    assert eight.state == pytest.approx(one.state / 8, rel=0.02)
    assert eight.gradients == pytest.approx(one.gradients / 8, rel=0.02)
    assert eight.flops * 8 == pytest.approx(one.flops) and eight.parts * 8 == one.parts


def test_fsdp_0_takes_the_smallest_that_fits(capsys):
    config = load(BASE, [("sharding.fsdp", "0"), ("data.batch_hours", "0.39")])
    sizes = [plan.estimated(load(BASE, [("sharding.fsdp", str(n))]), plan.parse_target("h200-8")) for n in (1, 2, 4, 8)]
    between = (sizes[1].memory + sizes[2].memory) / 2 / plan.ROOM
    chosen, estimate = plan.with_fsdp(config, plan.Target("here", 8, between, 1e12, 1e12))
    assert chosen.sharding.fsdp == 4 and estimate.mesh == (2, 4, 1) and config.sharding.fsdp == 0
    for memory, expected in ((1e12, 1), (1e6, 8)):
        assert plan.with_fsdp(config, plan.Target("here", 8, memory, 1e12, 1e12))[0].sharding.fsdp == expected
    assert plan.main([f"--config={BASE}", "--target=h200-8", "--config.sharding.fsdp=0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mesh"] == [8, 1, 1]


def test_first_updates_without_a_backward_pass_of_the_encoder_take_less_of_the_run(capsys):
    def hours(frozen):
        flags = [f"--config.encoder.frozen_steps={frozen}", "--config.train.steps=1000"]
        assert plan.main(["--config=configs/finetune.py:10h", "--target=h200-1", "--json", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    none, half, every = (hours(frozen) for frozen in (0, 500, 2000))
    share = half["first_share"]
    assert 1 / 3 < share < 1 / 2 and none["first_share"] == 1
    assert half["expected_seconds"] == none["expected_seconds"]
    assert half["hours"] == pytest.approx(none["hours"] * (1 + share) / 2)
    assert every["hours"] == pytest.approx(none["hours"] * share)


def test_a_frozen_encoder_computes_nothing_anew():
    config = load("configs/acoustic_frozen.py", [("encoder.remat_layers", "full"), ("encoder.remat_frontend", "full")])
    assert plan.recomputed(config) == []


def test_remat_keeps_less():
    plain, products, full = (
        plan.estimated(load(BASE, [("encoder.remat_layers", each)]), plan.parse_target("h200-1"))
        for each in ("none", "products", "full")
    )
    assert full.activations < 0.6 * plain.activations
    assert full.activations < products.activations < 0.9 * plain.activations
    assert plain.flops < products.flops < full.flops
    assert 1.1 < full.flops / plain.flops < 4 / 3


@pytest.mark.parametrize(("frontend", "layers"), [("none", "none"), ("products", "products"), ("auto", "full")])
def test_the_parts_that_are_computed_again_are_those_of_the_policies(frontend, layers):
    """Against a count of the products in the gradient."""
    import jax.numpy as jnp

    from w2v_jax import flops
    from w2v_jax.batches import random_batch
    from w2v_jax.config import portable
    from w2v_jax.methods import wav2vec2

    def counted(frontend, layers):
        config = load(f"{BASE}:tiny", [("encoder.remat_frontend", frontend), ("encoder.remat_layers", layers)])
        method, key, batch = wav2vec2.make(portable(config)), jax.random.key(0), random_batch(config, 8, 32_000)
        params, extra = sharding.bare(jax.eval_shape(lambda: method.init(key, batch)))
        loss = lambda params: method.loss(params, extra, batch, key, jnp.int32(0), train=True)[0].total
        return config, flops.count(jax.grad(loss), params)

    (_, once), (config, found) = counted("none", "none"), counted(frontend, layers)
    again = [part for part in found if found[part] > once[part]]
    assert sorted(again) == sorted(plan.recomputed(config))


def test_policies_that_keep_less_than_the_config_are_suggested():
    target, flat = plan.parse_target("h200-1"), lambda law: [flags for tries in law for flags in tries]
    full, products = {"encoder.remat_layers": "full"}, {"encoder.remat_layers": "products"}
    frontend = {"encoder.remat_frontend": "full"}
    found = [flags for flags in flat(plan.changes(load("configs/finetune.py"), target)) if "remat" in str(flags)]
    assert found == [frontend, products, full]
    config = load(BASE, [("encoder.remat_layers", "products")])  # its frontend is "auto": "full" on the target
    assert [flags for flags in flat(plan.changes(config, target)) if "remat" in str(flags)] == [full]


def test_float32_is_slower_where_the_device_is():
    halves = {"h200-1": 2, "v5e-1": 1}
    for name, factor in halves.items():
        target = plan.parse_target(name)
        half, whole = (load(BASE, [("train.dtype", dtype)]) for dtype in ("bfloat16", "float32"))
        assert plan.peak_flops(half, target) == target.flops == factor * plan.peak_flops(whole, target)


def test_where_nothing_else_fits_long_recordings_are_left_out():
    config, one = load("configs/finetune.py"), plan.parse_target("h200-1")
    law = [("encoder.remat_frontend", "full"), ("encoder.remat_layers", "full"), ("data.device_seconds", "40.0")]
    short = [
        *law[:2],
        ("data.bucket_seconds", "(4.0,20.0)"),
        ("data.unit_seconds", "20.0"),
        ("data.device_seconds", "20.0"),
    ]
    memory = [plan.estimated(load("configs/finetune.py", flags), one).memory for flags in (law, short)]
    assert memory[1] < memory[0]
    target = plan.Target("here", 1, sum(memory) / 2 / plan.ROOM, 1e12, 1e12)
    flags = plan.suggestion(config, target)
    kept = next(flag for flag in flags if "bucket_seconds" in flag)
    assert kept.startswith("--config.data.bucket_seconds=(4.0,") and "36.0" not in kept
    overrides = [tuple(flag.removeprefix("--config.").split("=")) for flag in flags]
    assert plan.fits(plan.estimated(load("configs/finetune.py", overrides), target), target)


def test_suggestions_make_a_config_fit(capsys):
    words = ["--config=configs/w2v2_large.py", "--target=v5e-64"]
    assert plan.main([*words, "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert not result["fits"] and result["suggestion"]
    assert plan.main([*words, *result["suggestion"]]) == 0
    assert "verdict" in capsys.readouterr().out


def test_what_never_fits_is_said(capsys):
    assert plan.main([f"--config={BASE}", "--target=v5e-1", "--config.encoder.mlp=300000"]) == 1
    assert "take more or larger devices" in capsys.readouterr().out


def test_room_is_used_by_fewer_micro_batches(capsys):
    words = [f"--config={BASE}", "--target=h200-1", "--price=2", "--json"]
    assert plan.main(words) == 0
    before = json.loads(capsys.readouterr().out)
    assert plan.main([*words, *before["suggestion"]]) == 0
    after = json.loads(capsys.readouterr().out)
    assert after["fits"] and after["parts"] < before["parts"] and not after["suggestion"]
    assert after["cost"] == pytest.approx(after["hours"] * 2)


@pytest.mark.parametrize("wrong", ["--target=v5e-3", "--share=0", "--config.sharding.fsdp=3"])
def test_what_cannot_be_planned_is_a_persons_error(wrong):
    with pytest.raises(UserError):
        plan.main([f"--config={BASE}", "--target=v5e-16", wrong])
