"""Recordings in stores: the same rows, samples and reports as on a disk, whatever the store does meanwhile."""

import json
import pathlib

import numpy as np
import poor_store
import pytest
from formats import WRITERS, Item, content, write_librispeech
from poor_store import Poor

from w2v_jax import prepare
from w2v_jax.core import stores
from w2v_jax.core.cli import UserError
from w2v_jax.core.stores import StoreError
from w2v_jax.data import open_source
from w2v_jax.data.batch_plan import train_plan
from w2v_jax.data.index import ReadError
from w2v_jax.data.pipeline import batches

URL = "poor://lab/speech"
ITEMS = [Item(f"9-1-{i:04d}", content(0.4 + 0.1 * i, seed=i), f"text ä {i}", "9") for i in range(5)]
ITEMS += [Item("9-1-0005", content(0.5, rate=44100, channels=2, kind="WAV"), "of another rate", "9")]


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    monkeypatch.setattr(stores, "FIRST_WAIT", 0.0)
    monkeypatch.setenv("W2V_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stores, "_blocks", stores._Blocks())
    poor_store.reset()
    yield
    poor_store.reset()


def write_tsv(folder, items):
    for number, item in enumerate(items):
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        (folder / "audio" / f"{number}.flac").write_bytes(item.content)
    lines = ["audio", *(f"{number}.flac\t1" for number in range(len(items)))]
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    (folder / "train.wrd").write_text("".join(f"{item.text}\n" for item in items), "utf-8")
    return folder / "train.tsv"


def write_mls(folder, items):
    (folder / "audio" / "9" / "1").mkdir(parents=True)
    names = [item.id.replace("-", "_") for item in items]
    for item, name in zip(items, names, strict=True):
        (folder / "audio" / "9" / "1" / f"{name}.flac").write_bytes(item.content)
    (folder / "transcripts.txt").write_text("".join(f"{n}\t{i.text}\n" for i, n in zip(items, names, strict=True)))
    return folder


def write_common_voice(folder, items):
    (folder / "clips").mkdir(parents=True)
    lines = ["client_id\tpath\tsentence"]
    for item in items:
        (folder / "clips" / f"{item.id}.flac").write_bytes(item.content)
        lines.append(f"{item.speaker}\t{item.id}.flac\t{item.text}")
    (folder / "train.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


ALL = WRITERS | {"folder": write_librispeech, "tsv": write_tsv, "mls": write_mls, "common_voice": write_common_voice}


def in_store(root, folder):
    """Uploads a folder; the URL of what is at `root` in it."""
    poor_store.upload(folder, URL)
    return f"{URL}/{root.relative_to(folder)}".removesuffix("/.")


@pytest.mark.parametrize("name", ALL)
def test_rows_samples_and_skips_are_those_of_a_disk_though_the_store_fails_now_and_then(tmp_path, name):
    bad = Item("9-2-0000", ITEMS[4].content[:900], "cut", "9")
    root = ALL[name](tmp_path / "data", [*ITEMS[:3], bad, *ITEMS[3:]])
    (tmp_path / "data" / "notes.pdf").write_bytes(b"%PDF-")
    there = in_store(root, tmp_path / "data")
    Poor.every = 4
    local, remote = open_source(name, root), open_source(name, there)
    assert remote.index.fingerprint() == local.index.fingerprint() and len(local.index) == len(ITEMS)
    for column in ("transcripts", "speakers", "frames", "rates"):
        assert getattr(remote.index, column).tolist() == getattr(local.index, column).tolist()
    place = lambda text: text.replace(str(tmp_path / "data"), URL)
    assert [(place(skip.path), place(skip.reason)) for skip in local.index.skipped] == remote.index.skipped
    for row in range(len(ITEMS)):
        np.testing.assert_array_equal(remote.read(row, 0, 10**6), local.read(row, 0, 10**6))
        np.testing.assert_array_equal(remote.read(row, 2000, 3000), local.read(row, 2000, 3000))
    if name != "arrayrecord":
        assert not list((tmp_path / "cache").rglob("*.flac")) and not (tmp_path / "cache" / "shards").exists()


@pytest.mark.parametrize("name", ALL)
def test_the_next_start_opens_no_recording_until_one_has_changed(tmp_path, name):
    root = in_store(ALL[name](tmp_path / "data", ITEMS), tmp_path / "data")
    first = open_source(name, root)
    Poor.requests.clear()
    again = open_source(name, root)
    assert again.index.fingerprint() == first.index.fingerprint()
    assert poor_store.read_bytes() == 0 and len(Poor.requests) <= 16
    np.testing.assert_array_equal(again.read(2, 0, 10**6), first.read(2, 0, 10**6))


def test_objects_that_come_and_change_are_noticed(tmp_path, capsys):
    root = in_store(write_librispeech(tmp_path / "data", ITEMS[:3]), tmp_path / "data")
    source = open_source("folder", root)
    poor_store.upload(write_librispeech(tmp_path / "more", [Item("9-1-0009", content(0.6, seed=9), "", "9")]), URL)
    assert len(open_source("folder", root).index) == 4
    assert "has changed since; listing again" in capsys.readouterr().err
    fs = Poor()
    fs.pipe_file("/lab/speech/9/book/9-1-0001.flac", content(0.5, seed=77))
    with pytest.raises(ReadError, match=r"changed after listing: .* bytes of version .* then, .* now"):
        source.read(1, 0, 10**6)
    fs.rm_file("/lab/speech/9/book/9-1-0001.flac")
    with pytest.raises(ReadError, match="none now"):
        source.read(1, 0, 10**6)
    assert len(source.read(0, 0, 10**6)) == 6400


def test_headers_and_crops_of_long_recordings_take_a_small_part_of_them(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.flac").write_bytes(content(300.0))
    (folder / "b.wav").write_bytes(content(300.0, kind="WAV"))
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size > 2 * stores.WHOLE
    local, remote = open_source("folder", folder), open_source("folder", in_store(folder, folder))
    assert poor_store.read_bytes() < size / 20
    for row in range(2):
        np.testing.assert_array_equal(remote.read(row, 10**6, 16000), local.read(row, 10**6, 16000))
    assert poor_store.read_bytes() < size / 4


def test_a_small_recording_is_read_by_one_request_and_one_look_whether_it_has_changed(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.flac").write_bytes(content(20.0))
    source = open_source("folder", in_store(folder, folder))
    stores._blocks = stores._Blocks()
    Poor.requests.clear()
    source.read(0, 16000, 16000)
    assert [kind for kind, *_ in Poor.requests] == ["cat", "info"]


def test_a_manifest_on_a_disk_may_name_objects_and_one_in_a_store_files(tmp_path):
    (tmp_path / "x.flac").write_bytes(ITEMS[1].content)
    fs = Poor()
    fs.pipe_file("/lab/x.flac", ITEMS[0].content)
    text = "".join(json.dumps({"audio_filepath": path}) + "\n" for path in ("poor://lab/x.flac", f"{tmp_path}/x.flac"))
    fs.pipe_file("/lab/m.jsonl", text.encode())
    (tmp_path / "m.jsonl").write_text(text)
    sources = [open_source("jsonl", root) for root in (tmp_path / "m.jsonl", "poor://lab/m.jsonl")]
    assert [len(source.read(row, 0, 10**6)) for source in sources for row in (0, 1)] == [6400, 8000] * 2


def test_array_records_beyond_the_disk_that_they_may_take_are_refused(tmp_path, monkeypatch):
    root = in_store(WRITERS["arrayrecord"](tmp_path / "data", ITEMS), tmp_path / "data")
    monkeypatch.setenv("W2V_JAX_SHARDS", "0")
    with pytest.raises(UserError, match=r"a.array_record for example: their reader needs whole copies on this disk"):
        open_source("arrayrecord", root)


@pytest.mark.parametrize("loader", ["threads", "tfdata"])
def test_batches_are_those_of_a_disk_and_a_store_that_is_lost_ends_them(tmp_path, loader):
    folder = write_librispeech(tmp_path / "data", ITEMS)
    sources = [open_source("folder", root) for root in (folder, in_store(folder, folder))]
    Poor.every, Poor.seconds = 7, 0.001

    def read(source):
        plan = train_plan(source.index.num_samples, bucket_samples=[8000], unit_seconds=1.0, units=2, seed=1)
        return batches(source, plan, stop=6, loader=loader, workers=4)

    for (a, about), (b, there) in zip(*map(read, sources), strict=True):
        assert about.ids == there.ids and not there.failed
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    stores._blocks = stores._Blocks()
    Poor.every, Poor.error = 1, PermissionError("ExpiredToken")
    with pytest.raises(StoreError, match=rf"{URL}/9/book/.*flac: the store refuses .* A credential has expired"):
        list(read(sources[1]))


def test_a_manifest_that_prepare_writes_into_a_store_leads_to_its_recordings(tmp_path, capsys):
    folder = write_librispeech(tmp_path / "data", ITEMS)
    root, out = in_store(folder, folder), "poor://lab/lists/a.jsonl"
    assert prepare.main(["--root", root, "--out", out, "--skipped", "poor://lab/lists/skipped.jsonl"]) == 0
    lines = Poor().cat_file("/lab/lists/a.jsonl").decode().splitlines()
    assert json.loads(lines[0])["audio_filepath"] == f"{root}/9/book/9-1-0000.flac"
    source, local = open_source("jsonl", out), open_source("folder", folder)
    assert source.index.fingerprint() == local.index.fingerprint()
    np.testing.assert_array_equal(source.read(3, 0, 10**6), local.read(3, 0, 10**6))
    assert prepare.main(["--root", root, "--out", f"{root}/a.jsonl"]) == 0
    first = Poor().cat_file("/lab/speech/a.jsonl").decode().splitlines()[0]
    assert json.loads(first)["audio_filepath"] == "9/book/9-1-0000.flac"


def test_a_corpus_is_not_made_in_a_store(tmp_path):
    with pytest.raises(UserError, match="a corpus is made on a disk"):
        open_source("synthetic", URL, hours=0.01)
    assert not pathlib.Path("poor:").exists()
