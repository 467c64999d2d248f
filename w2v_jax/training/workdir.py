"""The folder of a run: who may write in it, and whether it belongs to this config and this data."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shlex
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jax

from w2v_jax.core import environment, storage
from w2v_jax.core.cli import UserError, warn, writing
from w2v_jax.core.config import Config, changed_keys, from_json, keys_of, run_json, setting
from w2v_jax.core.distributed import broadcast_from_first, take_turns
from w2v_jax.core.files import append_lines, locked_file, write_whole
from w2v_jax.core.stores import is_remote
from w2v_jax.core.text import json_object
from w2v_jax.training.checkpoint import SEAL, Weights, restore_params

HARDWARE = keys_of(
    # `check_data` checks what these places hold
    data="root eval_root corpora targets noise_root rooms_root loader workers device_seconds",
    acoustic="attention positional stack",
    encoder="attention convolution positional remat_frontend remat_layers stack",
    probe="every root test_root label hours",
    sharding="data fsdp tensor slices",
    train="log_every log_rows eval_every checkpoint_every keep_latest keep_best best patience watchdog "
    "compile_cache on_config_change",
)
"""Keys that may differ when a run goes on: they change where and how fast it runs, not what it computes."""

SEALS = storage.Seals("checkpoints", SEAL)


@contextlib.contextmanager
def local_workdir(name: str) -> Iterator[pathlib.Path]:
    """The folder that `--workdir` names or, for a URL, the local copy of it that is sent there. Raises UserError.

    Of several processes each has a copy of its own. That of process 0 is the run: it holds the lock, and sends all but
    what each of the others adds to its copy.
    """
    if not is_remote(name):
        yield pathlib.Path(name).absolute()
        return
    if jax.process_count() == 1:
        with storage.working_copy(name, SEALS) as path:
            yield path
        return
    token, process = broadcast_from_first(lambda: uuid.uuid4().hex), jax.process_index()
    if process == 0:
        copy = storage.working_copy(name, SEALS, token=token)
    else:
        copy = storage.further_copy(name, SEALS, token=token, process=process)
    with contextlib.ExitStack() as stack:
        yield take_turns(lambda: stack.enter_context(copy))
        take_turns(stack.close, last=True)


def run_folder(name: str | os.PathLike) -> pathlib.Path:
    """The folder of a run as a person names it; that at a URL is fetched first. Raises UserError."""
    return storage.fetched_path(name, SEALS)


@contextlib.contextmanager
def open_workdir(path: pathlib.Path, config: Config, *, active: bool) -> Iterator[None]:
    """Makes the folder, keeps a second run out of it, and writes config.json.

    Raises UserError with the difference when the folder was made with a config that computes something else,
    unless config.train.on_config_change is "accept". Only the `active` process writes.
    """
    if config.train.on_config_change not in ("refuse", "accept"):
        raise UserError(f"train.on_config_change={config.train.on_config_change!r}: it is 'refuse' or 'accept'")
    if not active:
        yield
        return
    with locked(path):
        _check_config(path / "config.json", config)
        write_whole(path / "config.json", run_json(config))
        yield


@contextlib.contextmanager
def locked(path: pathlib.Path, what: str = "run", flag: str = "--workdir") -> Iterator[None]:
    """Makes the folder and locks it. Raises UserError while another process holds the lock."""

    def refuse() -> None:
        raise UserError(f"another {what} is using {path}; wait for it, stop it, or choose another {flag}")

    with contextlib.ExitStack() as stack:
        with writing(f"{flag} {path}"):
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_file(path / ".lock", refuse))
        yield


def _check_config(file: pathlib.Path, config: Config) -> None:
    if not file.exists() or not has_checkpoint(file.parent):
        return  # nothing to go on from, e.g. a start that failed on a mistake in the config
    before = from_json(json.dumps(_read_json(file)))
    changed = [line for line in changed_keys(before, config) if line.split(":")[0] not in HARDWARE]
    if changed and config.train.on_config_change == "refuse":
        lines = "\n  ".join(changed)
        raise UserError(
            f"{file.parent} was made with another config:\n  {lines}\nChoose another --workdir, or go on with the "
            "new values by --config.train.on_config_change=accept"
        )


def _read_json(file: pathlib.Path, advice: str = "put it right, or choose another --workdir") -> dict[str, Any]:
    """The JSON object in a file of a run. Raises UserError with the advice."""
    content = json_object(file.read_bytes())
    if content is None:
        raise UserError(f"{file} is not readable as JSON; {advice}")
    return content


def has_checkpoint(path: pathlib.Path) -> bool:
    """Whether the folder of a run holds a checkpoint."""
    return any((path / "checkpoints").glob("[0-9]*"))


def read_weights(path: pathlib.Path, config: Config, step: int | str | None = None) -> Weights:
    """The weights of the run in the folder, which has this config.

    step: a number, "best" by `train.best`, "newest", or None: the best of a recogniser, the newest of others. A
    recogniser overfits long before its last update. Raises UserError.
    """
    recogniser = bool(setting(config, "data.labels"))
    return restore_params(path, step=step, best_metric=setting(config, "train.best"), prefer_best=recogniser)


ENVIRONMENT = "environment.jsonl"
"""The file of a run with one line for each of its starts."""


def record_start(path: pathlib.Path) -> None:
    """Appends to environment.jsonl when, by which command, with which versions and on what the run starts.

    A disk that refuses is a warning.
    """
    devices = jax.devices()
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(sys.orig_argv),
        "versions": {"w2v_jax": environment.VERSION} | environment.installed_versions(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
    }
    try:
        append_lines(path / ENVIRONMENT, [json.dumps(start)])
    except OSError as error:
        warn(f"{path / ENVIRONMENT} cannot be written: {error}")


def check_data(path: pathlib.Path, config: Config, prints: dict[str, Any]) -> None:
    """Compares the data as they are now with data.json of the workdir; `prints` are fingerprints, rows and hours.

    A resumed run reads exactly the rows that the first one would have read. Other data are therefore a UserError where
    there is a checkpoint, unless config.train.on_config_change is "accept".
    """
    file = path / "data.json"
    if file.exists() and has_checkpoint(path) and config.train.on_config_change == "refuse":
        if changed := changed_keys(_read_json(file), json.loads(json.dumps(prints))):
            lines = "\n  ".join(changed)
            raise UserError(
                f"the data are not those that {path} was started with:\n  {lines}\nPut the recordings back, choose "
                "another --workdir, or go on with the new data by --config.train.on_config_change=accept"
            )
    write_whole(file, json.dumps(prints, indent=2) + "\n")


def read_config(path: pathlib.Path) -> Config:
    """The config that a run was made with. Raises UserError where the folder is none of a run."""
    if not (path / "config.json").is_file():
        what = "is not the folder of a run: config.json is missing" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}; give the --workdir of a training")
    content = _read_json(path / "config.json", "put it right, or give another run")
    config = from_json(json.dumps(content))
    if "model_type" in config:
        raise UserError(
            f"{path} is a model of transformers; make it a run first: "
            f"python -m w2v_jax.convert --from {path} --to runs/imported"
        )
    if "method" not in config or "encoder" not in config:
        raise UserError(f"{path / 'config.json'} is not that of a run; give the --workdir of a training")
    return config
