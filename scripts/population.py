"""Write the standard models of timm's published results as one small file, for effective robustness.

git clone --depth 1 https://github.com/huggingface/pytorch-image-models
python scripts/population.py pytorch-image-models/results --output population.csv
python -m evaluate.report runs/b16 --population population.csv --format html --output b16.html

The report also takes the folder itself. The tables are timm's (Apache-2.0); which models count as standard says
`evaluate.population.is_standard`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from digpt.errors import DigptError
from evaluate.population import SETS, read_population, write_population

COMMENT = """Top-1 accuracies in percent of models trained on ImageNet-1K alone.
Source: huggingface/pytorch-image-models, results/ (Apache-2.0).
Written by scripts/population.py; the rule is evaluate.population.is_standard."""


def main(argv: list[str] | None = None) -> int:
    """Read the tables, write the file; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, help="folder results/ of a checkout of huggingface/pytorch-image-models")
    parser.add_argument("--output", type=Path, default=Path("population.csv"))
    parser.add_argument("--version", default="", help="commit or date of the tables, noted in the file")
    arguments = parser.parse_args(argv)
    try:
        population = read_population(arguments.results)
        comment = COMMENT + (f"\nTables of {arguments.version}." if arguments.version else "")
        write_population(population, arguments.output, comment=comment)
    except (DigptError, OSError) as error:
        print("error:", error, file=sys.stderr)
        return 2
    print(f"{len(population):,} models on {', '.join(SETS)} written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
