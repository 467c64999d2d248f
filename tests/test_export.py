"""Laws of `w2v_jax.export`: the program gives what the run gives, for any batch and length, without this package."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
import soundfile

import w2v_jax
from w2v_jax import export, methods
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.data.index import Form
from w2v_jax.data.io.arrays import Arrays
from w2v_jax.inference.encode import encode
from w2v_jax.inference.run import Run, silent_batch
from w2v_jax.training import sharding

ROOT = pathlib.Path(__file__).parents[1]
TRAINING = ("tensorflow", "optax", "orbax", "flax", "librosa", "ml_collections", "soxr", "torch", "w2v_jax")


def run(*arguments):
    assert export.main([str(argument) for argument in arguments]) == 0


class Program:
    """What someone without the package does with the folder."""

    def __init__(self, folder):
        self.about = json.loads((folder / "metadata.json").read_text())
        self.weights = dict(np.load(folder / "weights.npz"))
        self.call = jax.jit(jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes())).call)

    def __call__(self, batch, counts):
        found = self.call(self.weights, batch, np.array(counts, np.int32))
        return [
            np.asarray(rows)[..., :n, :] for rows, n in zip(found[self.about["what"]], np.asarray(found["num_frames"]))
        ]


def waves(*lengths):
    rng = np.random.default_rng(0)
    return [(0.1 * rng.normal(size=n) + 0.05).astype(np.float32) for n in lengths]


def padded(rows, length, fill):
    batch = np.full((len(rows), length), fill, np.float32)
    for row, wave in zip(batch, rows):
        row[: len(wave)] = wave
    return batch


CASES = {
    "wav2vec 2.0": ("w2v2_base.py:tiny", dict(data__normalize=True), "context", ()),
    "wav2vec 2.0 Large": ("w2v2_large.py:tiny", dict(train__dtype="float32"), "hidden", ("--layers", "1,0.5,-1")),
    "all layers": ("wav2vec_small.py:tiny", {}, "hidden", ()),
    "recurrent": ("cpc.py:tiny", {}, "context", ()),
    "codes": ("vq_wav2vec.py:tiny", {}, "codes", ()),
    "HuBERT": ("hubert_base.py:tiny", dict(train__dtype="float32"), "context", ()),
    "WavLM": ("wavlm_base.py:tiny", dict(train__dtype="float32"), "context", ()),
    "fine-tuned": ("finetune.py:tiny", dict(train__dtype="float32"), "logits", ("--platforms", "cpu,cuda,tpu")),
    "log-mel": ("acoustic_logmel.py:tiny", {}, "logits", ()),
    "log-mel, Transformer": ("acoustic_logmel.py:tiny", dict(acoustic__kind="transformer"), "logits", ()),
}


SLOW = ("wav2vec 2.0 Large", "HuBERT", "codes", "all layers", "recurrent", "log-mel, Transformer")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in CASES])
def test_the_program_gives_what_the_run_gives_in_any_batch_of_any_length(random_run, tmp_path, capsys, case):
    name, changes, what, more = CASES[case]
    path = random_run(name, **changes)
    run("--run", path, "--what", what, *more, "--out", tmp_path / "model")
    program, model, layer = Program(tmp_path / "model"), w2v_jax.load(path), None
    if "--layers" in more:
        layer = tuple(map(float, more[1].split(",")))
    rows = waves(9000, 5001)
    expected = dict(encode(model.run, Arrays(rows, 16000), keys=(what,), layer=layer, batch_seconds=1.0))
    for row, found in enumerate(program(padded(rows, 9100, 0.3), [9000, 5001])):
        alone = expected[row][what]
        assert found.shape == alone.shape
        if what == "codes":
            np.testing.assert_array_equal(found, alone)
        else:
            np.testing.assert_allclose(found, alone, rtol=0, atol=1e-4 * max(1, np.abs(alone).max()))
    about = program.about
    assert about["outputs"][what]["shape"][0] == "B" and about["run"]["digest"] == model.run.digest
    assert about["compared"]["difference"] <= about["compared"]["allowed"] < 0.1
    assert about["platforms"] == (more[1].split(",") if "--platforms" in more else ["cpu"])
    assert (about["alphabet"] is not None) == (what == "logits")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"exporting {what} of") and "largest difference from the run" in said[-1]


def test_a_program_of_codes_reads_codes(tmp_path):
    config = configs.load(f"{ROOT}/configs/bert_codes_base.py:tiny", [("data.vocab_size", "40")])
    method, form = methods.load(config), Form("codes", "int32", config.encoder.hop, "x")
    batch = silent_batch(form, 1, config.encoder.hop * 20)
    params, extra = jax.jit(lambda: sharding.bare(method.init(jax.random.key(0), batch)))()
    bert = export.exportable(Run(config, method, params, extra, 0, "0", tmp_path, form), ("cpu",))
    exported, weights = export.export(bert, "context", None, platforms=("cpu",))
    compared = export.check_program(bert, exported, weights, what="context", layer=None)
    assert compared["difference"] <= compared["allowed"]
    about = export.metadata_of(bert, exported, what="context", layer=None)
    assert [given["name"] for given in about["inputs"]] == ["codes", "num_codes"]
    assert f"T <= {config.encoder.max_frames}" in about["constraints"]


def test_weights_that_the_output_does_not_need_are_left_out(random_run, tmp_path):
    path = random_run()
    run("--run", path, "--what", "local", "--out", tmp_path / "local")
    names = np.load(tmp_path / "local" / "weights.npz").files
    assert names and all("frontend" in name or "local_norm" in name for name in names)


def test_a_program_that_differs_from_the_run_is_not_written(random_run, tmp_path, monkeypatch):
    real = export.clean
    monkeypatch.setattr(export, "clean", lambda wave, *rest: real(wave, *rest) * 1.1)
    with pytest.raises(UserError, match="the exported program differs from the run by .* nothing was written"):
        run("--run", random_run("acoustic_logmel.py:tiny"), "--what", "context", "--out", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_before_anything_is_written(random_run, tmp_path):
    path, out = random_run(), tmp_path / "model"
    with pytest.raises(
        UserError, match="this machine could not compare the program with the run: add cpu to --platforms"
    ):
        run("--run", path, "--what", "context", "--platforms", "tpu", "--out", out)
    with pytest.raises(UserError, match="has no logits; it gives"):
        run("--run", path, "--what", "logits", "--out", out)
    with pytest.raises(UserError, match="layer 7"):
        run("--run", path, "--what", "hidden", "--layer", "7", "--out", out)
    assert not out.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(UserError, match="is not empty; choose another --out"):
        run("--run", path, "--what", "context", "--out", tmp_path / "full")
    for wrong in (["--platforms", "abacus"], ["--layer", "1"]):
        with pytest.raises(SystemExit) as exit:
            run("--run", path, "--what", "context", *wrong, "--out", out)
        assert exit.value.code == 2


def infer(folder, recording):
    """docs/infer.py in a Python where nothing that training needs can be imported."""
    script = "import runpy, sys\nfor name in sys.argv.pop(1).split(): sys.modules[name] = None\n"
    script += "sys.argv[0] = sys.argv.pop(1)\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", script, " ".join(TRAINING), str(ROOT / "docs" / "infer.py")]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    given = dict(env=env, cwd=folder, capture_output=True, text=True, timeout=250)
    return subprocess.run([*command, str(folder), str(recording)], **given)


def test_the_example_infers_without_anything_that_training_needs(random_run, tmp_path):
    (wave,) = waves(12345)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", wave, 8000)
    path = random_run("acoustic_logmel.py:tiny")
    run("--run", path, "--what", "logits", "--out", tmp_path / "text")
    result = infer(tmp_path / "text", tmp_path / "a.wav")
    assert result.returncode == 0, result.stderr
    expected = w2v_jax.load(path)(wave, 16000)
    assert result.stdout.rstrip("\n") == expected.text != ""
    run("--run", path, "--what", "context", "--out", tmp_path / "features")
    result = infer(tmp_path / "features", tmp_path / "a.wav")
    assert result.stdout.splitlines()[:2] == ["context", str(expected.context.shape)], result.stderr
    result = infer(tmp_path / "features", tmp_path / "b.wav")
    assert result.returncode == 1 and "has 8000 Hz: resample it to 16000 Hz first" in result.stderr
