"""From a pretraining to a recogniser: what is taken over, what is refused, and that logits belong to one recording."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from w2v_jax import extract
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet
from w2v_jax.inference.encode import encode
from w2v_jax.inference.run import open_run
from w2v_jax.training import checkpoint


@pytest.fixture(scope="module")
def pretrained(tiny_run):
    return tiny_run("w2v2_base.py:tiny")


@pytest.fixture(scope="module")
def tuned(tiny_run, pretrained):
    return tiny_run("finetune.py:tiny", init__run=pretrained)


@pytest.fixture(scope="module")
def source(tiny_corpus):
    return open_source("folder", tiny_corpus / "dev")


def encoder_of(path):
    return checkpoint.restore_params(path).params["encoder"]


def test_fine_tuning_changes_the_context_network_and_not_the_convolutions(tuned, pretrained):
    ours, theirs = encoder_of(tuned), encoder_of(pretrained)
    jax.tree.map(np.testing.assert_array_equal, ours["frontend"], theirs["frontend"])
    assert np.any(ours["projection"]["kernel"] != theirs["projection"]["kernel"])
    np.testing.assert_allclose(ours["projection"]["kernel"], theirs["projection"]["kernel"], atol=0.02)


@pytest.mark.parametrize(
    ("run", "changes", "word"),
    [
        (
            "w2v2_base.py:tiny",
            dict(encoder__width=64),
            r"encoder.width: 32 in run, here 64\n.*--config.encoder.width=32",
        ),
        ("w2v2_base.py:tiny", dict(data__normalize=True), "data.normalize"),
        ("w2v2_base.py:tiny", dict(init__step=77), "77"),
        ("cpc.py", {}, "has an encoder of kind 'causal'"),
        ("vq_wav2vec.py", {}, "extract its features"),
        ("", {}, "is not the folder of a run"),
    ],
)
def test_encoder_that_does_not_fit_is_named(tiny_run, tmp_path, run, changes, word):
    if run.endswith("tiny"):
        path = tiny_run(run)
    else:
        path = tmp_path
        if run:
            (path / "config.json").write_text(configs.to_json(configs.load(f"configs/{run}")), encoding="utf-8")
    with pytest.raises(UserError, match=word):
        tiny_run("finetune.py:tiny", init__run=path, **changes)


def test_alphabet_is_kept_in_the_run_with_what_was_dropped(tuned, tiny_run, tmp_path):
    kept = json.loads((tuned / ALPHABET_FILE).read_text(encoding="utf-8"))
    assert kept["tokens"][:2] == ["<blank>", "|"] and set(kept["counts"]) == set(kept["tokens"][1:])
    alphabet = Alphabet.load(tuned / ALPHABET_FILE)
    other = Alphabet(alphabet.tokens[:-3], alphabet.kind)
    other.save(tmp_path / "other.json", {}, {})
    with pytest.raises(UserError, match=r"tokens that the alphabet lacks"):
        tiny_run("finetune.py:tiny", data__alphabet=tmp_path / "other.json", data__eval_share=0.5)


def test_logits_of_a_batch_are_those_of_each_recording_alone(tuned, source):
    run = open_run(tuned)
    together = dict(encode(run, source, keys=("logits",)))
    for row in range(min(3, len(source.index))):
        _, alone = next(encode(run, source, [row], keys=("logits",)))
        np.testing.assert_allclose(together[row]["logits"], alone["logits"], atol=3e-5)
        assert together[row]["logits"].shape[1] == len(Alphabet.load(tuned / ALPHABET_FILE))


@pytest.mark.slow
def test_long_recordings_in_pieces_have_every_frame_and_nearly_the_same_logits(tiny_run, source):
    run = open_run(tiny_run("acoustic_logmel.py:tiny"))
    row = int(np.argmax(source.index.num_samples))
    (_, whole), (_, pieces) = (
        next(encode(run, source, [row], keys=("logits",), max_seconds=s, margin_seconds=m))
        for s, m in ((80, 0), (2, 0.5))
    )
    assert whole["logits"].shape == pieces["logits"].shape
    assert np.abs(whole["logits"] - pieces["logits"]).mean() < 0.5 * np.abs(whole["logits"]).mean()


def test_margins_leave_features_with_a_finite_field_unchanged(tmp_path, source):
    """The layer-normed convolutions of Large see 400 samples: pieces with and without margins give the same."""
    (tmp_path / "config.json").write_text(configs.to_json(configs.load("configs/w2v2_large.py:tiny")), encoding="utf-8")
    run, row = open_run(tmp_path, random=True), int(np.argmax(source.index.num_samples))
    whole, *others = (
        next(encode(run, source, [row], keys=("local",), max_seconds=s, margin_seconds=m))[1]["local"]
        for s, m in ((80, 0), (3, 0), (3, 0.7), (2, 9))
    )
    for other in others:
        np.testing.assert_allclose(other, whole, atol=3e-5)


@pytest.mark.slow
def test_extracted_features_train_an_acoustic_model(tiny_run, pretrained, tiny_corpus, tmp_path):
    out = tmp_path / "features"
    flags = ["--run", str(pretrained), "--what", "context", "--root", str(tiny_corpus / "train"), "--out", str(out)]
    assert not extract.main(flags)
    law = dict(data__root=out, encoder__hop=320, acoustic__conv_layers=((32, 5, 1),), train__dtype="float32")
    law |= dict(data__batch_hours=32 / 3600, data__unit_seconds=4.0, data__device_seconds=32.0)
    run = tiny_run("acoustic_frozen.py:features", **law, data__bucket_seconds=(4.0, 16.0), data__eval_share=0.2)
    found = open_source("features", out)
    assert found.form.width == 32 and found.read(0, 320, 640).shape == (2, 32)
    opened = open_run(run)
    logits = dict(encode(opened, found, keys=("logits",)))
    assert len(logits) == len(found.index) and np.isfinite(logits[0]["logits"]).all()
    with pytest.raises(UserError, match=r"encoder.hop=160"):
        tiny_run("acoustic_frozen.py:features", **(law | dict(encoder__hop=160)))
    (out / "part-00000.npy").write_bytes(b"")
    with pytest.raises(UserError, match="part-00000"):
        open_source("features", out)
