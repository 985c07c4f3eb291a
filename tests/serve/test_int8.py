"""Embeddings as whole numbers with a scale: an eighth of a kilobyte, and still the same neighbours."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import numpy as np
import pytest

from serve.answers import quantize


def test_int8_times_its_scale_is_the_embedding(client: httpx.Client, image: Callable[..., bytes]) -> None:
    files = [("files", image(seed)) for seed in range(3)]
    exact = client.post("/embed", files=files, data={"texts": "dog"}).json()["data"]
    coded = client.post("/embed", files=files, data={"texts": "dog", "encoding_format": "int8"}).json()["data"]
    for number, item in zip(exact, coded, strict=True):
        whole, floats = np.array(item["embedding"]), np.array(number["embedding"])
        assert whole.dtype == np.int64  # no fractions
        assert np.abs(whole).max() == 127  # the range is used
        assert np.abs(whole * item["scale"] - floats).max() <= item["scale"] * 0.5001
    assert "scale" not in exact[0]


def test_images_not_normalised_have_their_own_scales(client: httpx.Client, image: Callable[..., bytes]) -> None:
    request = {"files": [("files", image(0)), ("files", image(1))]}
    options = {"encoding_format": "int8", "normalize": "false"}
    first, second = client.post("/embed", **request, data=options).json()["data"]
    assert first["scale"] != second["scale"]


@pytest.mark.parametrize(
    ("row", "numbers"),
    [([0.0, 0.0], [0, 0]), ([1.0, -2.0], [64, -127]), ([1e-40, 2e-41], [127, 25]), ([3e38, 0.0], [127, 0])],
)
def test_rounding(row: list[float], numbers: list[int]) -> None:
    found, scale = quantize(np.array(row, np.float32))
    assert found.dtype == np.int8
    assert scale > 0
    assert found.tolist() == numbers


def test_another_format_is_refused(client: httpx.Client, image: Callable[..., bytes]) -> None:
    refused = client.post("/embed?encoding_format=int4", content=image(), headers={"Content-Type": "image/png"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "encoding_format")
