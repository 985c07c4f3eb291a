"""Pictures in styles that the bundled model never saw, over white, as files to click on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from digpt.data.emoji import EmojiSet
from digpt.preprocess import DecodeLimits, decode

STYLES = {"flat": "Flat", "contrast": "High contrast"}
CHOICES = ("red apple", "dog face", "rocket", "pizza", "cat face", "owl", "guitar", "umbrella")
SHOWN_SIZE = 192  # browsers blur a picture of 64 pixels


@dataclass(frozen=True)
class Example:
    """A picture of the bundled set: its name, its style, and the file to show."""

    name: str
    style: str
    path: str


def write_examples(emoji: EmojiSet, directory: Path, *, per_style: int = 25) -> list[Example]:
    """Write ``per_style`` pictures of each never-trained style into ``directory``: the well-known ones first."""
    found = []
    for style in STYLES:
        images = emoji.images(style)
        by_name = {emoji.concepts[image.concept].name: image for image in images}
        spread = list(by_name)[:: max(1, len(by_name) // per_style)]
        for name in list(dict.fromkeys([*(name for name in CHOICES if name in by_name), *spread]))[:per_style]:
            path = directory / f"{name.replace(' ', '-')}.{style}.png"
            over_white(by_name[name].encoded).save(path)
            found.append(Example(name, style, str(path)))
    return found


def over_white(encoded: bytes, limits: DecodeLimits | None = None) -> Image.Image:
    """Lay an image file on white, as the model's decoder does, and bring its longer side to ``SHOWN_SIZE`` pixels."""
    flat = decode(encoded, alpha="white", limits=limits)
    factor = SHOWN_SIZE / max(flat.size)
    width, height = (max(1, round(side * factor)) for side in flat.size)
    return flat.resize((width, height), Image.Resampling.BICUBIC)
