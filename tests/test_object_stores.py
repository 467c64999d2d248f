"""Runs and recordings in object stores: the real protocols, by servers on this machine."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import fsspec
import pytest
from commands import environment, free_port, training

from w2v_jax import extract
from w2v_jax.core.stores import forget_listings
from w2v_jax.inference.run import open_run

S3 = """
import sys, time
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

service, requests = DomainDispatcherApplication(create_backend_app), [0]

def poor(environ, start_response):
    requests[0] += 1
    time.sleep(0.01)
    if requests[0] % 10 == 0:
        start_response("503 Slow Down", [])
        return [b""]
    return service(environ, start_response)

run_simple("127.0.0.1", int(sys.argv[1]), poor, threaded=True)
"""
GCS = """
import http.server, sys
from gcp_storage_emulator.server import create_server

http.server.HTTPServer = http.server.ThreadingHTTPServer  # a client that is slow must not block the others
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="lab").run()
"""
SERVERS = {"s3": (S3, "moto", "s3fs"), "gs": (GCS, "gcp_storage_emulator", "gcsfs")}
"""A server's program, whose argument is a port, and the modules that it and its client need. That of S3 is slow, and
refuses each tenth request."""


def variables(scheme: str, port: int) -> dict[str, str]:
    """How each client's documentation says that the address of a server is set."""
    url = f"http://127.0.0.1:{port}"
    if scheme == "gs":
        return {"STORAGE_EMULATOR_HOST": url}
    return dict(
        AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="us-east-1"
    )


@pytest.fixture(params=["s3", "gs"])
def store(request, monkeypatch):
    """(the URL of a bucket, the environment's variables for it)"""
    scheme, port = request.param, free_port()
    program, *modules = SERVERS[scheme]
    for module in modules:
        pytest.importorskip(module)
    program = [sys.executable, "-W", "ignore", "-c", program, str(port)]
    server = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = variables(scheme, port)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    fs = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
    for _ in range(200):
        try:
            if not fs.exists("lab"):
                fs.mkdir("lab")
            break
        except Exception:
            time.sleep(0.1)
    fsspec.get_filesystem_class(scheme).clear_instance_cache()  # clients of an earlier test's server
    forget_listings()
    yield f"{scheme}://lab", found
    server.terminate()
    server.wait()


UNHURRIED = """
import sys, time
from w2v_jax import train
from w2v_jax.core import cli, storage

storage.EVERY, storage.LEASE, pause = 0.2, 6.0, train.pause

def slower(*of_run, due, **named):
    pause(*of_run, due=due, **named)
    time.sleep(3.0 * ("save" in due))

train.pause = slower
cli.run_command(train.main)
"""
"""A training that leaves a slow store time to take each checkpoint before the next one."""


def newest_sealed(fs) -> int:
    """The newest whole checkpoint in the store; -1 without any."""
    steps = [path.split("/")[-2] for path in fs.glob("lab/run/checkpoints/*/crc32.json")]
    return max(map(int, steps), default=-1)


def losses(text: str) -> dict[int, float]:
    rows = [json.loads(line) for line in text.splitlines()]
    return {row["step"]: row["loss"] for row in rows if row["split"] == "train"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_in_a_store_that_is_killed_twice_ends_as_one_on_a_disk(store, tiny_corpus, tmp_path, monkeypatch):
    """Each life is on another machine, which has the store alone: the recordings lie there, too.

    Then the run is read from there, and what is extracted by it is written there.
    """
    url, found = store
    fs = fsspec.filesystem(url.partition(":")[0], skip_instance_cache=True, use_listings_cache=False)
    speech = tiny_corpus / "train"
    for file in sorted(path for path in speech.rglob("*") if path.is_file()):
        fs.pipe_file(f"lab/speech/{file.relative_to(speech).as_posix()}", file.read_bytes())
    overrides = {"data.name": "folder", "data.root": str(speech), "data.hours": "0", "data.loader": "threads"}
    overrides |= {"optim.warmup": "1", "train.steps": "12"}
    overrides |= {"train.checkpoint_every": "2", "train.log_every": "1"}
    alone = training("w2v2_base.py:tiny", tmp_path / "alone", overrides)
    settings = environment(**found)
    assert subprocess.run(alone, env=settings).returncode == 0
    command = training("w2v2_base.py:tiny", tmp_path, overrides | {"data.root": f"{url}/speech"})
    flags = [f"--workdir={url}/run" if flag.startswith("--workdir") else flag for flag in command[3:]]
    command = [sys.executable, "-c", UNHURRIED, *flags]
    for life, step in enumerate((2, 6)):
        process = subprocess.Popen(command, env=settings | {"W2V_JAX_CACHE": str(tmp_path / f"{life}")})
        while newest_sealed(fs) < step:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    settings["W2V_JAX_CACHE"] = str(tmp_path / "last")
    assert subprocess.run(command, env=settings).returncode == 0
    there = losses(fs.cat_file("lab/run/metrics.jsonl").decode())
    assert there == losses((tmp_path / "alone" / "metrics.jsonl").read_text()) and len(there) == 12
    assert json.loads(fs.cat_file("lab/run/done.json"))["step"] == 12
    assert not fs.exists("lab/run/.lock")
    monkeypatch.setenv("W2V_JAX_CACHE", str(tmp_path / "reader"))
    assert open_run(f"{url}/run").digest == open_run(tmp_path / "alone").digest
    assert not list(tmp_path.rglob("*.flac")), "no recording was on the disk"
    for run, root, out in (
        (f"{url}/run", f"{url}/speech", f"{url}/codes"),
        (tmp_path / "alone", speech, tmp_path / "codes"),
    ):
        flags = ["--what", "context", "--min-seconds", "8", "--part-hours", "0.004"]
        assert extract.main(["--run", str(run), "--root", str(root), "--out", str(out), *flags]) == 0
    there = {path.removeprefix("lab/codes/"): fs.cat_file(path) for path in fs.find("lab/codes")}
    names = {file.name for file in (tmp_path / "codes").iterdir()} - {".lock"}
    assert there.keys() == names and json.loads(there["extract.json"])["complete"]
    for name in names - {"extract.json", "skipped.jsonl"}:
        assert there[name] == (tmp_path / "codes" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_with_a_run_in_a_store_that_are_killed_go_on_elsewhere(store, tmp_path, monkeypatch):
    """Each process has a disk of its own; parameters are cut into pieces that lie on both.

    The first life leaves nothing but what is in the store. A process that cannot fetch it ends both.
    """
    url, found = store
    fs = fsspec.filesystem(url.partition(":")[0], skip_instance_cache=True, use_listings_cache=False)
    overrides = {"data.root": str(tmp_path / "corpus"), "data.loader": "threads", "sharding.fsdp": "2"}
    overrides |= {"train.steps": "12", "train.checkpoint_every": "2", "train.log_every": "1", "train.log_rows": "true"}
    settings = environment(**found, JAX_PLATFORMS="cpu")

    def start(workdir, life):
        flags = [flag for flag in training("cpc.py:tiny", tmp_path, overrides)[3:] if "--workdir" not in flag]
        port, running = free_port(), []
        for number in range(2):
            join = [f"--workdir={workdir}", f"--distributed=127.0.0.1:{port},2,{number}"]
            place = settings | {"W2V_JAX_CACHE": str(tmp_path / f"{life}-{number}")}
            command = [sys.executable, "-c", UNHURRIED, *flags, *join]
            with open(tmp_path / f"{life}-{number}.log", "w") as said:
                running.append(subprocess.Popen(command, env=place, stderr=said))
        return running

    def codes(running):
        return [process.wait() for process in running]

    assert codes(start(tmp_path / "alone", "alone")) == [0, 0]
    running = start(f"{url}/run", "first")
    while newest_sealed(fs) < 4:
        assert running[0].poll() is running[1].poll() is None
        time.sleep(0.05)
    for process in running:
        process.kill()
    codes(running)
    there = newest_sealed(fs)
    assert there < 12
    (tmp_path / "full-1").write_text("no folder")
    assert codes(start(f"{url}/run", "full")) == [1, 1]
    for number in range(2):
        said = (tmp_path / f"full-{number}.log").read_text()
        assert re.search(r"error: .*/full-1/runs-1/run-\w+: cannot be written \(Not a directory\)", said), said
    assert codes(start(f"{url}/run", "second")) == [0, 0]
    rows = {name: fs.cat_file(f"lab/run/{name}").decode() for name in ("metrics.jsonl", "rows.jsonl", "rows-1.jsonl")}
    alone = {name: (tmp_path / "alone" / name).read_text() for name in rows}
    assert losses(rows["metrics.jsonl"]) == losses(alone["metrics.jsonl"])
    for name in ("rows.jsonl", "rows-1.jsonl"):
        assert rows[name].splitlines()[there - 12 :] == alone[name].splitlines()[there - 12 :]
    assert json.loads(fs.cat_file("lab/run/done.json"))["step"] == 12 and not fs.exists("lab/run/.lock")
    monkeypatch.setenv("W2V_JAX_CACHE", str(tmp_path / "reader"))
    assert open_run(f"{url}/run").digest == open_run(tmp_path / "alone").digest
