"""What a serving process asks of Python's garbage collector and of OpenMP.

Libraries and models are some hundred thousand objects that live as long as the process. A full collection looks at
each of them with Python's lock held, in the middle of requests; frozen objects are left out of it.

A thread of OpenMP that waits for the next piece of work spins at first, for milliseconds by default. These are taken
from the threads that decode images; asleep at once, it would be woken for every layer.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

# Objects made since, at which a collection follows (Python's own: 700): a server's requests leave none in cycles.
THRESHOLDS = (20_000, 20, 20)
SPINS = "1000"  # some ten microseconds: the time between two layers, and little of that between two batches


def spin_briefly() -> None:
    """Let OpenMP's threads (GNU's, which torch brings on Linux) spin briefly; call it before torch is imported.

    Whoever set ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` keeps it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def in_passing_thread(work: Callable[[], T]) -> T:
    """``work()``, in a thread that ends with it and that an interrupted process does not wait for.

    OpenMP keeps helpers for every thread that has ever computed, and where they are more than the cores, each of its
    barriers goes through the kernel.
    """
    done: Future[T] = Future()

    def carry_out() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    Thread(target=carry_out, name="load", daemon=True).start()
    return done.result()


def settle() -> None:
    """Take what lives now for permanent, after a last look for what does not: call it when models came or went."""
    gc.unfreeze()  # of a model that went, what only a collection finds may be among the frozen
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
