"""What 1,000 labels add to a request: classify with a class set against embed, same image, over HTTP on loopback.

    python -m benchmarks.class_set_cost

Prints the median milliseconds of each, asked in turns, and their ratio.
"""

from __future__ import annotations

import base64
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from digpt.cli import Command
from digpt.engine import Engine
from serve import Settings, create_app

IMAGE = Path(__file__).resolve().parents[1] / "examples" / "images" / "red-apple.png"


COMMAND = Command("benchmarks.class_set_cost", __doc__)


@dataclass(frozen=True)
class Config:
    """What is measured."""

    model: str = "bundled"
    """What serve takes."""
    labels: int = 1000
    """How many."""
    rounds: int = 300
    """Rounds, of which the median counts; a tenth more go before."""
    threads: int = 1
    """Threads of the model."""
    json: bool = False
    """Print JSON on standard output, and nothing else there."""


@contextmanager
def serving(model: str, threads: int) -> Iterator[str]:
    """Serve a model on a free port; yield its address."""
    app = create_app({"model": Engine.load(model, threads=threads)}, Settings())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def measure(client: httpx.Client, labels: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of each kind of request, in turns, after a warm-up."""
    names = [f"thing number {index}" for index in range(labels)]
    client.put("/class-sets/many", json={"labels": names}).raise_for_status()
    image = base64.b64encode(IMAGE.read_bytes()).decode()
    requests = {
        "embed": ("/embed", {"images": [image]}),
        "classify, class set": ("/classify", {"images": [image], "class_set": "many"}),
        "classify, labels": ("/classify", {"images": [image], "labels": names}),
    }
    times: dict[str, list[float]] = {name: [] for name in requests}
    for turn in range(rounds + rounds // 10):
        for name, (path, body) in requests.items():
            started = time.perf_counter()
            client.post(path, json=body).raise_for_status()
            if turn >= rounds // 10:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(found) for name, found in times.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    return COMMAND.run(Config, argv, _cost)


def _cost(config: Config) -> int:
    with (
        serving(config.model, config.threads) as address,
        httpx.Client(base_url=address, timeout=120, trust_env=False) as client,
    ):
        while client.get("/health/ready").status_code != 200:
            time.sleep(0.1)
        found = measure(client, config.labels, config.rounds)
    if config.json:
        print(json.dumps({"milliseconds": found}))
        return 0
    for name, value in found.items():
        print(f"{name:20} {value:7.2f} ms  {value / found['embed']:5.2f} of embed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
