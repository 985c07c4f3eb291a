"""The miniature of ADE20K: scenes composed from the bundled emoji, with exact masks. Imports without torch.

    python -m digpt.data.scenes --output scenes.png

draws 4 x 4 scenes of a split with their masks beside them. A scene is a background (one colour, a gradient, noise or
stripes) and 3 to 6 drawings pasted over each other. Its classes are the background (0) and the drawings' Unicode
subgroups. Everything is a function of (seed, split, index), and ``docs/segmentation-data.md`` tells the rules.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digpt.data.ade20k import MaskSource, palette
from digpt.data.emoji import EmojiImage, EmojiSet
from digpt.errors import DataError, DigptError, near_misses

# Subgroups by falling number of drawings in the flat style, each with two held-out drawings or more. Left out: further
# kinds of people and of faces (told apart by what they do), and the subgroups that are a remainder ("other").
SUBGROUPS = (
    *("person-role", "animal-mammal", "transport-ground", "clothing", "person-sport", "sky & weather", "alphanum"),
    *("food-prepared", "geometric", "place-building", "time", "av-symbol", "game", "sport", "face-concerned", "heart"),
    *("household", "office", "tool", "arrow", "event", "food-fruit", "body-parts", "drink", "animal-marine"),
    *("food-asian", "animal-bug", "book-paper", "food-vegetable", "face-smiling", "computer", "food-sweet"),
)
BACKGROUND = 0
SPLITS = {"train": "seen", "val": "val", "flat": "flat", "contrast": "contrast"}  # of scenes -> of the emoji set
PER_SCENE = (3, 6)  # drawings, both ends included
EXTENT = (0.3, 0.8)  # longer side of a drawing, by the side of the scene
TURN = 20.0  # degrees, either way
OVERHANG = 0.2  # of a drawing's side, that may lie outside
_DARKEST = 48  # of a background's channels: the line art of some styles is black
_VERSION = "digpt-scenes-2"  # raised when a scene would come out differently

Pixels = NDArray[np.uint8]


class Draws:
    """Uniforms of one scene: the raw bits of Philox, which NumPy keeps the same from version to version."""

    def __init__(self, key: NDArray[np.uint64], index: int) -> None:
        self._bits = np.random.Philox(counter=np.array([0, index, 0, 0], dtype=np.uint64), key=key)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def below(self, count: int) -> int:
        """An integer in 0..count-1."""
        return int(self.uniform() * count)

    def bytes(self, count: int) -> Pixels:
        """``count`` bytes, uint8."""
        return np.asarray(self._bits.random_raw(-(-count // 8))).view(np.uint8)[:count]


class SceneSet(MaskSource):
    """``count`` scenes of a split, ``size`` x ``size`` pixels, composed when asked for.

    Args:
        split: ``train`` (training styles, drawings that nothing was held out of), ``val`` (training styles, held-out
            drawings), ``flat`` or ``contrast`` (styles never trained on). No split draws an unseen concept.
        n_classes: with the background, so that the first ``n_classes - 1`` of `SUBGROUPS` are drawn.

    Raises:
        DataError: no such split, or sizes and numbers that cannot be.
    """

    def __init__(
        self,
        emoji: EmojiSet,
        split: str,
        *,
        size: int = 128,
        count: int = 1000,
        seed: int = 0,
        n_classes: int = len(SUBGROUPS) + 1,
    ) -> None:
        if split not in SPLITS:
            raise DataError(
                f"The scenes have no split {split!r}; there are {', '.join(SPLITS)}.{near_misses(split, SPLITS)}"
            )
        if not (size >= 16 and count >= 1 and 2 <= n_classes <= len(SUBGROUPS) + 1):
            raise DataError(
                f"Scenes need a size of 16 or more pixels, a count of 1 or more and 2 to {len(SUBGROUPS) + 1} classes, "
                f"got {size}, {count} and {n_classes}."
            )
        self.split, self.size, self.count, self.seed = split, size, count, seed
        self.classes = ("background", *SUBGROUPS[: n_classes - 1])
        self.name = f"{count} scenes of {split}"
        self.sprites: list[list[EmojiImage]] = [[] for _ in self.classes]  # by label; none for the background
        labels = {subgroup: label for label, subgroup in enumerate(self.classes)}
        for image in emoji.images(SPLITS[split]):
            label = labels.get(emoji.concepts[image.concept].subgroup)
            if label is not None:
                self.sprites[label].append(image)
        empty = [name for name, images in zip(self.classes[1:], self.sprites[1:], strict=True) if not images]
        if empty:
            raise DataError(f"The emoji set has no drawing of {', '.join(empty)} for the scenes of {split}.")
        self._emoji, self._cache = emoji, dict[str, Image.Image]()
        digest = hashlib.sha256(f"{_VERSION}:{seed}:{split}".encode()).digest()
        self._key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # another process decodes what it needs

    def sample_name(self, index: int) -> str:
        return f"scene {index} of {self.split}"

    @property
    def fingerprint(self) -> str:
        """sha256 of the emoji set's fingerprint and of all that decides the scenes."""
        decides = (_VERSION, self._emoji.fingerprint, self.split, self.size, self.count, self.seed, *self.classes)
        return hashlib.sha256("\n".join(map(str, decides)).encode()).hexdigest()

    def read(self, index: int) -> tuple[bytes, bytes]:
        """The scene and its mask as PNG files."""
        image, labels = self.pixels(index)
        return _png(image), _png(labels)

    def pixels(self, index: int) -> tuple[Pixels, Pixels]:
        """Scene ``index``: RGB uint8 ``[size,size,3]`` and labels uint8 ``[size,size]``, 0 for the background.

        Raises:
            IndexError: no such scene.
        """
        if not 0 <= index < self.count:
            raise IndexError(index)
        draws = Draws(self._key, index)
        scene = draw_background(draws, self.size).astype(np.uint16)
        labels = np.full((self.size, self.size), BACKGROUND, dtype=np.uint8)
        for _ in range(PER_SCENE[0] + draws.below(PER_SCENE[1] - PER_SCENE[0] + 1)):
            label = 1 + draws.below(len(self.classes) - 1)
            drawing = self.sprites[label][draws.below(len(self.sprites[label]))]
            sprite = self._transformed(drawing, draws.uniform(*EXTENT), draws.uniform(-TURN, TURN))
            top, left = (self._place(side, draws) for side in sprite.shape[:2])
            paste(scene, labels, sprite, top, left, label)
        return scene.astype(np.uint8), labels

    def _place(self, side: int, draws: Draws) -> int:
        """Where a drawing of ``side`` pixels begins, along one axis."""
        return math.floor(draws.uniform(-OVERHANG * side, self.size - (1 - OVERHANG) * side + 1))

    def _transformed(self, drawing: EmojiImage, extent: float, angle: float) -> Pixels:
        """A drawing scaled to ``extent`` of the scene's side and turned: premultiplied RGBA, uint8 ``[h,w,4]``."""
        sprite = self.sprite(drawing)
        factor = extent * self.size / max(sprite.size)
        size = tuple(max(1, round(side * factor)) for side in sprite.size)
        scaled = sprite.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        return np.asarray(scaled.rotate(angle, Image.Resampling.BILINEAR, expand=True))

    def sprite(self, drawing: EmojiImage) -> Image.Image:
        """A drawing cut to what is visible of it, premultiplied (mode RGBa); decoded when first needed."""
        found = self._cache.get(drawing.key)
        if found is None:
            rgba = self._emoji.rgba(drawing)
            image = Image.fromarray(on_paper(rgba) if drawing.style == "contrast" else rgba)
            found = self._cache[drawing.key] = image.crop(image.getchannel("A").getbbox()).convert("RGBa")
        return found


def paste(scene: NDArray[np.uint16], labels: Pixels, sprite: Pixels, top: int, left: int, label: int) -> None:
    """Lay premultiplied RGBA uint8 ``[h,w,4]`` over a scene, in place; what lies outside is cut off.

    The pixels whose alpha is above one half become ``label``, whatever was there before.
    """
    height, width = labels.shape
    sprite = sprite[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)].astype(np.uint16)
    rows = slice(max(0, top), max(0, top) + sprite.shape[0])
    columns = slice(max(0, left), max(0, left) + sprite.shape[1])
    alpha = sprite[..., 3:]
    behind = (scene[rows, columns] * (255 - alpha) + 127) // 255
    scene[rows, columns] = np.minimum(sprite[..., :3] + behind, 255)
    labels[rows, columns][alpha[..., 0] > 127] = label


def on_paper(rgba: Pixels) -> Pixels:
    """Line art with white within its outlines, uint8 ``[H,W,4]``; gaps of up to two pixels count as closed.

    Without it only the ink would be the object: a dog would be a few strokes with the background between them.
    """
    from scipy import ndimage

    square = np.ones((3, 3))
    ink = np.pad(rgba[..., 3] > 127, 2)
    within = ndimage.binary_fill_holes(ndimage.binary_closing(ink, square)) & ~ink
    within = ndimage.binary_dilation(within, square)[2:-2, 2:-2]  # the inner rim of the strokes is half transparent
    alpha = rgba[..., 3:].astype(np.float32) / 255
    filled = np.concatenate([np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)), np.full_like(alpha, 255)], axis=-1)
    return np.where(within[..., None], filled.astype(np.uint8), rgba)


def draw_background(draws: Draws, size: int) -> Pixels:
    """One colour, a gradient, noise or stripes, each as often, uint8 ``[size,size,3]``."""
    first, second = (_color(draws) for _ in range(2))
    kinds: tuple[Callable[[], NDArray[np.float32]], ...] = (
        lambda: np.broadcast_to(first, (size, size, 3)),
        lambda: _blend(first, second, (_ramp(draws, size) + 1) / 2),
        lambda: first + _noise(draws, size),
        lambda: _blend(first, second, np.sin(_ramp(draws, size) * draws.uniform(6, 40) + draws.uniform(0, 6.3)) > 0),
    )
    return np.rint(np.clip(kinds[draws.below(len(kinds))](), 0, 255)).astype(np.uint8)


def _color(draws: Draws) -> NDArray[np.float32]:
    return np.array([draws.uniform(_DARKEST, 255) for _ in range(3)], dtype=np.float32)


def _ramp(draws: Draws, size: int) -> NDArray[np.float32]:
    """A plane through the middle, rising in a random direction: ``[size,size]`` in [-1, 1]."""
    angle = draws.uniform(0, 2 * math.pi)
    down, across = np.float32(math.sin(angle)), np.float32(math.cos(angle))
    axis = np.linspace(-1, 1, size, dtype=np.float32) / (abs(down) + abs(across))
    return np.asarray(axis[:, None] * down + axis * across, dtype=np.float32)


def _blend(first: NDArray[np.float32], second: NDArray[np.float32], share: NDArray[Any]) -> NDArray[np.float32]:
    return first + (second - first) * share[..., None].astype(np.float32)


def _noise(draws: Draws, size: int) -> NDArray[np.float32]:
    """Uniform noise of random strength around 0 in grains of 1, 2, 4 or 8 pixels, ``[size,size,3]``."""
    grain, strength = 2 ** draws.below(4), draws.uniform(10, 80)
    cells = -(-size // grain)
    values = draws.bytes(cells * cells * 3).reshape(cells, cells, 3).astype(np.float32) / np.float32(255) - np.float32(
        0.5
    )
    values *= np.float32(strength)
    return values.repeat(grain, axis=0).repeat(grain, axis=1)[:size, :size]


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def contact_sheet(source: MaskSource, rows: int = 4, columns: int = 4) -> Image.Image:
    """The first ``rows * columns`` samples, each with its mask in the colours of `palette` beside it."""
    colors = palette(256)
    cells = []
    for index in range(min(rows * columns, len(source))):
        image, labels = source.pixels(index)
        cells.append(np.pad(np.concatenate([image, colors[labels]], axis=1), ((2, 2), (2, 2), (0, 0))))
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    lines = [np.concatenate(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)]
    return Image.fromarray(np.concatenate(lines))


def main(argv: Sequence[str] | None = None) -> None:
    """Write a contact sheet."""
    parser = argparse.ArgumentParser(prog="python -m digpt.data.scenes", description="Draw scenes and their masks.")
    parser.add_argument("--output", type=Path, required=True, help="the picture to write, such as scenes.png")
    parser.add_argument("--split", default="train", help=f"{', '.join(SPLITS)} (default: train)")
    parser.add_argument("--size", type=int, default=128, help="side of a scene in pixels (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes (default: 0)")
    options = parser.parse_args(argv)
    try:
        scenes = SceneSet(EmojiSet.load(), options.split, size=options.size, seed=options.seed)
        contact_sheet(scenes).save(options.output)
    except (DigptError, OSError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    print(f"{options.output}: 16 scenes of {options.split}, {len(scenes.classes)} classes")


if __name__ == "__main__":
    main()
