"""The self-made formant language: deterministic, in LibriSpeech layout, and never half-written."""

from __future__ import annotations

import types

import numpy as np
import pytest

from w2v_jax.config import UserError
from w2v_jax.data import corpus, folder, open_source, synthetic


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return synthetic.write_corpus(tmp_path_factory.mktemp("synthetic") / "corpus", 0.01, progress=False)


def test_same_settings_give_the_same_samples(home, tmp_path):
    again = synthetic.write_corpus(tmp_path / "again", 0.01, progress=False)
    sums = [[(r["id"], r["sha256"]) for r in corpus.read_manifest(root)] for root in (home, again)]
    assert sums[0] == sums[1] and len(sums[0]) > 5


def test_another_seed_gives_other_sentences(home, tmp_path):
    other = synthetic.write_corpus(tmp_path / "other", 0.01, seed=1, progress=False)
    texts = [set(open_source("folder", root / "train").index.transcripts) for root in (home, other)]
    assert not texts[0] & texts[1]


def test_layout_transcripts_and_disjoint_speakers(home):
    train, dev = (open_source("folder", home / part).index for part in ("train", "dev"))
    assert 0.01 <= train.hours < 0.013 and not train.skipped
    assert all(train.transcripts) and not set(train.speakers) & set(dev.speakers)
    assert corpus.verify(home) == []


def test_letters_sound_alike_across_words_and_differ_from_each_other():
    """Mean log spectra of the letters of different speakers: nearest to the same letter for most."""
    spectra: dict[str, list[np.ndarray]] = {}
    for speaker in range(1, 9):
        wave, text, ends = synthetic.utterance(speaker, 0)
        starts = np.concatenate([[0], ends[:-1]])
        for letter, start, end in zip(text, starts, ends, strict=True):
            piece = wave[int(start) : int(end)].astype(np.float64)
            if letter != " " and len(piece) >= 512:
                power = np.abs(np.fft.rfft(piece * np.hanning(len(piece)), 4096)[:2049]) ** 2
                bands = np.log(power[:2048].reshape(32, 64).sum(axis=1) + 1.0)
                spectra.setdefault(letter, []).append(bands - bands.mean())
    letters = [letter for letter, seen in spectra.items() if len(seen) >= 6]
    assert len(letters) >= 8
    hits, total = 0, 0
    for letter in letters:
        for i, spectrum in enumerate(spectra[letter]):
            centres = {
                k: np.mean([s for j, s in enumerate(v) if k != letter or j != i], axis=0)
                for k, v in spectra.items()
                if k in letters
            }
            hits += min(centres, key=lambda k: np.sum((centres[k] - spectrum) ** 2)) == letter
            total += 1
    assert hits / total > 0.5, f"{hits} of {total} letters are nearest to their own mean"


def test_interrupted_writing_is_finished_with_the_same_samples(home, tmp_path, monkeypatch):
    root, real, calls = tmp_path / "corpus", synthetic.utterance, []

    def interrupted(speaker, number, *, seed=0):
        calls.append(speaker)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(speaker, number, seed=seed)

    monkeypatch.setattr(synthetic, "utterance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_corpus(root, 0.01, progress=False)
    assert not root.exists()
    monkeypatch.setattr(synthetic, "utterance", real)
    synthetic.write_corpus(root, 0.01, progress=False)
    assert (root / "manifest.jsonl").read_bytes() == (home / "manifest.jsonl").read_bytes()


def test_a_folder_with_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError):
        synthetic.write_corpus(tmp_path / "mine", 0.01, progress=False)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_source_takes_one_root_or_several_and_a_part(home):
    data = types.SimpleNamespace(hours=0.01, min_seconds=0.0, workers=1)
    train = synthetic.make(data, str(home))
    both = synthetic.make(data, (str(home / "train"), str(home / "dev")))
    assert len(both.index) == len(train.index) + len(folder.make(data, (str(home / "dev"),)).index)
    with pytest.raises(UserError, match="data.root is empty"):
        synthetic.make(data, ())
