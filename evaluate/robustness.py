"""How a model fares away from its training images: other sets, other styles, 15 corruptions at 5 severities.

    python -m evaluate.robustness bundled --output runs/robustness
    python -m evaluate.robustness runs/finetune/ckpt.pt --data-root data --output runs/robustness

The first asks on the bundled set (its styles, unseen concepts, and corruptions made on the fly), the second on
ImageNet, V2, ReaL, A, R, Sketch and C. ``docs/evaluation.md`` explains the numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from evaluate.cli import ClassifyOptions, command, execute
from evaluate.select import Asked, Corruptions, select_suite
from evaluate.suite_emoji import Neighbours
from evaluate.suite_imagenet import ROBUSTNESS

COMMAND = command("robustness", __doc__)


@dataclass(frozen=True)
class RobustnessOptions(ClassifyOptions):
    """Options of the robustness evaluation."""

    sets: tuple[str, ...] = ()
    """Of the ImageNet family (default: all that are below the data root)."""
    corruptions: Corruptions = "auto"
    """auto: ImageNet-C from disk, on the fly for other data; on-the-fly also for ImageNet's validation images; none."""
    jpeg: bool = False
    """Store on-the-fly corruptions as JPEG of quality 85 in between, as ImageNet-C's files were."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print; return the exit code."""
    return COMMAND.run(RobustnessOptions, argv, _robustness)


def _robustness(options: RobustnessOptions) -> int:
    asked = Asked(
        sets=options.sets or ROBUSTNESS,
        explicit=bool(options.sets),
        emoji_knn=Neighbours(),
        corruptions=options.corruptions,
        jpeg=options.jpeg,
    )
    return execute(options, lambda engine: select_suite(options, engine, asked), served=ROBUSTNESS)


if __name__ == "__main__":
    sys.exit(main())
