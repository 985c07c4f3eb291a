"""What a model sees in the parts of a picture: its patch tokens as colours, and where it looks.

The first three principal components of the patch tokens are shown as red, green and blue (Oquab et al., "DINOv2",
2023, section 7.4): patches of alike colours are alike to the model. Attention is that of ``digpt.attention``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.handlers import crop
from digpt.engine import Engine

SHOWN = 448  # pixels of a side
RAMP = np.array([[20, 15, 60], [180, 50, 90], [255, 200, 60]])  # none, half and most of the attention: dark to bright


@dataclass(frozen=True, eq=False)
class Overlay:
    """A crop and the colours of its patches, both uint8 ``[SHOWN,SHOWN,3]``, and what there is to say about them."""

    picture: np.ndarray
    colors: np.ndarray
    sentence: str

    def overlay(self, opacity: float) -> np.ndarray:
        """The picture under the colours: opacity 0 is the picture, 1 the colours."""
        mixed = self.picture * np.float32(1 - opacity) + self.colors * np.float32(opacity)
        return np.rint(mixed).astype(np.uint8)


def patches(engine: Engine, path: str | None) -> Overlay:
    """Colour the patches of the file at ``path``, as the model crops it, by how alike they are to it.

    Raises:
        InputError: there is none, or it is no picture.
        CapabilityError: the backend gives no patch tokens.
    """
    picture = crop(engine, path)
    colors, variance = patch_colors(engine.patch_tokens([picture])[0])
    return _laid(picture, colors, f"the colours hold {variance:.0%} of their variance.")


def attention(engine: Engine, path: str | None) -> Overlay:
    """Colour the patches of the file at ``path``, as the model crops it, by the attention that they get.

    Raises:
        InputError: there is none, or it is no picture.
        CapabilityError: the backend or the model shows no attention.
    """
    picture = crop(engine, path)
    maps = engine.attention_maps([picture])[0]
    share = maps.mean(axis=0)
    rest = max(0.0, 1 - float(share.sum()))
    return _laid(
        picture,
        attention_colors(maps),
        f"the mean of {len(maps)} heads. The brightest patch gets {share.max():.0%} of the attention, the darkest "
        f"{share.min():.0%}{f', tokens that are no patches {rest:.0%}' if rest > 0.005 else ''}.",
    )


def attention_colors(maps: np.ndarray) -> np.ndarray:
    """One picture's attention float ``[heads,h,w]`` -> uint8 ``[h,w,3]``: the heads' mean, from dark to bright."""
    share = maps.mean(axis=0)
    level = 2 * share / max(float(share.max()), 1e-12)
    return np.rint(np.stack([np.interp(level, [0, 1, 2], column) for column in RAMP.T], axis=-1)).astype(np.uint8)


def patch_colors(tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """Patch tokens float ``[N,C]`` in raster order of a square -> uint8 ``[g,g,3]``, and the fraction of variance.

    Each component is stretched to 0..255 over the picture; its largest deviation is on the bright side, since the sign
    of a component means nothing.
    """
    grid = math.isqrt(len(tokens))
    centred = (tokens - tokens.mean(axis=0)).astype(np.float64)
    left, strengths, _ = np.linalg.svd(centred, full_matrices=False)
    parts = np.zeros((len(tokens), 3))
    count = min(3, len(strengths))
    parts[:, :count] = left[:, :count] * strengths[:count]
    extreme = parts[np.abs(parts).argmax(axis=0), range(3)]
    parts *= np.where(extreme < 0, -1, 1)
    low, high = parts.min(axis=0), parts.max(axis=0)
    scaled = (parts - low) / np.maximum(high - low, 1e-12)
    power = strengths**2
    variance = float(power[:3].sum() / max(power.sum(), 1e-12))
    return np.rint(scaled * 255).astype(np.uint8).reshape(grid, grid, 3), variance


def _laid(picture: np.ndarray, colors: np.ndarray, said: str) -> Overlay:
    grid = f"{colors.shape[0]} x {colors.shape[1]} patches; "
    return Overlay(enlarge(picture, Image.Resampling.BICUBIC), enlarge(colors, Image.Resampling.NEAREST), grid + said)


def enlarge(picture: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
    """uint8 ``[h,w,3]`` -> uint8 ``[SHOWN,SHOWN,3]``."""
    return np.asarray(Image.fromarray(picture).resize((SHOWN, SHOWN), resampling))
