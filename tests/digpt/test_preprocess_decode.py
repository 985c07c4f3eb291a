"""The decoder: what it refuses, and with which error; limits hold before anything is decoded."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngImageFile

from digpt.decode import to_rgb
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


def tiff_header(size: int, tags: dict[int, int | bytes], order: str = "<") -> bytes:
    """A deflated grey TIFF of ``size`` x ``size`` pixels that holds almost no data; ``tags`` add to its header."""
    block = zlib.compress(bytes(99))
    entries = {256: size, 257: size, 258: 8, 259: 8, 262: 1, 277: 1, **tags}
    where, length = (324, 325) if 322 in tags else (273, 279)
    entries |= {where: 8, length: len(block)}
    packed = b"".join(
        struct.pack(
            f"{order}HHI{'4s' if isinstance(value, bytes) else 'I'}",
            tag,
            1 if isinstance(value, bytes) else 4,
            1,
            value,
        )
        for tag, value in sorted(entries.items())
    )
    directory = struct.pack(f"{order}H", len(entries)) + packed + bytes(4)
    return struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(block)) + block + directory


def gif_header(width: int, height: int) -> bytes:
    """A GIF whose screen is one pixel and whose only frame states a size."""
    screen = struct.pack("<6sHHBBB", b"GIF89a", 1, 1, 0x80, 0, 0) + bytes((0, 0, 0, 255, 255, 255))
    return screen + struct.pack("<cHHHHB", b",", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"


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


def test_pixel_bomb_is_refused_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: PngImageFile) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(PngImageFile, "load", load)
    with pytest.raises(ImageTooLargeError, match=r"50,000 x 50,000 pixels; at most 50,000,000"):
        decode(png_header(50_000, 50_000))


@pytest.mark.parametrize(
    ("tags", "block"),
    [
        ({322: 8000, 323: 8000}, "8,000 x 8,000"),
        ({322: 16, 323: 2**20}, "16 x 1,048,576"),
    ],
)
def test_a_small_tiff_of_large_tiles_is_refused(tags: dict[int, int | bytes], block: str) -> None:
    """libtiff allocates a whole tile, whatever the size of the image."""
    with pytest.raises(ImageTooLargeError, match=f"tiles of {block} pixels; at most 1,000 are accepted"):
        decode(tiff_header(10, tags), limits=DecodeLimits(max_pixels=1000))


@pytest.mark.parametrize("tags", [{322: b"\xff\0\0\0", 323: 2**30}, {322: 16}])
def test_a_tiff_with_tiles_of_no_known_size_is_refused(tags: dict[int, int | bytes]) -> None:
    with pytest.raises(UnreadableImageError, match="no whole number of pixels"):
        decode(tiff_header(10, tags))


@pytest.mark.parametrize("kind", ["II", "MM", "big"])
def test_a_tiff_that_states_a_tag_twice_is_refused(kind: str) -> None:
    """Pillow reads the last value, libtiff allocates by the first."""
    order = ">" if kind == "MM" else "<"
    data = tiff_header(10, {278: 10}, order)
    if kind == "big":
        data = encode(Image.new("L", (10, 10)), "TIFF", compression="tiff_lzw", big_tiff=True)
    twice = data.replace(struct.pack(f"{order}H", 278), struct.pack(f"{order}H", 257))  # as high as its only strip
    with pytest.raises(UnreadableImageError, match="one of its tags twice"):
        decode(twice)


@pytest.mark.parametrize("rows", [1, 10, 65_535, 2**32 - 1])
def test_a_tiff_strip_counts_no_more_than_the_image(rows: int) -> None:
    """2^32 - 1 rows are TIFF's way to say "all of them"."""
    data = encode(Image.new("L", (10, 10), 9), "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: rows})
    assert decode(data, limits=DecodeLimits(max_pixels=100)).getpixel((9, 9)) == (9, 9, 9)


def test_our_limit_decides_not_pillows() -> None:
    """PIL warns above 89 million pixels and refuses above 179 million; only our limit is in force, silently."""
    size = 14_000  # 196 million pixels
    with pytest.raises(UnreadableImageError):
        decode(png_header(size, size), limits=DecodeLimits(max_pixels=size * size))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png_header(60_000, 60_000), id="png"),
        pytest.param(gif_header(60_000, 60_000), id="gif"),  # Pillow raises
        pytest.param(gif_header(10_000, 10_000), id="gif that Pillow warns of"),
        pytest.param(gif_header(8_000, 8_000), id="gif"),  # only our limit sees it
        pytest.param(tiff_header(60_000, {}), id="tiff"),
    ],
)
def test_too_many_pixels_are_too_large_whoever_notices(data: bytes) -> None:
    with pytest.raises(ImageTooLargeError, match=r"pixels.*; at most 50,000,000 are accepted. Scale it down") as caught:
        decode(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("owner", [(ImageFile.ImageFile, "load"), (Image.Image, "convert")], ids=lambda pair: pair[1])
def test_too_little_memory_is_one_sentence(owner: tuple[type, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    data = encode(Image.new("L", (20, 10)), "PNG")
    monkeypatch.setattr(*owner, fail)
    with pytest.raises(ImageTooLargeError, match=r"not enough memory to .*\. Scale"):
        decode(data)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_deep_grey_is_converted_without_wide_copies(dtype: type) -> None:
    side = 1000
    image = Image.fromarray(np.arange(side * side).reshape(side, side).astype(np.uint16).astype(dtype))
    expected = (np.asarray(image) >> 8).astype(np.uint8)
    image.load()
    tracemalloc.start()
    pixels = to_rgb(image, "white")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(np.asarray(pixels), np.stack([expected] * 3, axis=2))
    assert peak < (2 * np.dtype(dtype).itemsize + 2) * side * side  # Pillow's own copy, twice for a moment, and ours


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
