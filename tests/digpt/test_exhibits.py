"""Exhibits: what is written is read, and what no evaluation wrote is refused."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from digpt.errors import DataError
from digpt.exhibits import (
    EXHIBITS_NAME,
    SIDE,
    Exhibit,
    Exhibits,
    SetExhibits,
    SweepExhibits,
    picture_of,
    read_exhibits,
    write_exhibits,
)

RED = np.full((32, 32, 3), (200, 10, 10), np.uint8)


def made() -> Exhibits:
    cat = Exhibit("val", "1.png", "cat", "dog", False, 0.75, picture_of(RED))
    one = SetExhibits("pets", "val", 10, 3, (0.3, 0.8), (0.5, 0.75), (2, 8), (cat,))
    return Exhibits(model="sha256:m", backend="onnx", protocol="sha256:p", sets=(one,), sweeps=(sweep(cat),))


def sweep(cat: Exhibit) -> SweepExhibits:
    return SweepExhibits("pets-c", (cat,), (cat, cat))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_exhibits(made(), tmp_path / EXHIBITS_NAME)
    assert read_exhibits(tmp_path) == read_exhibits(tmp_path / "results.json") == made()
    assert read_exhibits(tmp_path / "elsewhere" / "results.json") is None


def test_a_picture_is_a_small_webp_file() -> None:
    data = base64.b64decode(picture_of(np.repeat(np.repeat(RED, 20, 0), 10, 1)))
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("WEBP", (SIDE // 2, SIDE))
        assert np.abs(np.asarray(image).astype(int) - RED[0, 0]).max() < 12
    with Image.open(io.BytesIO(base64.b64decode(picture_of(RED)))) as image:
        assert image.size == (32, 32)  # small pictures are not blown up


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"picture": "javascript:alert(1)"}, "no base64"),
        ({"picture": base64.b64encode(b"<svg onload=alert(1)>").decode()}, "no WebP"),
        ({"confidence": 1.5}, "less than or equal to 1"),
        ({"onload": "x"}, "unexpected"),
    ],
)
def test_what_is_no_exhibit_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write_exhibits(made(), tmp_path / EXHIBITS_NAME)
    values = json.loads((tmp_path / EXHIBITS_NAME).read_text())
    values["sets"][0]["mistakes"][0] |= change
    (tmp_path / EXHIBITS_NAME).write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"sets\.0\.mistakes\.0.*(?i:{said}).*run the evaluation again"):
        read_exhibits(tmp_path)


def test_a_newer_file_and_a_lopsided_diagram_are_refused(tmp_path: Path) -> None:
    write_exhibits(made(), tmp_path / EXHIBITS_NAME)
    values = json.loads((tmp_path / EXHIBITS_NAME).read_text())
    (tmp_path / EXHIBITS_NAME).write_text(json.dumps({**values, "schema_version": 2}))
    with pytest.raises(DataError, match="newer version"):
        read_exhibits(tmp_path)
    values["sets"][0]["count"] = [1]
    (tmp_path / EXHIBITS_NAME).write_text(json.dumps(values))
    with pytest.raises(DataError, match="as many confidences"):
        read_exhibits(tmp_path)
    (tmp_path / EXHIBITS_NAME).write_text("{")
    with pytest.raises(DataError, match="not valid at document"):
        read_exhibits(tmp_path)
