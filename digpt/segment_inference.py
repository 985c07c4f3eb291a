"""From an image of any size to a class for each pixel: whole or in sliding windows, at one scale or at several.

>>> config = SegmentInference(crop=512, stride=341)
>>> labels = predict(segmenter, image, config, size=label.shape)      # uint8 [h,w], to compare with the label

The order is mmsegmentation's: the image is resized, logits are summed over the windows and divided by their number at
each pixel, resized to the label's size, and only then the best class is taken. Labels are never resized.
Shapes: H x W the image, h x w the label, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from digpt.data.ade20k import keep_ratio_size, resize_image
from digpt.errors import ConfigError

Mode = Literal["slide", "whole"]
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # mmsegmentation's img_ratios
_CLASSES_AT_ONCE = 16  # whose logits stand in the label's size at a time


class PixelModel(Protocol):
    """What can be asked for logits at every pixel, such as ``digpt.segmentation.Segmenter``."""

    def pixel_logits(self, images: Tensor) -> Tensor:
        """uint8 ``[B,H,W,3]`` of any size -> float32 ``[B,K,H,W]``."""


@dataclass(frozen=True)
class FromArrays:
    """A ``PixelModel`` of something that takes and gives arrays, such as ``Engine.pixel_logits``."""

    compute: Callable[[NDArray[np.uint8]], NDArray[np.float32]]

    def pixel_logits(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.compute(images.numpy()))


@dataclass(frozen=True)
class SegmentInference:
    """How images are segmented; all of it changes the figures, except ``batch``.

    Attributes:
        mode: ``slide`` over windows of ``crop`` pixels every ``stride`` pixels, or the ``whole`` image at once.
        scale: long and short side that the image is fitted into, its ratio kept, see `resize_keep_ratio`; None leaves
            it as it is.
        ratios: factors on ``scale``, one view each; with several, or with ``flip``, probabilities are averaged.
        flip: a second, mirrored view of each.
        batch: windows that the model gets at a time.
    """

    mode: Mode = "slide"
    crop: int = 512
    stride: int = 341
    scale: tuple[int, int] | None = (2048, 512)
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch: int = 8

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"Inference mode {self.mode!r} is unknown; valid: {', '.join(get_args(Mode))}.")
        _check_windows(self.crop, self.stride)
        if not self.ratios or min(self.ratios) <= 0:
            raise ConfigError(f"ratios={self.ratios} must name at least one factor, all of them positive.")
        if self.batch < 1 or (self.scale is not None and min(self.scale) < 1):
            raise ConfigError(f"batch={self.batch} and both numbers of scale={self.scale} must be positive.")

    @classmethod
    def for_crop(cls, crop: int) -> SegmentInference:
        """The usual way of a model that was trained at ``crop``, as ADE20K's 341 and (2048, 512) are for 512 pixels."""
        return cls(crop=crop, stride=max(round(crop * 341 / 512), 1), scale=(4 * crop, crop))


def _check_windows(crop: int, stride: int) -> None:
    if not 1 <= stride <= crop:
        raise ConfigError(f"stride={stride} must lie in 1..{crop}, the crop: otherwise pixels would be left out.")


def resize_keep_ratio(image: NDArray[np.uint8], scale: tuple[int, int] = (2048, 512)) -> NDArray[np.uint8]:
    """uint8 ``[H,W,3]`` fitted into ``scale``: short side to its smaller number, long side at most its larger.

    Enlarges too. Sides are rounded as ``int(x * factor + 0.5)``, mmcv's way; bilinear without anti-aliasing.
    """
    height, width = keep_ratio_size(image.shape[0], image.shape[1], scale)
    return resize_image(image, height, width)


def windows(length: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """Where windows lie along one side: ``[start, stop)`` every ``stride``, the last moved back to end at the edge.

    As ``slide_inference`` of mmsegmentation places them; a side of up to ``crop`` pixels is one window of its length.
    """
    count = max(math.ceil((length - crop) / stride), 0) + 1
    stops = [min(number * stride + crop, length) for number in range(count)]
    return [(max(stop - crop, 0), stop) for stop in stops]


@torch.no_grad()
def whole(model: PixelModel, image: NDArray[np.uint8]) -> Tensor:
    """Logits of one image uint8 ``[H,W,3]`` as it is, in one piece: float32 ``[K,H,W]``, on the model's device."""
    return model.pixel_logits(_tensor(image)[None])[0]


@torch.no_grad()
def slide(model: PixelModel, image: NDArray[np.uint8], crop: int = 512, stride: int = 341, batch: int = 8) -> Tensor:
    """Logits of one image uint8 ``[H,W,3]`` from overlapping windows: float32 ``[K,H,W]``, on the model's device.

    At each pixel the sum of the windows' logits over their number, see `windows`. A side shorter than ``crop`` makes
    windows of that length, which the model pads to its patch and cuts again; nothing is padded to ``crop``.

    Raises:
        ConfigError: a stride beyond the crop.
    """
    _check_windows(crop, stride)
    pixels = _tensor(image)
    height, width = pixels.shape[:2]
    places = [(rows, columns) for rows in windows(height, crop, stride) for columns in windows(width, crop, stride)]
    total: Tensor | None = None
    count = torch.zeros(height, width)
    for start in range(0, len(places), batch):
        part = places[start : start + batch]
        crops = torch.stack([pixels[top:bottom, left:right] for (top, bottom), (left, right) in part])
        logits = model.pixel_logits(crops)
        if total is None:
            total = logits.new_zeros(logits.shape[1], height, width)
        for ((top, bottom), (left, right)), found in zip(part, logits, strict=True):
            total[:, top:bottom, left:right] += found
            count[top:bottom, left:right] += 1
    assert total is not None  # there is always a window
    return total / count.to(total.device)


@torch.no_grad()
def probabilities(
    model: PixelModel, image: NDArray[np.uint8], config: SegmentInference, size: tuple[int, int] | None = None
) -> Tensor:
    """Probability of each class at each pixel: float32 ``[K,h,w]``, summing to 1 over K.

    The softmax is taken of logits that were divided by their count and resized to ``size``. Several views (``ratios``
    times ``flip``) are averaged after it, as mmsegmentation 0.x's ``aug_test`` and 1.x's ``SegTTAModel`` do; their
    sizes are those of 0.x, where ``scale`` is multiplied (1.x resizes the original image by the ratio instead, and
    BEiT's own repository raises small views to the crop).

    Args:
        size: (height, width) of the label; None for the image's own.
    """
    height, width = size or image.shape[:2]
    total, count = None, 0
    for logits in _views(model, image, config):
        found = _resized(logits, (height, width)).softmax(dim=0)
        total = found if total is None else total.add_(found)
        count += 1
    assert total is not None  # there is always a ratio
    return total.div_(count)


@torch.no_grad()
def predict(
    model: PixelModel, image: NDArray[np.uint8], config: SegmentInference, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """The best class at each pixel, uint8 ``[h,w]``; arguments as `probabilities`."""
    views = len(config.ratios) * (1 + config.flip)
    if views > 1:
        return probabilities(model, image, config, size).argmax(dim=0).to(torch.uint8).cpu().numpy()
    (logits,) = _views(model, image, config)
    height, width = size or image.shape[:2]
    return _resized_argmax(logits, (height, width)).cpu().numpy()


def _views(model: PixelModel, image: NDArray[np.uint8], config: SegmentInference) -> Iterator[Tensor]:
    """Logits ``[K,H',W']`` of every view, at the view's size, mirrored ones turned back."""
    for ratio in config.ratios:
        view = _view(image, config.scale, ratio)
        yield _view_logits(model, view, config)
        if config.flip:
            yield _view_logits(model, view[:, ::-1], config).flip(-1)


def _view(image: NDArray[np.uint8], scale: tuple[int, int] | None, ratio: float) -> NDArray[np.uint8]:
    if scale is None and ratio == 1:
        return image
    long, short = scale or (max(image.shape[:2]), min(image.shape[:2]))
    return resize_keep_ratio(image, (max(1, int(long * ratio)), max(1, int(short * ratio))))


def _view_logits(model: PixelModel, view: NDArray[np.uint8], config: SegmentInference) -> Tensor:
    if config.mode == "whole":
        return whole(model, view)
    return slide(model, view, config.crop, config.stride, config.batch)


def _resized_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """``argmax`` over the classes of ``[K,H,W]`` resized to ``size``: uint8 ``[h,w]``.

    A few classes at a time: 150 of them at the size of a large photograph would take gigabytes.
    """
    best = logits.new_full(size, -math.inf)
    found = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for first in range(0, len(logits), _CLASSES_AT_ONCE):
        values, classes = _resized(logits[first : first + _CLASSES_AT_ONCE], size).max(dim=0)
        better = values > best
        best = torch.where(better, values, best)
        found = torch.where(better, (classes + first).to(torch.uint8), found)
    return found


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """``[K,H,W]`` -> ``[K,h,w]``, bilinear, corners not aligned."""
    if logits.shape[1:] == size:
        return logits
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"An image is uint8 [H, W, 3], not {image.dtype} of shape {image.shape}.")
    return torch.from_numpy(np.array(image))  # copied: decoded images are read-only, mirrored ones go backwards
