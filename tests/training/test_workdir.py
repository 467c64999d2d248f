"""The folder of a run: one run at a time, the same config, the same data."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest
from commands import ROOT

from w2v_jax import train
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.training import workdir
from w2v_jax.training.workdir import ENVIRONMENT, HARDWARE, check_data, open_workdir, read_config, record_start


def config_of(folder, **changes):
    """The tiny config with its data in a folder; `section__key=value` changes it."""
    overrides = {"data.root": str(folder / "corpus")}
    overrides |= {key.replace("__", "."): str(value) for key, value in changes.items()}
    return configs.load(f"{ROOT / 'configs' / 'w2v2_base.py'}:tiny", list(overrides.items()))


def opened(folder, **changes):
    """Begins and ends a run in folder/run, which leaves a checkpoint; gives its config.json."""
    with open_workdir(folder / "run", config_of(folder, **changes), active=True):
        (folder / "run" / "checkpoints" / "4").mkdir(parents=True, exist_ok=True)
    return json.loads((folder / "run" / "config.json").read_text())


def test_changed_data_are_refused_where_there_is_something_to_go_on_from(tmp_path):
    check_data(tmp_path, config_of(tmp_path), {"train_rows": 14})
    check_data(tmp_path, config_of(tmp_path), {"train_rows": 13})
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    check_data(tmp_path, config_of(tmp_path), {"train_rows": 13})
    with pytest.raises(UserError, match="train_rows: 13 -> 12"):
        check_data(tmp_path, config_of(tmp_path), {"train_rows": 12})
    check_data(tmp_path, config_of(tmp_path, train__on_config_change="accept"), {"train_rows": 12, "labels": "x"})
    with pytest.raises(UserError, match=r"labels: 'x' -> '\(absent\)'"):
        check_data(tmp_path, config_of(tmp_path), {"train_rows": 12})
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(UserError, match="data.json is not readable as JSON; put it right"):
        check_data(tmp_path, config_of(tmp_path), {"train_rows": 12})


def test_second_run_in_a_workdir_is_kept_out(tmp_path):
    with open_workdir(tmp_path / "run", config_of(tmp_path), active=True):
        with pytest.raises(UserError, match="another run is using"):
            train.run(config_of(tmp_path), tmp_path / "run")


def test_keys_that_change_nothing_of_what_is_computed_may_differ(tmp_path):
    opened(tmp_path)
    again = opened(tmp_path, train__log_every=7, sharding__fsdp=2, encoder__stack="unroll")
    assert (again["train"]["log_every"], again["sharding"]["fsdp"], again["encoder"]["stack"]) == (7, 2, "unroll")


def test_keys_that_may_differ_are_keys_of_some_config():
    files = (ROOT / "configs").glob("*.py")
    known = set().union(*(configs.flatten(configs.load(str(file))).keys() for file in files))
    assert set(HARDWARE) <= known and len(set(HARDWARE)) == len(HARDWARE)


def test_another_config_goes_on_where_that_is_accepted(tmp_path):
    opened(tmp_path)
    changes = dict(optim__peak=0.5, train__on_config_change="accept")
    assert opened(tmp_path, **changes)["optim"]["peak"] == 0.5
    with pytest.raises(UserError, match="train.on_config_change='perhaps': it is 'refuse' or 'accept'"):
        opened(tmp_path, train__on_config_change="perhaps")


def test_a_damaged_config_matters_where_there_is_something_to_go_on_from(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    assert opened(tmp_path)["method"] == "wav2vec2", "it was left by a start that failed"
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not readable as JSON; put it right"):
        opened(tmp_path)


def test_the_other_processes_of_a_run_write_nothing(tmp_path):
    with open_workdir(tmp_path / "run", config_of(tmp_path), active=False):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not readable as JSON; put it right, or give another run"),
        ("[]", "is not readable as JSON"),
        ('{"model_type": "wav2vec2"}', "is a model of transformers; make it a run first"),
        ('{"method": "ctc"}', "is not that of a run"),
    ],
)
def test_a_config_that_is_none_of_a_run_is_named(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


def test_the_folder_of_a_run_is_a_path_or_what_was_fetched_from_a_url(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir.storage, "fetched", lambda url, seals: tmp_path if url == "s3://lab/run" else None)
    assert workdir.run_folder("s3://lab/run") == tmp_path
    assert workdir.run_folder("~/run") == pathlib.Path.home() / "run"
    with workdir.local_workdir("runs/a") as path:
        assert path == pathlib.Path("runs/a").absolute()


def test_each_start_is_recorded_with_command_versions_and_devices(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "w2v_jax.train", "--config=a b"])
    for _ in range(2):
        record_start(tmp_path)
    starts = [json.loads(line) for line in (tmp_path / ENVIRONMENT).read_text().splitlines()]
    assert [start["command"] for start in starts] == ["python -m w2v_jax.train '--config=a b'"] * 2
    assert {"w2v_jax", "jax", "Python"} <= starts[0]["versions"].keys() and "cpu" in starts[0]["devices"].lower()
    record_start(tmp_path / "none")
    assert "environment.jsonl cannot be written" in capsys.readouterr().err
