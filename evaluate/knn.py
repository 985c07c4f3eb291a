"""k-nearest neighbours on frozen embeddings, DINO's protocol, over the bundled set's subgroups: needs no text tower.

    python -m evaluate.knn runs/pretrain/ckpt.pt --k 10 20 100 200 --reference noto twemoji

The default reference leaves Fluent 3D out: it shares its drawings with the flat style, and a random encoder finds them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from digpt.engine import Engine
from digpt.neighbors import TEMPERATURE
from digpt.results import ResultsDocument
from evaluate import emoji
from evaluate.cli import EvaluateOptions, execute, parse
from evaluate.features import Progress


@dataclass(frozen=True)
class KnnOptions(EvaluateOptions):
    """Options of the kNN evaluation."""

    k: tuple[int, ...] = (10, 20)
    """Numbers of neighbours, each its own column."""
    temperature: float = TEMPERATURE
    """Of the vote weights exp(cosine / temperature)."""
    reference: tuple[str, ...] = ("noto", "twemoji")
    """Training styles whose training images are the neighbours."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print; return the exit code."""
    options = parse(KnnOptions, argv, "evaluate.knn", "kNN over the subgroups of the bundled data, by style.")

    def evaluate(engine: Engine, progress: Progress) -> ResultsDocument:
        protocol = emoji.EmojiProtocol(
            methods=("knn",),
            k=options.k,
            temperature=options.temperature,
            reference=options.reference,
            limit=options.limit,
            seed=options.seed,
        )
        return emoji.evaluate_document(
            engine, protocol, data_root=options.data_root, batch_size=options.batch_size, progress=progress
        )

    return execute(options, evaluate)


if __name__ == "__main__":
    sys.exit(main())
