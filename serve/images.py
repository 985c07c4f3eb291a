"""From what a client sent as an image to the model's crop, item by item, on the decoding threads."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from digpt.engine import Engine
from digpt.errors import InputError
from digpt.preprocess import decode
from serve.errors import RequestError

NOT_DECODED = InputError("The image was not decoded.")
NOT_FETCHED = "Images by URL are not fetched here; send the image itself as base64."
Image = str | bytes | InputError  # base64 or a data URI, a file, or why an image by URL was not fetched


async def decode_all(
    pool: ThreadPoolExecutor, engine: Engine, images: Sequence[Image], *, preprocessed: bool, at_once: int
) -> list[np.ndarray | Exception]:
    """Decode each image to uint8 ``[H,W,3]``, or return its error in its place. Cancelling drops those not begun.

    A request has no more than ``at_once`` images in the pool, which takes them in order: many images of one request
    do not hold up a single one of another.
    """
    loop = asyncio.get_running_loop()
    decoded: list[np.ndarray | Exception] = [NOT_DECODED] * len(images)
    todo = iter(list(enumerate(images)))

    async def lane() -> None:
        for index, image in todo:
            decoded[index] = await loop.run_in_executor(pool, _decode_or_error, engine, preprocessed, image)

    lanes = min(at_once, len(images))
    await (lane() if lanes == 1 else asyncio.gather(*(lane() for _ in range(lanes))))
    return decoded


def image_bytes(image: str | bytes) -> bytes:
    """Return the file that a base64 string or a data URI holds; bytes are returned as they are.

    The media type of a data URI is not looked at: the file's own first bytes decide.

    Raises:
        RequestError: it is not base64.
    """
    if isinstance(image, bytes):
        return image
    if image.startswith(("http://", "https://")):
        raise RequestError(NOT_FETCHED)
    head, comma, content = image.partition(",") if image.startswith("data:") else ("", "", image)
    if head and (not comma or not head.endswith(";base64")):
        raise RequestError("The data URI must look like 'data:image/png;base64,...'.")
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"The image is not valid base64 ({error}).") from None


def decode_one(engine: Engine, image: str | bytes, *, preprocessed: bool = False) -> np.ndarray:
    """Decode one image to the model's crop; with ``preprocessed`` it must have the crop's size and is kept as it is.

    Raises:
        InputError: see ``image_bytes`` and ``digpt.preprocess.decode``; or the size differs.
    """
    data = image_bytes(image)
    if not preprocessed:
        return engine.decode(data)
    how = engine.info.preprocess
    picture = decode(data, alpha=how.alpha, exif=False, draft=False, size=how.size, limits=engine.limits)
    if picture.size != (how.size, how.size):
        width, height = picture.size
        raise RequestError(
            f"With preprocessed=true an image must be {how.size} x {how.size}; this one is {width} x {height}."
        )
    return np.asarray(picture)


def _decode_or_error(engine: Engine, preprocessed: bool, image: Image) -> np.ndarray | InputError:
    if isinstance(image, InputError):
        return image
    try:
        return decode_one(engine, image, preprocessed=preprocessed)
    except InputError as error:
        return error
