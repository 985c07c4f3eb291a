"""The k nearest neighbours on frozen embeddings, DINO's protocol: needs neither a head nor a text tower.

    python -m evaluate.knn runs/pretrain/ckpt.pt
    python -m evaluate.knn timm:vit_base_patch14_dinov2.lvd142m --data-root data --k 10 20 100 200

The bundled set is asked for its subgroups. Its default reference leaves Fluent 3D out: it shares its drawings with the
flat style, and a random encoder finds them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from digpt.engine import Engine
from digpt.neighbors import TEMPERATURE
from evaluate.cli import EvaluateOptions, command, execute
from evaluate.select import Asked, select_suite
from evaluate.suite import Suite
from evaluate.suite_emoji import Neighbours
from evaluate.suite_imagenet import KNN_SETS

COMMAND = command("knn", __doc__)


@dataclass(frozen=True)
class KnnOptions(EvaluateOptions):
    """Options of the kNN evaluation."""

    k: tuple[int, ...] = (10, 20)
    """Numbers of neighbours, each its own column."""
    temperature: float = TEMPERATURE
    """Of the vote weights exp(cosine / temperature)."""
    reference: tuple[str, ...] = ("noto", "twemoji")
    """Training styles of the bundled set whose training images are the neighbours."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print; return the exit code."""
    return COMMAND.run(KnnOptions, argv, _knn)


def _knn(options: KnnOptions) -> int:
    def suite(engine: Engine) -> Suite:
        knn = Neighbours(options.k, options.temperature, options.reference)
        return select_suite(options, engine, Asked(sets=KNN_SETS, splits=(), knn=knn))

    return execute(options, suite)


if __name__ == "__main__":
    sys.exit(main())
