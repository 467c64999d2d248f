"""Folders of runs: read whole, with what is damaged counted, and never changed."""

import json
import os

import pytest
from written_runs import curve, write_run

from w2v_jax.core.cli import UserError
from w2v_jax.reporting.run_folder import open_run_folders, short_names


def opened(folder):
    return open_run_folders([folder])[0]


def test_a_complete_run_is_read_whole(tmp_path):
    usage = [{"step": 5, "code_usage": [[1.0, 0.0]]}]
    run = opened(write_run(tmp_path / "run", curve(10), usage=usage))
    assert (run.name, run.step, run.steps, len(run.of_split("train")), len(run.of_split("eval"))) == (
        "run",
        10,
        20,
        10,
        2,
    )
    assert run.usage == usage and run.done is not None and not run.damaged and run.written
    assert run.levels["perplexity_max"] == 32, "those of its method"


def test_a_damaged_line_is_counted_and_left_out(tmp_path):
    folder = write_run(tmp_path / "run", curve(10), done=False, tail='{"step": 11, "split": "tr')
    (folder / "usage.jsonl").write_text('{"step": 5, "code_usage": [[1.0]]}\n[1, 2]\n{"st')
    run = opened(folder)
    assert run.damaged == {"metrics.jsonl": 1, "usage.jsonl": 2}
    assert run.step == 10 and len(run.usage) == 1 and run.done is None


def test_a_run_without_metrics_is_one(tmp_path):
    run = opened(write_run(tmp_path / "run"))
    assert run.rows == [] and run.step == 0 and run.written == "" and run.done is None


def test_an_encoder_alone_which_has_no_loss_is_one(tmp_path):
    """As `convert` makes of a checkpoint without heads."""
    run = opened(write_run(tmp_path / "run", config="hubert_base.py:tiny", loss__classes=()))
    assert run.levels == {} and run.rows == []


def test_reading_changes_nothing(tmp_path):
    folder = write_run(tmp_path / "run", curve(5))
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    opened(folder)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_a_method_that_cannot_be_made_has_no_levels(tmp_path):
    """Its module is on another machine; the metrics are read all the same."""
    folder = write_run(tmp_path / "run", curve(5))
    config = json.loads((folder / "config.json").read_text()) | {"method": "my_lab.not_here"}
    (folder / "config.json").write_text(json.dumps(config))
    assert opened(folder).levels == {} and opened(folder).step == 5


def test_runs_get_the_shortest_names_that_tell_them_apart(tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert short_names(paths) == ["a/run", "b/run"] and short_names(paths[:1]) == ["run"]


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        opened(tmp_path)
    folder = write_run(tmp_path / "run")
    with pytest.raises(UserError, match="named twice"):
        open_run_folders([folder, folder / ".." / "run"])
