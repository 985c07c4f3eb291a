"""Lay the bundled drawings out as labelled pictures, for the other examples to be tried on.

    python examples/drawings.py runs/drawings

They are in the ``flat`` style, which the bundled model never saw in training, one folder for each of Unicode's groups.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import tyro

from digpt.data.emoji import EmojiSet
from digpt.errors import DigptError


def write(folder: Annotated[Path, tyro.conf.Positional], style: str = "flat") -> dict[str, int]:
    """Write FOLDER/GROUP/NAME.webp, and return how many pictures every group has."""
    emoji, counts = EmojiSet.load(), Counter[str]()
    for image in emoji.images(style):
        concept = emoji.concepts[image.concept]
        path = folder / concept.group / f"{concept.name.replace('/', '-')}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.encoded)
        counts[concept.group] += 1
    for group, count in sorted(counts.items()):
        print(f"{count:5}  {group}")
    return dict(counts)


if __name__ == "__main__":
    try:
        tyro.cli(write, description=__doc__)
    except (DigptError, OSError) as error:
        sys.exit(f"error: {error}")
