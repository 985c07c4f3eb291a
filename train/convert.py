"""Convert a checkpoint that the paper's authors released to a ``ckpt.pt``, classifier and decoders included.

    python -m train.convert finetuned.pth runs/authors/ckpt.pt --resize squash

Nothing is unpickled but tensors. The authors evaluate by squashing the image to a square, which ``squash`` repeats;
the default resizes the shorter side and crops, as everybody else does: report which one a figure was measured with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from digpt.artifact import load_document, write_checkpoint
from digpt.cli import Command
from digpt.errors import ConfigError
from digpt.model import build_from_config
from digpt.preprocess import Preprocess
from digpt.source_authors import authors_checkpoint
from train.finetune import Protocol, measured

COMMAND = Command("train.convert", __doc__)


@dataclass(frozen=True)
class ConvertConfig:
    """What is converted, and how its images are to be resized."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]  # the released .pth
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]  # the ckpt.pt to write
    resize: Protocol = "shortest"  # how evaluations will resize
    crop_pct: float = 0.875  # of the shorter side; squash takes the whole image
    overwrite: bool = False  # replace an output that is there
    json: bool = False  # print the output and its fingerprint as JSON on standard output, and nothing else there


def convert(config: ConvertConfig) -> str:
    """Write the checkpoint and return its fingerprint.

    Raises:
        ConfigError: the output exists.
        CheckpointError: not the authors' layout, or weights that do not fit the encoder they describe.
    """
    if config.output.exists() and not config.overwrite:
        raise ConfigError(f"{config.output} exists; --overwrite replaces it.")
    checkpoint = authors_checkpoint(load_document(config.source, allowed=(argparse.Namespace,)), config.source)
    preprocess = Preprocess.from_dict(checkpoint.config["preprocess"])
    checkpoint.config["preprocess"] = measured(preprocess, config.resize, config.crop_pct).to_dict()
    build_from_config(checkpoint.config, checkpoint.weights)  # loads strictly, or says what does not fit
    config.output.parent.mkdir(parents=True, exist_ok=True)
    return write_checkpoint(config.output, checkpoint)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert what the command line names; return the exit code."""
    return COMMAND.run(ConvertConfig, argv, _convert)


def _convert(config: ConvertConfig) -> int:
    fingerprint = convert(config)
    if config.json:
        print(json.dumps({"checkpoint": str(config.output), "fingerprint": fingerprint}, ensure_ascii=False))
    else:
        print(f"wrote {config.output}  {fingerprint}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
