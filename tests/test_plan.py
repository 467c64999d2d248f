"""`w2v_jax.plan`: what a config takes on devices that are not here."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest
from commands import varied

from w2v_jax import plan
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import load

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
BASE = "configs/w2v2_base.py"


@pytest.mark.parametrize("path", varied(CONFIGS, "w2v2_base", "acoustic_frozen"), ids=lambda path: path.stem)
def test_every_config_can_be_planned(path, capsys):
    overrides = ["--config.init.run="] if "init" in load(str(path)) else []
    assert plan.main([f"--config={path}", "--target=h200-1", *overrides]) == 0
    assert "verdict" in capsys.readouterr().out


def test_a_compiled_program_that_does_not_fit_gets_flags_that_lower_its_memory(monkeypatch, capsys):
    found = dict(memory=1e15, arguments=1.0, temporaries=1.0, code=1.0, seconds=1.0)
    monkeypatch.setattr(plan.estimates, "topology", lambda target: ["a device"])
    monkeypatch.setattr(plan.estimates, "compiled_program", lambda *_: ("", found))
    command = [f"--config={BASE}", "--target=v5e-16", "--compile"]
    assert plan.main([*command, "--json"]) == 1
    (flag,) = json.loads(capsys.readouterr().out)["suggestion"]
    assert flag == "--config.encoder.remat_layers=products"
    assert plan.main(command) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"does not fit the memory: try {flag}" in shown and "fewer than 8 rows at once" in shown


def test_a_compiled_program_is_explained(monkeypatch, capsys):
    line = '%y = f32[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}, metadata={op_name="jit(f)/encoder/layers/dot"}'
    text = f"ENTRY %main (x: f32[64,64]) -> f32[64,64] {{\n  %x = f32[64,64]{{1,0}} parameter(0)\n  ROOT {line}\n}}\n"
    found = dict(memory=1.0, arguments=1.0, temporaries=1.0, code=1.0, seconds=1.0)
    monkeypatch.setattr(plan.estimates, "topology", lambda target: ["a device"])
    monkeypatch.setattr(plan.estimates, "compiled_program", lambda *_: (text, found))
    command = [f"--config={BASE}:tiny", "--target=v5e-1", "--compile", "--explain"]
    assert plan.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["explained"]["flops"] == 2 * 64**3
    assert plan.main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Transformer layers, forward" in shown and "1 x dot f32[64,64] jit(f)/encoder/layers/dot" in shown
    with pytest.raises(UserError, match="give --compile as well"):
        plan.main([*command[:2], "--explain"])


def test_what_cannot_be_compiled_for_is_said(monkeypatch):
    command = [f"--config={BASE}", "--compile"]
    with pytest.raises(UserError, match="--compile is for TPUs"):
        plan.main([*command, "--target=h200-8"])
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=r"pip install 'w2v-jax\[tpu\]'"):
        plan.main([*command, "--target=v5e-16"])


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


def test_suggestions_make_a_config_fit(capsys):
    words = ["--config=configs/w2v2_large.py", "--target=v5e-64"]
    assert plan.main([*words, "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert not result["fits"] and result["suggestion"]
    assert plan.main([*words, *result["suggestion"]]) == 0
    assert "verdict" in capsys.readouterr().out


@pytest.mark.slow
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
