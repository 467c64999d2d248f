"""Laws of the other side of the bench: the same model in PyTorch, and what it lacks is named."""

from __future__ import annotations

import pathlib
import sys

import jax
import pytest

from w2v_jax import methods
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import load
from w2v_jax.interop import huggingface
from w2v_jax.interop.tensor_mapping import TensorPair, dense_pairs, import_tensors
from w2v_jax.methods import wav2vec2
from w2v_jax.nn import unit_prediction
from w2v_jax.profiling import random_batch, torch_baseline
from w2v_jax.training import sharding


@pytest.mark.parity
@pytest.mark.parametrize("frozen", [0, 5])
def test_the_other_side_trains_what_ours_does_in_the_first_updates(frozen):
    torch = pytest.importorskip("torch", reason="torch or transformers is not installed (extra `parity`)")
    pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")
    config = random_batch.with_alphabet(load("configs/finetune.py:tiny", [("encoder.frozen_steps", str(frozen))]))
    model, _ = torch_baseline.ctc_baseline(torch, config)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == ({"lm_head"} if frozen else {"wav2vec2", "lm_head"})


@pytest.mark.parity
@pytest.mark.parametrize("name", ["w2v2_base", "w2v2_large"])
def test_the_other_model_has_as_many_parameters_as_ours(name):
    torch = pytest.importorskip("torch", reason="torch or transformers is not installed (extra `parity`)")
    transformers = pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")
    config = load(f"configs/{name}.py", [("data.unit_seconds", "1.0")])
    with torch.device("meta"):
        model = transformers.Wav2Vec2ForPreTraining(torch_baseline.baseline_config(config, "pretraining"))
    theirs = sum(p.numel() for p in model.parameters())
    batch = {"wave": jax.numpy.zeros((1, 16_000)), "num_samples": jax.numpy.full(1, 16_000)}
    batch |= {"weight": jax.numpy.ones(1), "row": jax.numpy.arange(1)}
    params, _ = jax.eval_shape(lambda: wav2vec2.make(config).init(jax.random.key(0), batch))
    assert theirs == sum(x.size for x in jax.tree.leaves(sharding.bare(params)))


@pytest.mark.parity
@pytest.mark.parametrize(("config", "parameters"), [("hubert_base", 94_697_600), ("wavlm_base", 94_707_824)])
def test_the_other_encoder_and_its_head_have_as_many_parameters_as_ours(config, parameters):
    torch = pytest.importorskip("torch", reason="torch or transformers is not installed (extra `parity`)")
    pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")
    with torch.device("meta"):
        model, _ = torch_baseline.unit_baseline(torch, load(f"configs/{config}.py"))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parity
@pytest.mark.parametrize("name", ["hubert_large", "wavlm_large"])
def test_the_other_side_has_our_loss_of_units(name):
    """Two label sets at twice the rate, tied, with all frames counted: the same weights and masks."""
    torch = pytest.importorskip("torch", reason="torch or transformers is not installed (extra `parity`)")
    pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")
    changes = {"loss.classes": "7,5", "data.targets_hop": "160", "loss.untied": "false", "loss.penalty_weight": "0"}
    config = load(f"configs/{name}.py:tiny", list(changes.items()))
    batch = random_batch.random_batch(config, 2, 16_000)
    model, loss = torch_baseline.unit_baseline(torch, config)
    masked, _ = next(torch_baseline._masks(config, batch["wave"], torch))
    _, printed = loss({name: torch.from_numpy(x) for name, x in batch.items()})
    tensors = {f"encoder.{name}": x.detach().numpy() for name, x in model.encoder.eval().named_parameters()}
    pairs = huggingface.tensor_pairs(config, "encoder.", "encoder") + dense_pairs("final_proj", "final_proj")
    tensors |= {name: x.detach().numpy() for name, x in model.named_parameters() if not name.startswith("encoder.")}
    pairs += [TensorPair("label_embeddings", "label_embs_concat")]
    params, _ = import_tensors(tensors, pairs, config, source="the other side")
    hidden = jax.numpy.asarray(masked.numpy())
    prediction = unit_prediction.UnitPredictor(config).apply({"params": params}, batch, hidden)
    _, metrics = unit_prediction.objective(config, batch, masked=hidden, prediction=prediction)
    assert float(metrics["loss"].value()) == pytest.approx(printed.item(), rel=1e-4)


def test_without_torch_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="parity"):
        torch_baseline._import_torch()


@pytest.mark.parity
def test_distractors_that_the_other_side_lacks_are_refused():
    pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")
    config = load("configs/w2v2_base.py:tiny", [("loss.cross_negatives", "5")])
    with pytest.raises(UserError, match="cross_negatives"):
        torch_baseline.baseline_config(config, "pretraining")


def test_every_method_says_what_its_step_in_torch_does():
    files = pathlib.Path(methods.__file__).parent.glob("*.py")
    assert torch_baseline.DESCRIPTIONS.keys() == {path.stem for path in files} - {"__init__"}
