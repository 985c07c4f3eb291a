"""A segmentation's mIoU, mAcc and aAcc on ADE20K, on your own images and masks, or on the miniature's scenes.

    python -m evaluate.segmentation runs/segment/ckpt.pt
    python -m evaluate.segmentation runs/segment/ckpt.pt --data-root data --output runs/ade20k
    python -m evaluate.segmentation runs/segment/ckpt.pt --data masks:my-pictures --overlays 8 --output runs/mine

ADE20K's protocol: images are fitted into (2048, 512) pixels, windows of 512 slide over them every 341, and logits are
resized to the label's size before the best class is taken; labels are never resized. A model trained on other crops
gets the same in proportion. What has been segmented is kept in --output, where the same command continues.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from digpt.errors import ConfigError
from evaluate.cli import EvaluateOptions, check, command, publish, single_process
from evaluate.mask_data import MaskData, data_spec
from evaluate.progress import bars
from evaluate.segment_measure import extremes, mask_views
from evaluate.suite import Subset

COMMAND = command("segmentation", __doc__)


@dataclass(frozen=True)
class SegmentationOptions:
    """Options of the evaluation of segmentation."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
    """Checkpoint with a segmentation head, such as runs/segment/ckpt.pt."""
    output: Path | None = None
    """Directory for results.json, per_class.csv and the store, where the same command continues (default: keep
    nothing)."""
    data_root: Path | None = None
    """Directory that ADE20K lies in, as ADEChallengeData2016 or ade20k (default: the miniature's scenes)."""
    data: str | None = None
    """ade20k:DIR, or your own images and masks, masks:DIR."""
    split: str | None = None
    """Of the data (default: val; of the scenes val, flat and contrast)."""
    reduce_zero: bool | None = None
    """Whether 0 in the files of masks:DIR means not labelled and the classes count from 1 (default: as in the files
    that the model was trained on)."""
    inference: Literal["slide", "whole"] | None = None
    """Windows of the crop's size, or the image at once (default: slide; the scenes have the crop's size and are taken
    whole)."""
    multi_scale: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Average probabilities over images scaled by 0.5, 0.75, 1, 1.25, 1.5 and 1.75."""
    flip: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Average probabilities over images and their mirror images."""
    limit: int | None = None
    """Images per split, a seeded subset (default: all)."""
    overlays: int = 0
    """Pictures of each split to draw into OUTPUT/overlays: the image, its label, the prediction."""
    backend: str | None = None
    """Runtime (default: torch)."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1; of the onnx backends also tensorrt."""
    threads: int | None = None
    """CPU threads (default: the backend's choice)."""
    seed: int = 0
    """Of the subset, the overlays and the bootstrap."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Begin again where --output holds another evaluation."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the results document on standard output, and nothing else there."""

    def common(self) -> EvaluateOptions:
        """What is checked and published as in every evaluation."""
        names = ("spec", "output", "limit", "backend", "device", "threads", "seed", "overwrite", "json")
        return EvaluateOptions(**{name: getattr(self, name) for name in names})


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print; return the exit code."""
    return COMMAND.run(SegmentationOptions, argv, _segmentation)


def _segmentation(options: SegmentationOptions) -> int:
    _check(options)
    spec, subset = data_spec(options.data, options.data_root), Subset(options.limit, seed=options.seed)
    data = MaskData(spec, options.split, subset, options.reduce_zero)
    from evaluate.segment_run import segment  # imports torch, which takes seconds: a wrong option is told before

    with redirect_stdout(sys.stderr), bars() as progress:
        found = segment(options, data, progress)
    for line in (*found.notes, f"{found.kept} shards were there already" * bool(found.kept), found.clock.line()):
        if line:
            print(line, file=sys.stderr)
    publish(found.document, options.common())
    if not options.json:
        for view in mask_views(found.store):
            print(extremes(found.store, view))
    return 0


def _check(options: SegmentationOptions) -> None:
    """Refuse what would fail only after minutes of computing."""
    if options.data is not None and options.data_root is not None:
        raise ConfigError("--data and --data-root exclude each other: name the data, or where ADE20K lies.")
    if options.overlays < 0:
        raise ConfigError(f"--overlays {options.overlays} must be at least 0.")
    if options.overlays and options.output is None:
        raise ConfigError("--overlays are written to a directory: give --output DIR.")
    check(options.common())
    single_process(options.common(), "A segmentation")


if __name__ == "__main__":
    sys.exit(main())
