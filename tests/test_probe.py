"""`python -m w2v_jax.probe` from end to end, and the probes of a training."""

from __future__ import annotations

import json

import pytest

from w2v_jax import probe
from w2v_jax.core.cli import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny wav2vec after one update, and the self-made corpus that it was trained on."""
    from w2v_jax import train
    from w2v_jax.core import config as configs

    folder = tmp_path_factory.mktemp("probe")
    overrides = {
        "data.root": str(folder / "corpus"),
        "data.loader": "threads",
        "optim.warmup": "0",
        "train.steps": "1",
        "train.eval_every": "1",
        "train.checkpoint_every": "1",
        "train.watchdog": "off",
        "probe.every": "1",
        "probe.root": str(folder / "corpus" / "train"),
        "probe.test_root": str(folder / "corpus" / "dev"),
    }
    file = probe.pathlib.Path(__file__).parents[1] / "configs" / "wav2vec_small.py"
    assert train.run(configs.load(f"{file}:tiny", list(overrides.items())), folder / "run") == 0
    return folder


def command(run, *extra):
    root = ["--source", "synthetic", "--train", str(run / "corpus"), "--label", "speaker"]
    return ["--run", str(run / "run"), *root, "--out", str(run / "out"), *extra]


@pytest.mark.slow
def test_probe_of_every_layer_from_end_to_end(run, capsys):
    assert probe.main(command(run, "--layer", "all", "--segments", "1")) == 0
    about = json.loads((run / "out" / "probe.json").read_text())
    names = [result["name"] for result in about["results"]]
    layers = ["run local", *(f"run layer {i}" for i in range(2))]
    assert names == ["log-mel", *layers, *(f"{name}, untrained" for name in layers)]
    assert all(0 <= result["accuracy"] <= 1 for result in about["results"])
    assert (run / "out" / "probe.png").stat().st_size > 5000
    said = capsys.readouterr().out
    assert "speakers are in both parts" in said and "log-mel" in said and "probe.json" in said


@pytest.mark.slow
def test_letters_are_probed_frame_by_frame(run, capsys):
    parts = ["--train", str(run / "corpus" / "train"), "--test", str(run / "corpus" / "dev"), "--label", "letter"]
    assert probe.main(command(run, "--layer", "all", *parts)) == 0
    about = json.loads((run / "out" / "probe.json").read_text())
    scores = {result["name"]: result["accuracy"] for result in about["results"]}
    assert about["classes"] == 20 and len(scores) == 1 + 2 * 3
    assert scores["log-mel"] > 2 * about["majority"], "log-mel frames tell letters of other speakers apart"
    assert (run / "out" / "probe.png").stat().st_size > 5000
    assert "20 labels" in capsys.readouterr().out


def test_a_training_measures_its_features_on_the_way(run):
    rows = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    (found,) = [row for row in rows if row["split"] == "probe"]
    assert found["step"] == 1 and 0 < found["probe_letter"] < 1
    about = json.loads((run / "run" / "done.json").read_text())
    assert about["metrics"]["probe"]["probe_log-mel"] == found["probe_log-mel"] > 0.1


def test_probes_of_a_training_equal_those_of_the_command(run):
    """The same recordings, the same classifier: the command after the run finds what the run saw of itself."""
    parts = ["--train", str(run / "corpus" / "train"), "--test", str(run / "corpus" / "dev"), "--label", "letter"]
    assert probe.main(command(run, *parts, "--no-random", "--hours", "0.2")) == 0
    log_mel, context = json.loads((run / "out" / "probe.json").read_text())["results"]
    found = json.loads((run / "run" / "done.json").read_text())["metrics"]["probe"]
    assert found["probe_log-mel"] == pytest.approx(log_mel["accuracy"], abs=1e-3)
    assert found["probe_letter"] == pytest.approx(context["accuracy"], abs=5e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"probe.root": "()"}, "names no recordings"), ({"probe.label": "mood"}, "cannot learn the label 'mood'")],
)
def test_a_probe_that_cannot_be_made_is_refused_before_the_run(run, tmp_path, overrides, message):
    from w2v_jax import train
    from w2v_jax.core import config as configs

    file = probe.pathlib.Path(__file__).parents[1] / "configs" / "wav2vec_small.py"
    given = {"data.root": str(run / "corpus"), "probe.every": "1", "probe.root": str(run / "corpus")} | overrides
    with pytest.raises(UserError, match=message):
        train.run(configs.load(f"{file}:tiny", list(given.items())), tmp_path)


def test_a_folder_that_cannot_be_written_is_named_before_the_work(run, monkeypatch):
    monkeypatch.setattr(probe, "open_parts", lambda *_: pytest.fail("the work has begun"))
    (run / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file/out: cannot be written"):
        probe.main(command(run, "--out", str(run / "file" / "out")))


def test_layers_that_do_not_exist_are_named(run):
    with pytest.raises(UserError, match="layer 7"):
        probe.main(command(run, "--layer", "7"))
