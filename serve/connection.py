"""One request for inference from its acceptance to its answer: room, a client that leaves, a server that stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from serve.body import LimitedBody
from serve.errors import RequestError
from serve.service import Service

T = TypeVar("T")


@asynccontextmanager
async def accepted(service: Service, request: Request) -> AsyncIterator[None]:
    """Count a request as accepted until its answer is made; a server that stops waits for it.

    Raises:
        DrainingError, QueueFullError: it would be refused after its body anyway; the body is not looked at.
    """
    try:
        service.require_room()
    except RequestError as error:
        body = LimitedBody(request, service.settings, service.bodies)
        await body.discard()
        error.close = error.close or not body.complete
        raise
    with service.accepted():
        try:
            yield
        except asyncio.CancelledError:  # a server that waits no longer cancels what it has not answered
            service.require_open()
            raise


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await ``work``; ClientDisconnect if the client of a request, whose body was read, leaves before."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
