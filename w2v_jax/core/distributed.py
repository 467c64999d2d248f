"""Several processes of one command: how they join, wait for each other, and tell each other what one of them knows.

Each process runs the same program (jax.distributed). A function here that speaks to the others must be called in all
of them, in the same order. With one process nothing is said, and nothing waits.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from w2v_jax.core.cli import UserError

LOST = 30
"""Seconds without a sign of life after which a process is lost, and ends the others."""
FLAG = "--distributed"
METAVAR = "HOST:PORT,COUNT,NUMBER"
HELP = (
    "join the other processes of this command: alone on a TPU pod, SLURM or MPI, which say who they are; elsewhere the "
    "address of process 0, how many there are, and which one this is"
)
MESSAGE_BYTES = 1 << 26
"""What a process sends at once of a large array."""


def add_distributed_argument(parser: Any) -> None:
    """Adds --distributed to a command; `join_processes` reads it."""
    parser.add_argument(FLAG, nargs="?", const="auto", metavar=METAVAR, help=HELP)


def join_processes(others: str | None) -> None:
    """Joins the other processes. others: "auto", HOST:PORT,COUNT,NUMBER, or None for none. Raises UserError."""
    if others is None:
        return
    part = {} if others == "auto" else process_of(others)
    try:
        jax.distributed.initialize(**part, heartbeat_timeout_seconds=LOST)
    except Exception as error:  # environments and networks fail with errors that have no common type
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        if part:
            raise UserError(f"{FLAG}={others}: the processes cannot join: {reason}") from None
        raise UserError(
            f"{FLAG} without a value needs a TPU pod, SLURM or Open MPI ({reason}): leave it out on one machine, or "
            f"give {FLAG}={METAVAR}"
        ) from None


def process_of(text: str) -> dict[str, Any]:
    """The arguments of jax.distributed.initialize in HOST:PORT,COUNT,NUMBER. Raises UserError."""
    match = re.fullmatch(r"([^\s,/]+:([0-9]{1,9})),([0-9]{1,9}),([0-9]{1,9})", text)
    if not match:
        raise UserError(f"{FLAG}={text}: needs {METAVAR}, e.g. 10.0.0.1:1234,2,0")
    address, (port, count, number) = match[1], map(int, match.groups()[1:])
    if not 1 <= port <= 65535:
        raise UserError(f"{FLAG}={text}: PORT must be from 1 to 65535")
    if not number < count:
        raise UserError(f"{FLAG}={text}: NUMBER must be below COUNT: processes count from 0")
    if number == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        try:
            socket.create_server(("", port)).close()  # where JAX cannot listen, it ends the process without a word
        except OSError as error:
            raise UserError(f"{FLAG}={text}: process 0 cannot listen there ({os.strerror(error.errno or 0)})") from None
    return {"coordinator_address": address, "num_processes": count, "process_id": number}


def is_first() -> bool:
    """Whether this is the process that writes and prints for all."""
    return jax.process_index() == 0


def cannot_go_on(error: Exception, remedy: str) -> str:
    """What one of several processes says before it ends with an error of the device or the network."""
    reason = str(error).partition("\n")[0]
    return (
        f"process {jax.process_index()} of {jax.process_count()} cannot go on: {reason}. Where another process was "
        f"lost, its number (task) is named within {LOST} s; the leader is process 0. {remedy}"
    )


def gather_from_all(value: Any) -> list[Any]:
    """The `value` of each process, in their order; something that JSON can hold, and as JSON gives it back."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = _gathered(np.array([len(text)], np.int32))[:, 0]
    texts = _gathered(np.pad(text, (0, int(sizes.max()) - len(text))))
    return [json.loads(own[:size].tobytes()) for own, size in zip(texts, sizes, strict=True)]


def broadcast_from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns in the first process, in all of them.

    An error there is raised in all, as a UserError in the others, so that none waits for a process that has failed.
    """
    if jax.process_count() == 1:
        return make()
    value, failure = None, None
    if is_first():
        try:
            value = make()
        except Exception as error:  # of any kind: the others are told, and it is raised below
            failure = error
    mistake = None if failure is None else str(failure) or type(failure).__name__
    value, mistake = gather_from_all([value, mistake])[0]
    if failure is not None:
        raise failure
    if mistake is not None:
        raise UserError(mistake)
    return value


def wait_for_all() -> None:
    """Waits until every process is here."""
    gather_from_all(None)


def share_rows(x: np.ndarray, bounds: Sequence[int]) -> None:
    """Fills x [N ..] in all processes: process p has made the rows from bounds[p] up to bounds[p + 1].

    Of 32 bits or fewer a number, as JAX carries no more.
    """
    if jax.process_count() == 1 or not len(x):
        return
    first, end = bounds[jax.process_index()], bounds[jax.process_index() + 1]
    size = max(1, MESSAGE_BYTES // max(x[:1].nbytes, 1))
    for begin in range(0, max(np.diff(bounds)), size):
        piece = np.zeros((min(size, max(np.diff(bounds))), *x.shape[1:]), x.dtype)
        own = x[first:end][begin : begin + size]
        piece[: len(own)] = own
        for process, theirs in enumerate(_gathered(piece)):
            place = x[bounds[process] : bounds[process + 1]][begin : begin + size]
            place[:] = theirs[: len(place)]


def _gathered(x: np.ndarray) -> np.ndarray:
    """x [..] of each process, [P ..]."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x))
