"""uvicorn, and how it stops: SIGTERM makes the server refuse new requests (503), answer the accepted ones, and exit.

uvicorn by itself closes the listening socket first, so that new requests meet a refused connection. Here it stays open
while accepted requests are being answered, idle connections are closed, and then uvicorn's own shutdown follows. A
second signal, or SIGINT, stops at once what is left to uvicorn: it waits ``GRACE_S`` for open connections.

uvicorn by itself waits without end for the headers of a request that was begun, or of a connection's first. Here those
that do not come close the connection, and sooner where they are many: silence keeps nobody else out.
"""

from __future__ import annotations

import logging
import signal
import time
from socket import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from serve.process import settle
from serve.service import Service
from serve.settings import Settings

log = logging.getLogger("serve")

TICKS = 5  # of uvicorn's, ten a second, from one look at silent connections to the next
OTHER: Any = object()  # a connection that is not HTTP

KEEP_ALIVE_S = 5  # without a request
HEADERS_S = 10  # for a request's headers, from the connection's beginning or its last answer's end
CROWDED_S = 3  # the same while more than half of all allowed connections are open; clients give idle ones up after 2
GRACE_S = 5  # beyond the deadline, and for answers on their way when everything accepted has been answered


def patience_s(settings: Settings) -> float:
    """Seconds after SIGTERM within which every accepted request is answered, and the process has ended."""
    return settings.body_timeout_s + settings.deadline_s + 2 * GRACE_S


class Server(uvicorn.Server):
    """Serves ``app`` on ``host`` and ``port`` and drains ``service`` on SIGTERM."""

    def __init__(self, app: FastAPI, service: Service, settings: Settings, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                log_config=None,  # its lines go where all others go
                log_level="warning",
                access_log=False,  # serve.observe says more
                server_header=False,
                limit_concurrency=settings.max_connections,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._service = service
        self._patience_s = patience_s(settings) - GRACE_S  # the rest is uvicorn's
        self._told: float | None = None  # when to stop
        self._closed_idle = False
        self._max_connections = settings.max_connections
        self._silent: dict[Any, tuple[Any, float]] = {}  # of each connection its last request, and since when

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """As uvicorn's; everything is loaded by now."""
        settle()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What uvicorn makes the handler of SIGTERM and SIGINT."""
        if sig == signal.SIGTERM and self._told is None:
            self._service.drain()
            self._told = time.monotonic()
        else:
            super().handle_exit(sig, frame)

    def _close_silent(self) -> None:
        """Close connections that have owed a request's headers for too long."""
        now, connections = time.monotonic(), self.server_state.connections
        patience = CROWDED_S if 2 * len(connections) > self._max_connections else HEADERS_S
        silent: dict[Any, tuple[Any, float]] = {}
        for connection in list(connections):
            last = getattr(connection, "cycle", OTHER)
            if last is not OTHER and (last is None or last.response_complete):
                before, since = self._silent.get(connection, (last, now))
                silent[connection] = (last, since if before is last else now)
                if now - silent[connection][1] > patience:
                    connection.shutdown()
        self._silent = silent

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; a true answer begins its shutdown."""
        if await super().on_tick(counter):
            return True
        if counter % TICKS == 0:
            self._close_silent()
        if self._told is None:
            return False
        if not self._closed_idle:  # not in the signal handler: what has arrived by then is read and answered
            self._closed_idle = True
            for connection in list(self.server_state.connections):
                if getattr(connection, "cycle", None) is not None:  # without any request yet it is about to send one
                    connection.shutdown()  # at once if it is idle, else after its answer
        late = time.monotonic() - self._told > self._patience_s
        if late:
            log.error("%d requests are still being answered; the server stops without them", self._service.active)
        return late or self._service.active == 0
