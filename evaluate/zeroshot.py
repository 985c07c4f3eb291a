"""Zero-shot classification by a text tower: ImageNet, V2, A, R and Sketch, or the bundled set's styles and concepts.

    python -m evaluate.zeroshot bundled
    python -m evaluate.zeroshot open_clip:ViT-B-16/openai --data-root data
    python -m evaluate.zeroshot bundled --data folder:my-pictures --templates simple

Class names are embedded through the prompt templates, each prompt normalised, averaged, and normalised again (CLIP,
https://arxiv.org/abs/2103.00020, section 3.1.4); the matrix is kept by the hash of all that decides it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from digpt.engine import Engine
from digpt.runtime.base import no_text
from evaluate.cli import ClassifyOptions, command, execute
from evaluate.select import Asked, select_suite
from evaluate.suite import Suite
from evaluate.suite_imagenet import ROBUSTNESS, ZERO_SHOT

COMMAND = command("zeroshot", __doc__)


@dataclass(frozen=True)
class ZeroshotOptions(ClassifyOptions):
    """Options of the zero-shot evaluation."""

    sets: tuple[str, ...] = ()
    """Of the ImageNet family (default: all that are below the data root, without ReaL and C)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print; return the exit code."""
    return COMMAND.run(ZeroshotOptions, argv, _zeroshot)


def _zeroshot(options: ZeroshotOptions) -> int:
    asked = Asked(sets=options.sets or ZERO_SHOT, explicit=bool(options.sets))

    def suite(engine: Engine) -> Suite:
        if not engine.info.has_text:
            raise no_text(engine.info)
        return select_suite(options, engine, asked)

    return execute(options, suite, prefer_text=True, served=ROBUSTNESS)


if __name__ == "__main__":
    sys.exit(main())
