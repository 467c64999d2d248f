"""The bench's JSON form, its counts of FLOP, its mapping to the other side, and its errors. Nothing here is timed."""

from __future__ import annotations

import gzip
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
import soundfile

from w2v_jax import batches, bench, flops, meter, rival, sharding, step
from w2v_jax.config import UserError, load
from w2v_jax.runs import method_module

TINY = ("--config=configs/w2v2_base.py:tiny", "--batch=2", "--seconds=1", "--runs=1", "--warmup=0")

CONFIGS = sorted(
    f"configs/{path.name}:tiny" for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
) + ["configs/vq_wav2vec.py:kmeans_tiny", "configs/acoustic_frozen.py:features_demo"]


def counted(name, rows, seconds):
    config = batches.with_alphabet(load(name, [("data.unit_seconds", str(rows * seconds))]))
    return batches.forward_flops(config, batches.random_batch(config, rows, round(seconds * 16_000)))


GFLOP_PER_SECOND = {  # forward, per second of audio; attention at crops of 15.6 s (Base) and 20 s (Large)
    "configs/w2v2_base.py": (15.6, (4.9, 0.5, 1.4, 8.5), 15.3),
    "configs/w2v2_large.py": (20.0, (4.9, 0.9, 4.9, 30.2), 41.0),
}


@pytest.mark.parametrize("config", GFLOP_PER_SECOND)
def test_flops_by_part_are_those_of_the_published_sizes(config):
    seconds, parts, total = GFLOP_PER_SECOND[config]
    found = {name: x / seconds / 1e9 for name, x in counted(config, 1, seconds).items()}
    names = ("feature encoder", "projection and positional convolution", "attention", "Transformer layers")
    assert [found.pop(name) for name in names] == pytest.approx(parts, abs=0.06)
    assert sum(found.values()) < 0.2
    assert sum(parts) + sum(found.values()) == pytest.approx(total, rel=0.02)


def test_flops_grow_with_rows_and_attention_with_the_square_of_the_length():
    one, two = (counted("configs/w2v2_base.py:demo", rows, 3.0) for rows in (1, 2))
    assert two == {name: 2 * count for name, count in one.items()}
    longer = counted("configs/w2v2_base.py:demo", 1, 6.0)
    assert longer["attention"] / one["attention"] == pytest.approx(4, rel=0.03)
    assert longer["Transformer layers"] / one["Transformer layers"] == pytest.approx(2, rel=0.03)


def test_flops_of_matrix_products_are_counted_one_by_one():
    rows, frames, slots = 2, 99, 70  # 7 spans of 10 frames at most
    parts = counted("configs/w2v2_base.py:tiny", rows, 2.0)
    width, mlp, layers = 32, 64, 2
    dense = [(width, width)] * 4 + [(width, mlp), (mlp, width)]
    assert parts["Transformer layers"] == 2 * rows * frames * layers * sum(a * b for a, b in dense)
    assert parts["attention"] == 2 * rows * layers * 2 * frames * frames * width
    assert parts["quantizer"] == 2 * rows * slots * (width * 32 + 2 * 16 * 8)
    assert parts["predictions and loss"] == 2 * rows * slots * (16 * 16 + width * 16 + slots * 16)


TRAINED = {  # FLOP of a step over those of its forward pass; what reads the waveform forms no gradient for it
    "configs/w2v2_base.py": {"feature encoder": (2.9, 3), "Transformer layers": (3, 3), "attention": (3, 3)},
    "configs/finetune.py": {"feature encoder": (1, 1), "Transformer layers": (3, 3), "acoustic model and head": (3, 3)},
    "configs/acoustic_frozen.py": {"feature encoder": (1, 1), "Transformer layers": (1, 1)},
    "configs/wav2vec_large.py": {"feature encoder": (2.9, 3), "context network": (3, 3.1)},
}


@pytest.mark.parametrize("config", TRAINED)
def test_a_step_is_three_forward_passes_of_what_is_trained(config):
    """Less, in the mean, what LayerDrop drops."""
    loaded = batches.thawed(batches.with_alphabet(load(config, [("data.unit_seconds", "4.0")])))
    batch = batches.random_batch(loaded, 2, 32_000)
    forward, step_ = batches.forward_flops(loaded, batch), batches.step_flops(loaded, batch)
    assert forward.keys() == step_.keys()
    for part, (least, most) in TRAINED[config].items():
        drop = loaded.encoder.get("layer_drop", 0.0) if part in ("Transformer layers", "attention") else 0.0
        assert least - 1e-9 <= step_[part] / forward[part] / (1 - drop) <= most + 1e-9, part


def test_the_first_updates_of_a_fine_tuning_are_forward_passes_and_the_gradient_of_the_head():
    loaded = batches.with_alphabet(load("configs/finetune.py", [("data.unit_seconds", "4.0")]))
    batch = batches.random_batch(loaded, 2, 32_000)
    assert loaded.encoder.frozen_steps > 0
    forward, first = batches.forward_flops(loaded, batch), batches.step_flops(loaded, batch)
    kept = 1 - loaded.encoder.layer_drop
    assert first["feature encoder"] == forward["feature encoder"]
    assert all(first[part] == kept * forward[part] for part in ("attention", "Transformer layers"))
    assert first["acoustic model and head"] == 2 * forward["acoustic model and head"]


@pytest.mark.parametrize(("flags", "frozen"), [((), 0), (("--config.encoder.frozen_steps=5",), 5)])
def test_the_updates_that_train_the_encoder_are_timed_unless_others_are_asked_for(flags, frozen, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", lambda config, samples, args: {"frozen": config.encoder.frozen_steps})
    assert bench.main(["--config=configs/finetune.py:demo", "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["frozen"] == frozen


@pytest.mark.parametrize(
    ("offered", "library", "tunables", "advised"),
    [
        ("always [madvise] never", "2.36", None, True),
        ("always [madvise] never", "2.36", "glibc.malloc.arena_max=1", True),
        ("always [madvise] never", "2.36", "glibc.malloc.hugetlb=1", False),
        ("[always] madvise never", "2.36", None, False),
        ("always madvise [never]", "2.36", None, False),
        ("always [madvise] never", "2.31", None, False),
        (None, "2.36", None, False),
    ],
)
def test_larger_pages_are_advised_where_they_can_be_had(offered, library, tunables, advised, tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "OFFERED", tmp_path / "enabled")
    monkeypatch.setattr(meter.platform, "libc_ver", lambda: ("glibc", library))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if offered:
        (tmp_path / "enabled").write_text(offered + "\n")
    if tunables:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    assert (meter.LARGE_PAGES in meter.page_advice()) == advised


def test_a_profiler_that_fails_does_not_lose_the_measurement(monkeypatch, capsys):
    def fails(folder):
        raise RuntimeError("Only one profile may be run at a time.")

    monkeypatch.setattr(jax.profiler, "trace", fails)
    assert bench.main([*TINY, "--stages"]) == 0
    said = capsys.readouterr().out
    assert "Only one profile" in said and "s per step" in said and "GFLOP  attention" in said


def test_zeros_that_a_gradient_is_spread_by_are_not_counted():
    kernel, x = jax.numpy.ones((4, 3, 5)), jax.numpy.ones((1, 82, 3))
    numbers = ("NHC", "HIO", "NHC")
    conv = lambda x: jax.lax.conv_general_dilated(x, kernel, (2,), "VALID", dimension_numbers=numbers).sum()
    (forward,), (both,) = flops.count(conv, x).values(), flops.count(jax.value_and_grad(conv), x).values()
    assert forward == 2 * 40 * 4 * 3 * 5 and both / forward == pytest.approx(2, rel=0.05)


def test_flops_in_loops_and_branches_are_counted_as_often_as_they_run():
    a = jax.numpy.ones((4, 4))
    looped = lambda x: jax.lax.scan(lambda carry, _: (carry @ a, None), x, length=5)[0]
    assert sum(flops.count(looped, a).values()) == 5 * 2 * 4**3
    branched = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ a @ a, lambda x: x @ a, x)
    assert sum(flops.count(branched, a).values()) == 2 * 2 * 4**3
    conv = lambda x: jax.lax.conv_general_dilated(
        x, jax.numpy.ones((3, 2, 8)), (2,), "VALID", feature_group_count=2, dimension_numbers=("NHC", "HIO", "NHC")
    )
    assert sum(flops.count(conv, jax.numpy.ones((1, 11, 4))).values()) == 2 * 5 * 8 * 3 * 2


@pytest.mark.parametrize("config", CONFIGS)
def test_every_method_can_be_counted_and_none_of_its_products_is_free(config):
    seconds = 2.0
    parts = counted(config, 2, seconds)
    assert all(count > 0 for count in parts.values()) and len(parts) >= 2


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ("configs/cpc.py:tiny", "context network"),
        ("configs/bert_codes_small.py:tiny", "Transformer layers"),
        ("configs/finetune.py:tiny", "Transformer layers"),
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


@pytest.mark.parametrize(
    "config",
    ["cpc", "wav2vec_large", "vq_wav2vec", "w2v2_base", "bert_codes_small", "finetune", "acoustic_logmel"],
)
def test_the_program_names_what_its_parts_are_for(config):
    """A trace shows these names; modules of the model are named by Flax."""
    config = batches.with_alphabet(load(f"configs/{config}.py:tiny", [("data.unit_seconds", "4.0")]))
    method, key = method_module(config.method).make(config), jax.random.key(0)
    batch = step.zeros_like(batches.random_batch(config, 2, 32_000))
    tx, rate = step.make_optimizer(config, method, key, batch)
    state = sharding.bare(jax.eval_shape(lambda: step.init_state(method, tx, key, batch)))
    update = jax.jit(lambda state, x: step.train_step(method, tx, rate, state, x, key))
    text = update.lower(state, jax.tree.map(lambda x: x[None], batch)).as_text(debug_info=True)
    for scope in ("draws", "jvp(loss)", "transpose(jvp(loss))", "optimizer"):
        assert f"/{scope}/" in text.replace("jvp(draws)", "draws"), scope


def test_peak_is_known_for_named_accelerators_in_bfloat16_only():
    assert flops.peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert flops.peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert flops.peak_flops("TPU v5", "bfloat16") == flops.peak_flops("TPU v5p", "bfloat16") == 459e12
    assert flops.peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
    assert flops.peak_flops("cpu", "bfloat16") is None


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
    assert "11.5% of the samples" in bench.describe(result)


@pytest.mark.parity
@pytest.mark.parametrize("config", ["cpc", "wav2vec_large", "vq_wav2vec", "bert_codes_base", "finetune"])
def test_other_methods_are_timed_beside_the_reference_and_start_at_about_its_loss(config, capsys):
    pytest.importorskip("torch", reason="torch or transformers is not installed (extra `parity`)")
    words = [f"--config=configs/{config}.py:tiny", "--batch=2", "--seconds=2", "--runs=1", "--warmup=0"]
    words += ["--config.encoder.positions=learned"] if config == "bert_codes_base" else []
    assert bench.main([*words, "--against=torch", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ratio"] > 0 and "fused" in result["theirs_does"]
    assert result["ours_loss"] == pytest.approx(result["theirs_loss"], rel=0.3)


@pytest.mark.parity
@pytest.mark.parametrize("frozen", [0, 5])
def test_the_other_side_trains_what_ours_does_in_the_first_updates(frozen):
    torch = pytest.importorskip("torch", reason="torch or transformers is not installed (extra `parity`)")
    pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")
    config = batches.with_alphabet(load("configs/finetune.py:tiny", [("encoder.frozen_steps", str(frozen))]))
    model, _ = rival.ctc(torch, config)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == ({"lm_head"} if frozen else {"wav2vec2", "lm_head"})


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
    text = bench.describe(result)
    assert "ratio" in text and "audio-hours per hour" in text


@pytest.mark.parity
@pytest.mark.parametrize("name", ["w2v2_base", "w2v2_large"])
def test_the_other_model_has_as_many_parameters_as_ours(name):
    torch = pytest.importorskip("torch", reason="torch or transformers is not installed (extra `parity`)")
    transformers = pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")
    import jax

    from w2v_jax import sharding
    from w2v_jax.methods import wav2vec2

    config = load(f"configs/{name}.py", [("data.unit_seconds", "1.0")])
    with torch.device("meta"):
        model = transformers.Wav2Vec2ForPreTraining(rival.their_config(config, "pretraining"))
    theirs = sum(p.numel() for p in model.parameters())
    batch = {"wave": jax.numpy.zeros((1, 16_000)), "num_samples": jax.numpy.full(1, 16_000)}
    batch |= {"weight": jax.numpy.ones(1), "row": jax.numpy.arange(1)}
    params, _ = jax.eval_shape(lambda: wav2vec2.make(config).init(jax.random.key(0), batch))
    assert theirs == sum(x.size for x in jax.tree.leaves(sharding.bare(params)))


def test_without_torch_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="parity"):
        rival._import_torch()


@pytest.mark.parametrize("wrong", ["--seconds=0.1", "--runs=0", "--batch=0", "--warmup=-1"])
def test_sizes_that_cannot_be_timed_are_a_persons_error(wrong):
    with pytest.raises(UserError):
        bench.main([*TINY, wrong])


@pytest.mark.parity
def test_a_recogniser_that_the_other_side_lacks_is_refused():
    pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")
    with pytest.raises(UserError, match="one linear layer"):
        bench.main(["--config=configs/finetune.py:demo", "--batch=1", "--seconds=1", "--runs=1", "--against=torch"])


@pytest.mark.parity
def test_distractors_that_the_other_side_lacks_are_refused():
    pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")
    config = load("configs/w2v2_base.py:tiny", [("loss.cross_negatives", "5")])
    with pytest.raises(UserError, match="cross_negatives"):
        rival.their_config(config, "pretraining")


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ((), "float32"),
        (("--dtype", "bfloat16"), "bfloat16"),
        (("--config.train.dtype=bfloat16",), "bfloat16"),
    ],
)
def test_a_dtype_that_is_asked_for_is_the_one_that_is_timed(given, dtype, monkeypatch, capsys):
    """Beside torch on CPU the default is float32, whatever the config's is."""
    monkeypatch.setattr(bench, "measure", lambda config, samples, args: {"dtype": config.train.dtype})
    assert bench.main(["--config=configs/w2v2_base.py:demo", "--against=torch", "--json", *given]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == dtype
