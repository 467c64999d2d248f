"""Laws of what a probe reads: one kind of features of a run, or log-mel features of audio as it is."""

from __future__ import annotations

import types

import numpy as np

from w2v_jax.data.index import WAVE
from w2v_jax.ops import logmel
from w2v_jax.probing import inputs
from w2v_jax.probing.inputs import Input, frame_centres, log_mel_input


def test_an_input_encodes_only_what_it_reads(monkeypatch):
    calls = []

    def encode(*arguments, **options):
        calls.append((arguments, options))
        yield 3, {"hidden": np.ones((2, 4)), "other": None}

    monkeypatch.setattr(inputs, "encode", encode)
    ((row, found),) = Input("layer 2", "run", "hidden", 2, "quantizer", 20.0, 10.0).encode("source")
    assert row == 3 and found.shape == (2, 4)
    lengths = dict(batch_seconds=20.0, max_seconds=10.0)
    assert calls == [(("run", "source"), dict(keys=("hidden",), layer=2, quantizer="quantizer", **lengths))]


def test_log_mel_features_are_a_run_without_parameters_that_is_made_once():
    found = log_mel_input()
    assert found is log_mel_input()
    assert (found.name, found.what, found.layer, found.quantizer) == ("log-mel", "local", None, None)
    assert found.run.params == found.run.extra == {} and found.run.form == WAVE
    assert found.run.geometry == (logmel.FIELD, logmel.HOP)
    assert not found.run.config.data.normalize, "log-mel features are of the audio as it is"


def test_the_centre_of_a_frame_is_the_middle_of_its_field():
    run = types.SimpleNamespace(geometry=(400, 320))
    np.testing.assert_array_equal(frame_centres(run, 3), [200, 520, 840])
    assert frame_centres(run, 0).shape == (0,)
