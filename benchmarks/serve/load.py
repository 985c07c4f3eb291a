"""Clients in a process of their own: keep-alive connections that ask one question again and again.

    python -m benchmarks.serve.load < order.json     # how benchmarks.serve calls it

Raw asyncio streams and nothing imported: the client shares the cores with the server. What it costs is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

TIMING = re.compile(rb'"timings_ms":\{"decode":([\d.]+),"queue":([\d.]+),"inference":([\d.]+)')


@dataclass(frozen=True)
class Order:
    """What to send where: ``rate`` requests a second, or with 0 each of ``clients`` as soon as it has its answer."""

    port: int
    path: str
    content_type: str
    body: str
    """A file."""
    clients: int
    seconds: float
    rate: float = 0.0


@dataclass
class Report:
    """What came of it, times in seconds. ``answers`` are (status, latency); status 0 is a connection that broke."""

    answers: list[tuple[int, float]] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    inference: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    unsent: int = 0


class Connection:
    """One keep-alive connection."""

    def __init__(self, order: Order, request: bytes, report: Report) -> None:
        self._order, self._request, self._report = order, request, report
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> None:
        self._streams = await asyncio.open_connection("127.0.0.1", self._order.port)

    async def ask(self) -> None:
        """Send the request once and note what came back."""
        began = time.perf_counter()
        try:
            if self._streams is None or self._streams[0].at_eof():  # a server may close what is idle
                await self.open()
            assert self._streams is not None
            reader, writer = self._streams
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            content = await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            self._streams = None
            self._report.answers.append((0, time.perf_counter() - began))
            return
        if b"connection: close" in head:
            writer.close()
            self._streams = None
        self._report.answers.append((int(head[9:12]), time.perf_counter() - began))
        if found := TIMING.search(content):
            self._report.decode.append(float(found[1]) / 1000)
            self._report.inference.append(float(found[3]) / 1000)


async def run(order: Order) -> Report:
    """Carry out ``order``; connections are opened before the clock starts."""
    body = Path(order.body).read_bytes()
    head = f"POST {order.path} HTTP/1.1\r\nHost: x\r\nContent-Type: {order.content_type}\r\nContent-Length: {len(body)}"
    report = Report()
    connections = [Connection(order, head.encode() + b"\r\n\r\n" + body, report) for _ in range(order.clients)]
    for connection in connections:
        await connection.open()
    began, cpu = time.perf_counter(), time.process_time()
    if order.rate:
        await _at_a_rate(order, connections, report)
    else:
        await asyncio.gather(*(_one_after_another(connection, began + order.seconds) for connection in connections))
    report.seconds, report.cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    return report


async def _one_after_another(connection: Connection, end: float) -> None:
    while time.perf_counter() < end:
        await connection.ask()


async def _at_a_rate(order: Order, connections: list[Connection], report: Report) -> None:
    """Send on time, whatever the answers; what no connection is free for counts as unsent."""
    free, running = list(connections), set()
    began, sent = time.perf_counter(), 0

    async def one(connection: Connection) -> None:
        await connection.ask()
        free.append(connection)

    while (passed := time.perf_counter() - began) < order.seconds:
        while sent < passed * order.rate:
            sent += 1
            if free:
                task = asyncio.create_task(one(free.pop()))
                running.add(task)
                task.add_done_callback(running.discard)
            else:
                report.unsent += 1
        await asyncio.sleep(0.005)
    await asyncio.gather(*running)


def main() -> None:
    """Read an order, print a report."""
    argparse.ArgumentParser(description=__doc__).parse_args()  # for --help
    json.dump(asdict(asyncio.run(run(Order(**json.load(sys.stdin))))), sys.stdout)


if __name__ == "__main__":
    main()
