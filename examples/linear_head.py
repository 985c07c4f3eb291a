"""Fit a linear head to your own labels: folders CLASS/*.jpg in, a checkpoint that knows these classes out.

python examples/drawings.py runs/drawings
python examples/linear_head.py runs/drawings --output runs/head/ckpt.pt
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import tyro

from digpt.artifact import Checkpoint, read_checkpoint, write_checkpoint
from digpt.data.images import open_images
from digpt.engine import Engine
from digpt.errors import DataError, DigptError
from digpt.probe import ProbeConfig, choose, held_out_rows, train_probes
from digpt.resampling import Resamples
from digpt.runtime.torch import TorchRuntime
from digpt.sources import checkpoint_path, model_from_checkpoint

CONFIG = ProbeConfig(iterations=1000, batch_size=256)  # DINOv2's grid of 13 learning rates, for thousands of pictures


def fit(folder: Annotated[Path, tyro.conf.Positional], output: Path, model: str = "bundled") -> float:
    """Write the checkpoint; print and return its accuracy on a fifth of the pictures that it was not fitted to.

    Args:
        folder: pictures in folders that are their classes.
        output: the checkpoint to write.
        model: whose encoder is used, as it is: bundled or a checkpoint.
    """
    images, source = open_images(f"folder:{folder}"), read_checkpoint(checkpoint_path(model))
    classes = images.classes
    if classes is None or images.labels is None:
        raise DataError(f"{folder} has no folders, whose names would be the classes.")
    config = {**source.config, "head": None, "text": None, "labels": list(classes)}
    weights = {"encoder": source.weights["encoder"]}
    bare = Engine(TorchRuntime(model_from_checkpoint(Checkpoint(config, weights))))
    rows = bare.embed_images([bare.decode(images.read(n)[0]) for n in range(len(images))], normalize=False)

    apart = held_out_rows(images.labels, 0.2, seed=0)
    head = choose(train_probes({"pooled": rows[~apart]}, images.labels[~apart], len(classes), CONFIG))
    right = head.logits(rows[apart]).argmax(axis=1) == images.labels[apart]
    low, high = Resamples.interval(Resamples(len(right)).means(right))
    print(
        f"{right.mean():.1%} [{low:.1%}, {high:.1%}] of {len(right)} held-out pictures, chance {1 / len(classes):.1%}"
    )

    config["head"] = {"type": "linear", "in": rows.shape[1], "out": len(classes)}
    weights["head"] = {"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)}
    write_checkpoint(output, Checkpoint(config, weights, {"command": "examples/linear_head.py", "encoder": model}))
    print(f"next: python -m serve --model {output}")
    return float(right.mean())


if __name__ == "__main__":
    try:
        tyro.cli(fit, description=__doc__)
    except (DigptError, OSError) as error:
        sys.exit(f"error: {error}")
