"""Reports: every row once, readable by others, and never a reason for a run to end."""

import contextlib
import json
import math
import resource

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.core.files import append_lines
from w2v_jax.training import console

LEVELS = {"loss_chance": math.log(101), "accuracy_chance": 1 / 101, "perplexity_floor": 2.0, "perplexity_max": 640.0}


def row(step, split="train", **values):
    base = {
        "step": step,
        "split": split,
        "loss": 4.0,
        "accuracy": 0.1,
        "code_perplexity": 50.0,
        "prob_perplexity": 60.0,
    }
    return base | {"grad_norm": 1.0, "learning_rate": 1e-4, "temperature": 2.0, "step_seconds": 0.5} | values


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_every_logged_row_is_one_line_with_full_precision(tmp_path):
    out = console.Report(tmp_path, 10)
    loss = np.float32(1 / 3)
    out.log(row(1, loss=loss))
    out.log(row(1, "eval", loss=np.array(2.5), purity=0.25))
    assert [r["split"] for r in lines(tmp_path)] == ["train", "eval"], "on disk before the run ends"
    assert np.float32(lines(tmp_path)[0]["loss"]) == loss
    assert lines(tmp_path)[1]["purity"] == 0.25, "a method's own metrics are kept"
    out.close()


def test_what_is_not_finite_stays_valid_json(tmp_path):
    out = console.Report(tmp_path, 10)
    out.log(row(1, loss=float("nan"), grad_norm=np.float32("inf")))
    strict = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert strict["loss"] is None and strict["grad_norm"] is None
    out.finish()


def test_resumed_run_leaves_no_step_twice_and_no_gap(tmp_path):
    first = console.Report(tmp_path, 40)
    for step in range(1, 8):
        first.log(row(step, loss=1.0))
        if step % 2 == 0:
            first.log(row(step, "eval"))
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "split": "tr')  # killed while writing
    second = console.Report(tmp_path, 40, start_step=4)
    for step in range(5, 10):
        second.log(row(step, loss=2.0))
    second.close()
    train = [(r["step"], r["loss"]) for r in lines(tmp_path) if r["split"] == "train"]
    assert train == [(s, 1.0) for s in range(1, 5)] + [(s, 2.0) for s in range(5, 10)]
    assert [r["step"] for r in lines(tmp_path) if r["split"] == "eval"] == [2, 4]


def test_any_file_of_steps_is_trimmed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"step": s, "ids": ["a", "é"]}) + "\n" for s in range(6)) + "[1]\n")
    assert console.trim_steps(path, 3) == 3
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]
    assert console.trim_steps(tmp_path / "absent.jsonl", 3) == 0


def test_a_full_disk_costs_no_row(tmp_path, monkeypatch, capsys):
    out = console.Report(tmp_path, 10, tensorboard=False)
    out.log(row(1))

    def refuse(path, texts):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(console, "append_lines", refuse)
        out.log(row(2))
        out.log(row(3))
    assert "No space left on device); 2 rows are kept" in capsys.readouterr().err
    out.log(row(4))
    assert [r["step"] for r in lines(tmp_path)] == [1, 2, 3, 4]


def test_a_full_disk_ends_no_run(tmp_path, capsys):
    """With real refusals: a limit on the size of files, which curves.png and the event file reach."""
    out = console.Report(tmp_path, 4000, levels=LEVELS)
    out.log(row(1))
    out.draw()
    before = (tmp_path / "curves.png").read_bytes()
    with refusing(20_000):
        for step in range(2, 400):
            out.log(row(step))
        out.draw()
        out.close()
    told = capsys.readouterr().err
    assert told.count("TensorBoard's file cannot be written ([Errno 27] File too large) and ends here") == 1
    assert "curves.png cannot be written ([Errno 27] File too large)" in told
    assert (tmp_path / "curves.png").read_bytes() == before, "the old curves stay"
    out.log(row(400))
    assert [r["step"] for r in lines(tmp_path)] == list(range(1, 401))


def test_a_summary_that_does_not_fit_is_a_clear_error_and_is_written_later(tmp_path):
    out = console.Report(tmp_path, 1)
    out.log(row(1))
    with refusing(20_000), pytest.raises(UserError, match="done.json cannot be written: .*the same command writes"):
        out.finish(notes="x" * 30_000)
    assert not (tmp_path / "done.json").exists()
    console.Report(tmp_path, 1, start_step=1).finish()
    assert json.loads((tmp_path / "done.json").read_text())["step"] == 1


@contextlib.contextmanager
def refusing(size):
    """No file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lines_are_written_whole_or_not_at_all(tmp_path):
    """/dev/full refuses every byte, as a full disk does; a file that took part of a line is cut back."""
    with pytest.raises(OSError, match="No space left"):
        append_lines("/dev/full", ["x"])
    path = tmp_path / "file"
    append_lines(path, ["a", "b"])
    append_lines(path, ["c"])
    assert path.read_text() == "a\nb\nc\n"


def test_done_json_holds_the_last_row_of_each_split_and_is_gone_while_running(tmp_path):
    out = console.Report(tmp_path, 3, levels=LEVELS)
    for step in (1, 2, 3):
        out.log(row(step, loss=5.0 - step))
    out.log(row(3, "eval", loss=2.25))
    assert not (tmp_path / "done.json").exists()
    out.finish(checkpoint=tmp_path / "checkpoints" / "3", healthy=True)
    done = json.loads((tmp_path / "done.json").read_text())
    assert done["step"] == 3 and done["healthy"] is True
    assert done["metrics"]["train"]["loss"] == 2.0 and done["metrics"]["eval"]["loss"] == 2.25
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    console.Report(tmp_path, 6, start_step=3)
    assert not (tmp_path / "done.json").exists(), "a run that goes on is not done"


def test_other_processes_write_nothing(tmp_path, capsys):
    out = console.Report(tmp_path / "run", 3, active=False)
    out.log(row(1))
    out.say("hello")
    out.draw()
    out.finish()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_progress_line_tells_what_a_person_waits_for():
    full = row(50, audio_hours_per_hour=612.0, data_wait_share=0.03, padding_share=0.081, skipped_updates=2)
    text = console.progress_line(full, 200, 0.5)
    for part in (
        "50/200",
        "25.0%",
        "loss  4.000",
        "acc 0.100",
        "50.0/60.0",
        "0.50 steps/s",
        "612 h/h",
        "wait  3%",
        "pad  8%",
    ):
        assert part in text
    assert "2 updates skipped" in text and text.endswith("left 5 min 00 s")


def test_progress_line_lives_with_missing_and_broken_numbers():
    assert console.progress_line({"step": 1, "split": "eval", "loss": None}, 10) == "eval   1/10   10.0%  loss    nan"
    assert "left" not in console.progress_line(row(10), 10, 1.0)


def test_columns_stay_in_place():
    early, late = console.progress_line(row(5), 40000, 2.0), console.progress_line(row(39999), 40000, 2.0)
    assert early.index("loss") == late.index("loss") and early.index("steps/s") == late.index("steps/s")
