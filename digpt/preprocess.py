"""From file bytes to the uint8 pixels a model takes: decode, orient, flatten, resize, crop. Imports without torch.

>>> preprocess = Preprocess(size=64)
>>> preprocess(Path("cat.jpg").read_bytes()).shape
(64, 64, 3)

Conversion to float and normalisation happen inside the model graph (``digpt.model.InferenceModel``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digpt.decode import Alpha, DecodeLimits, decode, from_array, open_image, orient, over_white, to_rgb
from digpt.errors import ConfigError, UnreadableImageError, near_misses

__all__ = ["Alpha", "DecodeLimits", "Preprocess", "decode", "from_array", "open_image", "over_white"]

Resize = Literal["shortest", "squash", "longest"]
Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos"]
Convert = Literal["first", "last"]
Triple = tuple[float, float, float]

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}
# Above this many resized pixels (extreme aspect ratios) only the part that survives the crop is resized.
_MAX_RESIZED_PIXELS = 16_000_000


@dataclass(frozen=True)
class Preprocess:
    """One model's preprocessing; a callable from an image to uint8 ``[size, size, 3]`` RGB.

    ``resize``: ``shortest`` side to ``floor(size / crop_pct)`` then centre crop; ``squash`` both sides to it, then
    crop; ``longest`` side to it, then pad with ``fill``. Sizes and crops round as torchvision, timm and open_clip do.
    ``mean`` and ``std`` are of channels in [0, 1] and are applied by the model, not here.
    ``alpha``: over ``white``, or ``drop`` (PIL's ``convert("RGB")``, as timm and open_clip read images).
    ``exif``: apply the orientation tag. ``draft``: let JPEG decode at a reduced scale, faster and slightly different.
    ``convert``: to RGB ``first``, or ``last``, after resizing in the file's own mode, as open_clip does.
    """

    size: int
    resize: Resize = "shortest"
    crop_pct: float = 1.0
    interpolation: Interpolation = "bicubic"
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)
    alpha: Alpha = "white"
    exif: bool = True
    draft: bool = False
    fill: tuple[int, int, int] = (0, 0, 0)
    convert: Convert = "first"

    def __post_init__(self) -> None:
        choices = {"resize": Resize, "interpolation": Interpolation, "alpha": Alpha, "convert": Convert}
        for name, kind in choices.items():
            value, valid = getattr(self, name), get_args(kind)
            if value not in valid:
                raise ConfigError(f"Preprocess {name}={value!r} is unknown; valid: {', '.join(valid)}.")
        if not isinstance(self.size, int) or self.size < 1:
            raise ConfigError(f"Preprocess size={self.size!r} must be a positive number of pixels.")
        if not self.crop_pct > 0:
            raise ConfigError(f"Preprocess crop_pct={self.crop_pct} must be positive.")
        for name in ("mean", "std", "fill"):
            if len(getattr(self, name)) != 3:
                raise ConfigError(f"Preprocess {name} needs three values, one per channel.")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if min(self.std) <= 0:
            raise ConfigError(f"Preprocess std={self.std} must be positive.")
        if self.convert == "last" and (self.alpha != "drop" or self.draft):
            raise ConfigError("Preprocess convert='last' goes with alpha='drop' and draft=False.")

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; ``from_dict`` reads it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Raise ``ConfigError`` on unknown keys (naming close ones), a missing size and invalid values."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                close = near_misses(key, known)
                raise ConfigError(f"Unknown preprocess key {key!r}.{close} Valid: {', '.join(known)}.")
        if "size" not in values:
            raise ConfigError("The preprocessing lacks 'size', the model's input side in pixels.")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)

    def __call__(
        self, image: bytes | Image.Image | NDArray[np.uint8], limits: DecodeLimits | None = None
    ) -> NDArray[np.uint8]:
        """File bytes, a PIL image or uint8 ``[H,W]``, ``[H,W,3]``, ``[H,W,4]`` -> uint8 ``[size,size,3]``.

        Raises:
            InputError: and its subclasses, see ``open_image``.
        """
        if isinstance(image, np.ndarray) and self._is_crop(image):
            return image.copy()
        opened = self._open(image, limits or DecodeLimits())
        if self.exif:
            opened = orient(opened)
        if self.convert == "first":
            opened = to_rgb(opened, self.alpha)
        try:
            cropped = self._resize_crop(opened)
        except (ValueError, OSError) as error:  # only reached by exotic modes that convert last
            raise UnreadableImageError(f"Images of mode {opened.mode} cannot be resized ({error}).") from None
        return np.array(to_rgb(cropped, self.alpha), dtype=np.uint8)  # a copy: torch warns about read-only arrays

    def _open(self, image: bytes | Image.Image | NDArray[np.uint8], limits: DecodeLimits) -> Image.Image:
        if isinstance(image, Image.Image):
            return image
        if isinstance(image, np.ndarray):
            return from_array(image)
        return open_image(image, limits, self.size if self.draft else None)

    def _is_crop(self, image: NDArray[np.uint8]) -> bool:
        """Whether pixels are what this preprocessing makes of them, so that nothing is left to do."""
        side = (self.size, self.size)
        return image.dtype == np.uint8 and image.shape == (*side, 3) and self._resized(*side) == side

    def _resize_crop(self, image: Image.Image) -> Image.Image:
        width, height = self._resized(*image.size)
        resample = _RESAMPLING[self.interpolation]
        if width * height > _MAX_RESIZED_PIXELS:
            return _crop_then_resize(image, (width, height), self.size, resample, self.fill)
        if (width, height) != image.size:
            image = image.resize((width, height), resample)
        return _center_crop_or_pad(image, self.size, self.fill)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """The size before cropping, rounded as torchvision (shortest) and timm/open_clip (longest) round it."""
        target = math.floor(self.size / self.crop_pct)
        if self.resize == "squash":
            return target, target
        if self.resize == "longest":
            ratio = max(width / target, height / target)
            return max(round(width / ratio), 1), max(round(height / ratio), 1)
        if width <= height:
            return target, int(target * height / width)
        return int(target * width / height), target


def _center_crop_or_pad(image: Image.Image, size: int, fill: tuple[int, int, int]) -> Image.Image:
    """Centre crop to ``size``, padding first where a side is shorter; rounding as torchvision's ``CenterCrop``."""
    width, height = image.size
    if width < size or height < size:
        left, top = max(size - width, 0) // 2, max(size - height, 0) // 2
        canvas = Image.new(image.mode, (max(width, size), max(height, size)), _fill_value(image, fill))
        if image.mode in ("P", "PA") and (palette := image.getpalette()):
            canvas.putpalette(palette)
        canvas.paste(image, (left, top))
        image, (width, height) = canvas, canvas.size
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def _fill_value(image: Image.Image, fill: tuple[int, int, int]) -> Any:
    bands = len(image.getbands())
    if bands == 3:
        return fill
    return fill[0] if bands == 1 else (fill[0],) * bands


def _crop_then_resize(
    image: Image.Image, resized: tuple[int, int], size: int, resample: Image.Resampling, fill: tuple[int, int, int]
) -> Image.Image:
    """Resize only what the centre crop keeps; equal to resize-then-crop up to rounding, in bounded memory."""
    kept, box = [], []
    for source, target in zip(image.size, resized, strict=True):
        keep = min(target, size)
        start = round((target - keep) / 2.0)
        kept.append(keep)
        box.append((start * source / target, (start + keep) * source / target))
    (left, right), (top, bottom) = box
    part = image.resize((kept[0], kept[1]), resample, box=(left, top, right, bottom))
    return _center_crop_or_pad(part, size, fill)
