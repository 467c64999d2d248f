"""Several processes of one command: how they join, wait for each other, and tell each other what one of them knows.

Each process runs the same program (jax.distributed). A function here that speaks to the others must be called in all
of them, in the same order. With one process nothing is said, and nothing waits.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from w2v_jax.core.cli import UserError

T = TypeVar("T")
LOST = 30
"""Seconds without a sign of life after which a process is lost, and ends the others."""
LINGER = 5.0
"""Seconds for which process 0, on which the others depend, stays after an error, so that they can say theirs."""
FLAG = "--distributed"
METAVAR = "HOST:PORT,COUNT,NUMBER"
HELP = (
    "join the other processes of this command: alone on a TPU pod, SLURM or MPI, which say who they are; elsewhere the "
    "address of process 0, how many there are, and which one this is"
)
MESSAGE_BYTES = 1 << 26
"""What a process sends at once of a large array."""


def add_distributed_argument(parser: Any) -> None:
    """Adds --distributed to a command; `joined_processes` reads it."""
    parser.add_argument(FLAG, nargs="?", const="auto", metavar=METAVAR, help=HELP)


@contextlib.contextmanager
def joined_processes(others: str | None) -> Iterator[None]:
    """Joins the other processes for the work of a command. Raises UserError where they cannot be joined.

    others: "auto", HOST:PORT,COUNT,NUMBER, or None for none. A process that ends by an error says so, and does not wait
    at its end for the others, which might wait for it: they notice that it is gone. One that cannot go on because
    another is lost waits, as JAX does, until that one is named.
    """
    if others is None:
        yield
        return
    _join(others)
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise
    except BaseException as error:
        atexit.register(_leave, 130 if isinstance(error, KeyboardInterrupt) else 1)  # before JAX's, which waits
        raise
    wait_for_all()  # one that has more to finish must not find the others gone


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        time.sleep(LINGER)
    os._exit(code)


def _join(others: str) -> None:
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
    return _shared(*_tried(make if is_first() else _nothing))[0]


def take_turns(do: Callable[[], T], *, last: bool = False) -> T:
    """`do()` of each process: of the first one, and when that is done, of all others.

    last: the first one is the last. An error of one process is raised in all, and whose turn is later does nothing.
    """
    results = []
    for turn in (True, False):
        result, mistake = _tried(do if (is_first() != last) == turn else _nothing)
        _shared(None, mistake)
        results.append(result)
    return results[is_first() == last]


def _nothing() -> None:
    return None


def _tried(do: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return do(), None
    except Exception as error:  # of any kind: the others are told, and it is raised there
        return None, error


def _shared(value: Any, mistake: Exception | None) -> list[Any]:
    """The `value` of each process. An error of one is raised in all, as a UserError in the others."""
    everyone = gather_from_all([value, None if mistake is None else str(mistake) or type(mistake).__name__])
    for number, (_, text) in enumerate(everyone):
        if text is not None:
            raise mistake or UserError(f"process {number}: {text}" if number else text)
    return [value for value, _ in everyone]


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
