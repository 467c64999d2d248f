"""The self-made formant language: deterministic, and in LibriSpeech layout."""

from __future__ import annotations

import numpy as np

from w2v_jax.data import open_source
from w2v_jax.data.io import corpus
from w2v_jax.data.sources import synthetic


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


def test_the_manifest_of_a_corpus_is_a_source(home):
    listed = open_source("jsonl", home / "manifest.jsonl").index
    assert sorted(listed.transcripts) == sorted(
        t for part in ("train", "dev") for t in open_source("folder", home / part).index.transcripts
    )
