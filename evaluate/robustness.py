"""How a model fares away from its training images: the bundled set's held-out images, unseen styles, unseen concepts.

    python -m evaluate.robustness bundled --output runs/robustness

prints a table and writes ``runs/robustness/results.json``; ``docs/results.md`` explains both.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from digpt.engine import Engine
from digpt.results import ResultsDocument
from evaluate import emoji
from evaluate.cli import EvaluateOptions, execute, parse
from evaluate.features import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print; return the exit code."""
    options = parse(EvaluateOptions, argv, "evaluate.robustness", "Zero-shot and kNN on the bundled data, by style.")

    def evaluate(engine: Engine, progress: Progress) -> ResultsDocument:
        protocol = emoji.EmojiProtocol(limit=options.limit, seed=options.seed)
        return emoji.evaluate_document(
            engine, protocol, data_root=options.data_root, batch_size=options.batch_size, progress=progress
        )

    return execute(options, evaluate)


if __name__ == "__main__":
    sys.exit(main())
