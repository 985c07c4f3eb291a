"""How much may wait for one model: a bound in pixels, and in the time that the measured rate needs for them.

A request is admitted BEFORE its images are decoded, so that the bound holds for what is being decoded as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import QueueFullError

MAX_RETRY_AFTER_S = 60
MEMORY = 0.98  # what a finished request leaves of the weight of those before it: the rate is that of the last fifty
WAIT_SHARE = 0.5  # of the deadline may be spent waiting: what is accepted is to be answered in time at half the rate


class Admission:
    """Places in the queue of one model. Touched on the event loop only.

    Args:
        max_pixels: how many may be admitted at a time; one request alone is admitted however large.
        deadline_s: seconds that a request may take.
    """

    def __init__(self, max_pixels: int, deadline_s: float) -> None:
        self.max_pixels = max_pixels
        self.pixels = 0
        """Admitted now: being decoded, waiting or being computed."""
        self.refused = 0
        """Requests refused so far."""
        self._deadline_s = deadline_s
        self._last_end = 0.0
        self._seconds = self._done = 0.0  # of finished requests, the older the less

    @property
    def seconds_per_pixel(self) -> float:
        """As measured from one finished request to the next, decoding included; 0 before the first."""
        return self._seconds / self._done if self._done else 0.0

    @property
    def capacity(self) -> float:
        """Pixels that may be admitted together."""
        rate = self.seconds_per_pixel
        return min(self.max_pixels, WAIT_SHARE * self._deadline_s / rate) if rate else self.max_pixels

    @contextmanager
    def admit(self, pixels: int, *, measured: bool = True) -> Iterator[None]:
        """Hold a place for ``pixels``; ``measured`` says whether they are all the work of the request.

        Raises:
            QueueFullError: no room; it says when there may be.
        """
        if not self.room(pixels):
            raise self.refusal()
        self.pixels += pixels
        began = time.monotonic()
        try:
            yield
            if measured:
                self._measure(began, pixels)
        finally:
            self.pixels -= pixels

    def room(self, pixels: int) -> bool:
        """Whether ``pixels`` would be admitted now."""
        return not self.pixels or self.pixels + pixels <= self.capacity

    def refusal(self) -> QueueFullError:
        """Count a request as refused; the error says when what waits now will be done."""
        self.refused += 1
        seconds = math.ceil(self.pixels * self.seconds_per_pixel)
        return QueueFullError(
            "Too much is waiting for this model already; try again later.",
            retry_after=min(max(1, seconds), MAX_RETRY_AFTER_S),
        )

    def _measure(self, began: float, pixels: int) -> None:
        now = time.monotonic()
        self._seconds = MEMORY * self._seconds + now - max(began, self._last_end)
        self._done = MEMORY * self._done + pixels
        self._last_end = now
