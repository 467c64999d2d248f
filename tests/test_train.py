"""`w2v_jax.train` from end to end, on the tiny variants and a self-made corpus: what a person can run into."""

from __future__ import annotations

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import poor_store
import pytest
from commands import ROOT, environment, free_port, read_lines, training
from formats import WRITERS, Item, content, write_librispeech

from w2v_jax import prepare, train
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError, run_command
from w2v_jax.training.console import read_metrics
from w2v_jax.training.dataset import open_data

TINY = f"{ROOT / 'configs' / 'w2v2_base.py'}:tiny"
TIMINGS = {"step_seconds", "data_wait_share", "audio_hours_per_hour", "padding_share"}


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> dict[str, str]:
    """Overrides that all runs here share: one corpus, a row log, one device."""
    folder = tmp_path_factory.mktemp("train")
    return {
        "data.root": str(folder / "corpus"),
        "data.loader": "threads",
        "train.log_rows": "true",
        "train.checkpoint_every": "4",
    }


def load(shared, **changes):
    """The tiny config on all 8 CPU devices of the test process; `section__key=value` changes it."""
    overrides = shared | {key.replace("__", "."): str(value) for key, value in changes.items()}
    return configs.load(TINY, list(overrides.items()))


def command(shared, workdir, *extra: str, config: str = "w2v2_base.py:tiny") -> list[str]:
    return training(config, workdir, shared, *extra)


def numbers(workdir) -> list[dict]:
    """The rows of metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(workdir / "metrics.jsonl")]


@pytest.fixture(scope="session")
def whole(shared, tmp_path_factory) -> pathlib.Path:
    """An uninterrupted run, as a command with one device."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(command(shared, workdir), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (workdir.parent / "stdout").write_text(done.stdout)
    return workdir


def test_run_leaves_everything_that_it_names(whole):
    said = (whole.parent / "stdout").read_text()
    for name in ("config.json", "metrics.jsonl", "checkpoints", "curves.png", "done.json", "rows.jsonl"):
        assert (whole / name).exists(), name
    for name in ("checkpoints", "metrics.jsonl", "curves.png", "done.json"):
        assert str(whole / name) in said, f"{name} is not named at the end"
    assert "try next" in said and "chance" in said


def test_start_up_counts_the_recordings_that_are_cropped(shared, tmp_path):
    for longest, number in ((2.0, "recordings longer than 2 s, at a random place each epoch"), (20.0, "")):
        config = load(shared, data__bucket_seconds=f"({longest},)", data__eval_share=0.2)
        mesh, data = train.sharding.make_mesh(config.sharding), open_data(config, 8, 8, path=tmp_path)
        table = train.start_up(config, tmp_path, mesh, data=data, params={}, parts=1)
        count = (data.train.index.durations > longest).sum()
        assert table.get("cropped") == (f"{count} {number}" if number else None)


def test_start_up_tells_the_notes_of_both_listings_once(shared, tmp_path):
    config = load(shared, data__eval_share=0.2)
    mesh, data = train.sharding.make_mesh(config.sharding), open_data(config, 8, 8, path=tmp_path)
    assert "notes" not in train.start_up(config, tmp_path, mesh, data=data, params={}, parts=1)
    data.train.index.notes.extend(["2 repeated ids", "1 x a cut"])
    assert train.start_up(config, tmp_path, mesh, data=data, params={}, parts=1)["notes"] == "2 repeated ids\n1 x a cut"


def test_metrics_have_the_promised_keys(whole):
    rows = read_metrics(whole / "metrics.jsonl")
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 21))
    assert [row["step"] for row in rows if row["split"] == "eval"] == [10, 20]
    promised = {"loss", "accuracy", "code_perplexity", "prob_perplexity", "temperature", "grad_norm", "learning_rate"}
    assert promised | TIMINGS <= rows[-2].keys()
    done = json.loads((whole / "done.json").read_text())
    assert done["step"] == 20 and done["metrics"]["eval"]["loss"] == rows[-1]["loss"]


@pytest.mark.slow
def test_killed_run_resumes_bit_equal_with_the_same_rows(shared, whole, tmp_path):
    """kill -9 between two checkpoints, and the same command again."""
    workdir = tmp_path / "run"
    run = command(shared, workdir)
    process = subprocess.Popen(run, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("train 11/"):
            process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "done.json").exists()
    resumed = subprocess.run(run, env=environment(), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from step 8, epoch" in resumed.stdout
    assert numbers(workdir) == numbers(whole)
    assert read_lines(workdir / "rows.jsonl") == read_lines(whole / "rows.jsonl")
    assert [row["step"] for row in read_lines(workdir / "rows.jsonl")] == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cpc.py:tiny", {}),
        ("wav2vec_small.py:tiny", {}),
        ("vq_wav2vec.py:tiny", {}),
        ("vq_wav2vec.py:kmeans_tiny", {"quantizer.restart": "0.5", "quantizer.init_iterations": "3"}),
        ("bert_codes_base.py:tiny", {}),
        ("finetune.py:tiny", {}),
        ("acoustic_logmel.py:tiny", {"optim.average": "0.9", "acoustic.members": "2"}),
        ("hubert_base.py:tiny", {}),
        ("wavlm_base.py:tiny", {}),
    ],
)
def test_every_method_resumes_bit_equal(shared, tmp_path, monkeypatch, capsys, name, changes):
    """On one device, from a copy of the folder in the middle of the run, as a machine that dies leaves it."""
    whole, died = tmp_path / "whole", tmp_path / "died"
    codes = {"data.root": str(tmp_path / "codes")} if name.startswith("bert") else {}
    fewer = {"train.steps": "13"}
    config = configs.load(str(ROOT / "configs" / name), list((shared | fewer | codes | changes).items()))
    monkeypatch.setattr(train, "choose_mesh", lambda _: (train.sharding.row_mesh(jax.devices()[:1]), {}))
    due_after = train.due_after

    def copy_after_step_11(n, config):
        if n == 11 and not died.exists():
            while not (whole / "checkpoints" / "8").exists():  # it is written beside the updates
                time.sleep(0.05)
            shutil.copytree(whole, died)
        return due_after(n, config)

    monkeypatch.setattr(train, "due_after", copy_after_step_11)
    assert train.run(config, whole) == 0
    capsys.readouterr()
    assert train.run(config, died) == 0
    assert "resumed from step 8, epoch" in capsys.readouterr().out
    assert numbers(died) == numbers(whole)
    assert read_lines(died / "rows.jsonl") == read_lines(whole / "rows.jsonl")


@pytest.mark.slow
def test_resume_on_eight_devices_reads_the_same_rows(shared, whole, tmp_path):
    workdir = tmp_path / "run"
    first = command(shared, workdir, "--config.train.checkpoint_every=8")
    process = subprocess.Popen(first, env=environment(1), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("train 11/"):
            process.send_signal(signal.SIGKILL)
    process.wait()
    mesh = ["--config.sharding.data=4", "--config.sharding.fsdp=2"]
    resumed = subprocess.run(command(shared, workdir, *mesh), env=environment(8), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert read_lines(workdir / "rows.jsonl") == read_lines(whole / "rows.jsonl")
    for ours, theirs in zip(numbers(workdir), numbers(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3), f"step {ours['step']}"


@pytest.mark.slow
def test_two_processes_compute_what_one_does(shared, whole, tmp_path):
    workdir, port = tmp_path / "run", free_port()
    processes = [
        subprocess.Popen(
            command(shared, workdir, f"--distributed=127.0.0.1:{port},2,{number}"),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    outcomes = [process.communicate(timeout=280) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outcomes
    for ours, theirs in zip(numbers(workdir), numbers(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3), f"step {ours['step']}"
    halves = [read_lines(workdir / name) for name in ("rows.jsonl", "rows-1.jsonl")]
    for both, one in zip(zip(*halves, strict=True), read_lines(whole / "rows.jsonl"), strict=True):
        assert sorted(both[0]["ids"] + both[1]["ids"]) == sorted(one["ids"])


@pytest.mark.slow
def test_one_corpus_trains_alike_from_every_form(shared, tmp_path):
    """Folder, list, shards, Parquet, tar, TFDS and a store: the same rows in the same order with the same losses."""
    items = [Item(f"9-1-{i:04d}", content(1.0 + 0.1 * i, seed=i), f"text {i}", "9") for i in range(24)]
    folder = write_librispeech(tmp_path / "folder", items)
    for flags in (["--shards", tmp_path / "shards"], ["--out", tmp_path / "list.jsonl"]):
        assert prepare.main(["--root", str(folder), *map(str, flags)]) == 0
    poor_store.reset()
    poor_store.upload(folder, "poor://lab/speech")
    forms = {"jsonl": tmp_path / "list.jsonl", "arrayrecord": tmp_path / "shards", "tfds": tmp_path / "shards"}
    forms |= {name: WRITERS[name](tmp_path / name, items) for name in ("parquet", "webdataset", "kaldi", "lhotse")}
    runs = [("folder", folder), ("folder", "poor://lab/speech"), *forms.items()]
    options = dict(data__min_seconds=0.5, train__steps=6, train__checkpoint_every=6)
    found = []
    for number, (name, root) in enumerate(runs):
        workdir = tmp_path / f"run{number}"
        train.run(load(shared, data__name=name, data__root=root, **options), workdir)
        rows = [{k: v for k, v in row.items() if k != "paths"} for row in read_lines(workdir / "rows.jsonl")]
        found.append((rows, numbers(workdir)))
    poor_store.reset()
    assert len(found[0][0]) == 6 and len({id for row in found[0][0] for id in row["ids"]}) > 10
    for (name, root), one in zip(runs, found):
        assert one == found[0], f"{name}: {root}"


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(shared, whole, tmp_path):
    workdir = tmp_path / "run"
    arguments = command(shared, workdir, "--config.train.checkpoint_every=1000")
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("train  5/"):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert "SIGTERM" in said and "checkpoint saved" in said
    resumed = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert numbers(workdir) == numbers(whole)


def test_changed_config_is_refused_with_the_difference(shared, whole):
    with pytest.raises(UserError, match=r"optim.peak: 0.001 -> 0.5"):
        train.run(load(shared, optim__peak=0.5), whole)


def test_a_start_that_failed_may_be_corrected_in_the_same_workdir(shared, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        train.run(load(shared, data__name="folder", data__root="/nowhere", train__log_every=7), tmp_path / "run")
    with pytest.raises(UserError, match="fewer than one batch"):
        train.run(load(shared, data__batch_hours=1.0), tmp_path / "run")


@pytest.mark.parametrize("good", [0, 1])
def test_where_too_few_recordings_are_left_the_reasons_are_shown_and_written(shared, tmp_path, good):
    soundfile = pytest.importorskip("soundfile")
    audio = tmp_path / "audio"
    audio.mkdir()
    for number in range(3):
        (audio / f"{number}.wav").write_bytes(b"RIFF")
    for number in range(good):
        soundfile.write(audio / f"good{number}.wav", [0.1, -0.1] * 16_000, 16_000)
    advice = "add audio or make the batch smaller" if good else "repair or replace the files"
    with pytest.raises(UserError, match=f"(?s){advice}.*skipped 3:.*0.wav.*all of it is in .*skipped.jsonl"):
        train.run(load(shared, data__name="folder", data__root=audio), tmp_path / "run")
    assert len(read_lines(tmp_path / "run" / "skipped.jsonl")) == 3


def test_the_summary_of_a_run_that_ended_before_it_has_the_corpora(monkeypatch, tmp_path):
    told = {"read/de": dict(rows=3, share=1.0, hours=2.5, epochs=4.0)}
    monkeypatch.setattr(train, "heard", lambda data, step, *, languages: told if (data, step) == ("data", 6) else {})
    method = SimpleNamespace(levels=lambda: {})
    (tmp_path / "metrics.jsonl").write_text("")
    run = SimpleNamespace(path=tmp_path, config=configs.load(TINY), method=method, data="data")
    assert train.complete(run, 6) == 0
    done = json.loads((tmp_path / "done.json").read_text(encoding="utf-8"))
    assert done["corpora"] == told and done["step"] == 6


def test_complete_run_is_left_alone(shared, whole, capsys):
    before = (whole / "done.json").read_text()
    assert train.run(load(shared), whole) == 0
    assert "complete" in capsys.readouterr().out
    assert (whole / "done.json").read_text() == before


def test_run_that_ended_between_its_last_checkpoint_and_its_summary_gets_the_summary(shared, whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    (workdir / "done.json").unlink()
    assert train.run(load(shared), workdir) == 0
    assert (workdir / "done.json").read_text() == (whole / "done.json").read_text()
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__name": "folder", "data__root": "/nowhere/at/all"}, "does not exist"),
        ({"data__name": "fodler"}, "Did you mean 'folder'"),
        ({"method": "wav2vec22"}, "Did you mean 'wav2vec2'"),
        ({"data__batch_hours": 1.0}, "fewer than one batch"),
        ({"data__batch_hours": 6 / 3600}, "cannot share evenly"),
        ({"sharding__data": 3}, "does not make the 8 devices"),
        ({"sharding__slices": 3}, "sharding.slices=3: the 8 devices here"),
        ({"sharding__tensor": 8}, "sharding.tensor=8 does not divide encoder.heads=4"),
        ({"sharding__fsdp": -1}, "sharding.fsdp=-1: must be at least 0"),
        ({"data__min_seconds": 100.0}, "shorter than data.min_seconds"),
        ({"optim__warmup": 500}, "peak would never be reached"),
        ({"optim__schedule": "linear"}, "optim.schedule"),
        ({"train__log_every": 0}, "train.log_every=0: must be above 0"),
        ({"data__unit_seconds": 0.0}, "data.unit_seconds=0.0: must be above 0"),
        ({"data__batch_hours": 1e-6}, "at least one unit"),
        ({"data__eval_share": 1.5}, "between 0 and 1"),
        ({"encoder__dropout": 1.0}, "encoder.dropout=1.0"),
        ({"quantizer__temperature": "(2.0, 0.5)"}, "tuple of 3 numbers"),
        ({"data__bucket_seconds": "()"}, "data.bucket_seconds"),
        ({"encoder__heads": 3}, "encoder.heads=3 does not divide encoder.width"),
        ({"train__dtype": "float16"}, "train.dtype"),
        ({"optim__rules": "(('nothing', 0.0, 0.0),)"}, "matches no parameter"),
    ],
)
def test_mistakes_are_named(shared, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train.run(load(shared, **changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("flag", "code", "message"),
    [
        ("--config.trian.steps=3", 1, "Did you mean 'train.steps'"),
        ("--config.train.steps=many", 1, "needs int"),
        ("--nonsense", 2, "unrecognized arguments"),
    ],
)
def test_exit_codes_of_mistakes(shared, tmp_path, monkeypatch, capsys, flag, code, message):
    monkeypatch.setattr(sys, "argv", command(shared, tmp_path / "run", flag)[2:])  # as after -m
    with pytest.raises(SystemExit) as end:
        run_command(train.main)
    said = capsys.readouterr().err
    assert end.value.code == code and message in said and "Traceback" not in said


def test_a_process_ends_with_the_code_of_its_mistake(shared, tmp_path):
    mistaken = command(shared, tmp_path / "run", "--config.trian.steps=3")
    done = subprocess.run(mistaken, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "Did you mean 'train.steps'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "leave it out on one machine, or give --distributed=HOST"),
        ("", "needs HOST:PORT,COUNT,NUMBER"),
        ("2,0", "needs HOST:PORT,COUNT,NUMBER"),
        ("here:1234,2", "needs HOST:PORT,COUNT,NUMBER"),
        ("here:1234,2,0,1", "needs HOST:PORT,COUNT,NUMBER"),
        ("here,2,0", "needs HOST:PORT,COUNT,NUMBER"),
        (":1234,2,0", "needs HOST:PORT,COUNT,NUMBER"),
        ("here:port,2,0", "needs HOST:PORT,COUNT,NUMBER"),
        ("here:1234,two,0", "needs HOST:PORT,COUNT,NUMBER"),
        ("here:1234,2,\N{SUPERSCRIPT TWO}", "needs HOST:PORT,COUNT,NUMBER"),
        ("here:1234,2,-1", "needs HOST:PORT,COUNT,NUMBER"),
        ("here:1234,2,2", "NUMBER must be below COUNT"),
        ("here:1234,0,0", "NUMBER must be below COUNT"),
        ("here:0,2,0", "PORT must be from 1 to 65535"),
        ("here:65536,2,0", "PORT must be from 1 to 65535"),
    ],
)
def test_processes_that_cannot_join_are_one_line(tmp_path, value, message):
    option = "--distributed" if value is None else f"--distributed={value}"
    with pytest.raises(UserError, match=message) as raised:
        train.main([f"--config={TINY}", f"--workdir={tmp_path / 'run'}", option])
    assert "\n" not in str(raised.value) and str(raised.value).startswith(option) and not list(tmp_path.iterdir())


def test_a_device_without_memory_is_named_with_what_to_lower(shared, tmp_path, monkeypatch):
    without_memory = lambda *_: jax.numpy.zeros((1 << 46,)).block_until_ready()
    monkeypatch.setattr(train.step, "updates", lambda *_, **__: lambda n: without_memory)
    words = command(shared, tmp_path / "run", config="acoustic_logmel.py:tiny")
    with pytest.raises(UserError, match="RESOURCE_EXHAUSTED.*give the same command with --config") as raised:
        train.main(words[3:])  # after python -m w2v_jax.train
    assert "\n" not in str(raised.value)


def test_a_bucket_is_not_taken_for_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nowhere://speech/run: Protocol not known: nowhere"):
        train.main([f"--config={TINY}", "--workdir=nowhere://speech/run"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_retrace_after_the_first_step_of_each_bucket(shared, tmp_path, monkeypatch, capsys):
    traces, real = [], train.step.train_step

    def counted(state, batches, key, **of_run):
        traces.append(batches["wave"].shape)
        return real(state, batches, key, **of_run)

    monkeypatch.setattr(train.step, "train_step", counted)
    buckets = load(
        shared,
        data__root=shared["data.root"] + "-buckets",
        data__hours=0.05,
        data__bucket_seconds="(5.0, 8.0)",
        train__steps=8,
        train__eval_every=100,
        train__checkpoint_every=100,
    )
    assert train.run(buckets, tmp_path / "run") == 0
    assert sorted(traces) == [(1, 8, 80_000), (1, 8, 128_000)]
    assert capsys.readouterr().out.count("compiled and ran the first step") == 2


@pytest.mark.slow
def test_watchdog_stops_a_dead_run(shared, tmp_path):
    dead = load(
        shared,
        optim__rules="(('.', 0.0, 0.0),)",
        train__steps=200,
        optim__warmup=5,
        train__watchdog="stop",
        loss__temperature=1e9,
        train__eval_every=1000,
    )
    assert train.run(dead, tmp_path / "run") == train.DEAD
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] < 150
    assert not (tmp_path / "run" / "done.json").exists()


def test_fsdp_0_is_chosen_by_memory_and_told(shared, monkeypatch):
    mesh, said = train.choose_mesh(load(shared, sharding__fsdp=0))
    assert mesh.shape["fsdp"] == 1 and "unknown" in said["memory"]
    one = train.estimates.estimated(load(shared), train.estimates.Target("here", 8, 1.0, 1.0, 1.0))
    room = (one.memory - 0.3 * one.state) / train.estimates.ROOM
    monkeypatch.setattr(train.estimates, "here", lambda: train.estimates.Target("here", 8, room, 1.0, 1.0))
    mesh, said = train.choose_mesh(load(shared, sharding__fsdp=0))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert "fsdp 2 is the smallest that fits" in said["memory"]
    assert train.choose_mesh(load(shared, sharding__fsdp=4)) == (
        train.sharding.make_mesh(load(shared, sharding__fsdp=4).sharding),
        {},
    )


STUBBORN = {
    "data.root": "data/synthetic",
    "data.eval_root": "()",
    "data.hours": 0.15,
    "data.eval_share": 0.1,
    "data.batch_hours": 12 / 3600,
    "data.device_seconds": 12.0,
    "acoustic.conv_layers": ((128, 13, 1), (128, 5, 2), (128, 7, 2), (128, 7, 1)),
    "acoustic.dropout": 0.3,
    "masking.time_prob": 0.3,
    "masking.channel_prob": 0.3,
    "train.steps": 300,
    "train.eval_every": 50,
    "train.checkpoint_every": 300,
}
"""A small recogniser with much dropout and many masks."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_small_recogniser_leaves_its_plateau(tmp_path, seed):
    overrides = STUBBORN | {"seed": seed, "acoustic.clean_steps": 200}
    words = training("acoustic_logmel.py:demo", tmp_path / "run", {k: str(v) for k, v in overrides.items()})
    env = environment(haste=False)
    run = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=590)
    assert run.returncode == 0, run.stderr
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["split"] == "eval"]
    errors = {row["step"]: row["token_error"] for row in rows}
    assert min(error for step, error in errors.items() if 100 < step <= 250) < 0.8, errors
    assert not json.loads((tmp_path / "run" / "done.json").read_text(encoding="utf-8"))["on_plateau"]
    assert "plateau" not in run.stderr


def test_a_run_that_ends_on_the_plateau_says_so_at_last(tiny_run, capsys):
    run = tiny_run("acoustic_logmel.py:tiny", optim__peak=1e-12, optim__start=1e-12, optim__end=1e-12)
    assert json.loads((run / "done.json").read_text(encoding="utf-8"))["on_plateau"]
    assert capsys.readouterr().err.rstrip().endswith("says what to try")
