"""What serving costs beyond the model, on loopback; it stops by itself.

    python -m benchmarks.serve
    python -m benchmarks.serve --model bundled --parts batcher idle --seconds 5 --json
    python -m benchmarks.serve --backend torch-bf16 --parts rivals

``batcher``: decoded crops through the batcher against the bare runtime. ``idle``: latency added for one client.
``http``: JPEG over HTTP against what decoding and computing allow on the same cores. ``overload``: five times the
capacity. ``rivals``: the same model behind plain LitServe and a naive FastAPI server (needs the ``bench`` extra).
``vit-b16`` is timm's ViT-B/16 with seeded weights. An idle machine is assumed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from benchmarks.serve.measure import Bench, Row
from digpt.cli import Command

Part = Literal["batcher", "idle", "http", "overload", "rivals"]
VIT_B16 = "vit-b16"

COMMAND = Command("benchmarks.serve", __doc__, exits={1: "a bound was missed"})


@dataclass(frozen=True)
class Config:
    """Benchmark of the server."""

    model: tuple[str, ...] = ("bundled", VIT_B16)
    """Models to serve: vit-b16, or what serve takes."""
    parts: tuple[Part, ...] = ("batcher", "idle", "http", "overload", "rivals")
    """What to measure."""
    backend: str | None = None
    """What serve takes."""
    seconds: float = 10.0
    """How long each figure is measured."""
    overload_seconds: float = 60.0
    """How long the overload lasts."""
    json: bool = False
    """Print one JSON list and nothing else."""


def run(config: Config) -> Iterator[Row]:
    """Measure the parts of each model, one after another."""
    with TemporaryDirectory() as folder:
        for name in config.model:
            spec = seeded_vit(Path(folder)) if name == VIT_B16 else name
            bench = Bench(name, spec, config.backend, config.seconds)
            for part in config.parts:
                if part == "overload":
                    yield from bench.overload(config.overload_seconds)
                else:
                    yield from getattr(bench, part)()


def seeded_vit(folder: Path) -> str:
    """Write a ViT-B/16 of random weights; return its spec."""
    import timm
    import torch

    torch.manual_seed(0)
    path = folder / "vit.pt"
    torch.save(timm.create_model("vit_base_patch16_224").state_dict(), path)
    return f"timm:vit_base_patch16_224@{path}"


def line(row: Row) -> str:
    """A row of the table."""
    bound = f">= {row.least:g}" if row.least is not None else f"<= {row.most:g}" if row.most is not None else ""
    verdict = {None: "", True: "holds", False: "MISSED"}[row.holds]
    return f"{row.model[:16]:16}  {row.what:50}  {row.value:10.3f} {row.unit:2}  {bound:8}  {verdict}".rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Print every figure as it comes; return the exit code."""
    return COMMAND.run(Config, argv, _serve)


def _serve(config: Config) -> int:
    rows = []
    for row in run(config):
        rows.append(row)
        if not config.json:
            print(line(row), flush=True)
    if config.json:
        json.dump([{**asdict(row), "holds": row.holds} for row in rows], sys.stdout, indent=1)
    return int(any(row.holds is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
