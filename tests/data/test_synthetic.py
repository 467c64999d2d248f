"""The self-made formant language: deterministic, in LibriSpeech layout, and never half-written."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from commands import environment

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


def test_several_processes_make_one_corpus(home, tmp_path):
    """All want it at once, one is killed: the others end with the same whole corpus and nothing beside it."""
    script = "import sys; from w2v_jax.data import synthetic; synthetic.write_corpus(sys.argv[1], 0.01, progress=False)"
    command = [sys.executable, "-c", script, str(tmp_path / "corpus")]
    processes = [subprocess.Popen(command, env=environment()) for _ in range(4)]
    while not (tmp_path / ".corpus.partial").exists() and not (tmp_path / "corpus").exists():
        time.sleep(0.01)
    processes[0].kill()
    assert [process.wait(100) for process in processes][1:] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert (tmp_path / "corpus" / "manifest.jsonl").read_bytes() == (home / "manifest.jsonl").read_bytes()
    assert corpus.verify(tmp_path / "corpus") == [] and not (tmp_path / "corpus" / ".lock").exists()


def test_lost_and_changed_files_are_noticed(tmp_path):
    root = synthetic.write_corpus(tmp_path / "corpus", 0.005, progress=False)
    first, second = (root / record["audio_filepath"] for record in corpus.read_manifest(root)[:2])
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    second.unlink()
    assert corpus.verify(root) == [(str(first), "SHA-256 differs from the manifest's"), (str(second), "missing")]
    (tmp_path / ".corpus.partial").mkdir()  # what an older making left
    synthetic.write_corpus(root, 0.005, progress=False)
    assert [path for path, _ in corpus.verify(root)] in ([], [str(first)])
    assert second.is_file() and [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_corpus_with_other_settings_is_named_and_kept(home):
    with pytest.raises(UserError, match=r"hours=0\.01 \(asked for: 0\.02\)"):
        synthetic.write_corpus(home, 0.02, progress=False)
    assert corpus.verify(home) == []


def test_the_manifest_of_a_corpus_is_a_source(home):
    listed = open_source("jsonl", home / "manifest.jsonl").index
    assert sorted(listed.transcripts) == sorted(
        t for part in ("train", "dev") for t in open_source("folder", home / part).index.transcripts
    )


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


def test_a_full_disk_is_said_in_words_and_nothing_is_lost(home, tmp_path, monkeypatch):
    written, write_bytes = [], pathlib.Path.write_bytes

    def full(path, content):
        written.append(path)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"No space left on device.*it goes on from there"):
        synthetic.write_corpus(tmp_path / "corpus", 0.01, progress=False)
    monkeypatch.setattr(pathlib.Path, "write_bytes", write_bytes)
    assert len(corpus.read_manifest(tmp_path / ".corpus.partial")) == 3
    synthetic.write_corpus(tmp_path / "corpus", 0.01, progress=False)
    assert (tmp_path / "corpus" / "manifest.jsonl").read_bytes() == (home / "manifest.jsonl").read_bytes()
