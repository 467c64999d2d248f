"""Laws of opening a run: its config, its step, its parameters and what it read."""

import json
import shutil

import numpy as np
import pytest

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.data.index import WAVE, Form
from w2v_jax.inference.encode import encode
from w2v_jax.inference.run import fixed_run, open_run
from w2v_jax.nn.encoders import MfccEncoder


@pytest.mark.slow
def test_steps_are_chosen_and_parameters_named_by_their_digest(tiny_run):
    path = tiny_run()
    newest, first = open_run(path), open_run(path, step=1)
    assert (newest.step, first.step, open_run(path, step="best").step) == (2, 1, 2)
    assert newest.digest == open_run(path, 2).digest != first.digest
    assert len(newest.digest) == 16


def test_random_parameters_are_those_that_training_starts_from(tiny_run, tmp_path, source):
    path = tiny_run()
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    start = open_run(tmp_path, random=True)
    assert start.step == 0
    assert start.digest == open_run(path, random=True).digest != open_run(path).digest
    assert next(encode(start, source, [0]))[1]["context"].shape[1] == 32


def test_padding_is_kept_out_even_of_a_run_that_let_it_in(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    config = json.loads((run.path / "config.json").read_text())
    config["encoder"]["padding_aware"] = False
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert open_run(tmp_path / "run").config.encoder.padding_aware


def test_folders_that_are_no_run_are_clear_errors(run, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text((run.path / "config.json").read_text())
    with pytest.raises(UserError, match="has no checkpoint yet"):
        open_run(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint of step 7; there are: \[1, 2\]"):
        open_run(run.path, step=7)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        open_run(tmp_path)


def test_what_a_run_read_is_written_beside_it(run, tmp_path):
    assert run.form == WAVE
    shutil.copytree(run.path, tmp_path / "run")
    data = json.loads((run.path / "data.json").read_text())
    form = Form("codes", "int32", 320, "abc")
    (tmp_path / "run" / "data.json").write_text(json.dumps(data | {"form": form._asdict()}))
    assert open_run(tmp_path / "run").form == form


def test_config_of_a_run_is_the_one_it_was_trained_with(run):
    assert configs.flatten(run.config)["encoder.width"] == 32


def test_an_encoder_without_parameters_is_a_run_of_its_local_features():
    mfcc = fixed_run("mfcc", MfccEncoder())
    assert (mfcc.config.method, mfcc.step, mfcc.geometry, mfcc.form) == ("mfcc", 0, (400, 160), WAVE)
    assert mfcc.outputs["local"] == (98, 39)
    wave = np.random.default_rng(0).normal(size=(1, 4000)).astype(np.float32)
    batch = dict(wave=wave, num_samples=np.array([4000]))
    found = mfcc.predictor(("local",), None)(batch)
    assert found["local"].shape == (1, 23, 39) and found["num_frames"].tolist() == [23]
    with pytest.raises(NotImplementedError, match="mfcc features are not trained"):
        mfcc.method.init(None, batch)
