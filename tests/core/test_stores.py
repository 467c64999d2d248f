"""Objects of stores as files: what there is, what is in it, and what happens where the store fails."""

import os
import pathlib
import socket
import subprocess
import sys

import fsspec
import poor_store
import pytest
from poor_store import Poor

from w2v_jax.core import stores
from w2v_jax.core.cli import UserError
from w2v_jax.core.files import exists, is_file, is_folder, open_binary, present_state_of, state_of
from w2v_jax.core.stores import BLOCK, StoreError, StorePath, is_remote, joined_path, path_of

URL = "poor://lab/speech"


@pytest.fixture(autouse=True)
def store(monkeypatch):
    monkeypatch.setattr(stores, "FIRST_WAIT", 0.0)
    poor_store.reset()
    stores.forget_listings()
    yield
    poor_store.reset()
    stores.forget_listings()


def put(name, content):
    fs, path = fsspec.url_to_fs(f"{URL}/{name}")
    fs.pipe_file(path, content)


def test_a_url_is_a_path_in_all_that_sources_do_with_paths():
    put("a/one.tsv", b"1")
    folder = path_of(f"{URL}/")
    assert isinstance(folder, StorePath) and str(folder) == os.fspath(folder) == URL and is_remote(folder)
    file = folder / "a" / "one.tsv"
    assert str(file.with_suffix(".wrd")) == f"{URL}/a/one.wrd" and str(file.parent.parent) == URL
    assert file.is_file() and file.exists() and not file.is_dir() and folder.is_dir() and not folder.is_file()
    assert not (folder / "b").exists()
    assert list(map(str, folder.glob("*/*.tsv"))) == [str(file)] and not list(folder.glob("*.tsv"))
    assert str(path_of("zip://a/b.wav::gs://lab/x.zip")) == "zip://a/b.wav::gs://lab/x.zip"
    assert path_of("file:///data/x") == path_of("/data/x") == pathlib.Path("/data/x")
    assert not is_remote("/data/a:b//c") and not is_remote("s.tar#0+5:gs://a")


def test_a_path_in_a_list_is_below_its_folder_or_one_of_its_own():
    assert joined_path(URL, "a/b.wav") == f"{URL}/a/b.wav" and joined_path("/m", "gs://b/x.wav") == "gs://b/x.wav"
    assert joined_path(URL, "/data/x.wav") == joined_path("/m", "/data/x.wav") == "/data/x.wav"


def test_reads_at_any_place_are_those_of_a_file(tmp_path):
    content = os.urandom(10 * BLOCK + 77)
    put("long", content)
    (tmp_path / "long").write_bytes(content)
    with open_binary(f"{URL}/long") as file, open(tmp_path / "long", "rb") as local:
        for place, whence, count in [(0, 0, 5), (-9, 2, 20), (3 * BLOCK - 2, 0, 4), (BLOCK, 1, 3 * BLOCK), (0, 0, -1)]:
            assert file.seek(place, whence) == local.seek(place, whence)
            assert file.read(count) == local.read(count) and file.tell() == local.tell()
        with pytest.raises(OSError):
            file.seek(-1)


def test_a_few_blocks_are_read_of_a_long_object_and_none_of_them_twice():
    put("long", bytes(100 * BLOCK))
    file = stores.open_object(f"{URL}/long")
    for _ in range(3):
        for place in (0, 50 * BLOCK, 100 * BLOCK - 5):
            file.seek(place)
            file.read(4)
    assert [kind for kind, *_ in Poor.requests] == ["info", "cat", "cat", "cat"]
    assert poor_store.read_bytes() == 3 * BLOCK
    file.seek(0)
    file.readall()
    assert len(Poor.requests) < 20, "who goes on and on reads more and more at once"


def test_what_stays_in_memory_has_a_limit_which_a_person_chooses(monkeypatch):
    monkeypatch.setenv(stores.MEMORY, "16")
    monkeypatch.setattr(stores, "_blocks", stores._Blocks())
    put("long", bytes(40 << 20))
    with open_binary(f"{URL}/long") as file:
        assert len(file.read()) == 40 << 20
    assert stores._blocks._size <= 16 << 20
    for wrong in ("3", "much"):
        monkeypatch.setenv(stores.MEMORY, wrong)
        with pytest.raises(UserError, match=f"{stores.MEMORY}='{wrong}': needs a whole number of MB"):
            stores.memory_limit()


def test_a_listing_is_one_request_and_counts_until_it_is_forgotten():
    for name in ("a/1.wav", "a/b/2.wav", "3.wav"):
        put(name, name.encode())
    found = stores.listed(URL)
    assert found.folders[""] == ({"a"}, ["3.wav"]) and found.folders["a"] == ({"b"}, ["1.wav"])
    before = state_of(URL)
    assert is_file(f"{URL}/a/1.wav") and is_folder(f"{URL}/a/b") and not exists(f"{URL}/a/4.wav")
    assert state_of(f"{URL}/a/1.wav") == found.objects["a/1.wav"] and len(Poor.requests) == 1
    assert present_state_of(f"{URL}/a/1.wav") == state_of(f"{URL}/a/1.wav"), "one version, however one asks"
    put("a/1.wav", b"other")
    assert present_state_of(f"{URL}/a/1.wav") != state_of(f"{URL}/a/1.wav") and state_of(URL) == before
    stores.forget_listings()
    assert state_of(URL) != before


def test_an_object_that_is_missing_or_a_folder_is_the_error_of_a_disk():
    put("a/1.wav", b"x")
    with pytest.raises(FileNotFoundError):
        open_binary(f"{URL}/b.wav")
    with pytest.raises(IsADirectoryError):
        open_binary(f"{URL}/a")
    file = stores.open_object(f"{URL}/a/1.wav", (100, 0))
    with pytest.raises(OSError, match="has ended at byte 1 of 100"):
        file.readall()


def test_a_store_that_fails_now_and_then_is_asked_again_and_one_that_always_fails_is_named():
    content = os.urandom(20 * BLOCK)
    put("long", content)
    Poor.every = 2
    with open_binary(f"{URL}/long") as file:
        assert file.read() == content
    Poor.every = 1
    with pytest.raises(StoreError, match=rf"{URL}/x.wav: failed 6 times, at last by ConnectionError: reset by peer"):
        present_state_of(f"{URL}/x.wav")


@pytest.mark.parametrize(
    "error", [PermissionError("The provided token has expired."), RuntimeError("401, Invalid Credentials")]
)
def test_a_credential_that_has_expired_is_told_as_such(error):
    put("a.wav", b"x")
    Poor.every, Poor.error = 1, error
    with pytest.raises(StoreError, match=r"a.wav: .*A credential has expired: renew it"):
        present_state_of(f"{URL}/a.wav")


def test_nothing_of_stores_is_imported_for_data_on_a_disk(tmp_path):
    code = "import sys; from w2v_jax.data import open_source; from w2v_jax.core.files import exists, state_of\n"
    code += "exists('/tmp'); state_of('/tmp')\ntry: open_source('folder', sys.argv[1])\nexcept Exception: pass\n"
    code += "assert not {'fsspec', 'gcsfs', 's3fs'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_request_to_gs_that_is_never_answered_fails(monkeypatch):
    """The client alone would wait for ever, and with it the lock of a run and all that is to be sent."""
    gcsfs, aiohttp = pytest.importorskip("gcsfs"), pytest.importorskip("aiohttp")
    monkeypatch.setattr(stores, "SILENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        fs = stores.connect("gs://lab/a").fs
        once = gcsfs.core.GCSFileSystem._request.__wrapped__
        with pytest.raises(fsspec.exceptions.FSTimeoutError) as raised:
            fsspec.asyn.sync(fs.loop, once, fs, "GET", "b/lab", timeout=20)
    assert isinstance(raised.value.__cause__, aiohttp.ServerTimeoutError)
