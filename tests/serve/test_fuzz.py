"""Images that are broken in every way, beside good ones: no 500, nothing hangs, and the neighbours' answers stay."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as Pillow

from digpt.engine import Engine
from digpt.preprocess import DecodeLimits
from digpt.runtime.fake import FakeRuntime

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
CLIENT_ERRORS = {"unreadable_image", "unsupported_image_format", "image_too_large", "invalid_input"}
Random = np.random.Generator


def pixels(rng: Random) -> Pillow.Image:
    width, height = rng.integers(1, 90, 2)
    channels = int(rng.choice([1, 3, 4]))
    values = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Pillow.fromarray(values[..., 0] if channels == 1 else values)


def saved(image: Pillow.Image, kind: str, **options: Any) -> bytes:
    if kind in ("JPEG", "BMP") and image.mode == "RGBA":
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def whole(rng: Random) -> bytes:
    return saved(pixels(rng), str(rng.choice(KINDS)))


def truncated(rng: Random) -> bytes:
    data = whole(rng)
    return data[: rng.integers(0, len(data))]


def flipped(rng: Random) -> bytes:
    data = bytearray(whole(rng))
    for position in rng.integers(0, len(data), rng.integers(1, 20)):
        data[position] ^= 1 << int(rng.integers(8))
    return bytes(data)


def flipped_header(rng: Random) -> bytes:
    data = bytearray(whole(rng))
    for position in rng.integers(0, min(64, len(data)), 6):
        data[position] = int(rng.integers(256))
    return bytes(data)


def spliced(rng: Random) -> bytes:
    first, second = whole(rng), whole(rng)
    return first[: rng.integers(len(first))] + second[rng.integers(len(second)) :]


def repeated(rng: Random) -> bytes:
    data = whole(rng)
    start, end = sorted(rng.integers(0, len(data), 2))
    return data[:end] + data[start:end] * int(rng.integers(1, 9)) + data[end:]


def noise(rng: Random) -> bytes:
    magic = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\x01\x00\x00WEBPVP8 ", b"GIF89a", b"BM", b"II*\x00"]
    return magic[rng.integers(len(magic))] + rng.bytes(int(rng.integers(0, 3000)))


def bomb(rng: Random) -> bytes:
    """A few kilobytes that state, or really hold, very many pixels."""
    if rng.random() < 0.5:
        width, height = (int(side) for side in rng.integers(2, 2**31, 2))
        return png(width, height, zlib.compress(bytes(10_000)))
    side = 1100  # more than the server's limit, and they are all there
    return saved(Pillow.new("1", (side, side)), "PNG")


def huge_header(rng: Random) -> bytes:
    """A text chunk, or a chunk that states a length that is not there."""
    text = b"k\x00" + bytes(int(rng.integers(1, 100_000)))
    if rng.random() < 0.5:
        return png(4, 4, zlib.compress(bytes(52)), extra=chunk(b"tEXt", text))
    return png(4, 4, b"", extra=struct.pack(">I", int(rng.integers(2**16, 2**31))) + b"iCCP")


def animated(rng: Random) -> bytes:
    frames = [pixels(rng).convert("RGB").resize((20, 20)) for _ in range(3)]
    return saved(frames[0], str(rng.choice(["GIF", "WEBP", "PNG", "TIFF"])), save_all=True, append_images=frames[1:])


def rotated(rng: Random) -> bytes:
    exif = Pillow.Exif()
    exif[0x0112] = int(rng.integers(0, 12))
    data = bytearray(saved(pixels(rng), str(rng.choice(["JPEG", "PNG", "WEBP"])), exif=exif))
    if rng.random() < 0.5:
        data[int(rng.integers(len(data)))] ^= 0xFF
    return bytes(data)


def other(rng: Random) -> bytes:
    found = [b"", b"\x00" * 100, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"%!PS-Adobe-3.0 EPSF-3.0"]
    return found[rng.integers(len(found))]


MUTATIONS = (
    *(whole, truncated, flipped, flipped_header, spliced, repeated),
    *(noise, bomb, huge_header, animated, rotated, other),
)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, content: bytes, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def mutants(count: int) -> Iterator[bytes]:
    for number in range(count):
        rng = np.random.default_rng([number, 7])
        yield MUTATIONS[number % len(MUTATIONS)](rng)


def fuzz(client: httpx.Client, count: int, good: list[bytes], tolerance: float) -> Counter[str]:
    """Send mutants in threes between good neighbours; return how often each outcome came."""
    outcomes: Counter[str] = Counter()
    alone = client.post("/embed", json={"images": [b64(data) for data in good]}).json()["data"]
    expected = np.array([item["embedding"] for item in alone], np.float32)
    batch: list[bytes] = []
    for number, mutant in enumerate(mutants(count), start=1):
        batch.append(mutant)
        if len(batch) < 3 and number < count:
            continue
        images = [good[0], *batch, good[1]]
        answer = client.post("/embed", json={"images": [b64(data) for data in images]})
        assert answer.status_code == 200, (number, answer.text)
        first, *middle, last = answer.json()["data"]
        found = np.array([first["embedding"], last["embedding"]], np.float32)
        np.testing.assert_allclose(found, expected, atol=tolerance, err_msg=str(number))
        for item in middle:
            outcomes[item["error"]["code"] if "error" in item else "embedded"] += 1
        raw = client.post("/embed", content=batch[0], headers={"Content-Type": "image/png"})
        assert raw.status_code in (200, 413, 415, 422), (number, raw.text)
        batch = []
    return outcomes


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def fuzzed(serving: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda runtime: serving(Engine(runtime, limits=DecodeLimits(max_bytes=200_000, max_pixels=1_000_000)))


def test_a_few_mutants(fuzzed: Callable[[Any], Any], image: Callable[..., bytes]) -> None:
    client = fuzzed(FakeRuntime(dim=8))
    outcomes = fuzz(client, 200, [image(0), image(1)], tolerance=0)
    assert set(outcomes) - {"embedded"} <= CLIENT_ERRORS
    assert outcomes.total() == 200
    assert min(outcomes[code] for code in ("embedded", "unreadable_image", "unsupported_image_format")) > 10
    assert outcomes["image_too_large"] > 5
    assert (client.service.bodies.held, client.service.model().admission.pixels) == (0, 0)


@pytest.mark.slow
def test_many_mutants_with_a_real_model(fuzzed: Callable[[Any], Any], image: Callable[..., bytes]) -> None:
    client = fuzzed(Engine.load("bundled", threads=1).runtime)
    outcomes = fuzz(client, 5000, [image(0), image(1)], tolerance=1e-5)
    assert set(outcomes) - {"embedded"} <= CLIENT_ERRORS
    assert outcomes.total() == 5000
    assert (client.service.bodies.held, client.service.model().admission.pixels) == (0, 0)
