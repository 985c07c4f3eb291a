"""The one decoder behind every door: file bytes to an RGB image, within limits. Imports without torch.

>>> decode(Path("cat.jpg").read_bytes()).mode
'RGB'
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from digpt.errors import ImageTooLargeError, InputError, UnreadableImageError, UnsupportedFormatError

Alpha = Literal["white", "drop"]

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class DecodeLimits:
    """What is refused before decoding: encoded bytes, and pixels as the header states them (whole, or of one tile)."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000


def decode(
    data: bytes,
    *,
    alpha: Alpha = "white",
    exif: bool = True,
    draft: bool = False,
    size: int | None = None,
    limits: DecodeLimits | None = None,
) -> Image.Image:
    """Decode file bytes to an RGB image: ``open_image``, ``orient``, ``to_rgb``; the one decoder of every door.

    ``draft`` with ``size`` lets JPEG decode at a reduced scale whose sides stay at least ``size``.
    """
    image = open_image(data, limits or DecodeLimits(), size if draft else None)
    return to_rgb(orient(image) if exif else image, alpha)


def _image_class(data: bytes) -> type[ImageFile.ImageFile] | None:
    """The decoder by magic bytes, or None; nothing outside this list is ever decoded."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if data.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return TiffImageFile
    return BmpImageFile if data.startswith(b"BM") else None


def open_image(data: bytes, limits: DecodeLimits, draft_size: int | None = None) -> Image.Image:
    """Decode the first frame of PNG, JPEG, WebP, GIF, BMP or TIFF bytes, in the file's own PIL mode.

    Raises:
        UnsupportedFormatError: the first bytes are of no allowed format.
        ImageTooLargeError: too many bytes, too many pixels by the header (nothing was decoded then), or no memory.
        UnreadableImageError: empty, truncated or damaged.
    """
    if not data:
        raise UnreadableImageError("The image is empty (0 bytes).")
    if len(data) > limits.max_bytes:
        raise ImageTooLargeError(f"The image has {len(data):,} bytes; at most {limits.max_bytes:,} are accepted.")
    image_class = _image_class(data)
    if image_class is None:
        raise UnsupportedFormatError("Not an image of a supported format; send PNG, JPEG, WebP, GIF, BMP or TIFF.")
    try:
        # The decoder's class, not Image.open: that warns or raises by PIL's own pixel limit before ours is checked.
        image = image_class(io.BytesIO(data))
        _check_pixels(image, limits)
        if draft_size is not None:
            image.draft("RGB", (draft_size, draft_size))
        image.load()
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Some of Pillow's decoders look at its own limit once more; GIF before its size is known to us.
        raise ImageTooLargeError(
            f"The image has too many pixels ({error}); at most {limits.max_pixels:,} are accepted. Scale it down."
        ) from None
    except MemoryError:
        raise ImageTooLargeError("There is not enough memory to decode the image. Scale it down.") from None
    except Exception as error:  # damaged files raise nearly everything: OSError, SyntaxError, struct.error, KeyError
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UnreadableImageError(f"The image is damaged or truncated ({reason}).") from None
    return image


def _check_pixels(image: Image.Image, limits: DecodeLimits) -> None:
    """Compare with the limit what is about to be allocated: the image, and a compressed TIFF's single tile."""
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImageError(f"The image states a size of {width} x {height} pixels.")
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"The image has {width:,} x {height:,} pixels; at most {limits.max_pixels:,} are accepted. Scale it down."
        )
    if isinstance(image, TiffImageFile) and image.use_load_libtiff:
        width, height = _tiff_block(image)
        if width * height > limits.max_pixels:
            raise ImageTooLargeError(
                f"The TIFF is stored in tiles of {width:,} x {height:,} pixels; at most "
                f"{limits.max_pixels:,} are accepted. Save it with smaller ones."
            )


def _tiff_block(image: TiffImageFile) -> tuple[int, int]:
    """Width and height of the tile that libtiff allocates, however small the image itself is."""
    tags = image.tag_v2
    if _repeats_a_tag(image):
        raise UnreadableImageError("The TIFF states one of its tags twice.")
    if TILEWIDTH not in tags and TILELENGTH not in tags:
        return image.size  # libtiff cuts strips to the image
    width, height = tags.get(TILEWIDTH), tags.get(TILELENGTH)
    if not isinstance(width, int) or not isinstance(height, int):
        raise UnreadableImageError("The TIFF states no whole number of pixels for its tiles.")
    return width, height


def _repeats_a_tag(image: TiffImageFile) -> bool:
    """Of a tag stated twice Pillow reads the last, libtiff the first: what we check would not be what it allocates."""
    file = image.fp
    assert file is not None
    file.seek(0)
    header = file.read(4)
    order, big = "<" if header.startswith(b"II") else ">", b"\x2b" in header
    file.seek(image.tag_v2.offset)
    (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", file.read(8 if big else 2))
    entry = 20 if big else 12
    entries = file.read(min(count, 65_536) * entry)
    tags = [entries[start : start + 2] for start in range(0, len(entries), entry)]
    return len(set(tags)) < len(tags)


def from_array(array: NDArray[np.uint8]) -> Image.Image:
    """uint8 ``[H,W]`` grey, ``[H,W,3]`` RGB or ``[H,W,4]`` RGBA -> PIL image.

    Raises:
        InputError: another dtype or shape.
    """
    shape_ok = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shape_ok or 0 in array.shape:
        raise InputError(
            f"Expected uint8 pixels [H,W], [H,W,3] or [H,W,4], got {array.dtype} {list(array.shape)}. "
            "Scale floats in [0, 1] by 255 and round first."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def orient(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; damaged EXIF data counts as none, as in browsers."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error, Warning):
        return image
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def to_rgb(image: Image.Image, alpha: Alpha) -> Image.Image:
    """Any PIL mode to RGB; see ``Preprocess`` for ``alpha``.

    16-bit grey keeps its high byte when ``alpha="white"``, as PIL does for 16-bit colour; with ``drop``, PIL's own
    ``convert("RGB")`` decides.

    Raises:
        UnreadableImageError: a mode with no defined conversion (floating point, LAB).
        ImageTooLargeError: there is no memory for it.
    """
    if image.mode == "RGB" and (alpha == "drop" or "transparency" not in image.info):
        return image
    try:
        return _drop_alpha(image) if alpha == "drop" else _over_white(image)
    except ValueError as error:
        raise UnreadableImageError(f"Pixels of mode {image.mode} have no defined colour ({error}).") from None
    except MemoryError:
        width, height = image.size
        raise ImageTooLargeError(
            f"There is not enough memory to convert {width:,} x {height:,} pixels to RGB. Scale the image down."
        ) from None


def _drop_alpha(image: Image.Image) -> Image.Image:
    if isinstance(image.info.get("transparency"), bytes):
        image = image.copy()
        del image.info["transparency"]  # changes no pixel; PIL would warn that it is lost
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating point has no defined white; convert it to 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        return _from_deep_grey(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Modes I;16, I;16B, I;16L and I (32-bit integers that hold 16-bit values) to RGB; tRNS becomes white."""
    values = np.asarray(image)
    if values.itemsize > 2 and (values.min() < 0 or values.max() > 65535):
        raise ValueError("32-bit integers beyond 0..65535 have no defined white; convert them to 16 bits")
    grey = np.empty(values.shape, np.uint8)
    np.right_shift(values, 8, out=grey, casting="unsafe")  # no copy of 2 or 4 bytes a pixel
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Flatten straight-alpha uint8 ``[..., 4]`` onto white, ``[..., 3]``: the decoder's rule, bit for bit."""
    color, opacity = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    # 255 is odd, so rounding to nearest never meets a tie; the products stay below 2^16.
    return ((color * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
