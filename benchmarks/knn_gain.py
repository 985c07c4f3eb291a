"""What pretraining is worth without labels: kNN over the subgroups, a pretrained encoder against random initialisation.

    python -m benchmarks.knn_gain --encoder runs/pretrain/ckpt.pt --seeds 3

Prints Markdown: top-1 with bootstrap intervals by ``evaluate.knn``'s protocol, reference Noto and Twemoji.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from digpt.artifact import read_checkpoint, write_checkpoint
from digpt.data.emoji import EmojiSet
from digpt.encoder import build_encoder
from digpt.engine import Engine
from digpt.results import Result
from evaluate.run import run_suite
from evaluate.suite_emoji import Neighbours, emoji_suite


@dataclass(frozen=True)
class Options:
    """What is compared."""

    encoder: str = "runs/pretrain/ckpt.pt"
    seeds: int = 3  # random initialisations
    k: int = 20
    threads: int = 2


def main(options: Options) -> None:
    """Print one row for the encoder and one per random initialisation of the same shape."""
    import torch

    data, rows = EmojiSet.load(), {options.encoder: options.encoder}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            checkpoint = copy.copy(read_checkpoint(options.encoder))
            torch.manual_seed(seed)
            checkpoint.weights = {"encoder": build_encoder(checkpoint.config["encoder"]).state_dict()}
            rows[f"random initialisation, seed {seed}"] = str(Path(folder) / f"random-{seed}.pt")
            write_checkpoint(rows[f"random initialisation, seed {seed}"], checkpoint)
        print(f"| encoder | {' | '.join(f'{split}, k = {options.k}' for split in ('val', 'flat', 'contrast'))} |")
        print("|---|--:|--:|--:|")
        for label, spec in rows.items():
            suite = emoji_suite(data, splits=(), knn=Neighbours(k=(options.k,)))
            document = run_suite(Engine.load(spec, threads=options.threads), suite).document
            assert document is not None
            print(f"| {label} | {' | '.join(shown(result) for result in document.results)} |")


def shown(result: Result) -> str:
    """``52.1 % (49.0 to 55.3)``."""
    interval = " to ".join(f"{100 * bound:.1f}" for bound in result.ci95 or ())
    return f"{result.value:.1%} ({interval})"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
