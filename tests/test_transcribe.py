"""`transcribe` from end to end on a tiny recogniser."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from commands import read_lines

from w2v_jax import transcribe
from w2v_jax.core.cli import UserError
from w2v_jax.inference import encode


def test_own_files_are_transcribed_and_bad_ones_named(ctc_run, heard, tmp_path, capsys):
    flac = sorted(heard.rglob("*.flac"))
    folder = tmp_path / "talks"
    folder.mkdir()
    shutil.copy(flac[0], folder / "one.flac")
    (folder / "broken.wav").write_bytes(b"RIFF nothing")
    out = tmp_path / "text.jsonl"
    assert transcribe.main(["--run", str(ctc_run), "--out", str(out), str(folder), str(flac[1])]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 and "broken.wav" in said.err and "2 recordings" in said.err
    lines = read_lines(out)
    assert {line["path"] for line in lines} == {str(folder / "one.flac"), str(flac[1])}
    assert f"{lines[0]['path']}\t{lines[0]['text']}" in said.out
    with pytest.raises(UserError, match="does not exist"):
        transcribe.main(["--run", str(ctc_run), str(tmp_path / "none.wav")])


def test_transcribe_lists_folders_as_training_does(tmp_path):
    """It follows links, takes no folder and no resource file for audio, and names what it cannot enter."""
    import soundfile

    for place in ("root/a.wav", "elsewhere/b.wav", "root/x.wav/c.wav"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / place, np.linspace(-0.5, 0.5, 16000), 16000)
    root = tmp_path / "root"
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "._a.wav").write_bytes(b"\0\5\x16\7")
    (root / "notes.txt").write_text("notes")
    (root / "x.trans.txt").write_bytes("b \u00c8\n".encode("latin-1"))
    (root / "self").symlink_to(root / "self")
    source, failed = transcribe.open_files([root, root / "a.wav"])
    names = [str(path).removeprefix(f"{root}/") for path in source.index.paths]
    assert names == ["a.wav", "link/b.wav", "x.wav/c.wav", "a.wav"]
    assert [(skip.path, skip.kind) for skip in failed] == [(str(root / "self"), "unreadable directory entry")]


def test_long_recording_is_cut_into_pieces_of_bounded_length(ctc_run, tmp_path, capsys, monkeypatch):
    import soundfile

    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "long.wav", rng.normal(size=16_000 * 100).astype(np.float32) * 0.1, 16_000)
    lengths, pieces = [], encode.Pieces
    spy = lambda *args, **options: lengths.append(made := pieces(*args, **options)) or made
    monkeypatch.setattr(encode, "Pieces", spy)
    flags = ["--run", str(ctc_run), "--max-seconds", "8", "--margin-seconds", "1", str(tmp_path / "long.wav")]
    assert transcribe.main(flags) == 0
    assert lengths[0].index.num_samples.max() <= 8.1 * 16_000 and len(lengths[0].rows) > 15
