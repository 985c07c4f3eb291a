"""One inference thread per model behind a queue bounded in pixels: the seam that a batcher replaces.

A request is admitted BEFORE its images are decoded, so that the bound holds for what is being decoded as well. What
is given up on (client gone, deadline passed) lets go of its images at once and is skipped when its turn comes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve.errors import QueueFullError

T = TypeVar("T")

MAX_RETRY_AFTER_S = 60
FORGETTING = 0.2  # weight of the newest request in the running average of the speed


@dataclass(frozen=True)
class Ran(Generic[T]):
    """What a call returned, the seconds it waited for its turn and the seconds it took."""

    value: T
    queue_s: float
    inference_s: float


class Worker:
    """Runs calls one after another on a thread of its own.

    Args:
        name: of the model, for the thread's name.
        max_pixels: how many pixels may be admitted at a time; one request alone is admitted however large.
    """

    def __init__(self, name: str, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self.admitted_pixels = 0  # touched on the event loop only
        self.skipped = 0
        self._seconds_per_pixel = 0.0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"inference-{name}")

    @contextmanager
    def admit(self, pixels: int) -> Iterator[None]:
        """Hold a place for ``pixels`` in the queue.

        Raises:
            QueueFullError: no room; it says when there may be.
        """
        if self.admitted_pixels and self.admitted_pixels + pixels > self.max_pixels:
            raise QueueFullError(
                "Too much is waiting for this model already; try again later.", retry_after=self._retry_after()
            )
        self.admitted_pixels += pixels
        try:
            yield
        finally:
            self.admitted_pixels -= pixels

    async def run(self, call: Callable[[], T], *, pixels: int = 0) -> Ran[T]:
        """Await ``call()`` on the inference thread; cancelling the await drops a call that has not begun."""
        submitted = time.perf_counter()
        pending: list[Callable[[], T]] = [call]

        def execute() -> Ran[T]:
            started = time.perf_counter()
            return Ran(pending[0](), started - submitted, time.perf_counter() - started)

        future = self._thread.submit(execute)
        try:
            ran = await asyncio.wrap_future(future)
        finally:
            pending.clear()  # the executor keeps a cancelled call until its turn; its images must not wait with it
            self.skipped += future.cancelled()
        if pixels:
            speed = ran.inference_s / pixels
            self._seconds_per_pixel += FORGETTING * (speed - self._seconds_per_pixel)
        return ran

    def close(self) -> None:
        """Finish what has begun and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _retry_after(self) -> int:
        seconds = math.ceil(self.admitted_pixels * self._seconds_per_pixel)
        return min(max(1, seconds), MAX_RETRY_AFTER_S)
