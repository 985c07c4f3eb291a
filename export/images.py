"""The real images that parity is measured on: the bundled emoji, or a folder of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from digpt.data.emoji import SPLITS, EmojiSet
from digpt.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

T = TypeVar("T")


def evenly(items: Sequence[T], count: int) -> list[T]:
    """``count`` of ``items`` at even distances (all of them if there are fewer)."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def bundled_images(count: int) -> list[bytes]:
    """``count`` encoded emoji, spread over all splits, and so over all drawing styles."""
    emoji = EmojiSet.load()
    per_split = [evenly(emoji.images(split), -(-count // len(SPLITS))) for split in SPLITS]
    # Split by split in turn, so that any prefix (the golden images) holds every style too.
    return [image.encoded for together in zip(*per_split, strict=False) for image in together][:count]


def bundled_names() -> list[str]:
    """The names of the concepts drawn in all five styles: the class set for models with no labels of their own."""
    return EmojiSet.load().five_style_names()


def folder_images(folder: Path, count: int) -> list[Path]:
    """``count`` image files below ``folder``, at even distances in the order of their paths.

    Raises:
        DataError: no such folder, or no images in it.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"--images {folder}: no image files there (looked for {', '.join(SUFFIXES)}).")
    return evenly(files, count)
