"""The folder of a run: who may write in it, and whether it belongs to this config and this data."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from w2v_jax.config import UserError, difference, flatten, from_json, to_json
from w2v_jax.report import write_whole

HARDWARE = (
    "data.root",  # may move; what it holds is checked by `check_data`
    "data.eval_root",
    "data.loader",
    "data.workers",
    "data.device_seconds",
    "encoder.attention",
    "encoder.convolution",
    "encoder.positional",
    "encoder.remat_frontend",
    "encoder.remat_layers",
    "encoder.stack",
    "probe.every",
    "probe.root",
    "probe.test_root",
    "probe.label",
    "probe.hours",
    "sharding.data",
    "sharding.fsdp",
    "sharding.tensor",
    "sharding.slices",
    "train.log_every",
    "train.log_rows",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_latest",
    "train.keep_best",
    "train.watchdog",
    "train.compile_cache",
    "train.on_config_change",
)
"""Keys that may differ when a run goes on: they change where and how fast it runs, not what it computes."""
NEWER = ("init.run", "init.step", "init.fresh")
"""Keys that runs of older versions lack, and that are of no account once a run goes on."""


@contextlib.contextmanager
def open_workdir(path: pathlib.Path, config: Any, *, active: bool) -> Iterator[None]:
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
        write_whole(path / "config.json", to_json(config) + "\n")
        yield


@contextlib.contextmanager
def locked(path: pathlib.Path, what: str = "run", flag: str = "--workdir") -> Iterator[None]:
    """Makes the folder and keeps it for this process; UserError while another process has it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be written: {error}") from None
    with lock:
        _lock(lock, f"another {what} is using {path}; wait for it, stop it, or choose another {flag}")
        yield


def _lock(lock: Any, taken: str) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(taken) from None
    except OSError:  # a file system without locks
        return


def _check_config(file: pathlib.Path, config: Any) -> None:
    if not file.exists() or not any((file.parent / "checkpoints").glob("[0-9]*")):
        return  # nothing to go on from, e.g. a start that failed on a mistake in the config
    try:
        before = from_json(file.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{file} is not readable as JSON; put it right, or choose another --workdir") from None
    free = HARDWARE + tuple(key for key in NEWER if key not in flatten(before))
    changed = [line for line in difference(before, config) if line.split(":")[0] not in free]
    if changed and config.train.on_config_change == "refuse":
        lines = "\n  ".join(changed)
        raise UserError(
            f"{file.parent} was made with another config:\n  {lines}\nChoose another --workdir, or go on with the "
            "new values by --config.train.on_config_change=accept"
        )


def check_data(path: pathlib.Path, config: Any, prints: dict[str, Any]) -> None:
    """Compares what the data hold now with data.json of the workdir; `prints` are fingerprints, rows and hours.

    A resumed run reads exactly the rows that the first one would have read, so other data are a UserError unless
    config.train.on_config_change is "accept".
    """
    file = path / "data.json"
    if file.exists() and config.train.on_config_change == "refuse":
        before = json.loads(file.read_text(encoding="utf-8"))
        if before != prints:
            lines = "\n  ".join(
                f"{k}: {before.get(k)} -> {prints.get(k)}" for k in prints if before.get(k) != prints.get(k)
            )
            raise UserError(
                f"the data are not those that {path} was started with:\n  {lines}\nPut the recordings back, choose "
                "another --workdir, or go on with the new data by --config.train.on_config_change=accept"
            )
    write_whole(file, json.dumps(prints, indent=2) + "\n")
