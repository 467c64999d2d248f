"""Examples: what training held out, as the model has it, or the reason why there is none."""

import io
import json
import shutil

import numpy as np
import pytest
import soundfile
from written_runs import write_run

from w2v_jax.core import config as configs
from w2v_jax.data.index import split_heldout
from w2v_jax.data.sources import synthetic
from w2v_jax.decoding.beam_search import greedy
from w2v_jax.inference.model import open_model
from w2v_jax.reporting import examples
from w2v_jax.reporting.examples import flac, hidden_frames, read_examples
from w2v_jax.reporting.run_folder import open_folder


def change(folder, **data):
    config = json.loads((folder / "config.json").read_text())
    config["data"] |= data
    (folder / "config.json").write_text(json.dumps(config))


def test_examples_are_held_out_recordings_with_the_models_codes(tiny_run, monkeypatch):
    monkeypatch.setattr(examples, "LONGEST", 2.0)
    run = open_folder(tiny_run(), "run")
    found, note = read_examples(run, 2)
    data = run.config.data
    source = synthetic.make(data, data.root)
    held_out = source.index.ids[split_heldout(source.index, data.eval_share)[1]].tolist()
    assert note == "" and len(found) == 2 and {example.id for example in found} <= set(held_out)
    example = found[0]
    row = source.index.ids.tolist().index(example.id)
    np.testing.assert_array_equal(example.wave, source.read(row, 0, len(example.wave)))
    assert len(example.wave) <= examples.LONGEST * 16_000
    codes = open_model(run.path)(example.wave, 16_000, keys=("codes",)).codes
    np.testing.assert_array_equal(example.codes, codes)
    assert example.masked is not None and len(example.masked) == len(codes) and example.hop == 320
    assert (example.units, example.reference, example.hypothesis, example.words) == (None, None, None, ())


def test_a_run_that_holds_out_fewer_says_so(tiny_run):
    found, note = read_examples(open_folder(tiny_run(), "run"), 99)
    assert note == f"the run holds out no more than {len(found)}"


def test_a_recogniser_gives_words_in_time_beside_the_reference(tiny_run):
    run = open_folder(tiny_run("acoustic_logmel.py:tiny"), "run")
    found, _ = read_examples(run, 3)
    model = open_model(run.path)
    example = min(found, key=lambda e: e.seconds)
    record = model(example.wave, 16_000, keys=("text", "log_probs"))
    assert example.hypothesis == record.text
    assert len(example.words) == len(model.alphabet.decode(greedy(record.log_probs)).split())
    assert all(0 <= word.start <= word.end <= example.seconds and 0 <= word.confidence <= 1 for word in example.words)
    if example.seconds <= examples.LONGEST:
        assert example.reference and example.alignment.startswith("REF:")


def test_a_reference_is_left_out_where_the_recording_is_cut(tiny_run, monkeypatch):
    monkeypatch.setattr(examples, "LONGEST", 1.0)
    found, _ = read_examples(open_folder(tiny_run("acoustic_logmel.py:tiny"), "run"), 1)
    assert len(found[0].wave) == 16_000 and found[0].reference is None and found[0].hypothesis is not None


def test_a_method_that_learns_given_units_shows_them(random_run, tiny_corpus):
    run = open_folder(random_run("hubert_base.py:tiny", data__root=tiny_corpus), "run")
    (example,), _ = read_examples(run, 1)
    assert example.units.shape == (1, len(example.wave) // 320) and example.codes is None
    assert 0 <= example.units.min() and example.units.max() < 21


@pytest.mark.parametrize(
    ("missing", "said"),
    [("checkpoint", "there is no checkpoint yet"), ("recordings", "the recordings are not here (no-such-folder)")],
)
def test_what_is_missing_is_said_and_nothing_is_made(tiny_run, tmp_path, monkeypatch, missing, said):
    monkeypatch.chdir(tmp_path)
    if missing == "checkpoint":
        folder = write_run(tmp_path / "run")
    else:
        folder = shutil.copytree(tiny_run(), tmp_path / "run")
        change(folder, root=["no-such-folder"])
    before = sorted(tmp_path.rglob("*"))
    assert read_examples(open_folder(folder, "run"), 2) == ([], said)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_in_the_data_is_a_note(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run(), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    change(folder, root=[str(tmp_path / "empty")], name="folder")
    found, note = read_examples(open_folder(folder, "run"), 2)
    assert found == [] and "no readable audio" in note and "\n" not in note


@pytest.mark.parametrize(
    ("config", "share"), [("w2v2_base.py:tiny", 0.65), ("acoustic_logmel.py", 0.0), ("cpc.py:tiny", None)]
)
def test_hidden_spans_are_those_of_the_settings(tmp_path, config, share):
    """wav2vec 2.0 hides about half of the frames (spans overlap); CPC has no spans, a recogniser those it asks for."""
    loaded = open_folder(write_run(tmp_path / "run", config=config), "run").config
    hidden = hidden_frames(loaded, 3, 400)
    prob = configs.flatten(loaded).get("masking.prob", configs.flatten(loaded).get("masking.time_prob", 0))
    assert (hidden is None) == (share is None or not prob)
    if hidden is not None:
        assert hidden.shape == (400,) and 0 < hidden.mean() <= prob + 0.05
        np.testing.assert_array_equal(hidden, hidden_frames(loaded, 3, 400))
        assert (hidden != hidden_frames(loaded, 4, 400)).any(), "each row has its own"


@pytest.mark.parametrize("loudness", [0.0, 0.01, 3.0])
def test_what_one_listens_to_is_the_wave_as_loud_as_it_may_be(loudness):
    wave = (loudness * np.sin(np.arange(8000) / 20)).astype(np.float32)
    heard, rate = soundfile.read(io.BytesIO(flac(wave)), dtype="float32")
    assert rate == 16_000 and len(heard) == 8000
    np.testing.assert_allclose(heard, 0.9 * np.sin(np.arange(8000) / 20) if loudness else 0.0, atol=2e-3)
