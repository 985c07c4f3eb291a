"""Zero-shot top-1 when the class set leaves out emoji whose code point carries a variation selector.

    python -m benchmarks.fewer_names bundled

Joining the five styles by a code point without its variation selector (U+FE0F) loses these concepts, many of them
signs and symbols. The figures say what such a smaller class set is worth beside that of ``evaluate.robustness``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tyro

from digpt.data.emoji import EmojiSet
from digpt.engine import Engine

SPLITS = ("seen", "val", "flat", "contrast")


@dataclass(frozen=True)
class Options:
    """What is measured."""

    spec: Annotated[str, tyro.conf.Positional] = "bundled"
    threads: int = 2


def main(options: Options) -> None:
    """Print top-1 per split among all five-style names and among the fewer."""
    emoji, engine = EmojiSet.load(), Engine.load(options.spec, threads=options.threads)
    everything = emoji.five_style_indices()
    five_style = set(everything.tolist())
    fewer = np.array([index for index in everything if "FE0F" not in emoji.concepts[index].codepoint])
    print(f"| split | top-1 among {len(everything):,} names | among {len(fewer):,} names | images of these |")
    print("|---|--:|--:|--:|")
    for split in SPLITS:
        images = [image for image in emoji.images(split) if image.concept in five_style]
        concepts = np.array([image.concept for image in images])
        embeddings = engine.embed_images([engine.decode(image.encoded) for image in images])
        few = np.isin(concepts, fewer)
        shown = [
            (top1(engine, emoji, everything, embeddings, concepts), len(images)),
            (top1(engine, emoji, fewer, embeddings[few], concepts[few]), int(few.sum())),
        ]
        print(f"| {split} | {shown[0][0]:.1%} | {shown[1][0]:.1%} | {shown[1][1]:,} |")


def top1(engine: Engine, emoji: EmojiSet, names: np.ndarray, embeddings: np.ndarray, concepts: np.ndarray) -> float:
    """Share of ``embeddings [B,D]`` whose nearest of ``names`` (concept indices) is its own of ``concepts [B]``."""
    matrix = engine.class_matrix([emoji.concepts[index].name for index in names])
    return float((names[Engine.similarity(embeddings, matrix).argmax(axis=1)] == concepts).mean())


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
