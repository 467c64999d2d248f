"""The bench's JSON form, what it times, and its errors. No test depends on the time."""

from __future__ import annotations

import gzip
import json

import jax
import numpy as np
import pytest
import soundfile
from commands import varied

from w2v_jax import bench, methods
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import load
from w2v_jax.profiling import input_stages, random_batch
from w2v_jax.training import sharding, step

TINY = ("--config=configs/w2v2_base.py:tiny", "--batch=2", "--seconds=1", "--runs=1", "--warmup=0")


@pytest.mark.parametrize(("flags", "frozen"), [((), 0), (("--config.encoder.frozen_steps=5",), 5)])
def test_the_updates_that_train_the_encoder_are_timed_unless_others_are_asked_for(flags, frozen):
    config, samples = bench.timed_config(*bench.parse(["--config=configs/finetune.py:demo", *flags]))
    assert config.encoder.frozen_steps == frozen and samples == 160_000


@pytest.mark.slow
def test_a_profiler_that_fails_does_not_lose_the_measurement(monkeypatch, capsys):
    def fails(folder):
        raise RuntimeError("Only one profile may be run at a time.")

    monkeypatch.setattr(jax.profiler, "trace", fails)
    assert bench.main([*TINY, "--stages"]) == 0
    said = capsys.readouterr().out
    assert "Only one profile" in said and "s per step" in said and "GFLOP  attention" in said


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ("configs/cpc.py:tiny", "context network"),
        pytest.param("configs/bert_codes_small.py:tiny", "Transformer layers", marks=pytest.mark.slow),
        pytest.param("configs/finetune.py:tiny", "Transformer layers", marks=pytest.mark.slow),
    ],
)
def test_other_methods_are_timed_in_stages(config, context, capsys, tmp_path):
    words = [f"--config={config}", "--batch=2", "--seconds=2", "--runs=1", "--warmup=0", "--stages"]
    assert bench.main([*words, "--profile", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for word in (context, "optimizer", "predictions and loss", "forward  backward", "GFLOP per step"):
        assert word in said
    (trace,) = tmp_path.rglob("*.trace.json.gz")  # of Perfetto; TensorBoard's .xplane.pb lies beside it
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"] and list(trace.parent.glob("*.xplane.pb"))


NAMED = "cpc wav2vec_large vq_wav2vec w2v2_base bert_codes_small finetune acoustic_logmel hubert_base wavlm_base"


@pytest.mark.parametrize("config", varied(NAMED.split(), "cpc", "w2v2_base", "acoustic_logmel"))
def test_the_program_names_what_its_parts_are_for(config):
    """A trace shows these names; modules of the model are named by Flax."""
    config = random_batch.with_alphabet(load(f"configs/{config}.py:tiny", [("data.unit_seconds", "4.0")]))
    method, key = methods.load(config), jax.random.key(0)
    batch = step.zeros_like(random_batch.random_batch(config, 2, 32_000))
    tx, rate = step.make_optimizer(config, method, key, batch=batch)
    state = sharding.bare(jax.eval_shape(lambda: step.init_state(method, tx, key, batch=batch)))
    update = jax.jit(lambda state, x: step.train_step(state, x, key, method=method, tx=tx, rate=rate))
    text = update.lower(state, jax.tree.map(lambda x: x[None], batch)).as_text(debug_info=True)
    for scope in ("draws", "jvp(loss)", "transpose(jvp(loss))", "optimizer"):
        assert f"/{scope}/" in text.replace("jvp(draws)", "draws"), scope


def check_result(result):
    assert result["shapes"] == {"batch": 2, "samples": 16_000} and result["stages"] == {}
    assert result["dtype"] == "float32" and result["trace_error"] is None
    assert len(result["ours_runs"]) == 1 and result["ours_seconds"] == result["ours_runs"][0] > 0
    assert result["flops"] == sum(result["part_flops"].values()) > 0
    assert result["audio_hours_per_hour"] == pytest.approx(2 / result["ours_seconds"])
    assert 0 < result["compile_seconds"] < result["ours_first_seconds"] and result["peak_memory_bytes"] > 1e8
    assert result["product_share"] == result["flops_per_second"] / result["product_flops_per_second"] > 0
    assert result["device"].startswith("cpu") and "peak_share" not in result
    assert {"python", "jax", "jaxlib", "flax"} <= result["versions"].keys()


def test_json_is_one_object_and_all_that_stdout_gets(capsys):
    assert bench.main([*TINY, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    check_result(result)
    assert "theirs_seconds" not in result and "ratio" not in result and result["padding_share"] is None


def test_padding_is_that_of_the_buckets_on_the_recordings(tmp_path, capsys):
    for speaker, seconds in enumerate((1.0, 0.9, 1.5, 1.2)):
        soundfile.write(tmp_path / f"{speaker}.wav", np.zeros(round(seconds * 16_000)), 16_000)
    data = ["--config.data.name=folder", f"--config.data.root={tmp_path}", f"--config.data.eval_root={tmp_path}"]
    law = {"bucket_seconds": "(1.0,1.6)", "unit_seconds": 1.6, "batch_hours": 1.6 / 3600, "min_seconds": 0.5}
    data += [f"--config.data.{key}={value}" for key, value in law.items()]
    assert bench.main([*TINY, "--json", "--data", *data]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["padding_share"] == pytest.approx(1 - 4.6 / (1.0 + 1.0 + 1.6 + 1.6))
    assert "11.5% of the samples" in bench.comparison_text(result)


def test_the_input_alone_is_timed_without_a_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(input_stages, "WARM_UP_SECONDS", 4.0)
    monkeypatch.setattr(input_stages, "LOOP_SECONDS", 0.0)
    for speaker in range(6):
        soundfile.write(tmp_path / f"{speaker}.wav", np.full(16_000, 0.1), 16_000)
    data = [f"--config.data.root={tmp_path}", "--config.data.name=folder", "--config.data.eval_share=0.2"]
    words = ["--config=configs/cpc.py:tiny", "--runs=1", "--input-only", *data, "--config.data.min_seconds=0.5"]
    words += [
        "--config.data.unit_seconds=2.0",
        f"--config.data.batch_hours={2 / 3600}",
        "--config.data.bucket_seconds=1.0",
    ]
    assert bench.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"].keys() == input_stages.STAGES.keys()
    with pytest.raises(UserError, match="--input-only runs no model"):
        bench.main([*words, "--stages"])


@pytest.mark.parity
@pytest.mark.parametrize(
    "config",
    [
        "cpc",
        "wav2vec_large",
        "vq_wav2vec",
        "bert_codes_base",
        "finetune",
        pytest.param("hubert_base", marks=pytest.mark.slow),
    ],
)
def test_other_methods_are_timed_beside_the_reference_and_start_at_about_its_loss(config, capsys):
    pytest.importorskip("torch", reason="torch or transformers is not installed (extra `parity`)")
    words = [f"--config=configs/{config}.py:tiny", "--batch=2", "--seconds=2", "--runs=1", "--warmup=0"]
    words += ["--config.encoder.positions=learned"] if config == "bert_codes_base" else []
    assert bench.main([*words, "--against=torch", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ratio"] > 0 and "fused" in result["theirs_does"]
    assert result["ours_loss"] == pytest.approx(result["theirs_loss"], rel=0.3)


@pytest.mark.parity
def test_both_sides_run_the_same_sizes_and_start_at_the_same_loss(capsys):
    pytest.importorskip("torch", reason="torch or transformers is not installed (extra `parity`)")
    pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")
    assert bench.main([*TINY, "--against=torch", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    check_result(result)
    assert result["ratio"] == result["theirs_seconds"] / result["ours_seconds"]
    assert {"torch", "transformers"} <= result["versions"].keys()
    assert result["ours_loss"] == pytest.approx(result["theirs_loss"], rel=0.3)
    assert result["ours_parameters"] == result["theirs_parameters"] > 10_000
    assert "donated state" in result["ours_does"] and "quantizer" in result["theirs_does"]
    text = bench.comparison_text(result)
    assert "ratio" in text and "audio-hours per hour" in text


@pytest.mark.parametrize("wrong", ["--seconds=0.1", "--runs=0", "--batch=0", "--warmup=-1"])
def test_sizes_that_cannot_be_timed_are_a_persons_error(wrong):
    with pytest.raises(UserError):
        bench.main([*TINY, wrong])


@pytest.mark.parity
def test_a_recogniser_that_the_other_side_lacks_is_refused():
    pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")
    with pytest.raises(UserError, match="one linear layer"):
        bench.main(["--config=configs/finetune.py:demo", "--batch=1", "--seconds=1", "--runs=1", "--against=torch"])


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ((), "float32"),
        (("--dtype", "bfloat16"), "bfloat16"),
        (("--config.train.dtype=bfloat16",), "bfloat16"),
    ],
)
def test_a_dtype_that_is_asked_for_is_the_one_that_is_timed(given, dtype):
    """Beside torch on CPU the default is float32, whatever the config's is."""
    flags = ["--config=configs/w2v2_base.py:demo", "--against=torch", *given]
    config, _ = bench.timed_config(*bench.parse(flags))
    assert config.train.dtype == dtype
