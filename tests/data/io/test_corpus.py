"""Laws of writing a corpus: it is whole or not there, a kill loses nothing, and nothing else is overwritten."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time
import types

import pytest
from commands import environment

from w2v_jax.core.cli import UserError
from w2v_jax.data.io import corpus
from w2v_jax.data.sources import folder, synthetic


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
    script = "import sys; from w2v_jax.data.sources.synthetic import write_corpus\n"
    script += "write_corpus(sys.argv[1], 0.01, progress=False)"
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
