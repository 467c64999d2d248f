"""Laws of probes in training: process 0 measures the model of the moment, and log-mel features once."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from labelled import source

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import load
from w2v_jax.data.index import WAVE, Form
from w2v_jax.probing import live
from w2v_jax.probing.labels import RecordingLabels

PART = RecordingLabels(source("ab"), np.array([0, 1]), ["a", "b"])


@pytest.fixture
def config():
    return load("configs/wav2vec_small.py:tiny", [("probe.root", "there"), ("probe.label", "speaker")])


@pytest.fixture
def measured(monkeypatch):
    """The inputs that were measured, with stand-ins of the recordings and of the classifier."""
    inputs = []

    def measure(features, train, test, *, segments):
        inputs.append(features)
        return [{"accuracy": len(inputs) / 10}]

    monkeypatch.setattr(live, "open_parts", lambda *_, **__: (PART, PART))
    monkeypatch.setattr(live, "measure", measure)
    return inputs


def test_log_mel_features_are_measured_once_and_the_model_every_time(config, measured):
    probe = live.LiveProbe(config, WAVE)
    for number, accuracy in ((1, 0.2), (2, 0.3)):
        found = probe.measure({"w": jax.numpy.full(2, number)}, {}, step=10 * number)
        assert found == {"probe_speaker": accuracy, "probe_log-mel": 0.1}
    assert [features.name for features in measured] == ["log-mel", "the run", "the run"]
    for number, features in enumerate(measured[1:], 1):
        assert features.what == "context" and features.run.step == 10 * number
        np.testing.assert_array_equal(features.run.params["w"], [number, number])
    assert measured[1].run.method is measured[2].run.method, "its compiled functions are shared"


def test_other_processes_make_a_probe_and_measure_nothing(config, measured, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    probe = live.LiveProbe(config, WAVE)
    assert probe.measure({}, {}, step=1) == {} and not measured


def test_recordings_that_the_model_cannot_read_are_refused(config, measured):
    with pytest.raises(UserError, match="reads codes, but the source holds audio"):
        live.LiveProbe(config, Form("codes", "int32", 160, "x"))
