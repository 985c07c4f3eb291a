"""What is measured: batcher against runtime, HTTP against what decoding and computing allow, overload, rivals.

Every comparison takes turns within one run, so that a neighbour on the machine slows both sides; medians are reported.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.serve.load import Order, Report
from benchmarks.serve.processes import answers, finish, memory, server, start_clients
from digpt.engine import Engine
from serve.batcher import Batcher
from serve.settings import Settings, cores

BATCHES = (1, 4, 8, 16, 32, 64)
WAITING = 128  # crops that wait for the batcher while its throughput is measured
LEVELS = (1, 8, 64)  # clients at a time
OVERLOAD = 5  # times the capacity
OVERLOAD_CONNECTIONS = 512
QUEUE = 128  # images that may wait meanwhile
ROUNDS = 5
TURNS = 3  # of the servers that are compared; 64 clients of a large model take a while
SERVERS = ("ours", "litserve", "naive")


@dataclass(frozen=True)
class Row:
    """One figure, and the bound it is held against (None: it is reported only)."""

    model: str
    what: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool | None:
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)


def photo(seed: int = 0, size: tuple[int, int] = (640, 480)) -> bytes:
    """A JPEG with the detail of a photograph: smooth shapes under some noise, about 100 KB."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse) + random.normal(0, 8, (size[1], size[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


class Bench:
    """Measures one model. ``engine`` is a copy in this process: the bare runtime, and the decoder."""

    def __init__(self, name: str, spec: str, backend: str | None, seconds: float) -> None:
        self.name, self.spec, self.backend, self.seconds = name, spec, backend, seconds
        self.engine = Engine.load(spec, backend)
        size = self.engine.info.preprocess.size
        self.crops = np.random.default_rng(0).integers(0, 256, (max(BATCHES), size, size, 3), dtype=np.uint8)
        self.best_batch = max(BATCHES, key=lambda batch: self.bare_rate(batch, self.seconds / 10))

    def bare_rate(self, batch: int, seconds: float) -> float:
        """Images a second of the runtime itself, called again and again with so many decoded crops."""
        crops = self.crops[:batch]
        self.engine.runtime.embed(crops)
        return batch * per_second(lambda: self.engine.runtime.embed(crops), seconds)

    def bare_latency(self, seconds: float) -> float:
        """Median seconds of the runtime itself for one decoded crop."""
        latencies: list[float] = []
        end = time.perf_counter() + seconds
        while not latencies or time.perf_counter() < end:
            began = time.perf_counter()
            self.engine.runtime.embed(self.crops[:1])
            latencies.append(time.perf_counter() - began)
        return statistics.median(latencies)

    def decode_rate(self, seconds: float) -> float:
        """Images a second that all cores together decode."""
        data = photo()
        with ThreadPoolExecutor(cores()) as pool:
            rates = pool.map(lambda _: per_second(lambda: self.engine.decode(data), seconds), range(cores()))
            return sum(rates)

    def batcher(self) -> list[Row]:
        """Decoded crops through the batcher against the bare runtime at its best batch."""
        batcher = Batcher(self.name, self.engine, Settings().max_batch)
        pairs = []
        for _ in range(ROUNDS):
            bare = self.bare_rate(self.best_batch, self.seconds / ROUNDS)
            pairs.append((bare, asyncio.run(self._through(batcher, self.seconds / ROUNDS))))
        batcher.close()
        share = statistics.median(ours / bare for bare, ours in pairs)
        return [
            Row(
                self.name, f"bare runtime, batch {self.best_batch}", statistics.median(bare for bare, _ in pairs), "/s"
            ),
            Row(self.name, "through the batcher", statistics.median(ours for _, ours in pairs), "/s"),
            Row(self.name, "batcher / bare runtime", share, "", least=0.95),
        ]

    async def _through(self, batcher: Batcher, seconds: float) -> float:
        """Images a second when as many single crops wait as requests of a busy server would bring."""
        done, began = 0, time.perf_counter()
        end = began + seconds

        async def client(index: int) -> None:
            nonlocal done
            crop = self.crops[index % len(self.crops)]
            while time.perf_counter() < end:
                await asyncio.wrap_future(batcher.submit("embed", [crop]))
                done += 1

        await asyncio.gather(*(client(index) for index in range(WAITING)))
        return done / (time.perf_counter() - began)

    def idle(self) -> list[Row]:
        """What one client waits beyond decoding and the runtime."""
        added, outside = [], []
        with server("ours", self.spec, self.backend) as (port, _), body_file(photo()) as body:
            for _ in range(ROUNDS):
                bare = self.bare_latency(self.seconds / ROUNDS)
                report = finish(start_clients(order(port, body, 1, self.seconds / ROUNDS)))
                latencies = [latency for _, latency in report.answers]
                added.append(statistics.median(latencies) - statistics.median(report.decode) - bare)
                outside.append(
                    statistics.median(
                        latency - decode - inference
                        for latency, decode, inference in zip(latencies, report.decode, report.inference, strict=True)
                    )
                )
        return [
            Row(self.name, "latency added when idle, decoding excluded", 1000 * statistics.median(added), "ms", most=3),
            Row(self.name, "of which outside of decoding and the model", 1000 * statistics.median(outside), "ms"),
        ]

    def http(self) -> list[Row]:
        """JPEG over HTTP against 1 / (1/r + 1/d)."""
        shares, rates = [], []
        with server("ours", self.spec, self.backend) as (port, _), body_file(photo()) as body:
            for _ in range(ROUNDS):
                allowed = 1 / (
                    1 / self.bare_rate(self.best_batch, self.seconds / ROUNDS)
                    + 1 / self.decode_rate(self.seconds / ROUNDS / 2)
                )
                report = finish(start_clients(order(port, body, 64, self.seconds / ROUNDS)))
                rates.append(rate_without_clients(report))
                shares.append(rates[-1] / allowed)
        return [
            Row(self.name, "640x480 JPEG over HTTP, clients' cost taken off", statistics.median(rates), "/s"),
            Row(self.name, "HTTP / (1 / (1/r + 1/d))", statistics.median(shares), "", least=0.9),
        ]

    def overload(self, seconds: float) -> list[Row]:
        """Five times as many requests as the model can answer, and a queue that is shorter than the connections."""
        queue = QUEUE * self.engine.info.preprocess.size**2
        with (
            server("ours", self.spec, self.backend, "--queue-pixels", str(queue)) as (port, pid),
            body_file(photo()) as body,
        ):
            finish(start_clients(order(port, body, 64, self.seconds / 2)))  # the rate is to be known
            capacity = rate_without_clients(finish(start_clients(order(port, body, 64, self.seconds))))
            clients = start_clients(
                Order(port, "/embed", "image/jpeg", body, OVERLOAD_CONNECTIONS, seconds, OVERLOAD * capacity)
            )
            held: list[float] = []
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                held.append(memory(pid))
                time.sleep(0.25)
            report = finish(clients)
            healthy = answers(port, "/health/ready")
            after = finish(start_clients(order(port, body, 1, 1.0)))
        accepted = sorted(latency for status, latency in report.answers if status == 200)
        others = sum(status not in (200, 429) for status, _ in report.answers)
        third = len(held) // 3
        p99 = accepted[int(0.99 * (len(accepted) - 1))]
        goodput = rate_without_clients(report)
        well = healthy and {status for status, _ in after.answers} == {200}
        return [
            Row(self.name, "capacity", capacity, "/s"),
            Row(self.name, f"offered for {seconds:.0f} s", OVERLOAD * capacity, "/s"),
            Row(self.name, "answered 429", sum(status == 429 for status, _ in report.answers), ""),
            Row(self.name, "not sent for want of a free connection", report.unsent, ""),
            Row(self.name, "overload: goodput / capacity", goodput / capacity, "", least=0.9),
            Row(self.name, "overload: answers other than 200 and 429", others, "", most=0),
            Row(self.name, "overload: p99 of accepted", p99, "s", most=Settings().deadline_s),
            Row(
                self.name, "overload: memory, last / first third", max(held[-third:]) / max(held[:third]), "", most=1.1
            ),
            Row(self.name, "overload: healthy afterwards", float(well), "", least=1),
        ]

    def rivals(self) -> list[Row]:
        """The same question to three servers, in turn."""
        content = json.dumps({"images": [base64.b64encode(photo()).decode()]}).encode()
        rates: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        with body_file(content) as body, ExitStack() as running:
            ports = {name: running.enter_context(server(name, self.spec, self.backend))[0] for name in SERVERS}
            for level in LEVELS:
                for turn in range(1 + TURNS):
                    for name, port in ports.items():
                        seconds = self.seconds / TURNS
                        report = finish(start_clients(Order(port, "/embed", "application/json", body, level, seconds)))
                        good = sum(status == 200 for status, _ in report.answers)
                        if not good:
                            raise RuntimeError(f"{name} answered nothing with 200; there is nothing to compare with.")
                        if turn:  # the first is to warm up
                            rates[name, level].append(good / report.seconds)
        rows = [
            Row(self.name, f"{name}, {level} clients", statistics.median(found), "/s")
            for (name, level), found in rates.items()
        ]
        for level in LEVELS:
            shares = [
                ours / max(others) for ours, *others in zip(*(rates[name, level] for name in SERVERS), strict=True)
            ]
            least = 1.0 if level > 1 else 0.97  # not slower, within what two runs differ
            rows.append(
                Row(self.name, f"ours / the better of both, {level} clients", statistics.median(shares), "", least)
            )
        return rows


def per_second(work: Callable[[], object], seconds: float) -> float:
    """How often ``work`` can be done in a second, over about ``seconds``."""
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or not done:
        work()
        done += 1
    return done / passed


def rate_without_clients(report: Report) -> float:
    """Answers 200 a second of the cores' time that the clients left."""
    good = sum(status == 200 for status, _ in report.answers)
    return good / (report.seconds - report.cpu_seconds / cores())


def order(port: int, body: str, clients: int, seconds: float) -> Order:
    """One JPEG as the whole body, the answer as base64."""
    return Order(port, "/embed?encoding_format=base64", "image/jpeg", body, clients, seconds)


@contextmanager
def body_file(content: bytes) -> Iterator[str]:
    """A file that the clients read what they send from."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "body"
        path.write_bytes(content)
        yield str(path)
