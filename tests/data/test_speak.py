"""The text-to-speech corpus: layout, voices, languages, and what a person can get wrong."""

from __future__ import annotations

import types

import numpy as np
import pytest
import soundfile

from w2v_jax.config import UserError
from w2v_jax.data import corpus, open_source, speak

pytest.importorskip("espeakng_loader", reason='text-to-speech was NOT tested: pip install "w2v_jax[demo]"')


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("speak") / "corpus"
    return speak.write_corpus(root, 0.02, speakers=8, progress=False)


def test_corpus_has_librispeech_layout_and_whole_files(home):
    source = open_source("folder", home / "train")
    assert 0.02 <= source.index.hours < 0.025 and not source.index.skipped
    assert all(source.index.transcripts) and source.index.transcripts[0].isupper()
    assert soundfile.info(home / "train" / "1" / "1" / "1-1-0001.flac").samplerate == 16_000
    assert corpus.verify(home) == []
    wave = source.read(0, 0, 16_000)
    assert 0.01 < np.abs(wave).max() <= 1.0


def test_train_and_dev_have_different_voices(home):
    voices = {"train": set(), "dev": set()}
    for split, first in (("train", 1), ("dev", 10_001)):
        rows = speak._rows(split, "en", (), 0, first, 40)
        voices[split] = {next(rows).voice.name for _ in range(40)}
    assert len(voices["train"]) > 10 and not voices["train"] & voices["dev"]


def test_a_corpus_that_is_there_is_used_as_it_is(home):
    before = (home / "manifest.jsonl").read_bytes()
    data = types.SimpleNamespace(hours=0.02, language="en", min_seconds=0.0, workers=1)
    assert len(speak.make(data, (str(home),)).index) == len(before.splitlines()) - len(
        open_source("folder", home / "dev").index
    )
    assert (home / "manifest.jsonl").read_bytes() == before


def test_other_languages_speak_numbers_and_texts_are_spoken(tmp_path):
    german = speak.write_corpus(tmp_path / "de", 0.003, language="de", speakers=8, progress=False)
    transcripts = open_source("folder", german / "train").index.transcripts
    assert all(word.isdigit() for text in transcripts for word in text.split())
    (tmp_path / "lines.txt").write_text("guten morgen liebe leute\n\n", encoding="utf-8")
    said = speak.write_corpus(
        tmp_path / "said", 0.002, language="de", speakers=8, text=tmp_path / "lines.txt", progress=False
    )
    assert set(open_source("folder", said / "train").index.transcripts) == {"GUTEN MORGEN LIEBE LEUTE"}


def test_faster_voices_are_shorter():
    slow, fast = (
        len(speak.speak("the river finds the bridge", speak.Voice("en", rate, 50, 50))) for rate in (120, 210)
    )
    assert fast < 0.8 * slow


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "eng-us"}, "Did you mean"),
        ({"hours": 0.0}, "cannot be made"),
        ({"text": "/nowhere/text.txt"}, "cannot be read"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        speak.write_corpus(tmp_path / "x", **({"hours": 0.002, "progress": False} | changes))
    assert not (tmp_path / "x").exists()


def test_missing_wheel_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"w2v_jax\[demo\]"):
        speak._Engine()
