"""Top-1, top-5 and calibration on ImageNet-1K, ReaL and V2, or on the bundled set's counterparts.

python -m evaluate.imagenet bundled
python -m evaluate.imagenet timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k --data-root data
python -m evaluate.imagenet runs/mine/ckpt.pt --data folder:my-pictures
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from evaluate.cli import ClassifyOptions, command, execute
from evaluate.select import Asked, select_suite
from evaluate.suite_emoji import IMAGENET_LIKE
from evaluate.suite_imagenet import IMAGENET

COMMAND = command("imagenet", __doc__)


@dataclass(frozen=True)
class ImagenetOptions(ClassifyOptions):
    """Options of the ImageNet evaluation."""

    sets: tuple[str, ...] = ()
    """Of imagenet, imagenet-v2, imagenet-real (default: all that are below the data root)."""
    split: str = "val"
    """Of your own pictures (--data)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print; return the exit code."""
    return COMMAND.run(ImagenetOptions, argv, _imagenet)


def _imagenet(options: ImagenetOptions) -> int:
    asked = Asked(
        sets=options.sets or IMAGENET, explicit=bool(options.sets), splits=IMAGENET_LIKE, own_split=options.split
    )
    return execute(options, lambda engine: select_suite(options, engine, asked), served=IMAGENET)


if __name__ == "__main__":
    sys.exit(main())
