"""TensorBoard's file: what a run logs, as TensorBoard reads it."""

import builtins
import os
import subprocess
import sys

from commands import ROOT

from w2v_jax.training import console

ROW = {"split": "train", "loss": 1.0, "said": "word"}


def events(path):
    """The events of a file, as TensorBoard reads them: records whose checksums hold."""
    import tensorflow as tf
    from tensorboardX.proto.event_pb2 import Event

    return [Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]


def scalars(event):
    return {value.tag: value.simple_value for value in event.summary.value}


def test_tensorboard_gets_the_rows_and_is_told_from_where_a_run_began_again(tmp_path):
    first = console.Report(tmp_path, 40)
    for step in (1, 2, 3):
        first.log({"step": step, **ROW})
    first.close()
    (begun,) = (tmp_path / "tensorboard").iterdir()
    assert [(e.step, scalars(e)["loss/train"]) for e in events(begun) if scalars(e)] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    begun.unlink()  # a second file of the same second would have its name
    second = console.Report(tmp_path, 40, start_step=2)
    second.log({"step": 3, "split": "eval", "loss": 2.5})
    second.close()
    (again,) = (tmp_path / "tensorboard").iterdir()
    version, start, last = events(again)
    assert version.file_version == "brain.Event:2" and start.step == 3 and start.session_log.status == 1
    assert scalars(last)["loss/eval"] == 2.5 and "step/eval" not in scalars(last)


def test_tensorboard_needs_no_torch_where_it_is_installed(tmp_path):
    (tmp_path / "torch.py").write_text("print('imported')")
    program = "import pathlib, sys; from w2v_jax.training.console import Report; Report(pathlib.Path(sys.argv[1]), 10)"
    words = [sys.executable, "-c", f"{program}; print('opened'); import torch", str(tmp_path / "run")]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    assert done.stdout == "opened\nimported\n" and list((tmp_path / "run" / "tensorboard").iterdir())


def test_without_tensorboardx_one_notice_and_everything_else(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    out = console.Report(tmp_path, 3)
    out.log({"step": 1, **ROW})
    out.log({"step": 2, **ROW})
    assert capsys.readouterr().out.count("tensorboardX") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2 and not (tmp_path / "tensorboard").exists()
