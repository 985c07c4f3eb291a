"""Computes every number again from the store of answers that an evaluation left: no model, no data.

    python -m evaluate.recompute runs/robustness

Use it after an upgrade that corrects or adds a metric.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from digpt.cli import Command
from digpt.errors import DataError
from evaluate.cli import EvaluateOptions, publish
from evaluate.progress import bars
from evaluate.run import publish as compute
from evaluate.store import STORE_NAME, Store

COMMAND = Command("evaluate.recompute", __doc__)


@dataclass(frozen=True)
class RecomputeOptions:
    """Options of the recomputation."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """What an evaluation was given as --output."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the results document on standard output, and nothing else there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Recompute, write and print; return the exit code."""
    return COMMAND.run(RecomputeOptions, argv, _recompute)


def _recompute(options: RecomputeOptions) -> int:
    store = Store.open(options.directory / STORE_NAME)
    missing = store.missing()
    if missing:
        raise DataError(f"{options.directory} lacks {len(missing)} shards: run the evaluation again, it continues.")
    with redirect_stdout(sys.stderr), bars() as progress:
        document = compute(store, options.directory, progress)
    publish(document, EvaluateOptions(output=options.directory, json=options.json))
    return 0


if __name__ == "__main__":
    sys.exit(main())
