"""The text-to-speech corpus: layout, voices, languages, and what a person can get wrong."""

from __future__ import annotations

import types

import numpy as np
import pytest
import soundfile

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.io import corpus, espeak
from w2v_jax.data.sources import speak

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


def test_train_and_dev_have_different_voices(tmp_path, monkeypatch):
    seen: dict[str, set[str]] = {"train": set(), "dev": set()}

    def watched(row):
        seen[row.split].add(row.voice[0].name.split("+")[1])
        return render(row)

    render = speak._render
    monkeypatch.setattr(speak, "_render", watched)
    speak.write_corpus(tmp_path / "a", 0.02, progress=False)
    assert len(seen["train"]) > 5 and seen["dev"] and not seen["train"] & seen["dev"]
    seen["train"].clear()
    speak.write_corpus(tmp_path / "b", 0.003, voices=("f1", "klatt"), progress=False)
    assert seen["train"] == {"klatt"} and "f1" in seen["dev"]


def test_text_and_voices_are_a_function_of_the_settings(home, tmp_path):
    again = speak.write_corpus(tmp_path / "again", 0.02, speakers=8, progress=False)
    texts = [{r["id"]: r["text"] for r in corpus.read_manifest(root)} for root in (home, again)]
    assert len(texts[0]) > 10
    assert all(texts[0][name] == texts[1][name] for name in texts[0].keys() & texts[1].keys())


def test_an_interrupted_making_goes_on_and_keeps_what_it_has(tmp_path, monkeypatch):
    root, render, calls = tmp_path / "corpus", speak._render, []

    def interrupted(row):
        calls.append(row.id)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return render(row)

    monkeypatch.setattr(speak, "_render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        speak.write_corpus(root, 0.01, progress=False)
    assert not root.exists()
    speak.write_corpus(root, 0.01, progress=False)
    names = [record["id"] for record in corpus.read_manifest(root)]
    assert calls == [*names[:4], *names[3:]], "the fourth is spoken twice, the first three once"
    assert corpus.verify(root) == []


def test_a_corpus_that_is_there_needs_no_espeak(home, monkeypatch):
    monkeypatch.setattr(espeak, "engine", None)
    assert speak.write_corpus(home, 0.02, speakers=8) == home
    data = types.SimpleNamespace(hours=0.0, language="en", min_seconds=0.0, workers=1)
    assert len(speak.make(data, home).index)


def test_lost_files_are_spoken_anew(tmp_path):
    root = speak.write_corpus(tmp_path / "c", 0.005, voices=("f1", "m1"), progress=False)
    before = (root / "manifest.jsonl").read_text().splitlines()
    (root / corpus.read_manifest(root)[1]["audio_filepath"]).unlink()
    data = types.SimpleNamespace(hours=0.0, language="en", min_seconds=0.0, workers=1)
    speak.make(data, root)
    assert corpus.verify(root) == []
    after = (root / "manifest.jsonl").read_text().splitlines()
    assert [line for line in before if line in after] == [before[0], *before[2:]]


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


def test_transcripts_are_words_in_capitals():
    assert speak.transcribe("  “Don't, no; it's - well-known!” Ünïcode 42 ") == "DON'T NO IT'S WELL-KNOWN ÜNÏCODE 42"
    assert speak.transcribe("... — !") == ""


def test_faster_voices_are_shorter():
    slow, fast = (
        len(speak.speak("the river finds the bridge", espeak.Voice("gmw/en+m3", rate, 50, 50))) for rate in (120, 210)
    )
    assert fast < 0.8 * slow


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "eng-us"}, "no language 'eng-us'.*Did you mean en-us"),
        ({"language": "german"}, r"Did you mean de \(German\)"),
        ({"voices": ("f33", "m1")}, "no voice variant 'f33'; it has e.g. f3"),
        ({"voices": ("m1",)}, "at least two voices"),
        ({"hours": 0.0}, "cannot be made"),
        ({"text": "/nowhere/text.txt"}, "cannot be read"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        speak.write_corpus(tmp_path / "x", **({"hours": 0.002, "progress": False} | changes))
    assert not (tmp_path / "x").exists()
