"""Laws of the preparing command: its manifest is the same data, its report names every loss, its sheet shows faults."""

import contextlib
import json
import random
import shutil
import subprocess
import sys
import time

import fsspec
import numpy as np
import poor_store
import pytest
from commands import environment

from w2v_jax import prepare
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import load, run_json
from w2v_jax.core.stores import forget_listings
from w2v_jax.data import open_source
from w2v_jax.data.index import Skip
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.prepared import read_through
from w2v_jax.data.prepared.shard_files import write_shard

soundfile = pytest.importorskip("soundfile")


def write(path, seconds, rate=16000, level=0.1):
    wave = level * np.random.default_rng(0).uniform(-1, 1, int(seconds * rate))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)
    return path


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "audio"
    write(folder / "1" / "2" / "1-2-0001.flac", 1.0)
    (folder / "1" / "2" / "1-2.trans.txt").write_text("1-2-0001 JE SUIS LÀ\n", encoding="utf-8")
    write(folder / "~b.wav", 2.0, rate=44100)
    (folder / "broken.wav").write_bytes(b"RIFF")
    (folder / "notes.txt").write_text("not audio")
    return folder


def run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


def test_the_manifest_is_the_same_data_without_opening_a_file(corpus, tmp_path):
    assert run("--root", corpus, "--out", corpus / "all.jsonl") == 0
    was = open_source("folder", corpus).index
    shutil.move(corpus, tmp_path / "moved")  # with the manifest
    shutil.move(tmp_path / "moved" / "1", tmp_path / "away")
    source = open_source("jsonl", tmp_path / "moved" / "all.jsonl")
    assert source.index.fingerprint() == was.fingerprint()
    for column in ("ids", "offsets", "frames", "rates", "num_samples", "speakers", "transcripts"):
        np.testing.assert_array_equal(getattr(source.index, column), getattr(was, column))
    assert len(source.read(source.index.ids.tolist().index("~b"), 0, 10**6)) == 32000


def test_segments_of_files_keep_their_samples(corpus, tmp_path):
    path = str(corpus / "~b.wav")
    lines = [{"audio_filepath": path, "offset": k / 44100, "duration": 0.1001} for k in (0, 1, 12345, 80001)]
    (tmp_path / "parts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run("--source", "jsonl", "--root", tmp_path / "parts.jsonl", "--out", tmp_path / "again" / "parts.jsonl")
    was, now = (open_source("jsonl", p).index for p in (tmp_path / "parts.jsonl", tmp_path / "again" / "parts.jsonl"))
    assert now.offsets.tolist() == was.offsets.tolist() == [0, 1, 12345, 80001]
    assert now.frames.tolist() == was.frames.tolist()
    assert now.ids.tolist() == was.ids.tolist()


def test_everything_skipped_is_counted_and_written_with_its_reason(corpus, tmp_path, capsys):
    assert run("--root", corpus, "--min-seconds", 1.5, "--skipped", tmp_path / "skipped.jsonl") == 0
    said = capsys.readouterr().out
    assert "1 recordings, 0.00 h" in said and "1 x shorter than data.min_seconds" in said
    skips = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert {skip["path"].rpartition("/")[2] for skip in skips} == {"1-2-0001.flac", "broken.wav", "notes.txt"}
    assert all(skip["reason"] for skip in skips)


def test_too_large_a_share_of_lost_recordings_is_an_error(corpus):
    assert run("--root", corpus, "--max-skipped-share", 0.34) == 0
    with pytest.raises(UserError, match=r"1 of 3 recordings \(33.3%\) cannot be used"):
        run("--root", corpus, "--max-skipped-share", 0.33)
    (corpus / "broken.wav").unlink()
    assert run("--root", corpus, "--max-skipped-share", 0) == 0, "a text file is no lost recording"
    shutil.move(corpus / "~b.wav", corpus / "b.txt")
    with pytest.raises(UserError, match="1 of 2 recordings"):
        run("--root", corpus, "--max-skipped-share", 0)


def test_folders_listed_twice_are_no_lost_recordings():
    assert not Skip("a", "directory listed already").is_recording
    assert Skip("a", "unreadable directory: Permission denied").is_recording


def test_self_made_corpora_are_made_and_listed(tmp_path, capsys):
    assert run("--source", "synthetic", "--root", tmp_path / "syn", "--hours", 0.004) == 0
    assert "recordings, 0.0" in capsys.readouterr().out
    assert (tmp_path / "syn" / "manifest.jsonl").is_file()


def test_a_spoken_corpus_takes_voices_and_a_text(tmp_path, capsys):
    pytest.importorskip("espeakng_loader", reason='text-to-speech was NOT tested: pip install "w2v_jax[demo]"')
    (tmp_path / "lines.txt").write_text("Guten Morgen, liebe Leute!\n...\n", encoding="utf-8")
    options = ["--source", "speak", "--root", tmp_path / "de", "--language", "de", "--voices", "f1", "m1"]
    options += ["--text", tmp_path / "lines.txt"]
    assert run(*options, "--hours", 0.003, "--out", tmp_path / "de.jsonl") == 0
    assert set(open_source("jsonl", tmp_path / "de.jsonl").index.transcripts) == {"GUTEN MORGEN LIEBE LEUTE"}
    assert run("--source", "speak", "--root", tmp_path / "de", "--language", "de") == 0, "as it is"
    with pytest.raises(UserError, match="holds a corpus with other settings: seed=0"):
        run(*options, "--seed", 1)
    file = next((tmp_path / "de" / "train").rglob("*.flac"))
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(UserError, match="1 files of .* were damaged or lost"):
        run(*options)


def test_decoding_finds_damage_in_the_middle(tmp_path, capsys):
    path = write(tmp_path / "a" / "long.flac", 8.0)
    write(tmp_path / "a" / "good.flac", 1.0)
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(3000) + content[half + 3000 :])
    assert run("--root", tmp_path / "a", "--no-decode") == 0
    assert "2 recordings" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 of 2 recordings"):
        run("--root", tmp_path / "a", "--out", tmp_path / "m.jsonl", "--max-skipped-share", 0)
    assert open_source("jsonl", tmp_path / "m.jsonl").index.ids.tolist() == ["good"]
    (tmp_path / "a" / "good.flac").unlink()
    with pytest.raises(UserError, match=r"(?s)none of the 1 recordings can be decoded: repair.*1 x .*long\.flac"):
        run("--root", tmp_path / "a", "--skipped", tmp_path / "skipped.jsonl")
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["path"].endswith("long.flac")


def test_where_nothing_is_left_the_reasons_are_shown_and_written(corpus, tmp_path, capsys):
    """The advice fits them: two are too short, one is damaged."""
    with pytest.raises(UserError, match=r"(?s)--min-seconds 2\.00\).*2 x shorter than.*1 x .*broken\.wav"):
        run("--root", corpus, "--min-seconds", 2.5, "--skipped", tmp_path / "new" / "skipped.jsonl")
    assert "skipped files and reasons" in capsys.readouterr().out
    skips = [json.loads(line) for line in (tmp_path / "new" / "skipped.jsonl").read_text().splitlines()]
    assert {skip["path"].rpartition("/")[2] for skip in skips} >= {"1-2-0001.flac", "~b.wav", "broken.wav"}


def test_content_that_is_no_speech_is_counted_and_named(tmp_path, capsys):
    wave = np.linspace(-0.5, 0.5, 16000)
    sheets = {"good": wave, "silent": 0 * wave + 0.1, "loud": 3e4 * wave, "cancels": np.stack([wave, -wave], axis=1)}
    for name, samples in sheets.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, subtype="FLOAT")
    out, skipped = tmp_path / "m.jsonl", tmp_path / "skipped.jsonl"
    assert run("--root", tmp_path, "--out", out, "--skipped", skipped) == 0
    assert open_source("jsonl", out).index.ids.tolist() == ["good", "silent"]
    said = capsys.readouterr().out
    assert f"1 x silent throughout, and used all the same: {tmp_path / 'silent.wav'}" in said
    reasons = {json.loads(line)["path"]: json.loads(line)["reason"] for line in skipped.read_text().splitlines()}
    assert reasons[str(tmp_path / "loud.wav")].startswith("float samples on the scale of integers")
    assert reasons[str(tmp_path / "cancels.wav")].startswith("channels cancel")


def test_what_cannot_be_written_is_said_in_words(corpus):
    for option, name in (("--out", "m.jsonl"), ("--skipped", "s"), ("--plot", "p.png")):
        with pytest.raises(UserError, match="cannot be written"):
            run("--root", corpus, option, corpus / "notes.txt" / name)


@pytest.mark.parametrize(
    "options",
    [
        ["--out", "manifest.txt"],
        ["--plot", "sheet.jpg"],
        ["--rows", "0"],
        ["--max-skipped-share", "2"],
        ["--max-skipped-share", "few"],
        ["--source", "tfds", "--out", "m.jsonl"],
        ["--source", "codes", "--out", "m.jsonl"],
        ["--source", "codes", "--plot", "m.png"],
        ["--shards", "a", "--out", "m.jsonl"],
        ["--shards", "a", "--source", "tfds"],
        ["--shards", "a", "--plot", "m.png"],
        ["--shards", "a", "--rate", "8000"],
        ["--report", "m.txt"],
        ["--rate", "16000"],
        ["--beam", "x"],
        ["--shards", "gs://lab/a", "--beam", "x"],
        ["--step", "1"],
        ["--config", "a.py", "--run", "b", "--step", "1"],
    ],
)
def test_wrong_options_are_usage_errors(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--root", "x", *options)
    assert stopped.value.code == 2
    assert options[-2] in capsys.readouterr().err


def test_a_plot_is_written_where_it_is_asked_for(corpus, tmp_path):
    pytest.importorskip("librosa")
    assert run("--root", corpus, "--plot", tmp_path / "new" / "sheet.png", "--rows", 1) == 0
    assert (tmp_path / "new" / "sheet.png").stat().st_size > 5000


def test_shards_hold_what_is_usable_and_tell_what_is_not(corpus, tmp_path, capsys):
    """One of three recordings is broken: more than the share that is allowed where nothing is said."""
    out = tmp_path / "corpus"
    options = ("--root", corpus, "--shards", out, "--workers", 1)
    with pytest.raises(UserError, match=r"1 of 3 recordings \(33.3%\) cannot be used, more than --max-bad=0.01"):
        run(*options)
    assert run(*options, "--max-bad", 0.4) == 0
    said = capsys.readouterr().out
    assert "is there already" in said and "broken.wav" in said and "--config.data.name=arrayrecord" in said
    names = {path.name for path in out.iterdir()}
    assert names >= {"dataset_info.json", "features.json", "report.json", "report.png", "shards.json", "skipped.jsonl"}
    was, now = open_source("folder", corpus), open_source("arrayrecord", out)
    assert now.index.fingerprint() == was.index.fingerprint() and not now.index.skipped
    np.testing.assert_array_equal(now.read(1, 50, 4000), was.read(1, 50, 4000))
    assert run("--verify", "--root", out) == 0
    (shard,) = out.glob("*.array_record-*")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run("--verify", "--root", out) == 1
    assert "another size" in capsys.readouterr().out


@pytest.mark.slow
def test_shards_go_to_a_store_one_by_one_and_count_when_all_are_there(corpus, tmp_path, monkeypatch):
    """None stays on this machine. A command that is stopped goes on; one that is finished is left alone."""
    monkeypatch.setenv("W2V_JAX_CACHE", str(tmp_path / "cache"))
    poor_store.reset()
    fs, url, made = fsspec.filesystem("memory"), "poor://lab/mine", []
    options = ("--root", corpus, "--max-bad", 0.4, "--shard-mb", 0.05, "--shards")

    def write_two(folder, number):
        if len(made) == 1:
            made.append(None)
            raise KeyboardInterrupt
        assert not [*(tmp_path / "cache").rglob("shard-*.array_record")]
        made.append(number)
        return write_shard(folder, number)

    monkeypatch.setattr(prepare, "in_processes", lambda _: lambda folder, all: ((n, write_two(folder, n)) for n in all))
    for is_last in (False, True):
        with contextlib.nullcontext() if is_last else pytest.raises(KeyboardInterrupt):
            assert run(*options, url) == 0
        assert fs.exists("/lab/mine/shards.json") == is_last
        assert fs.exists("/lab/mine/shard-00000.array_record.partial") != is_last
    assert made == [0, None, 1], "what was finished is not made again"
    assert not [*(tmp_path / "cache").rglob("*array_record*")]
    assert run(*options, tmp_path / "mine") == 0
    there = {path.removeprefix("/lab/mine/"): fs.cat_file(path) for path in fs.find("/lab/mine")}
    assert there == {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    assert run("--verify", "--root", url) == 0
    shard = next(path for path in fs.find("/lab/mine") if "array_record" in path)
    fs.pipe_file(shard, b"\0" + fs.cat_file(shard)[1:])
    forget_listings()  # of this process, which has just looked
    assert run("--verify", "--root", url) == 1
    with pytest.raises(UserError, match="poor://lab/mine: a finished corpus is there already"):
        run(*options, url)
    poor_store.reset()


def test_an_index_of_pieces_has_every_sample_once(corpus, tmp_path):
    report = tmp_path / "report.json"
    options = ["--root", corpus, "--out", tmp_path / "m.jsonl", "--cut-seconds", 0.6, "--report", report]
    assert run(*options, "--language", "fr") == 0
    was, now = open_source("folder", corpus).index, open_source("jsonl", tmp_path / "m.jsonl").index
    assert now.durations.max() <= 0.6 and sum(now.frames) == sum(was.frames)
    told = json.loads(report.read_text())
    assert told["recordings"] == 2 and told["records"] == len(now) and told["lost"] == 1
    assert list(told["hours_of"]["languages"]) == ["fr"] and report.with_suffix(".png").is_file()


def test_a_manifest_that_was_stopped_on_its_way_ends_with_the_same_bytes(tmp_path, monkeypatch, capsys):
    for number in range(9):
        write(tmp_path / "a" / f"{number}.wav", 2.0 + number / 10, level=0.1 + number / 100)
    options = ["--root", tmp_path / "a", "--cut-seconds", 0.9, "--workers", 1, "--out"]
    assert run(*options, tmp_path / "whole.jsonl") == 0
    own = AudioFiles.read

    def stopped(self, row, start, length):
        if row == 6:
            raise KeyboardInterrupt
        return own(self, row, start, length)

    monkeypatch.setattr(read_through, "NOTED_HOURS", 4 / 3600)
    monkeypatch.setattr(AudioFiles, "read", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(*options, tmp_path / "mine.jsonl")
    monkeypatch.setattr(AudioFiles, "read", own)
    capsys.readouterr()
    assert run(*options, tmp_path / "mine.jsonl") == 0
    assert "going on where an earlier start was stopped" in capsys.readouterr().err
    assert (tmp_path / "mine.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert run(*options, tmp_path / "mine.jsonl") == 0
    assert "going on" not in capsys.readouterr().err


def test_a_step_shows_what_a_model_is_given(tiny_corpus, tmp_path, capsys):
    pytest.importorskip("librosa")
    config = [
        "--config",
        "configs/w2v2_base.py:tiny",
        f"--config.data.root={tiny_corpus}",
        "--config.data.name=synthetic",
    ]
    assert run("--step", 5, *config, "--plot", tmp_path / "step.png", "--rows", 2) == 0
    said = capsys.readouterr().out
    assert "step" in said and "row 0" in said and (tmp_path / "step.png").stat().st_size > 5000
    (tmp_path / "config.json").write_text(run_json(load(config[1], [arg[9:].split("=") for arg in config[2:]])))
    assert run("--step", 5, "--run", tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == said.splitlines()[:-1], "the same step without the plot"


@pytest.mark.slow
def test_a_command_that_is_killed_at_random_moments_ends_with_the_same_bytes(tmp_path):
    """Processes and all. Those of a killed command end, too."""
    for number in range(40):
        write(tmp_path / "a" / f"{number:02d}.wav", 30.0 + number / 10, rate=22050)
    options = ["--root", tmp_path / "a", "--rate", 16000, "--cut-seconds", 8, "--shard-mb", 2, "--workers", 2]
    command = [sys.executable, "-m", "w2v_jax.prepare", *map(str, options), "--shards"]
    folder, partial, draw = tmp_path / "corpus", tmp_path / ".corpus.partial", random.Random(3)
    killed = 0
    for wanted in (0, 2, 5, 9):
        child = subprocess.Popen([*command, str(folder)], env=environment(), stdout=subprocess.DEVNULL)
        while child.poll() is None and len([*partial.glob("shard-*.json")]) < wanted:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1))
        killed += child.poll() is None
        child.kill()
        child.wait()
    assert killed >= 3
    for name in ("corpus", "whole"):
        subprocess.run([*command, str(tmp_path / name)], env=environment(), check=True, stdout=subprocess.DEVNULL)
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("corpus", "whole")]
    assert contents[0] == contents[1] and len(contents[0]) > 20
    assert not partial.exists()


def test_an_unknown_source_is_answered_with_the_known(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'folder'"):
        run("--source", "foldr", "--root", tmp_path)
