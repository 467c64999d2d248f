"""Laws of importing TensorFlow: it is quiet and leaves the accelerators to JAX. A stand-in takes its place here."""

import logging
import os
import sys
import types

import pytest

from w2v_jax.data.io.tf_import import import_tensorflow, quiet_tfds


@pytest.fixture
def stand_in(monkeypatch):
    """A function that puts a package in the place of TensorFlow; its devices are set by the given function."""

    def put(set_visible_devices):
        config = types.SimpleNamespace(set_visible_devices=set_visible_devices)
        monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=config))
        return sys.modules["tensorflow"]

    return put


def test_tensorflow_sees_no_gpu_and_no_tpu(stand_in):
    calls = []
    package = stand_in(lambda devices, kind: calls.append((devices, kind)))
    assert import_tensorflow() is package
    assert calls == [([], "GPU"), ([], "TPU")]


def test_a_tensorflow_that_runs_already_is_taken_as_it_is(stand_in):
    def running(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    package = stand_in(running)
    assert import_tensorflow() is package


def test_log_lines_are_switched_off_unless_the_user_has_chosen(stand_in, monkeypatch):
    stand_in(lambda devices, kind: None)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    import_tensorflow()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3" and os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"


def test_a_missing_tensorflow_is_an_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError):
        import_tensorflow()


def test_warnings_of_datasets_are_hidden_for_a_while():
    level = logging.getLogger("absl").level
    with quiet_tfds():
        assert not logging.getLogger("absl").isEnabledFor(logging.WARNING)
    assert logging.getLogger("absl").level == level
