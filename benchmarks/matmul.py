"""How many GFLOP/s this machine gives a transformer's matrix product, per precision: says whether bfloat16 pays here.

    python -m benchmarks.matmul
    python -m benchmarks.matmul --threads 2 --shape 2048 192 768 --json

The default shape is the first MLP layer of a width-192 encoder on 2,048 tokens. A product [m,k] x [k,n] counts as
2*m*k*n operations. The best of several rounds is printed: a busy neighbour only ever slows a round down.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from digpt.cli import Command

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

COMMAND = Command("benchmarks.matmul", __doc__)


@dataclass(frozen=True)
class Config:
    """Matrix-product benchmark."""

    shape: tuple[int, int, int] = (2048, 192, 768)
    """m, k, n of the product [m,k] x [k,n]."""
    threads: int | None = None
    """torch's intra-op threads; torch's own choice when left out."""
    rounds: int = 7
    """Rounds per precision, of which the fastest counts."""
    seconds: float = 0.2
    """How long one round should take at least."""
    json: bool = False
    """Print one JSON object and nothing else."""


def best_seconds(work: Callable[[], object], rounds: int, seconds: float) -> float:
    """Seconds that one call of ``work`` takes in the fastest round; each round repeats it for about ``seconds``."""
    work()  # the first call allocates, and picks its kernel
    start = time.perf_counter()
    work()
    repeats = max(1, round(seconds / max(time.perf_counter() - start, 1e-9)))
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def measure(config: Config) -> dict[str, float]:
    """GFLOP/s per precision, for the precisions of ``DTYPES``."""
    m, k, n = config.shape
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
    figures = {}
    for name, dtype in DTYPES.items():
        a, b = left.to(dtype), right.to(dtype)
        figures[name] = 2 * m * k * n / best_seconds(partial(torch.matmul, a, b), config.rounds, config.seconds) / 1e9
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    return COMMAND.run(Config, argv, _matmul)


def _matmul(config: Config) -> int:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    figures = measure(config)
    if config.json:
        print(json.dumps({"shape": config.shape, "threads": torch.get_num_threads(), "gflops": figures}))
        return 0
    m, k, n = config.shape
    print(f"[{m},{k}] x [{k},{n}], {torch.get_num_threads()} threads")
    for name, gflops in figures.items():
        print(f"  {name:9s} {gflops:8.1f} GFLOP/s   {gflops / figures['float32']:5.2f} x float32")
    return 0


if __name__ == "__main__":
    sys.exit(main())
