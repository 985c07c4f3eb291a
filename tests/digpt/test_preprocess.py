"""Geometry and colour: our pixels are timm's and open_clip's, bit for bit; own models flatten over white."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform

from digpt.errors import ConfigError, InputError
from digpt.preprocess import Preprocess, over_white
from digpt.source_open_clip import open_clip_preprocess
from digpt.testing import encode, sample_images

SAMPLES = sample_images()
GRADIENT = Image.fromarray(np.add.outer(np.arange(40), np.arange(70)).astype(np.uint8) * 2)


def timm_pixels(data: bytes, **options: Any) -> NDArray[np.uint8]:
    transform = create_transform(normalize=False, **options)
    return np.asarray(transform(Image.open(io.BytesIO(data)).convert("RGB")).permute(1, 2, 0))


def open_clip_pixels(data: bytes, **options: Any) -> NDArray[np.uint8]:
    transform = image_transform_v2(PreprocessCfg(mean=(0, 0, 0), std=(1, 1, 1), **options), is_train=False)
    pixels = transform(Image.open(io.BytesIO(data))).permute(1, 2, 0) * 255
    return np.asarray(pixels.round().byte())


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(
    ("crop_mode", "resize", "crop_pct", "interpolation"),
    [
        ("center", "shortest", 0.875, "bicubic"),
        ("center", "shortest", 0.95, "bilinear"),
        ("center", "shortest", 1.0, "bicubic"),
        ("center", "shortest", 1.3, "bicubic"),  # resized below the crop: torchvision pads
        ("squash", "squash", 0.9, "bicubic"),
        ("border", "longest", 0.9, "bicubic"),
        ("border", "longest", 1.0, "lanczos"),
    ],
)
def test_timm_pixels(name: str, crop_mode: str, resize: Any, crop_pct: float, interpolation: Any) -> None:
    mean = (0.485, 0.456, 0.406)
    fill = tuple(round(255 * value) for value in mean) if crop_mode == "border" else (0, 0, 0)
    ours = Preprocess(
        size=31, resize=resize, crop_pct=crop_pct, interpolation=interpolation, alpha="drop", exif=False, fill=fill
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns timm's users about palette transparency
        theirs = timm_pixels(
            SAMPLES[name],
            input_size=31,
            crop_mode=crop_mode,
            crop_pct=crop_pct,
            interpolation=interpolation,
            mean=mean,
        )
    np.testing.assert_array_equal(ours(SAMPLES[name]), theirs)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(
    "options",
    [
        {"resize_mode": "shortest", "interpolation": "bicubic"},
        {"resize_mode": "squash", "interpolation": "bilinear"},
        {"resize_mode": "longest", "interpolation": "bicubic", "fill_color": 7},
    ],
    ids=lambda options: options["resize_mode"],
)
def test_open_clip_pixels(name: str, options: dict[str, Any]) -> None:
    ours = open_clip_preprocess("test", {"size": 31, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = open_clip_pixels(SAMPLES[name], size=31, **options)
    np.testing.assert_array_equal(ours(SAMPLES[name]), theirs)


def test_open_clip_resizes_before_converting() -> None:
    """A palette image differs by the order: in its own mode PIL can only take the nearest pixel."""
    values = open_clip_preprocess("test", {"size": 20, "resize_mode": "shortest"}).to_dict()
    last, first = Preprocess.from_dict(values), Preprocess.from_dict({**values, "convert": "first"})
    assert np.abs(last(SAMPLES["palette"]).astype(int) - first(SAMPLES["palette"])).max() > 20


def test_over_white_is_the_decoders_rule() -> None:
    color, opacity = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([color, color, color, opacity], axis=-1).astype(np.uint8)
    decoded = Preprocess(size=256)(encode(Image.fromarray(rgba), "PNG"))
    np.testing.assert_array_equal(decoded, over_white(rgba))
    exact = np.round((color * opacity + 255 * (255 - opacity)) / 255)
    np.testing.assert_array_equal(decoded[..., 0], exact)


@pytest.mark.parametrize("name", ["rgba", "grey_alpha", "palette_alpha", "webp", "gif", "rgb_transparent_color"])
def test_transparent_pixels_become_white(name: str) -> None:
    rgba = Image.open(io.BytesIO(SAMPLES[name])).convert("RGBA")
    size = rgba.size[1]
    expected = over_white(np.asarray(rgba))
    left = round((rgba.size[0] - size) / 2)
    np.testing.assert_array_equal(Preprocess(size=size)(SAMPLES[name]), expected[:, left : left + size])


def test_black_line_art_on_transparent_black() -> None:
    """convert("RGB") alone turns such a drawing wholly black; the reason for flattening over white."""
    drawing = np.zeros((16, 16, 4), np.uint8)
    drawing[4:12, 7:9, 3] = 255
    data = encode(Image.fromarray(drawing), "PNG")
    assert Preprocess(size=16, alpha="drop")(data).max() == 0
    flattened = Preprocess(size=16)(data)
    assert flattened[0, 0].tolist() == [255, 255, 255]
    assert flattened[8, 8].tolist() == [0, 0, 0]


def test_16_bit_grey_keeps_its_high_byte() -> None:
    values = np.array([[0, 255, 256, 32767], [32768, 65279, 65280, 65535]] * 2, dtype=np.uint16)
    expected = [[0, 0, 1, 127], [128, 254, 255, 255]]
    for file_format in ("PNG", "TIFF"):
        pixels = Preprocess(size=4)(encode(Image.fromarray(values), file_format))
        assert pixels[:2, :, 0].tolist() == expected
        assert (pixels == pixels[..., :1]).all()


def test_exif_orientation() -> None:
    top_black = np.full((40, 40, 3), 255, np.uint8)
    top_black[:20] = 0
    for orientation, dark in ((1, "top"), (3, "bottom"), (6, "right"), (8, "left")):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(Image.fromarray(top_black), "JPEG", exif=exif, quality=95)
        for apply, side in ((True, dark), (False, "top")):
            pixels = Preprocess(size=40, exif=apply)(data)
            halves = {"top": pixels[:18], "bottom": pixels[22:], "left": pixels[:, :18], "right": pixels[:, 22:]}
            assert [name for name, half in halves.items() if half.max() < 40] == [side]


def test_all_eight_orientations_follow_pillow() -> None:
    from PIL import ImageOps

    image = Image.open(io.BytesIO(SAMPLES["rgb_131x90"]))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(image, "PNG", exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(Preprocess(size=24)(data), Preprocess(size=24, exif=False)(upright))


def test_draft_is_close_but_not_the_same() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    data = encode(noise.resize((512, 512), Image.Resampling.BICUBIC), "JPEG")
    full, draft = Preprocess(size=64)(data).astype(int), Preprocess(size=64, draft=True)(data)
    assert 0 < np.abs(full - draft).mean() < 8


def test_arrays_pil_images_and_bytes_agree() -> None:
    image = Image.open(io.BytesIO(SAMPLES["rgba"]))
    expected = Preprocess(size=24)(SAMPLES["rgba"])
    np.testing.assert_array_equal(Preprocess(size=24)(image), expected)
    np.testing.assert_array_equal(Preprocess(size=24)(np.asarray(image)), expected)
    assert expected.shape == (24, 24, 3) and expected.dtype == np.uint8


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4, 2), (4,), (1, 4, 4, 3)])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="Expected uint8 pixels"):
        Preprocess(size=8)(np.zeros(shape, np.uint8))


def test_float_arrays_are_refused_with_advice() -> None:
    with pytest.raises(InputError, match="Scale floats"):
        Preprocess(size=8)(np.zeros((8, 8, 3), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(2, 30_000), (30_000, 2)])
def test_extreme_aspect_ratios_stay_small(size: tuple[int, int]) -> None:
    """Shortest side to 64 would be 64 x 960,000 here; only the kept part is resized, to the same picture."""
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    array = np.stack([ramp, ramp]) if size[0] > size[1] else np.stack([ramp, ramp], axis=1)
    pixels = Preprocess(size=64)(np.repeat(array[..., None], 3, axis=2))
    assert pixels.shape == (64, 64, 3)
    assert abs(int(pixels.astype(int).mean()) - 127) <= 1


def test_the_two_ways_to_crop_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for resize in ("shortest", "longest", "squash"):
        ours = Preprocess(size=24, resize=resize, crop_pct=0.9)  # type: ignore[arg-type]
        for name in ("rgb_131x90", "rgb_5x90", "rgb_37x53"):
            usual = ours(SAMPLES[name]).astype(int)
            with monkeypatch.context() as patch:
                patch.setattr("digpt.preprocess._MAX_RESIZED_PIXELS", 0)
                assert np.abs(usual - ours(SAMPLES[name])).max() <= 1


def test_dictionary_round_trip() -> None:
    preprocess = Preprocess(size=48, resize="squash", mean=(0.1, 0.2, 0.3), fill=(1, 2, 3), alpha="drop", draft=True)
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    assert hash(Preprocess.from_dict(preprocess.to_dict())) == hash(preprocess)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 8, "interpolatoin": "bicubic"}, "Did you mean 'interpolation'"),
        ({"resize": "squash"}, "lacks 'size'"),
        ({"size": 8, "resize": "stretch"}, "valid: shortest, squash, longest"),
        ({"size": 0}, "positive"),
        ({"size": 8, "crop_pct": 0.0}, "crop_pct"),
        ({"size": 8, "mean": [0.5]}, "three values"),
        ({"size": 8, "std": [0.5, 0.0, 0.5]}, "std"),
        ({"size": 8, "convert": "last"}, "alpha='drop'"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocess.from_dict(values)


def test_light_modules_import_without_torch() -> None:
    """A server of exported models has no torch: one process imports what such a server imports."""
    code = (
        "import sys, digpt.preprocess, digpt.artifact, digpt.errors, digpt.text, digpt.files, digpt.manifest\n"
        "heavy = {'torch', 'timm', 'open_clip', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
