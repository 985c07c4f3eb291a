"""A request's body as it arrives: bounded in bytes, in time, and together with the bodies of all other requests."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from starlette.requests import Request
from starlette.types import Message

from serve.errors import BodyTimeoutError, BodyTooLargeError, QueueFullError
from serve.settings import MIB, Settings

# How long, and how much of, a refused body is read and thrown away.
DISCARD_S = 10.0
DISCARD_BYTES = 256 * MIB


class Budget:
    """Bytes of all the bodies that are being received or wait to be decoded; one alone is taken however large."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held = 0  # touched on the event loop only

    def take(self, count: int, own: int) -> None:
        """Add ``count`` bytes to a body that has ``own`` already; QueueFullError if others leave no room."""
        if self.held > own and self.held + count > self.max_bytes:
            raise QueueFullError("Too many requests are being received; try again later.", retry_after=1)
        self.held += count


class LimitedBody:
    """A request's ``receive`` that passes on so many bytes, until so late, and while the budget has room for them."""

    def __init__(self, request: Request, settings: Settings, budget: Budget) -> None:
        self._receive = request.receive
        self._max_bytes = settings.max_request_bytes
        self._timeout_s = settings.body_timeout_s
        self._deadline = asyncio.get_running_loop().time() + settings.body_timeout_s
        self._budget = budget
        self._declared = int(request.headers.get("content-length", "0"))
        self._asked_first = request.headers.get("expect", "").lower() == "100-continue"
        self._received = 0
        self._held = 0
        self._more = True
        self._late = False
        self.arrived = time.monotonic()
        """When the last piece so far came, of ``time.monotonic``."""

    @property
    def complete(self) -> bool:
        """Whether nothing more is to come."""
        return not self._more

    async def receive(self) -> Message:
        """Pass on a piece of the body.

        Raises:
            BodyTooLargeError: the whole is, or says that it is, larger than allowed.
            BodyTimeoutError: it has not arrived in time.
            QueueFullError: with the bodies of other requests it is more than the server holds.
        """
        if self._declared <= self._max_bytes:
            message = await self._in_time()
            if self._received <= self._max_bytes:
                count = len(message.get("body", b""))
                self._budget.take(count, self._held)
                self._held += count
                return message
        raise BodyTooLargeError(
            f"The request has more than the {self._max_bytes} bytes allowed here; send fewer at a time."
        )

    def release(self) -> None:
        """Say that the body is no longer held in memory."""
        self._budget.held -= self._held
        self._held = 0

    async def discard(self) -> None:
        """Throw the rest away, within limits: a client that is still sending could not read why it was refused.

        One that waits for permission to send (``Expect: 100-continue``) is not told to; one that was late is not
        waited for again.
        """
        if self._late or (self._asked_first and not self._received):
            return
        most = self._received + DISCARD_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(min(DISCARD_S, self._timeout_s)):
                while self._more and self._received < most:
                    await self._next()

    async def _in_time(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._next()
        except TimeoutError:
            self._late = True
            raise BodyTimeoutError(
                f"The body did not arrive within {self._timeout_s:g} seconds; send less at a time."
            ) from None

    async def _next(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self._more = bool(message.get("more_body", False))
        self.arrived = time.monotonic()
        return message
