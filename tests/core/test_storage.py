"""Folders in object stores, with fsspec's store in memory and one that fails now and then."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import time

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from w2v_jax.core import storage, stores
from w2v_jax.core.cli import UserError
from w2v_jax.core.files import whole_file, write_whole
from w2v_jax.core.storage import Seals, StoreError
from w2v_jax.core.stores import StorePath

SEALS = Seals("checkpoints", "seal.json")
URL = "memory://lab/runs/a"


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("W2V_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stores, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(storage, "LEASE", 0.6)
    monkeypatch.setattr(storage, "SETTLE", 0.0)
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def put(files: dict[str, str], url: str = URL) -> None:
    fs, path = fsspec.url_to_fs(url)
    for name, text in files.items():
        fs.pipe_file(f"{path}/{name}", text.encode())


def stored(url: str = URL) -> dict[str, str]:
    fs, path = fsspec.url_to_fs(url)
    names = {name: name[len(path) + 1 :] for name in fs.find(path)}
    return {name: fs.cat_file(full).decode() for full, name in names.items()}


def content(folder: pathlib.Path) -> dict[str, str]:
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_text() for name, file in files.items() if name != storage.FETCHED}


def write(folder: pathlib.Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


class Flaky(MemoryFileSystem):
    """Every `every`th request fails, with `error`."""

    protocol = "flaky"
    every, error, requests = 0, ConnectionError("reset by peer"), 0

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def _count(self):
        Flaky.requests += 1
        if Flaky.every and Flaky.requests % Flaky.every == 0:
            raise Flaky.error

    def find(self, *args, **kwargs):
        self._count()
        return super().find(*args, **kwargs)

    def pipe_file(self, *args, **kwargs):
        self._count()
        return super().pipe_file(*args, **kwargs)

    def get_file(self, *args, **kwargs):
        self._count()
        return super().get_file(*args, **kwargs)


@pytest.fixture
def flaky(monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "requests", 0)
    monkeypatch.setattr(Flaky, "every", 0)
    return Flaky


def test_what_is_fetched_is_what_lies_there_now(capsys):
    put({"config.json": "{}", "logs/a.txt": "one", "b": "two"})
    local = storage.fetched(URL)
    assert content(local) == {"config.json": "{}", "logs/a.txt": "one", "b": "two"}
    assert "3 files" in capsys.readouterr().err
    assert storage.fetched(URL + "/") == local and capsys.readouterr().err == "", "nothing is fetched twice"
    fsspec.filesystem("memory").rm_file("/lab/runs/a/b")
    put({"logs/a.txt": "other"})
    assert content(storage.fetched(URL)) == {"config.json": "{}", "logs/a.txt": "other"}
    assert "1 files" in capsys.readouterr().err


def test_a_checkpoint_that_is_gone_leaves_no_empty_folder():
    put({"config.json": "{}", "checkpoints/1/a/b": "1", "checkpoints/1/seal.json": "{}"})
    local = storage.fetched(URL, SEALS)
    fsspec.filesystem("memory").rm("/lab/runs/a/checkpoints/1", recursive=True)
    put({"checkpoints/2/a": "2", "checkpoints/2/seal.json": "{}"})
    storage.fetched(URL, SEALS)
    assert [path.name for path in (local / "checkpoints").iterdir()] == ["2"]


def test_a_checkpoint_that_vanishes_while_it_is_fetched_is_done_without(monkeypatch):
    put({"config.json": "{}", "checkpoints/1/a": "1", "checkpoints/1/seal.json": "{}"})
    real = MemoryFileSystem.get_file

    def removed(fs, path, *rest, **named):
        if "/1/" in path:
            fs.rm("/lab/runs/a/checkpoints", recursive=True)
        return real(fs, path, *rest, **named)

    monkeypatch.setattr(MemoryFileSystem, "get_file", removed)
    assert content(storage.fetched(URL, SEALS)) == {"config.json": "{}"}


def test_reading_a_run_leaves_the_copy_alone_in_which_it_goes_on():
    with storage.working_copy(URL, SEALS) as path:
        write(path, {"metrics.jsonl": "newer than in the store"})
        put({"metrics.jsonl": "old"})
        assert (storage.fetched(URL, SEALS) / "metrics.jsonl").read_text() == "old"
        assert (path / "metrics.jsonl").read_text() == "newer than in the store"


def test_a_file_at_a_url_is_fetched_under_its_name():
    put({"letters.arpa": "x"})
    assert storage.fetched(f"{URL}/letters.arpa").name == "letters.arpa"
    assert storage.fetched(f"{URL}/letters.arpa").read_text() == "x"


def test_a_checkpoint_without_its_seal_is_not_fetched():
    whole = {"checkpoints/1/state/a": "1", "checkpoints/1/seal.json": "{}"}
    put(whole | {"checkpoints/2/state/a": "2", "config.json": "{}"})
    assert content(storage.fetched(URL, SEALS)) == whole | {"config.json": "{}"}


def test_what_is_not_there_or_cannot_be_reached_is_named():
    with pytest.raises(UserError, match=r"memory://lab/runs/a does not exist, or is empty"):
        storage.fetched(URL)
    with pytest.raises(UserError, match="Protocol not known: nowhere"):
        storage.fetched("nowhere://a/b")


def test_a_client_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    def lacking(*_, **__):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "url_to_fs", lacking)
    with pytest.raises(UserError, match=r'gs:// is not installed: pip install "w2v-jax\[gcs\]"'):
        storage.connect("gs://lab/a")


def test_a_store_that_fails_now_and_then_is_asked_again(flaky, monkeypatch):
    put({f"f{n}": str(n) for n in range(20)})
    monkeypatch.setattr(flaky, "every", 3)
    local = storage.fetched(URL.replace("memory", "flaky"))
    assert content(local) == {f"f{n}": str(n) for n in range(20)}


@pytest.mark.parametrize(
    "error, words",
    [
        (ConnectionError("reset by peer"), "failed 6 times, at last by ConnectionError: reset by peer"),
        (PermissionError("token expired"), r"the store refuses \(token expired\). Are the credentials right"),
    ],
)
def test_a_store_that_fails_always_is_given_up(flaky, monkeypatch, error, words):
    put({"a": "1"})
    monkeypatch.setattr(flaky, "every", 1)
    monkeypatch.setattr(flaky, "error", error)
    with pytest.raises(StoreError, match=words):
        storage.fetched(URL.replace("memory", "flaky"))
    assert flaky.requests == (6 if isinstance(error, ConnectionError) else 1)


def test_sending_makes_the_store_equal_and_sends_only_changes(tmp_path, flaky):
    folder, sent = storage.connect(URL.replace("memory", "flaky")), {}
    write(tmp_path / "run", {"config.json": "{}", "metrics.jsonl": "1\n", "compile_cache/x": "big", ".lock": ""})
    write(tmp_path / "run", {"checkpoints/1/state/a": "1", "checkpoints/1/seal.json": "{}"})
    write(tmp_path / "run", {"checkpoints/2/state/a": "2", "curves.png.partial": "half"})
    storage.send(tmp_path / "run", folder, sent, seals=SEALS)
    first = {"config.json": "{}", "metrics.jsonl": "1\n", "checkpoints/1/state/a": "1", "checkpoints/1/seal.json": "{}"}
    assert stored() == first
    before = flaky.requests
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write("2\n")
    storage.send(tmp_path / "run", folder, sent, seals=SEALS)
    assert stored() == first | {"metrics.jsonl": "1\n2\n"}
    assert flaky.requests == before + 1
    write(tmp_path / "run", {"checkpoints/2/seal.json": "{}"})
    for name in ("seal.json", "state/a"):
        (tmp_path / "run" / "checkpoints" / "1" / name).unlink()
    write(tmp_path / "run", {storage.MARK: "{}"})
    storage.send(tmp_path / "run", folder, sent, seals=SEALS)
    assert {name for name in stored() if name.startswith("checkpoints")} == {
        "checkpoints/2/state/a",
        "checkpoints/2/seal.json",
    }


def test_a_seal_is_sent_last_and_removed_first(tmp_path, monkeypatch):
    folder, order = storage.connect(URL), []
    fs = type(folder.fs)
    monkeypatch.setattr(fs, "pipe_file", lambda self, path, *_, **__: order.append(path.rsplit("/", 1)[-1]))
    monkeypatch.setattr(fs, "rm_file", lambda self, path: order.append(path.rsplit("/", 1)[-1]))
    write(tmp_path, {f"checkpoints/1/{name}": "x" for name in ("seal.json", "a", "z/b")})
    write(tmp_path, {storage.MARK: "{}"})
    sent = {}
    storage.send(tmp_path, folder, sent, seals=SEALS)
    assert order == [storage.MARK, "a", "b", "seal.json"]
    (tmp_path / "checkpoints" / "1" / "seal.json").unlink()
    order.clear()
    storage.send(tmp_path, folder, sent, seals=SEALS)
    assert order == ["seal.json", "a", "b"]


def test_nothing_is_removed_from_the_store_because_the_local_folder_vanished(tmp_path):
    folder, sent = storage.connect(URL), {}
    write(tmp_path / "run", {storage.MARK: "{}", "checkpoints/1/a": "1", "checkpoints/1/seal.json": "{}"})
    storage.send(tmp_path / "run", folder, sent, seals=SEALS)
    before = stored()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(StoreError, match="run was removed while the run used it; nothing was removed from memory://"):
        storage.send(tmp_path / "run", folder, sent, seals=SEALS)
    assert stored() == before


def test_a_sending_ends_before_others_see_it_where_it_may_not_go_on(tmp_path):
    write(tmp_path, {storage.MARK: "{}", "checkpoints/1/a": "1", "checkpoints/1/seal.json": "{}"})
    storage.send(tmp_path, storage.connect(URL), {}, seals=SEALS, may_go_on=lambda: not stored())
    assert "checkpoints/1/seal.json" not in stored()


def test_a_bucket_that_is_not_there_is_named(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("lab")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", missing)
    with pytest.raises(StoreError, match="memory://lab/runs/a: cannot be written. Is there such a bucket?"):
        with storage.working_copy(URL, SEALS):
            pass
    write(tmp_path, {"a": "1"})
    with pytest.raises(StoreError, match="memory://lab/runs/a/a: cannot be written"):
        storage.send(tmp_path, storage.connect(URL), {})


@pytest.mark.parametrize("name", ["../../escaped", "/absolute", "a//b", "./a"])
def test_objects_whose_names_lead_out_of_the_folder_are_refused(monkeypatch, name):
    put({"config.json": "{}"})
    found = {f"/lab/runs/a/{name}": {"type": "file", "size": 1}}
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: found)
    with pytest.raises(UserError, match="has no name that a file can have"):
        storage.fetched(URL)


def test_a_fetch_that_was_cut_short_is_made_again(monkeypatch):
    put({storage.MARK: '{"run": "x"}', "checkpoints/1/seal.json": "{}", "checkpoints/1/state": "1"})
    real = MemoryFileSystem.get_file

    def killed(fs, path, *rest, **named):
        if path.endswith("state"):
            raise KeyboardInterrupt
        return real(fs, path, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", killed)
        with pytest.raises(KeyboardInterrupt), storage.working_copy(URL, SEALS):
            pass
    with storage.working_copy(URL, SEALS) as path:
        assert (path / "checkpoints/1/state").read_text() == "1"


def test_what_another_machine_removed_is_sent_again_and_what_it_left_half_sent_goes():
    with storage.working_copy(URL, SEALS) as path:
        write(path, {"checkpoints/1/a": "1", "checkpoints/1/seal.json": "{}"})
    write(path, {"checkpoints/3/a": "3", "checkpoints/3/seal.json": "{}"})  # and was killed before it was sent
    fsspec.filesystem("memory").rm("/lab/runs/a/checkpoints", recursive=True)
    put({"checkpoints/2/a": "2", "checkpoints/2/seal.json": "{}", "checkpoints/4/half": "4"})
    with storage.working_copy(URL, SEALS):
        pass
    there = {f"checkpoints/{n}/{name}" for n in (1, 3) for name in ("a", "seal.json")}
    assert {name for name in stored() if name.startswith("checkpoints")} == there


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_mark_is_named(content):
    put({storage.MARK: content})
    with pytest.raises(UserError, match="run.json is not readable as JSON; remove it"):
        with storage.working_copy(URL, SEALS):
            pass


def test_a_run_goes_on_from_the_store_on_another_machine(tmp_path, monkeypatch):
    with storage.working_copy(URL, SEALS) as path:
        write(path, {"config.json": "{}", "checkpoints/1/a": "1", "checkpoints/1/seal.json": "{}"})
    assert storage.LOCK not in stored() and "checkpoints/1/seal.json" in stored()
    monkeypatch.setenv("W2V_JAX_CACHE", str(tmp_path / "other machine"))
    with storage.working_copy(URL, SEALS) as path:
        assert (path / "checkpoints/1/a").read_text() == "1"
        write(path, {"checkpoints/2/a": "2", "checkpoints/2/seal.json": "{}"})
    monkeypatch.setenv("W2V_JAX_CACHE", str(tmp_path / "cache"))
    with storage.working_copy(URL, SEALS) as path:
        assert (path / "checkpoints/2/a").read_text() == "2", "the other machine has brought it further"


def test_a_copy_that_is_further_than_the_store_stays_and_one_of_a_removed_run_goes():
    with storage.working_copy(URL, SEALS) as path:
        write(path, {"config.json": "{}"})
    write(path, {"checkpoints/5/a": "5", "checkpoints/5/seal.json": "{}"})  # a process that was killed then
    with storage.working_copy(URL, SEALS) as again:
        assert again == path and (path / "checkpoints/5/a").exists()
    assert stored()["checkpoints/5/a"] == "5"
    fsspec.filesystem("memory").rm("/lab/runs/a", recursive=True)
    with storage.working_copy(URL, SEALS) as again:
        assert not (again / "checkpoints").exists()


def test_what_ends_a_run_is_raised_and_its_folder_is_sent(flaky, monkeypatch, capsys):
    with pytest.raises(UserError, match="a mistake"), storage.working_copy(URL, SEALS) as path:
        write(path, {"config.json": "{}"})
        raise UserError("a mistake")
    assert stored()["config.json"] == "{}"
    with pytest.raises(KeyboardInterrupt), storage.working_copy(URL.replace("memory", "flaky"), SEALS) as path:
        write(path, {"b": "2"})
        monkeypatch.setattr(flaky, "every", 1)
        raise KeyboardInterrupt
    assert "What was not sent is in" in capsys.readouterr().err


def test_a_last_sending_that_fails_says_where_the_run_is(flaky, monkeypatch):
    url = URL.replace("memory", "flaky")
    with pytest.raises(StoreError, match="What was not sent is in .*; the same command, here, sends it"):
        with storage.working_copy(url, SEALS) as path:
            write(path, {"checkpoints/5/a": "5", "checkpoints/5/seal.json": "{}"})
            monkeypatch.setattr(flaky, "every", 1)
    monkeypatch.setattr(flaky, "every", 0)
    with storage.working_copy(url, SEALS):
        pass
    assert stored()["checkpoints/5/a"] == "5"


def test_it_is_sent_while_it_grows(monkeypatch):
    monkeypatch.setattr(storage, "EVERY", 0.05)
    with storage.working_copy(URL, SEALS) as path:
        write(path, {"metrics.jsonl": "1\n"})
        end = time.monotonic() + 20
        while "metrics.jsonl" not in stored() and time.monotonic() < end:
            time.sleep(0.02)
        assert stored()["metrics.jsonl"] == "1\n"


def test_a_store_that_fails_for_long_stops_the_run_as_a_signal_does(flaky, monkeypatch, capsys):
    signals = []
    monkeypatch.setattr(storage, "EVERY", 0.02)
    monkeypatch.setattr(storage, "GIVE_UP", 0.1)
    monkeypatch.setattr(storage.os, "kill", lambda pid, number: signals.append((pid, number)) if number else None)
    with pytest.raises(StoreError), storage.working_copy(URL.replace("memory", "flaky"), SEALS) as path:
        write(path, {"b": "2"})
        monkeypatch.setattr(flaky, "every", 1)
        end = time.monotonic() + 20
        while not signals and time.monotonic() < end:
            time.sleep(0.02)
    assert signals == [(os.getpid(), storage.signal.SIGTERM)]
    assert "the work goes on, and it is tried again" in capsys.readouterr().err


def test_only_one_run_holds_a_folder(capsys):
    with storage.working_copy(URL, SEALS):
        with pytest.raises(UserError, match="another run is using memory://lab/runs/a"):
            with storage.working_copy(URL, SEALS):
                pass
    assert "looking for 1 s if it is alive" in capsys.readouterr().err
    with storage.working_copy(URL, SEALS):
        pass


@pytest.mark.parametrize(
    "owner, waits",
    [
        (storage.machine() | dict(pid=2**22 + 1), False),
        (storage.machine() | dict(pid=2**22 + 1, boot="before"), True),
        (dict(host="elsewhere", pid=1), True),
        (dict(), True),
    ],
)
def test_a_lock_without_an_owner_is_taken(owner, waits):
    put({storage.LOCK: json.dumps(owner | {"token": "x"}) if owner else "damaged"})
    start = time.monotonic()
    with storage.working_copy(URL, SEALS):
        waited = time.monotonic() - start
        assert json.loads(stored()[storage.LOCK])["pid"] == os.getpid()
    assert (waited >= storage.LEASE) == waits


def test_a_run_whose_lock_was_taken_stops_and_sends_nothing_more(monkeypatch):
    signals = []
    with pytest.raises(UserError, match="belongs to another run now; what this one did last is in"):
        with storage.working_copy(URL, SEALS) as path:
            monkeypatch.setattr(storage.os, "kill", lambda pid, number: signals.append(number))
            put({storage.LOCK: json.dumps({"host": "elsewhere", "token": "x"})})
            end = time.monotonic() + 20
            while not signals and time.monotonic() < end:
                time.sleep(0.02)
            write(path, {"b": "2"})
    assert signals == [storage.signal.SIGTERM]
    assert "b" not in stored() and json.loads(stored()[storage.LOCK])["token"] == "x", "the other one keeps its lock"


OUT = StorePath("memory://lab/out")
LAST = ["*.npy", "about.json"]


def part(folder: pathlib.Path, number: int) -> None:
    """Writes a part as commands do: its text is there before its array has its name."""
    with whole_file(folder / f"{number}.npy") as partial:
        partial.write_text("array")
        write_whole(folder / f"{number}.txt", "text")


def test_an_output_is_sent_whole_and_the_copy_goes(tmp_path, capsys):
    with storage.output_folder(OUT, LAST) as folder:
        write(folder, {"about.json": "{}"})
        part(folder, 0)
        write(folder, {"state": "x"})
        (folder / "state").unlink()
        write(folder, {"about.json": '{"complete": true}'})
    assert stored(str(OUT)) == {"about.json": '{"complete": true}', "0.npy": "array", "0.txt": "text"}
    assert "sent to memory://lab/out" in capsys.readouterr().err and not content(tmp_path / "cache")
    with storage.output_folder(tmp_path / "disk", LAST) as folder, storage.output_file(tmp_path / "x" / "f") as file:
        assert folder == tmp_path / "disk" and file == tmp_path / "x" / "f" and file.parent.is_dir()
    with storage.output_file(OUT / "plot.png") as file:
        file.write_text("png")
    assert stored(str(OUT))["plot.png"] == "png"


def test_a_command_that_was_stopped_goes_on_on_another_machine(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), storage.output_folder(OUT, LAST) as folder:
        write(folder, {"about.json": "{}"})
        part(folder, 0)
        raise KeyboardInterrupt
    for machine in ("other", "cache"):
        monkeypatch.setenv("W2V_JAX_CACHE", str(tmp_path / machine))
        with pytest.raises(KeyboardInterrupt), storage.output_folder(OUT, LAST) as folder:
            assert (folder / "about.json").exists() and not any(path.name[0] == "." for path in folder.iterdir())
            part(folder, len(list(folder.glob("*.npy"))))
            raise KeyboardInterrupt
    with storage.output_folder(OUT, LAST) as folder:
        assert len(list(folder.glob("*.npy"))) == 3
    assert set(stored(str(OUT))) == {"about.json", *(f"{n}.{kind}" for n in range(3) for kind in ("npy", "txt"))}


def test_what_an_earlier_output_has_left_here_goes_where_the_store_has_nothing_of_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), storage.output_folder(OUT, LAST) as folder:
        part(folder, 0)
        raise KeyboardInterrupt
    fsspec.filesystem("memory").rm("/lab/out", recursive=True)
    with storage.output_folder(OUT, LAST) as folder:
        assert not list(folder.iterdir())


def test_no_file_is_in_the_store_before_those_that_it_says_are_complete(tmp_path, monkeypatch):
    """Whatever is written while a sending is on its way."""
    fs, order, real = MemoryFileSystem, [], MemoryFileSystem.pipe_file

    def pipe(self, path, *rest, **named):
        order.append(path.rsplit("/", 1)[-1])
        if order[-1] == "0.txt":
            part(tmp_path, 1)
            write(tmp_path, {"about.json": '{"complete": true}'})
        real(self, path, *rest, **named)

    monkeypatch.setattr(fs, "pipe_file", pipe)
    write(tmp_path, {"about.json": "{}"})
    part(tmp_path, 0)
    folder, sent = storage.connect(str(OUT)), {}
    storage.send(tmp_path, folder, sent, last=LAST)
    assert order == ["0.txt", "0.npy"]
    order.clear()
    storage.send(tmp_path, folder, sent, last=LAST)
    assert order == ["1.txt", "1.npy", "about.json"]


def test_shards_that_were_fetched_longest_ago_make_room(tmp_path):
    for number in range(3):
        put({"s": "x" * 100}, f"memory://lab/{number}")
        local = storage.fetched(f"memory://lab/{number}/s", kind="shards").parent
        os.utime(local, (number, number))
    storage.make_room(["memory://lab/0/s"], 150, 400)
    left = [storage.local_copy(f"memory://lab/{number}/s", "shards").exists() for number in range(3)]
    assert left == [True, False, True]


def test_what_was_fetched_to_be_read_makes_room_for_the_next(monkeypatch):
    monkeypatch.setattr(storage, "READ_BYTES", 250)
    for number in range(4):
        monkeypatch.setattr(storage, "_in_use", set())  # each by a process of its own
        put({"a": "x" * 90, "b": "y"}, f"memory://lab/{number}")
        local = storage.fetched(f"memory://lab/{number}")
        os.utime(local, (number, number))
    left = [storage.local_copy(f"memory://lab/{number}", "read").exists() for number in range(4)]
    assert left == [False, False, True, True]


def test_copies_lie_in_the_home_unless_the_environment_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("W2V_JAX_CACHE", "~/copies")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.cache_folder() == tmp_path / "copies"
    monkeypatch.setenv("W2V_JAX_CACHE", "")
    assert storage.cache_folder() == tmp_path / ".cache" / "w2v_jax"


def test_each_process_of_a_training_has_a_copy_of_its_own_and_sends_its_own_files():
    """Process 0 sends and removes the rest, and first what the store lacks; no one touches what others have added."""
    with storage.working_copy(URL, SEALS) as first:
        pass
    write(first, {"checkpoints/5/a": "5", "checkpoints/5/seal.json": "{}"})  # a process that was killed then
    put({"rows-1.jsonl": "by 1\n", "rows-2.jsonl": "by 2\n"})
    with storage.working_copy(URL, SEALS, token="x") as first:
        with storage.further_copy(URL, SEALS, token="x", process=1) as second:
            assert second != first and (second / "checkpoints/5/a").read_text() == "5"
            assert (second / "rows-1.jsonl").read_text() == "by 1\n"
            write(second, {"rows-1.jsonl": "by 1\nmore\n", "rows.jsonl": "not mine", "rows-2.jsonl": "not mine"})
            shutil.rmtree(second / "checkpoints")
        there = stored()
        assert there["rows-1.jsonl"] == "by 1\nmore\n" and there["rows-2.jsonl"] == "by 2\n"
        assert "checkpoints/5/a" in there and "rows.jsonl" not in there
        write(first, {"rows.jsonl": "by 0\n"})
    assert stored()["rows.jsonl"] == "by 0\n" and stored()["rows-1.jsonl"] == "by 1\nmore\n"
    with storage.further_copy(URL, SEALS, token="x", process=1) as second:  # the first process has ended by an error
        write(second, {"rows-1.jsonl": "the last\n"})
    assert stored()["rows-1.jsonl"] == "the last\n"


def test_a_local_copy_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    put({"a": "1"})
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("W2V_JAX_CACHE", str(tmp_path / "file"))
    for use in (lambda: storage.fetched(URL), lambda: storage.working_copy(URL, SEALS).__enter__()):
        with pytest.raises(UserError, match="file/.*cannot be written .*W2V_JAX_CACHE names another folder"):
            use()
