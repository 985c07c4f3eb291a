"""The builder's decisions that need no download: names, captions, resizing, deterministic shards."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from digpt.errors import DataError

SCRIPT = Path(__file__).resolve().parents[2] / "data" / "emoji" / "build.py"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    pytest.importorskip("resvg_py")
    spec = importlib.util.spec_from_file_location("emoji_build", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("unicode_name", "icon_name", "expected"),
    [
        ("WHITE HEAVY CHECK MARK", "check-mark-button", "check mark button"),
        ("T-REX", "t-rex", "t-rex"),
        ("CLOCK FACE FOUR OCLOCK", "four-oclock", "four o'clock"),
        ("WOMANS BOOTS", "womans-boot", "woman's boot"),
        ("FAMILY: MAN, BOY", None, "family: man, boy"),
    ],
)
def test_plain_name(build: ModuleType, unicode_name: str, icon_name: str | None, expected: str) -> None:
    assert build.plain_name(unicode_name, icon_name) == expected


@pytest.mark.parametrize(
    ("caption", "name", "expected"),
    [
        ("heavy black heart", "red heart", False),
        ("black cat", "black cat", True),
        ("squared cjk unified ideograph-7a7a", "japanese vacancy button", False),
        ("rabbit2", "rabbit", False),
        ("a", "a button blood type", False),
        ("grinning", "grinning face", True),
    ],
)
def test_is_helpful(build: ModuleType, caption: str, name: str, expected: bool) -> None:
    assert build.is_helpful(caption, name) is expected


def test_make_unambiguous_keeps_a_caption_with_the_concept_it_names(build: ModuleType) -> None:
    concepts = [
        {"codepoint": "1F430", "name": "rabbit face", "captions": ["rabbit face", "rabbit", "bunny"]},
        {"codepoint": "1F407", "name": "rabbit", "captions": ["rabbit", "bunny"]},
    ]
    build.make_unambiguous(concepts)
    assert [concept["captions"] for concept in concepts] == [["rabbit face"], ["rabbit"]]


def test_resize_does_not_bleed_hidden_colours(build: ModuleType) -> None:
    pixels = np.zeros((256, 256, 4), dtype=np.uint8)
    pixels[..., 0] = 255  # red everywhere, but hidden
    pixels[64:192, 64:192] = (0, 0, 255, 255)  # an opaque blue square
    resized = build.resize_rgba(Image.fromarray(pixels))
    visible = resized[resized[..., 3] > 8]
    assert visible[:, 0].max() == 0 and visible[:, 2].min() == 255
    assert resized[32, 32].tolist() == [0, 0, 255, 255]


def test_svg_is_rendered_black_on_transparent(build: ModuleType) -> None:
    icon = {"body": '<path fill="currentColor" d="M8 8h16v16H8z"/>'}
    pixels = build.to_rgba((icon, 32, 32))
    assert pixels.shape == (64, 64, 4)
    assert pixels[32, 32].tolist() == [0, 0, 0, 255] and pixels[2, 2].tolist() == [0, 0, 0, 0]


def test_webp_is_lossless(build: ModuleType) -> None:
    icon = {"body": '<circle cx="16" cy="16" r="12" fill="#c83c14" fill-opacity=".6"/>'}
    source = (icon, 32, 32)
    np.testing.assert_array_equal(build.decode_rgba(build.encode_webp(source)), build.to_rgba(source))


def test_foreign_tarball_is_refused(build: ModuleType, tmp_path: Path) -> None:
    package = build.Package("@scope/name", "1.0.0", "sha512-AAAA")
    (tmp_path / "scope-name-1.0.0.tgz").write_bytes(b"something else")
    with pytest.raises(DataError, match="not the pinned sha512-AAAA"):
        build.download(package, tmp_path)
