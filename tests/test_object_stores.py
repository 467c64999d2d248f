"""Runs in the folders of object stores: the real protocols, by servers on this machine."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import fsspec
import pytest
from commands import environment, free_port, training

SERVERS = {
    "s3": "import sys, moto.server; moto.server.main(['-H', '127.0.0.1', '-p', sys.argv[1]])",
    "gs": "import sys, time; from gcp_storage_emulator.server import create_server; "
    "server = create_server('127.0.0.1', int(sys.argv[1]), in_memory=True, default_bucket='lab'); server.run()",
}
"""The programs of the servers; the argument is a port."""


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
    program = [sys.executable, "-W", "ignore", "-c", SERVERS[scheme], str(port)]
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
    yield f"{scheme}://lab", found
    server.terminate()
    server.wait()


def losses(lines) -> dict[int, float]:
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row["loss"] for row in rows if row["split"] == "train"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_in_a_store_is_killed_twice_and_ends_with_the_losses_of_one_on_a_disk(
    store, tiny_run, tiny_corpus, tmp_path
):
    """The second life is on another machine: it has the store alone. Then the run is read from there."""
    url, found = store
    overrides = {"data.root": tiny_corpus, "data.loader": "threads", "train.steps": "12", "optim.warmup": "1"}
    overrides |= {"train.checkpoint_every": "2", "train.log_every": "1"}
    settings = environment(**found, W2V_JAX_CACHE=str(tmp_path / "cache"))
    fs = fsspec.filesystem(url.partition(":")[0], skip_instance_cache=True, use_listings_cache=False)
    program = "from w2v_jax.core import storage; storage.EVERY, storage.LEASE = 0.2, 6.0; "
    program += "from w2v_jax.train import main; import sys; sys.exit(main(sys.argv[1:]))"
    command = training("w2v2_base.py:tiny", pathlib.Path("run"), {k: str(v) for k, v in overrides.items()})
    command = [sys.executable, "-c", program, *(f"--workdir={url}/run" if "--workdir" in x else x for x in command[3:])]
    for step in (2, 6):
        process = subprocess.Popen(command, env=settings)
        while not fs.exists(f"lab/run/checkpoints/{step}/crc32.json"):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        settings["W2V_JAX_CACHE"] = str(tmp_path / f"cache after {step}")
    assert subprocess.run(command, env=settings).returncode == 0
    there = losses(fs.cat_file("lab/run/metrics.jsonl").decode().splitlines())
    alone = tiny_run(train__steps=12, train__checkpoint_every=2, train__log_every=1)
    assert there == losses((alone / "metrics.jsonl").read_text().splitlines())
    assert json.loads(fs.cat_file("lab/run/done.json"))["step"] == 12
    assert not fs.exists("lab/run/.lock")
    os.environ["W2V_JAX_CACHE"] = str(tmp_path / "reader")
    import w2v_jax

    assert w2v_jax.load(f"{url}/run").run.digest == w2v_jax.load(alone).run.digest
