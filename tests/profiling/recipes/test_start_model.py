"""The model of --from: its encoder's keys are those of the run, and a model without a recogniser is refused."""

import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import load, run_json
from w2v_jax.profiling.recipes.start_model import described, fine_tuning
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
