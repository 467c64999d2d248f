"""Laws of several processes: how they are told who they are; alone, nothing is said and nothing waits.

`tests/test_processes.py` starts several.
"""

from __future__ import annotations

import argparse
import socket

import jax
import numpy as np
import pytest

from w2v_jax.core import distributed
from w2v_jax.core.cli import UserError


def test_alone_a_process_hears_what_it_says():
    assert distributed.is_first() and distributed.gather_from_all([1, "a"]) == [[1, "a"]]
    assert distributed.broadcast_from_first(lambda: 3) == 3
    with pytest.raises(UserError, match="no"):
        distributed.broadcast_from_first(lambda: (_ for _ in ()).throw(UserError("no")))
    distributed.wait_for_all()
    with distributed.joined_processes(None):
        pass
    rows = np.arange(6.0)
    distributed.share_rows(rows, [0, 6])
    assert rows.tolist() == [0, 1, 2, 3, 4, 5]


class Others:
    """Stands for the network of P processes: what each of them sends, in turn, is known beforehand."""

    def __init__(self, monkeypatch, own: int, sent: list[np.ndarray]):
        self.sent = iter(sent)
        monkeypatch.setattr(jax, "process_count", lambda: 3)
        monkeypatch.setattr(jax, "process_index", lambda: own)
        monkeypatch.setattr(distributed, "_gathered", self.gathered)

    def gathered(self, x):
        every = next(self.sent)
        np.testing.assert_array_equal(x, every[jax.process_index()])
        return every


@pytest.mark.parametrize("own", [0, 1, 2])
def test_rows_of_all_processes_are_put_together_in_messages_of_bounded_size(monkeypatch, own):
    """Rows 0 to 3 are of process 0, none of process 1, 3 to 8 of process 2; a message has two rows."""
    whole, bounds = np.arange(16, dtype=np.float32).reshape(8, 2) + 1, [0, 3, 3, 8]
    messages = np.zeros((3, 3, 2, 2), np.float32)  # [message, process, row, number]
    messages[0, 0], messages[1, 0, 0] = whole[:2], whole[2]
    messages[0, 2], messages[1, 2], messages[2, 2, 0] = whole[3:5], whole[5:7], whole[7]
    monkeypatch.setattr(distributed, "MESSAGE_BYTES", 16)
    Others(monkeypatch, own, list(messages))
    x = np.zeros((8, 2), np.float32)
    x[bounds[own] : bounds[own + 1]] = whole[bounds[own] : bounds[own + 1]]
    distributed.share_rows(x, bounds)
    np.testing.assert_array_equal(x, whole)


@pytest.mark.parametrize("own", [0, 1])
def test_what_is_said_may_have_any_length_and_a_mistake_of_the_first_is_one_of_all(monkeypatch, own):
    texts = [b'["a", null]', b"[null, null]", b"[null, null]"]
    padded = np.array([list(text.ljust(12, b"\0")) for text in texts], np.uint8)
    Others(monkeypatch, own, [np.array([[11], [12], [12]], np.int32), padded])
    assert distributed.broadcast_from_first(lambda: "a") == "a"
    texts = [b'[null, "no"]', b"[null, null]", b"[null, null]"]
    Others(monkeypatch, own, [np.full((3, 1), 12, np.int32), np.array([list(text) for text in texts], np.uint8)])
    with pytest.raises(UserError, match="no"):
        distributed.broadcast_from_first(lambda: (_ for _ in ()).throw(UserError("no")))


@pytest.mark.parametrize("own, raised", [(0, OSError), (1, UserError)])
def test_no_process_waits_for_the_first_after_an_error_of_any_kind(monkeypatch, own, raised):
    texts = [b'[null, "no"]', b"[null, null]", b"[null, null]"]
    messages = [np.full((3, 1), 12, np.int32), np.array([list(text) for text in texts], np.uint8)]
    others = Others(monkeypatch, own, messages)
    with pytest.raises(raised, match="no"):
        distributed.broadcast_from_first(lambda: (_ for _ in ()).throw(OSError("no")))
    assert not list(others.sent)


def test_a_port_in_use_is_named_by_process_0():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=r"process 0 cannot listen there \(Address already in use\)"):
            distributed.process_of(f"localhost:{port},2,0")
        assert distributed.process_of(f"[::1]:{port},2,1") == dict(
            coordinator_address=f"[::1]:{port}", num_processes=2, process_id=1
        )


def test_the_flag_is_that_of_every_command():
    parser = argparse.ArgumentParser()
    distributed.add_distributed_argument(parser)
    found = [parser.parse_args(argv).distributed for argv in ([], ["--distributed"], ["--distributed=a:1,2,0"])]
    assert found == [None, "auto", "a:1,2,0"]


def test_a_process_that_cannot_go_on_says_which_it_is_and_what_to_do():
    text = distributed.cannot_go_on(RuntimeError("connection reset\nat line 3"), "Give it again")
    assert text.startswith("process 0 of 1 cannot go on: connection reset. Where another process was lost, ")
    assert text.endswith("within 30 s; the leader is process 0. Give it again")


@pytest.mark.parametrize("own", [0, 1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_processes_that_take_turns_wait_for_each_other_and_a_mistake_of_one_is_one_of_all(monkeypatch, own, last):
    """Process 1 fails. The first process does nothing where its turn is the last."""
    order = []

    def do():
        order.append("done")
        if own == 1:
            raise UserError("its disk is full")
        return own

    def messages(*texts):
        size = max(map(len, texts))
        sizes = np.array([[len(text)] for text in texts], np.int32)
        return [sizes, np.array([list(text.ljust(size, b"\0")) for text in texts], np.uint8)]

    none, failed = b"[null, null]", b'[null, "its disk is full"]'
    network = Others(monkeypatch, own, [*([] if last else messages(none, none, none)), *messages(none, failed, none)])
    with pytest.raises(UserError, match="^its disk is full$" if own == 1 else "^process 1: its disk is full$"):
        distributed.take_turns(do, last=last)
    assert order == ([] if own == 0 and last else ["done"]) and not list(network.sent)
