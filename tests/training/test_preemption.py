"""Being told that the machine is about to be taken away."""

from __future__ import annotations

import os
import signal
import threading

from w2v_jax.training.preemption import Preemption


def test_sigterm_sets_a_flag_and_leaves_the_handler_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(2) and preemption.reached(3)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_beside_the_main_one_leaves_the_handler_alone():
    """Only the main thread may set one; a training in another thread is not told, and runs."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with Preemption() as preemption:
            seen.append((preemption.reached(1), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
