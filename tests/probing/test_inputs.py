"""Laws of what a probe reads: one kind of features of a run, or log-mel features of audio as it is."""

from __future__ import annotations

import types

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data.index import WAVE, Row, make_index
from w2v_jax.inference.encode import encode
from w2v_jax.inference.run import open_run
from w2v_jax.ops import logmel
from w2v_jax.probing import inputs
from w2v_jax.probing.inputs import Input, frame_centres, log_mel_input


def test_an_input_encodes_only_what_it_reads(random_run, monkeypatch):
    run, vq = open_run(random_run()), open_run(random_run("vq_wav2vec.py:tiny"))
    wave = np.random.default_rng(0).normal(size=40_000).astype(np.float32)
    index = make_index([Row("a", "a", 0, len(wave), 16_000)])
    source = types.SimpleNamespace(index=index, form=WAVE, read=lambda row, start, length: wave[start : start + length])
    ((_, whole),) = encode(run, source)
    made = []

    def watched(*arguments, **options):
        for row, arrays in encode(*arguments, **options):
            made.append((list(arrays), options["batch_seconds"]))
            yield row, arrays

    monkeypatch.setattr(inputs, "encode", watched)
    ((row, found),) = Input("layer 2", run, "hidden", 2, batch_seconds=5.0).encode(source)
    assert row == 0 and made == [(["hidden"], 5.0)]
    np.testing.assert_allclose(found, whole["hidden"][2], atol=2e-5)
    ((_, cut),) = Input("layer 2", run, "hidden", 2, max_seconds=1.0).encode(source)
    assert cut.shape == found.shape and np.abs(cut - found).max() > 1e-3, "the context ends with the piece"
    with pytest.raises(UserError, match="vocabulary"):
        list(Input("layer 2", run, "hidden", 2, quantizer=vq).encode(source))


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
