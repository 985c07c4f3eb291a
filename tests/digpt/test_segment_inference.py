"""Windows, their exact counts, and the order of resizing, averaging and argmax, with models that are simple sums."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from digpt.errors import ConfigError
from digpt.model import build_encoder
from digpt.segment_inference import (
    SegmentInference,
    predict,
    probabilities,
    resize_keep_ratio,
    slide,
    whole,
    windows,
)
from digpt.segmentation import SegmentConfig, Segmenter, segment_encoder
from digpt.testing import tiny_checkpoint

Pixels = NDArray[np.uint8]


class Fake:
    """Says of each window what it saw: its pixels' red, the mean of them, and the same three numbers everywhere."""

    constants = (3.0, -5.0, 0.5)

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def pixel_logits(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        red = images[..., 0].float()
        same = [torch.full_like(red, value) for value in self.constants]
        return torch.stack([red, red.mean(dim=(1, 2), keepdim=True).expand_as(red), *same], dim=1)


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """A real model: patch 8, crops of 32 pixels, random weights, statistics as initialised."""
    start = tiny_checkpoint(text=False)
    config, _ = segment_encoder(start.config["encoder"], start.weights["encoder"], 32)
    torch.manual_seed(0)
    encoder: Any = build_encoder({"architecture": "timm", "encoder": config, "pooling": "avg"})[0]
    segment = SegmentConfig.for_encoder(config, [f"class {number}" for number in range(20)], crop=32, channels=16)
    return Segmenter(encoder, segment, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).eval()


# ------------------------------------------------------------------------------------------------------------ windows


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (512, [(0, 512)]),
        (300, [(0, 300)]),
        (513, [(0, 512), (1, 513)]),
        (683, [(0, 512), (171, 683)]),
        (853, [(0, 512), (341, 853)]),
        (854, [(0, 512), (341, 853), (342, 854)]),
        (2048, [(0, 512), (341, 853), (682, 1194), (1023, 1535), (1364, 1876), (1536, 2048)]),
    ],
)
def test_windows_lie_where_mmsegmentation_places_them(length: int, expected: list[tuple[int, int]]) -> None:
    assert windows(length, 512, 341) == expected


def test_every_pixel_is_divided_by_its_own_count() -> None:
    """13 x 9 pixels in windows of 6 every 4: rows 0-6, 4-10 and 7-13, columns 0-6 and 3-9."""
    image = picture(13, 9)
    down = [1, 1, 1, 1, 2, 2, 1, 2, 2, 2, 1, 1, 1]
    across = [1, 1, 1, 2, 2, 2, 1, 1, 1]
    count = np.outer(down, across)
    means = np.zeros((13, 9))
    for top in (0, 4, 7):
        for left in (0, 3):
            means[top : top + 6, left : left + 6] += image[top : top + 6, left : left + 6, 0].astype(np.float64).mean()
    logits = slide(Fake(), image, crop=6, stride=4)
    np.testing.assert_array_equal(logits[0], image[..., 0])  # every window at its own place
    np.testing.assert_allclose(logits[1], means / count, rtol=1e-6)
    assert np.abs(logits[1].numpy() - means / 2).max() > 10  # the count matters
    for channel, value in zip(logits[2:], Fake.constants, strict=True):
        assert (channel == value).all()


@pytest.mark.parametrize(("height", "width"), [(512, 683), (613, 511), (40, 1030), (1366, 512)])
def test_constant_logits_stay_exactly_what_they_are(height: int, width: int) -> None:
    logits = slide(Fake(), np.zeros((height, width, 3), np.uint8))
    assert logits.shape == (5, height, width)
    for channel, value in zip(logits[2:], Fake.constants, strict=True):
        assert (channel == value).all()


def test_short_sides_make_short_windows_and_nothing_is_padded_to_the_crop() -> None:
    model = Fake()
    slide(model, picture(5, 20), crop=8, stride=6, batch=2)
    assert model.seen == [(2, 5, 8, 3), (1, 5, 8, 3)]  # 0-8, 6-14 and 12-20


def test_a_stride_that_leaves_pixels_out_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stride=9 must lie in 1\.\.8"):
        slide(Fake(), picture(8, 8), crop=8, stride=9)


def test_sliding_over_one_crop_is_the_whole_image(segmenter: Segmenter) -> None:
    for size in ((32, 32), (27, 32), (19, 30)):
        image = picture(*size)
        assert torch.equal(slide(segmenter, image, crop=32, stride=21), whole(segmenter, image))
    image = picture(32, 61)
    difference = slide(segmenter, image, crop=32, stride=21) - whole(segmenter, image)
    assert difference.abs().max() > 1e-3


def test_windows_are_the_models_own_answers_and_the_batch_does_not_matter(segmenter: Segmenter) -> None:
    image = picture(32, 61)
    logits = slide(segmenter, image, crop=32, stride=21, batch=1)
    parts = [whole(segmenter, image[:, left : left + 32]) for left in (0, 21, 29)]
    torch.testing.assert_close(logits[..., :21], parts[0][..., :21])
    torch.testing.assert_close(logits[..., 30], (parts[0][..., 30] + parts[1][..., 9] + parts[2][..., 1]) / 3)
    torch.testing.assert_close(logits, slide(segmenter, image, crop=32, stride=21, batch=8), rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- resizing


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (512, 683)),  # 682.67
        ((683, 512), (683, 512)),
        ((100, 100), (512, 512)),  # enlarged
        ((1200, 1600), (512, 683)),
        ((500, 3000), (341, 2048)),  # the long side decides: 341.33
        ((201, 300), (512, 764)),  # 764.18
    ],
)
def test_the_short_side_becomes_512_and_the_long_side_at_most_2048(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    image = picture(*size)
    resized = resize_keep_ratio(image, (2048, 512))
    assert resized.shape == (*expected, 3)
    reference = cv2.resize(image, expected[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(resized.astype(int) - reference).max() <= 1


class Blocks:
    """40 classes with smooth logits that depend on the image's size alone."""

    def pixel_logits(self, images: Tensor) -> Tensor:
        height, width = images.shape[1:3]
        generator = torch.Generator().manual_seed(height * 1000 + width)
        cells = torch.randn(1, 40, 5, 7, generator=generator)
        maps = F.interpolate(cells, size=(height, width), mode="bilinear", align_corners=False)
        return maps.expand(len(images), -1, -1, -1)


def test_logits_are_resized_to_the_labels_size_before_the_best_is_taken() -> None:
    image, size = picture(24, 30), (53, 71)
    config = SegmentInference(mode="whole", scale=None)
    logits = whole(Blocks(), image)
    expected = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
    found = predict(Blocks(), image, config, size)
    assert found.dtype == np.uint8 and found.max() > 16  # more classes than are looked at in one go
    np.testing.assert_array_equal(found, expected)
    late = F.interpolate(logits.argmax(dim=0)[None, None].float(), size=size, mode="nearest")[0, 0].numpy()
    assert (late != found).mean() > 0.01
    np.testing.assert_array_equal(predict(Blocks(), image, config), logits.argmax(dim=0))  # the image's own size


def test_the_image_is_resized_to_the_scale_and_its_windows_are_cut_there() -> None:
    model = Fake()
    config = SegmentInference(crop=16, stride=11, scale=(64, 16), batch=100)
    assert predict(model, picture(30, 40), config).shape == (30, 40)
    assert model.seen == [(2, 16, 16, 3)]  # 16 x 21 pixels: columns 0-16 and 5-21


# ------------------------------------------------------------------------------------------------------- several views


def test_probabilities_of_several_views_are_averaged_after_the_softmax() -> None:
    image, size = picture(30, 40), (33, 47)
    config = SegmentInference(mode="whole", scale=(64, 16), ratios=(0.5, 1.0, 1.75))
    views = [whole(Blocks(), picture(*at)) for at in ((8, 11), (16, 21), (28, 37))]
    resized = [F.interpolate(view[None], size=size, mode="bilinear", align_corners=False)[0] for view in views]
    expected = torch.stack([view.softmax(dim=0) for view in resized]).mean(dim=0)
    found = probabilities(Blocks(), image, config, size)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(size))
    np.testing.assert_array_equal(predict(Blocks(), image, config, size), expected.argmax(dim=0))
    of_logits = torch.stack(resized).mean(dim=0).softmax(dim=0)
    assert (of_logits - expected).abs().max() > 0.01


def test_the_softmax_comes_after_the_division_by_the_count() -> None:
    image = picture(13, 9) // 64
    config = SegmentInference(crop=6, stride=4, scale=None)
    torch.testing.assert_close(
        probabilities(Fake(), image, config), slide(Fake(), image, crop=6, stride=4).softmax(dim=0)
    )


def test_a_mirrored_view_makes_the_answer_symmetric(segmenter: Segmenter) -> None:
    image = picture(24, 44)
    mirrored = image[:, ::-1]
    both = SegmentInference(crop=32, stride=21, scale=None, flip=True)
    found = probabilities(segmenter, image, both)
    torch.testing.assert_close(probabilities(segmenter, mirrored, both).flip(-1), found)
    one = SegmentInference(crop=32, stride=21, scale=None)
    first, second = probabilities(segmenter, image, one), probabilities(segmenter, mirrored, one).flip(-1)
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close((first + second) / 2, found)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "tiles"}, "valid: slide, whole"),
        ({"stride": 513}, r"stride=513 must lie in 1\.\.512"),
        ({"ratios": ()}, "at least one factor"),
        ({"ratios": (1.0, 0.0)}, "all of them positive"),
        ({"batch": 0}, "batch=0"),
        ({"scale": (2048, 0)}, "must be positive"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentInference(**changes)


def test_images_are_bytes_in_rows_and_may_be_read_only() -> None:
    image = picture(6, 7)
    image.flags.writeable = False
    assert torch.equal(whole(Fake(), image)[0], torch.tensor(image[..., 0]).float())
    wrongs: list[Any] = [image.astype(np.float32), image[..., 0], image[..., :2]]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
            whole(Fake(), wrong)
