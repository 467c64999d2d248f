"""Laws of kept listings: they are what a fresh listing is, row for row, and never stand for data that has changed."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import environment
from formats import WRITERS, Item, content

from w2v_jax.core.cli import UserError
from w2v_jax.core.files import write_whole
from w2v_jax.data import open_source
from w2v_jax.data.batch_plan import eval_plan
from w2v_jax.data.index import COLUMNS, ReadError
from w2v_jax.data.io import listing
from w2v_jax.data.kept import listings
from w2v_jax.data.kept.listings import FOLDER, KeptListing, states_of
from w2v_jax.data.pipeline import batches
from w2v_jax.prepare import main

ITEMS = [Item(f"9-1-{i:04d}", content(0.3 + 0.05 * i, seed=i), f"text ä {i}", "9") for i in range(7)]
BAD = [Item("9-2-0000", b"this is no audio"), Item("9-2-0001", ITEMS[0].content[:600])]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Listings of this size are kept, block after block."""
    monkeypatch.setattr(listings, "KEPT_FROM", 1)
    monkeypatch.setattr(listings, "SAMPLED", 0)
    monkeypatch.setattr(listing, "CANDIDATES_AT_ONCE", 2)
    monkeypatch.setenv("W2V_JAX_CACHE", str(tmp_path / "cache"))


def aged(root):
    """Makes all below `root` older that has just been made, as what has been there for a while."""
    for path in sorted([*pathlib.Path(root).rglob("*"), pathlib.Path(root)], reverse=True):
        if FOLDER not in path.parts and path.exists() and time.time() - path.stat().st_mtime < 10:
            os.utime(path, (time.time() - 60, time.time() - 60))
    return root


def contents(index):
    return {
        **{name: getattr(index, name).tolist() for name in COLUMNS},
        "num_samples": index.num_samples.tolist(),
        "hashes": index.id_hashes().tolist(),
        "told": (index.skipped, index.notes),
    }


@pytest.fixture
def no_headers(monkeypatch):
    """Call it, and no file of audio can be looked at any more."""

    def forbid(*arguments):
        raise AssertionError(f"looked at {arguments}")

    return lambda: (monkeypatch.setattr(listing, "probe", forbid), monkeypatch.setattr(listing, "_rows", forbid))


@pytest.mark.parametrize("name", WRITERS)
def test_a_kept_index_is_a_fresh_listing_and_opens_no_recording(tmp_path, name, no_headers, capsys):
    root = WRITERS[name](tmp_path / "data", [*ITEMS, *BAD])
    aged(tmp_path / "data")
    first = open_source(name, root)
    expected, text = contents(first.index), capsys.readouterr().err
    assert "this listing is kept in" in text and len(expected["ids"]) == 7 and len(expected["told"][0]) == 2
    aged(tmp_path / "data")
    first_again = open_source(name, root)  # where the folder of the index has come into that of the data
    no_headers()
    again = open_source(name, root)
    assert "7 recordings as they were listed in" in capsys.readouterr().err
    assert contents(again.index) == contents(first_again.index) == expected
    assert again.index.fingerprint() == first.index.fingerprint()
    for row in (6, 0):
        np.testing.assert_array_equal(again.read(row, 0, 10**6), first.read(row, 0, 10**6))


def kept_folder(tmp_path, items=ITEMS):
    """A folder of recordings with a kept index."""
    root = WRITERS["jsonl"](tmp_path / "data", items).parent
    for _ in range(2):
        aged(root)
        open_source("folder", root / "audio")
    return root / "audio"


def index_file(root):
    (path,) = (root / FOLDER).glob("*.index")
    return path


@pytest.mark.parametrize("killed_at", range(1, 8))
def test_a_listing_that_was_killed_goes_on_and_is_the_same(tmp_path, monkeypatch, killed_at):
    root = aged(WRITERS["jsonl"](tmp_path / "data", ITEMS).parent) / "audio"
    expected = contents(listing.list_files(candidates(root), where="", min_seconds=0, workers=1, skipped=[]).index)
    looked, probe = [], listing.probe

    def killed(path):
        looked.append(path)
        if len(looked) == killed_at:
            raise KeyboardInterrupt
        return probe(path)

    monkeypatch.setattr(listing, "probe", killed)
    with pytest.raises(KeyboardInterrupt):
        open_source("folder", root, workers=1)
    kept, looked[:] = set(looked[: (killed_at - 1) // 2 * 2]), ["."] * 10
    source = open_source("folder", root, workers=1)
    assert contents(source.index) == expected
    assert set(looked[10:]) == {str(path) for path in root.glob("*.flac")} - kept


def test_a_listing_that_was_killed_without_a_word_goes_on(tmp_path):
    root = aged(WRITERS["jsonl"](tmp_path / "data", ITEMS).parent) / "audio"
    script = (
        "import os, signal, sys\nfrom w2v_jax.data import open_source\nfrom w2v_jax.data.io import listing\n"
        "listing.CANDIDATES_AT_ONCE, probe = 2, listing.probe\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "listing.probe = lambda path: kill() if path.endswith('4.flac') else probe(path)\n"
        "open_source('folder', sys.argv[1], workers=1)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(root)], env=environment())
    assert killed.returncode == -signal.SIGKILL
    looked, probe = [], listing.probe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "probe", lambda path: looked.append(path) or probe(path))
        source = open_source("folder", root)
    assert sorted(looked) == [str(root / f"{number}.flac") for number in (4, 5, 6)]
    fresh = listing.list_files(candidates(root), where="", min_seconds=0, workers=1, skipped=[]).index
    assert contents(source.index) == contents(fresh)


def candidates(root):
    return [listing.Candidate(path.stem, str(path)) for path in sorted(root.glob("*.flac"))]


def test_a_folder_that_has_changed_is_listed_again_and_opens_new_files_alone(tmp_path, monkeypatch, capsys):
    root = kept_folder(tmp_path)
    looked, probe = [], listing.probe
    monkeypatch.setattr(listing, "probe", lambda path: looked.append(path) or probe(path))
    assert len(open_source("folder", root).index) == 7 and not looked
    (root / "2.flac").unlink()
    (root / "new.flac").write_bytes(ITEMS[0].content)
    capsys.readouterr()
    index = open_source("folder", root).index
    assert index.ids.tolist() == ["0", "1", "3", "4", "5", "6", "new"] and looked[:1] == [str(root / "new.flac")]
    assert f"{root} has changed since; listing again" in capsys.readouterr().err


def test_a_folder_whose_time_was_set_back_after_files_came_is_listed_again(tmp_path):
    root = kept_folder(tmp_path)
    before = root.stat().st_mtime_ns
    (root / "new.flac").write_bytes(ITEMS[0].content)
    os.utime(root, ns=(before, before))  # as tar does
    assert len(open_source("folder", root).index) == 8


def test_what_was_skipped_is_looked_at_again_once_it_has_changed(tmp_path):
    root = kept_folder(tmp_path, [*ITEMS, *BAD])
    assert len(open_source("folder", root).index) == 7
    (root / "7.flac").write_bytes(ITEMS[0].content)
    assert len(open_source("folder", root).index) == 8


def test_a_link_to_a_folder_that_was_missing_is_followed_once_it_is_there(tmp_path):
    root = WRITERS["jsonl"](tmp_path / "data", ITEMS).parent / "audio"
    (root / "more").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        aged(root)
        open_source("folder", root)
    shutil.copytree(root, tmp_path / "elsewhere", ignore=lambda *_: ["more", FOLDER])
    assert len(open_source("folder", root).index) == 14


def test_what_was_skipped_for_a_reason_that_may_pass_is_read_at_the_next_start(tmp_path, monkeypatch):
    root = kept_folder(tmp_path)
    (root / "a.trans.txt").write_text("0 text\n")
    with monkeypatch.context() as patch:
        denied = UserError("Permission denied")
        patch.setattr(listing, "numbered_lines", lambda path: (_ for _ in ()).throw(denied))
        aged(root)
        assert open_source("folder", root).index.transcripts[0] == ""
    aged(root)
    assert open_source("folder", root).index.transcripts[0] == "text"


def test_a_recording_in_an_archive_that_was_cut_is_found_once_it_is_whole(tmp_path):
    WRITERS["kaldi"](tmp_path, ITEMS)
    wave = content(0.3, seed=1, kind="WAV")
    (tmp_path / "wav.scp").write_text((tmp_path / "wav.scp").read_text() + "more x.ark:5\n")
    (tmp_path / "x.ark").write_bytes(b"more ")
    aged(tmp_path)
    assert len(open_source("kaldi", tmp_path).index) == 7
    (tmp_path / "x.ark").write_bytes(b"more " + wave)
    assert len(open_source("kaldi", tmp_path).index) == 8


def test_a_recording_of_a_manifest_that_was_missing_is_found_once_it_is_there(tmp_path):
    manifest = WRITERS["jsonl"](tmp_path / "data", ITEMS)
    os.rename(tmp_path / "data" / "audio", tmp_path / "elsewhere")
    aged(tmp_path / "data")
    with pytest.raises(UserError, match="no readable audio"):
        open_source("jsonl", manifest)
    os.rename(tmp_path / "elsewhere", tmp_path / "data" / "audio")
    assert len(open_source("jsonl", manifest).index) == 7


def test_a_manifest_that_has_changed_is_read_again(tmp_path, capsys):
    manifest = WRITERS["jsonl"](tmp_path / "data", ITEMS)
    aged(tmp_path / "data")
    open_source("jsonl", manifest)
    text = manifest.read_text()
    manifest.write_text(text.replace("9-1-0000", "9-9-0000"))
    assert open_source("jsonl", manifest).index.ids[0] == "9-9-0000"
    assert f"{manifest} has changed since; listing again" in capsys.readouterr().err
    manifest.write_text(text)
    open_source("jsonl", manifest)
    capsys.readouterr()
    open_source("jsonl", manifest)
    assert "was changing, or could not be read, when it was listed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), "file does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "truncated|corrupt"),
        (lambda path: path.write_bytes(content(0.3, seed=9)), "changed after listing: .* bytes of 20.* then, .* now"),
        (lambda path: os.utime(path, (1, 1)), "changed after listing"),
    ],
)
def test_a_file_that_changes_after_its_listing_is_named_when_it_is_read(tmp_path, change, reason):
    root = kept_folder(tmp_path)
    source = open_source("folder", root)
    change(root / "0.flac")
    with pytest.raises(ReadError, match=reason):
        source.read(0, 0, 10**6)
    assert len(source.read(1, 0, 10**6)) == source.index.num_samples[1]


def test_a_run_goes_on_without_the_files_that_have_changed_and_counts_them(tmp_path):
    root = kept_folder(tmp_path)
    source = open_source("folder", root)
    (root / "3.flac").write_bytes(content(0.45, seed=9))
    plan = eval_plan(source.index.num_samples, bucket_samples=[16_000], units=1, unit_seconds=7.0, max_hours=0)
    ((batch, info),) = batches(source, plan, loader="threads")
    assert [(failed.id, failed.reason.split(":")[0]) for failed in info.failed] == [("3", "changed after listing")]
    assert batch["weight"].sum() == 6 and not batch["wave"][3].any()


def test_a_kept_index_whose_file_has_changed_is_made_anew_by_the_next_start(tmp_path):
    root = kept_folder(tmp_path)
    (root / "0.flac").write_bytes(content(1.0, seed=9))
    source = open_source("folder", root)
    assert source.index.num_samples[0] == 4800, "the names in the folder are the same"
    with pytest.raises(ReadError, match="changed after listing"):
        source.read(0, 0, 10**6)
    again = open_source("folder", root)
    assert again.index.num_samples[0] == 16000 and len(again.read(0, 0, 10**6)) == 16000


def test_an_index_that_cannot_be_written_over_is_stale_once_a_file_has_changed(tmp_path, monkeypatch, capsys):
    root = kept_folder(tmp_path)
    path = index_file(root)
    (root / "0.flac").write_bytes(content(1.0, seed=9))

    def refuse(function):
        def refused(file, *arguments, **options):
            if str(file).startswith(str(path.parent)):
                raise PermissionError(13, "Permission denied")
            return function(file, *arguments, **options)

        return refused

    monkeypatch.setattr(listings, "append_lines", refuse(listings.append_lines))
    monkeypatch.setattr(listings, "locked_file", refuse(listings.locked_file))
    with pytest.raises(ReadError, match="changed after listing"):
        open_source("folder", root).read(0, 0, 10**6)
    for _ in range(2):
        capsys.readouterr()
        assert open_source("folder", root).index.num_samples[0] == 16000
        assert f"{path}: a recording was read that has changed since; listing again" in capsys.readouterr().err
    assert path.is_file()


def test_an_index_that_no_longer_holds_stays_until_the_next_listing(tmp_path):
    root = kept_folder(tmp_path)
    source, path = open_source("folder", root), index_file(root)
    (root / "0.flac").write_bytes(content(1.0, seed=9))
    for _ in range(2):
        with pytest.raises(ReadError, match="changed after listing"):
            source.read(0, 0, 10**6)
    assert path.is_file() and len(path.with_suffix(".stale").read_text().splitlines()) == 1
    open_source("folder", root)
    assert path.is_file() and not path.with_suffix(".stale").exists()


def test_a_listing_that_has_become_small_removes_the_index(tmp_path, monkeypatch, capsys):
    root = kept_folder(tmp_path)
    monkeypatch.setattr(listings, "KEPT_FROM", 7)
    (root / "0.flac").unlink()
    for _ in range(2):
        capsys.readouterr()
        assert len(open_source("folder", root).index) == 6
    assert not list((root / FOLDER).glob("*.index")) and "listing again" not in capsys.readouterr().err


@pytest.mark.parametrize("change", [pathlib.Path.unlink, lambda path: os.truncate(path, 900)])
def test_a_file_that_has_changed_and_cannot_be_read_is_listed_anew_by_the_next_start(tmp_path, change):
    manifest = WRITERS["jsonl"](tmp_path / "data", ITEMS)
    aged(tmp_path / "data")
    assert len(open_source("jsonl", manifest).index) == 7
    change(tmp_path / "data" / "audio" / "0.flac")
    with pytest.raises(ReadError, match=r"^changed after listing: .* now \(.*\); the next start lists it anew"):
        open_source("jsonl", manifest).read(0, 0, 10**6)
    assert len(open_source("jsonl", manifest).index) == 6


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_damaged_index_is_named_and_made_anew(tmp_path, capsys, is_cut):
    root = kept_folder(tmp_path)
    expected, path = contents(open_source("folder", root).index), index_file(root)
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data[:-30] if is_cut else data)
    capsys.readouterr()
    assert contents(open_source("folder", root).index) == expected
    first, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{path}: damaged: ") and first.endswith("listing again")
    open_source("folder", root)
    assert "as they were listed in" in capsys.readouterr().err


def test_data_that_are_moved_with_their_index_need_no_listing(tmp_path, no_headers, monkeypatch):
    root = kept_folder(tmp_path, [*ITEMS, *BAD])
    os.rename(root.parent, tmp_path / "moved")
    no_headers()
    monkeypatch.chdir(tmp_path / "moved")
    source = open_source("folder", "audio")
    assert source.index.paths[0] == "audio/0.flac" and source.index.skipped[0].path == "audio/7.flac"
    assert len(source.read(0, 0, 10**6)) == 4800


def test_data_in_several_folders_that_are_copied_with_their_index_are_listed_anew(tmp_path, capsys):
    for name in ("one", "two"):
        WRITERS["jsonl"](tmp_path / "data" / name, ITEMS[:2])
    roots = [tmp_path / "data" / name / "audio" for name in ("one", "two")]
    for _ in range(2):
        aged(tmp_path / "data")
        open_source("folder", roots)
    assert open_source("folder", roots).index.paths[2] == str(roots[1] / "0.flac")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    copies = [tmp_path / "copy" / name / "audio" for name in ("one", "two")]
    capsys.readouterr()
    assert open_source("folder", copies).index.paths[2] == str(copies[1] / "0.flac")
    assert f"it is that of {roots[0]} and of data elsewhere; listing again" in capsys.readouterr().err


def test_a_root_may_end_in_a_slash(tmp_path, no_headers, capsys):
    root = WRITERS["webdataset"](tmp_path / "data", ITEMS)
    folder = root if root.is_dir() else root.parent
    for _ in range(2):
        aged(tmp_path / "data")
        first = open_source("webdataset", f"{folder}/")
    no_headers()
    for spelling in (folder, f"{folder}/"):
        assert contents(open_source("webdataset", spelling).index) == contents(first.index)
    assert len(list(folder.glob(f"{FOLDER}/*.index"))) == 1
    assert "7 recordings as they were listed" in capsys.readouterr().err


def test_lengths_move_with_the_data(tmp_path, monkeypatch):
    root = kept_folder(tmp_path)
    index_file(root).unlink()
    os.rename(root, tmp_path / "moved")
    monkeypatch.setattr(listing, "probe", lambda path: pytest.fail(f"looked at {path}"))
    assert len(open_source("folder", tmp_path / "moved").index) == 7


def test_the_index_of_a_split_lies_in_the_folder_of_its_files(tmp_path):
    root = WRITERS["parquet"](tmp_path / "data", ITEMS)
    folder = root if root.is_dir() else root.parent
    (parts,) = [path for path in folder.glob("*.parquet")]
    os.rename(parts, folder / "train-00000-of-00001.parquet")
    aged(tmp_path / "data")
    assert len(open_source("parquet", f"{folder}@train").index) == 7
    assert len(list(folder.glob(f"{FOLDER}/*.index"))) == 1 and not (folder.parent / FOLDER).exists()


def test_a_manifest_may_be_named_from_any_directory(tmp_path, monkeypatch, no_headers):
    manifest = aged(WRITERS["jsonl"](tmp_path / "data", ITEMS).parent) / "manifest.json"
    monkeypatch.chdir(manifest.parent)
    assert open_source("jsonl", manifest.name).index.paths[0] == "./audio/0.flac"
    no_headers()
    for place, name in ((tmp_path, "data/manifest.json"), (tmp_path / "data" / "audio", "../manifest.json")):
        monkeypatch.chdir(place)
        assert open_source("jsonl", name).index.paths[0] == name.replace("manifest.json", "audio/0.flac")
    assert open_source("jsonl", manifest).index.paths[0] == str(tmp_path / "data" / "audio" / "0.flac")


def test_data_that_are_copied_are_listed_anew(tmp_path, capsys, monkeypatch):
    root = kept_folder(tmp_path)
    monkeypatch.setattr(listings, "SAMPLED", 3)
    open_source("folder", root)
    assert "as they were listed in" in capsys.readouterr().err
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copy)
    capsys.readouterr()
    assert len(open_source("folder", tmp_path / "copy").index) == 7
    assert "has changed since; listing again" in capsys.readouterr().err


def test_where_the_data_cannot_be_written_the_cache_holds_the_index_up_to_its_limit(tmp_path, monkeypatch, capsys):
    names, mkdir = ("one", "two", "three"), pathlib.Path.mkdir

    def read_only(path, *arguments, **options):
        if path.name == FOLDER:
            raise PermissionError(13, "Permission denied")
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "mkdir", read_only)
    manifests = [WRITERS["jsonl"](tmp_path / name, ITEMS) for name in names]
    for manifest in manifests:
        aged(manifest.parent)
        open_source("jsonl", manifest)
    assert "that folder holds at most 17 GB" in capsys.readouterr().err
    files = lambda: sorted((tmp_path / "cache" / "listings").rglob("*.index"), key=os.path.getmtime)
    assert len(files()) == 3
    open_source("jsonl", manifests[0])
    assert f"as they were listed in {files()[0]}" in capsys.readouterr().err
    monkeypatch.setattr(listings, "CACHE_BYTES", 2 * files()[0].stat().st_size)
    (tmp_path / "three" / "more").touch()
    manifest = aged(WRITERS["jsonl"](tmp_path / "four", ITEMS).parent) / "manifest.json"
    open_source("jsonl", manifest)
    assert len(files()) < 3 and files()[-1].is_file()


def test_nothing_is_kept_where_nothing_can_be_written_or_the_listing_is_small(tmp_path, monkeypatch, capsys):
    manifest = WRITERS["jsonl"](tmp_path / "data", ITEMS)
    monkeypatch.setattr(listings, "KEPT_FROM", 100)
    monkeypatch.setattr(listing, "CANDIDATES_AT_ONCE", 100)
    aged(tmp_path / "data")
    assert len(open_source("jsonl", manifest).index) == 7
    assert not (tmp_path / "data" / FOLDER).exists() and not (tmp_path / "cache").exists()
    monkeypatch.setattr(listings, "KEPT_FROM", 1)
    monkeypatch.setenv("W2V_JAX_CACHE", str(manifest))
    (tmp_path / "data" / FOLDER).touch()
    assert len(open_source("jsonl", manifest).index) == 7


def test_a_second_process_lists_without_keeping_what_it_lists(tmp_path, capsys):
    manifest = aged(WRITERS["jsonl"](tmp_path / "data", ITEMS).parent) / "manifest.json"
    other = KeptListing("jsonl", [manifest])
    other.add([])
    assert len(open_source("jsonl", manifest).index) == 7
    assert not list((tmp_path / "data" / FOLDER).glob("*.index")) and "kept in" not in capsys.readouterr().err
    other.close()
    open_source("jsonl", manifest)
    assert "kept in" in capsys.readouterr().err
    names = sorted(path.suffix or path.name for path in (tmp_path / "data" / FOLDER).iterdir())
    assert names == [".gitignore", ".headers", ".index"]


def test_a_folder_whose_time_lies_in_the_future_is_listed_once(tmp_path, no_headers, capsys):
    root = kept_folder(tmp_path)
    os.utime(root, (time.time() + 9e6, time.time() + 9e6))
    open_source("folder", root)
    assert f"{root} has changed since; listing again" in capsys.readouterr().err
    no_headers()
    open_source("folder", root)
    assert "7 recordings as they were listed" in capsys.readouterr().err
    assert (root / FOLDER / ".gitignore").read_text() == "*\n"


def test_other_options_and_roots_have_other_listings_and_other_versions_none(tmp_path, monkeypatch, capsys):
    names = [KeptListing("tsv", [tmp_path / "a.tsv"]).name, KeptListing("tsv", [tmp_path / "a.tsv"], "letters").name]
    names += [KeptListing("tsv", [tmp_path / "b.tsv"]).name, KeptListing("jsonl", [tmp_path / "a.tsv"]).name]
    names += [KeptListing("tsv", [tmp_path / "a.tsv", tmp_path / "b.tsv"]).name]
    assert len(set(names)) == 5
    root = kept_folder(tmp_path)
    monkeypatch.setattr(listings, "_VERSION", 99)
    capsys.readouterr()
    open_source("folder", root)
    assert "made with other versions of packages; listing again" in capsys.readouterr().err


def test_lengths_are_measured_again_with_other_versions_and_where_nothing_kept_is_wanted(tmp_path, monkeypatch):
    root, looked, probe = kept_folder(tmp_path), [], listing.probe
    monkeypatch.setattr(listing, "probe", lambda path: looked.append(path) or probe(path))
    open_source("folder", root, kept=False)
    assert len(looked) == 7
    (root / "new.flac").write_bytes(ITEMS[0].content)
    open_source("folder", root)
    assert len(looked) == 8
    monkeypatch.setattr(listings, "_VERSION", 99)
    open_source("folder", root)
    assert len(looked) == 16


def test_paths_outside_the_folder_are_those_of_the_directory_of_the_listing(tmp_path, monkeypatch, capsys):
    WRITERS["jsonl"](tmp_path / "data", ITEMS)
    monkeypatch.chdir(tmp_path)
    aged(tmp_path / "data")
    os.rename("data/audio", "audio")
    text = (tmp_path / "data" / "manifest.json").read_text().replace("audio/", f"{tmp_path}/audio/")
    (tmp_path / "data" / "manifest.json").write_text(text)
    aged(tmp_path / "data")
    assert open_source("jsonl", "data/manifest.json").index.paths[0] == f"{tmp_path}/audio/0.flac"
    monkeypatch.chdir(tmp_path / "audio")
    open_source("jsonl", "../data/manifest.json")
    assert "7 recordings as they were listed" in capsys.readouterr().err
    for _ in range(2):
        monkeypatch.chdir(tmp_path)
        open_source("folder", ("data", "audio"))
        aged(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    capsys.readouterr()
    assert open_source("folder", (".", "../audio")).index.paths[0] == "../audio/0.flac"
    assert f"paths in it are relative to {tmp_path}; listing again" in capsys.readouterr().err


def test_prepare_writes_an_index_from_which_training_reads_no_header(tmp_path, no_headers, capsys):
    root = aged(WRITERS["jsonl"](tmp_path / "data", [*ITEMS, *BAD]).parent) / "audio"
    assert main(["--root", str(root), "--out", str(tmp_path / "train.jsonl")]) == 0
    shutil.rmtree(root / FOLDER)
    write_whole(tmp_path / "copy.jsonl", (tmp_path / "train.jsonl").read_text())
    text_alone = contents(open_source("jsonl", tmp_path / "copy.jsonl").index)
    no_headers()
    source = open_source("jsonl", tmp_path / "train.jsonl")
    assert source.index.sizes[0] == len(ITEMS[0].content) and len(source.index) == 7 and not source.index.skipped
    kept = contents(source.index)
    assert {name for name in kept if kept[name] != text_alone[name]} == {"modified"}
    os.utime(root / "0.flac", (1, 1))
    with pytest.raises(ReadError, match="changed after listing"):
        source.read(0, 0, 10**6)


def test_states_are_those_of_files_folders_and_nothing(tmp_path):
    (tmp_path / "file").write_text("text")
    aged(tmp_path)
    states = states_of([tmp_path / "file", tmp_path, tmp_path / "none", "nul\0"])
    assert [state and state[0] for state in states.values()] == [4, -1, None, None]
    (tmp_path / "file").write_text("more")
    assert states_of([tmp_path / "file"]) == {str(tmp_path / "file"): listings.UNSETTLED}
