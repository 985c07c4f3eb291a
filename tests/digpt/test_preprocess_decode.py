"""The decoder: what it refuses, and with which error; limits hold before anything is decoded."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from digpt.errors import ImageTooLargeError, UnreadableImageError, UnsupportedFormatError
from digpt.preprocess import DecodeLimits, Preprocess, decode
from digpt.testing import encode, sample_images

SAMPLES = sample_images()


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and holds almost no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_every_kind_decodes_to_rgb(name: str) -> None:
    image = decode(SAMPLES[name])
    original = Image.open(io.BytesIO(SAMPLES[name]))
    assert image.mode == "RGB"
    assert image.size == (original.size[::-1] if name == "jpeg_exif" else original.size)


@pytest.mark.parametrize(
    "data",
    [b"hello, I am no image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x00" * 64, b"%PDF-1.7", b"RIFF0000WAVE"],
)
def test_foreign_bytes(data: bytes) -> None:
    with pytest.raises(UnsupportedFormatError, match="PNG, JPEG, WebP, GIF, BMP or TIFF"):
        decode(data)


def test_formats_outside_the_list_are_refused_though_pillow_reads_them() -> None:
    for file_format in ("PPM", "ICO", "TGA", "PCX", "JPEG2000"):
        with pytest.raises(UnsupportedFormatError):
            decode(encode(Image.new("RGB", (16, 16)), file_format))


def test_empty_file() -> None:
    with pytest.raises(UnreadableImageError, match="0 bytes"):
        decode(b"")


@pytest.mark.parametrize("name", ["jpeg", "rgb_131x90", "webp", "gif", "bmp", "tiff_cmyk", "grey_16bit"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files(name: str, share: float) -> None:
    data = SAMPLES[name]
    with pytest.raises(UnreadableImageError, match="damaged or truncated"):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "magic", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a", b"BM", b"II*\0"]
)
def test_nothing_behind_the_magic_bytes(magic: bytes) -> None:
    for tail in (b"", b"\x00" * 40, bytes(range(256))):
        with pytest.raises(UnreadableImageError):
            decode(magic + tail)


def test_random_damage_never_escapes_as_another_error() -> None:
    random = np.random.default_rng(0)
    for data in SAMPLES.values():
        for _ in range(6):
            damaged = bytearray(data)
            for position in random.integers(12, len(data), 8):
                damaged[position] = random.integers(256)
            try:
                assert decode(bytes(damaged), limits=DecodeLimits(max_pixels=10**6)).mode == "RGB"
            except (UnreadableImageError, ImageTooLargeError, UnsupportedFormatError) as error:
                assert "\n" not in str(error)


def test_pixel_bomb_is_refused_from_the_header() -> None:
    bomb = png_header(50_000, 50_000)
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(ImageTooLargeError, match=r"50,000 x 50,000 pixels; at most 50,000,000"):
        decode(bomb)
    assert time.perf_counter() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_our_limit_decides_not_pillows() -> None:
    """PIL warns above 89 million pixels and refuses above 179 million; only our limit is in force, silently."""
    size = 14_000  # 196 million pixels
    with pytest.raises(UnreadableImageError):
        decode(png_header(size, size), limits=DecodeLimits(max_pixels=size * size))


def test_limits_are_inclusive() -> None:
    data = encode(Image.new("RGB", (20, 10)), "PNG")
    assert decode(data, limits=DecodeLimits(max_bytes=len(data), max_pixels=200)).size == (20, 10)
    with pytest.raises(ImageTooLargeError, match="20 x 10 pixels"):
        decode(data, limits=DecodeLimits(max_pixels=199))
    with pytest.raises(ImageTooLargeError, match="bytes"):
        decode(data, limits=DecodeLimits(max_bytes=len(data) - 1))


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (0, 0)])
def test_zero_size(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImageError):
        decode(png_header(*size))


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (12, 12), color) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    for file_format in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        assert decode(data).getpixel((6, 6)) == (200, 0, 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_counts_as_none() -> None:
    image = Image.open(io.BytesIO(SAMPLES["jpeg"])).convert("RGB")
    broken = encode(image, "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff\x00\x01", quality=95)
    plain = encode(image, "JPEG", quality=95)
    np.testing.assert_array_equal(np.asarray(decode(broken)), np.asarray(decode(plain)))


def test_floating_point_pixels_are_refused() -> None:
    data = encode(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
    with pytest.raises(UnreadableImageError, match="floating point"):
        decode(data)


def test_32_bit_integers() -> None:
    sixteen = encode(Image.fromarray(np.full((8, 8), 65535, np.int32)), "TIFF")
    assert decode(sixteen).getpixel((0, 0)) == (255, 255, 255)
    beyond = encode(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF")
    with pytest.raises(UnreadableImageError, match=r"beyond 0\.\.65535"):
        decode(beyond)


def test_preprocess_passes_its_limits_on() -> None:
    with pytest.raises(ImageTooLargeError):
        Preprocess(size=8)(SAMPLES["jpeg"], DecodeLimits(max_pixels=100))
