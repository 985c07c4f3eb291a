"""What reading photographs costs on this machine: decoding, cropping, augmenting, mixing, and images/s by worker count.

    python -m benchmarks.loader
    python -m benchmarks.loader --images 400 --workers 0 2 8 --json

It writes JPEGs of 500 x 375 pixels (ImageNet's usual size) to a temporary folder. Compare figures of one run only.
"""

from __future__ import annotations

import io
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from PIL import Image

from digpt.cli import Command
from digpt.data.images import open_images
from train.keyed import keeping_generators
from train.loader import LoaderConfig, PhotoTraining
from train.photo_augment import CropConfig, FinetuneAugment, PhotoAugment, mix
from train.share import Share

COMMAND = Command("benchmarks.loader", __doc__)


@dataclass(frozen=True)
class Config:
    """Loader benchmark."""

    images: int = 128
    """Pictures to write; each part reads all of them."""
    size: tuple[int, int] = (500, 375)
    """Width and height of the pictures."""
    crop: int = 224
    """Side of the crops in pixels."""
    batch: Annotated[int, tyro.conf.arg(aliases=("--batch-size",))] = 16
    """Images per batch."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Numbers of loader processes to compare."""
    json: bool = False
    """Print JSON instead of a table."""


def write_pictures(root: Path, config: Config) -> list[bytes]:
    """Photograph-like JPEGs: smooth noise with fine grain, so that they compress as photographs do."""
    encoded = []
    for number in range(config.images):
        random = np.random.RandomState(number)
        coarse = Image.fromarray(random.randint(0, 256, (24, 32, 3), dtype=np.uint8)).resize(config.size, 3)
        grain = random.normal(0, 6, (config.size[1], config.size[0], 3))
        buffer = io.BytesIO()
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
        (root / f"class{number % 2}").mkdir(exist_ok=True)
        (root / f"class{number % 2}" / f"{number}.jpg").write_bytes(encoded[-1])
    return encoded


def milliseconds(work: Callable[[], object], images: int) -> float:
    """Per image."""
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start) / images


def parts(encoded: list[bytes], config: Config) -> dict[str, float]:
    """Milliseconds per image, in this process alone."""
    crop = PhotoAugment(CropConfig(), config.crop, seed=0)
    finetune = PhotoAugment(FinetuneAugment(), config.crop, seed=0)
    numbered = list(enumerate(encoded))
    count = len(encoded)
    with keeping_generators():
        crop(encoded[0], 0, 0)
        decoding = milliseconds(lambda: [crop.decode(data) for data in encoded], count)
        cropping = milliseconds(lambda: [crop(data, 0, i) for i, data in numbered], count)
        finetuning = milliseconds(lambda: [finetune(data, 0, i) for i, data in numbered], count)
    images = torch.randn(config.batch, 3, config.crop, config.crop)
    labels = torch.zeros(config.batch, dtype=torch.long)

    def mixing() -> object:
        return mix(images, labels, seed=0, step=0, first_row=0, config=FinetuneAugment(), num_classes=1000)

    mixing()
    return {
        "decode": decoding,
        "crop and flip": cropping - decoding,
        "RandAugment and erasing": finetuning - cropping,
        "mixup and cutmix": milliseconds(lambda: [mixing() for _ in range(8)], 8 * config.batch),
    }


def throughput(root: Path, augment: CropConfig | FinetuneAugment, workers: int, config: Config) -> float:
    """Images/s of the loader, after its first batches."""
    loader = LoaderConfig(workers=workers)
    training = PhotoTraining(open_images(root), 0, config.batch, augment, config.crop, loader, num_classes=2)
    batches = training.batches(0, Share())
    steps = max(config.images // config.batch, 4)
    try:
        for _ in itertools.islice(batches, 2 * max(workers, 1)):
            pass
        start = time.perf_counter()
        for _ in itertools.islice(batches, steps):
            pass
        return steps * config.batch / (time.perf_counter() - start)
    finally:
        batches.close()  # type: ignore[attr-defined]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    return COMMAND.run(Config, argv, _loader)


def _loader(config: Config) -> int:
    torch.set_num_threads(1)  # as in the loader's processes
    with tempfile.TemporaryDirectory() as folder:
        encoded = write_pictures(Path(folder), config)
        milliseconds_per_image = parts(encoded, config)
        rates = {
            name: {workers: throughput(Path(folder), augment, workers, config) for workers in config.workers}
            for name, augment in (("pretraining", CropConfig()), ("finetuning", FinetuneAugment()))
        }
    kilobytes = sum(map(len, encoded)) / len(encoded) / 1000
    if config.json:
        result = {"kilobytes": kilobytes, "milliseconds": milliseconds_per_image, "images_per_second": rates}
        json.dump(result, sys.stdout, indent=2)
        print()
        return 0
    print(f"{config.size[0]} x {config.size[1]} JPEG of {kilobytes:.0f} kB, crop {config.crop}; ms per image, one core")
    for name, value in milliseconds_per_image.items():
        print(f"  {name:24} {value:6.2f}  ({value / milliseconds_per_image['decode']:.2f} x decode)")
    for name, rate in rates.items():
        line = "  ".join(f"{workers} workers {value:.0f}" for workers, value in rate.items())
        print(f"{name}, images/s: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
