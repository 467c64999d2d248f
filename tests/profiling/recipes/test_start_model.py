"""The model of --from: its encoder's keys are those of the run, and a model without a recogniser is refused."""

import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import load, run_json
from w2v_jax.interop.huggingface_config import DEFAULTS, our_config
from w2v_jax.interop.tensor_mapping import parameter_shapes
from w2v_jax.profiling.recipes.start_model import continued, described, fine_tuning
from w2v_jax.training.warm_start import encoder_changes


@pytest.mark.parametrize(
    "spec", ["w2v2_base.py", "w2v2_large.py", "hubert_base.py", "wavlm_base.py", "w2v2_base.py:demo"]
)
def test_the_encoder_of_the_recogniser_is_that_of_the_run(spec):
    init = fine_tuning("runs/x", load(spec), 1.0, is_run=True)
    assert init.config == "finetune.py:1h"
    recogniser = load(init.config, [(key, str(value)) for key, value in init.changes.items()])
    assert not encoder_changes(recogniser, load(spec))
    assert bool(init.changes) == (spec not in ("w2v2_base.py", "hubert_base.py"))


@pytest.mark.parametrize("spec", ["w2v2_base.py", "w2v2_large.py", "w2v2_base.py:demo", "w2v2_large.py:tiny"])
def test_a_pretraining_goes_on_with_every_parameter_of_the_run(spec):
    further = continued(load(spec))
    assert further is not None
    config = load(further[0], [(key, str(value)) for key, value in further[1].items()])
    assert parameter_shapes(config) == parameter_shapes(load(spec)) and not encoder_changes(config, load(spec))
    assert config.optim.peak < load(further[0]).optim.peak


@pytest.mark.parametrize("spec", ["hubert_base.py", "wavlm_base.py", "finetune.py:10h", "cpc.py"])
def test_a_pretraining_that_lacks_units_or_heads_cannot_go_on(spec):
    assert continued(load(spec)) is None


def test_an_encoder_without_its_quantizer_cannot_go_on():
    settings = {**DEFAULTS, "model_type": "wav2vec2"}
    made = {head: our_config(settings, head, normalize=True, outputs=0) for head in ("encoder", "pretraining")}
    assert continued(made["encoder"]) is None and continued(made["pretraining"]) is not None


def test_a_run_of_ones_own_keeps_its_acoustic_model():
    init = fine_tuning("runs/x", load("cpc.py:demo"), 1.0, is_run=True)
    assert init.config == "acoustic_frozen.py:cpc_demo" and init.changes["encoder.frozen"] is False


def test_what_no_recogniser_reads_and_what_is_not_there_are_told(tmp_path):
    with pytest.raises(UserError, match="cannot be fine-tuned from bert_codes"):
        fine_tuning("runs/x", load("bert_codes_small.py"), 1.0, is_run=True)
    with pytest.raises(UserError, match="--from .*nothing does not exist"):
        described(str(tmp_path / "nothing"), 1.0)


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(run_json(load("cpc.py:tiny")))
    with pytest.raises(UserError, match="has saved no checkpoint yet"):
        described(str(tmp_path), 0.2)


def test_a_run_is_read_where_it_stands(random_run):
    init = described(str(random_run()), 0.2)
    assert init.is_run and init.method == "wav2vec2" and init.config == "finetune.py:10m"
