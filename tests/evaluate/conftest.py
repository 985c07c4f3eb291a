"""A small emoji set whose pixels say what they show, and a runtime that reads them and answers as it is told."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digpt.data.emoji import STYLES, EmojiSet
from digpt.runtime.fake import FakeRuntime

FIVE_STYLE, THREE_STYLE, SUBGROUPS = 160, 12, 6


def codepoint(concept: int) -> str:
    return f"{0x1F000 + concept:X}"


def encode(concept: int, style: str) -> bytes:
    """A 64 x 64 lossless WebP of one opaque colour: concept in red and green, style in blue."""
    pixels = np.empty((64, 64, 4), np.uint8)
    pixels[:] = (concept % 256, concept // 256, STYLES.index(style), 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, exact=True, method=0)
    return buffer.getvalue()


def shown(image: np.ndarray) -> tuple[int, str]:
    """Which concept and style a decoded image ``[H,W,3]`` shows."""
    red, green, blue = (int(value) for value in image[0, 0])
    return red + 256 * green, STYLES[blue]


class RiggedRuntime(FakeRuntime):
    """Knows the answer to every image, and gives the true name the rank that ``rank(concept, style)`` asks for.

    The first columns of an embedding are the concepts (by index), the rest the subgroups; a text is its concept's
    column. ``subgroup(concept, style)`` is the column an image is put next to, None for no subgroup at all.
    """

    def __init__(
        self,
        data: EmojiSet,
        rank: Callable[[int, str], int] = lambda concept, style: 0,
        subgroup: Callable[[int, str], int | None] = lambda concept, style: None,
        templates: tuple[str, ...] = ("{}",),
        text: bool = True,
    ) -> None:
        super().__init__(dim=len(data.concepts) + SUBGROUPS, text=text, templates=templates if text else ())
        self.rank, self.subgroup = rank, subgroup
        self.index = {concept.name: index for index, concept in enumerate(data.concepts)}
        named = data.five_style_indices().tolist()
        self.pools = [[c for c in named if data.concepts[c].unseen == unseen] for unseen in (False, True)]
        self.unseen = [concept.unseen for concept in data.concepts]
        self.embedded: list[tuple[int, str]] = []
        self.texts: list[str] = []

    def embed(self, images: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(images), self.info.dim), np.float32)
        for row, image in zip(rows, images, strict=True):
            concept, style = shown(image)
            self.embedded.append((concept, style))
            group = self.subgroup(concept, style)
            if group is not None:
                row[len(self.index) + group] = 1.0
                continue
            others = [c for c in self.pools[self.unseen[concept]] if c != concept]
            better = [others[(concept + step) % len(others)] for step in range(self.rank(concept, style))]
            row[[*better, concept]] = np.linspace(2.0, 1.0, len(better) + 1)
        return rows

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        columns = [self.index[text.removeprefix("a picture of ")] for text in texts]
        return np.eye(self.info.dim, dtype=np.float32)[columns]


@pytest.fixture(scope="session")
def emoji_samples() -> list[tuple[dict, dict[str, bytes]]]:
    samples = []
    for concept in range(FIVE_STYLE + THREE_STYLE):
        styles = STYLES if concept < FIVE_STYLE else STYLES[:3]
        metadata = {
            "codepoint": codepoint(concept),
            "name": f"thing {concept}",
            "captions": [f"thing {concept}"],
            "group": "things",
            "subgroup": f"things-{concept % SUBGROUPS}",
            "styles": list(styles),
        }
        samples.append((metadata, {style: encode(concept, style) for style in styles}))
    return samples


@pytest.fixture(scope="session")
def emoji(emoji_samples: list[tuple[dict, dict[str, bytes]]]) -> EmojiSet:
    return EmojiSet(emoji_samples, "0" * 64)


@pytest.fixture(scope="session")
def emoji_root(emoji_samples: list[tuple[dict, dict[str, bytes]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same set on disk, as shards."""
    root = tmp_path_factory.mktemp("data") / "emoji"
    root.mkdir()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for metadata, images in emoji_samples:
            members = {
                "json": json.dumps(metadata).encode(),
                **{f"{style}.webp": image for style, image in images.items()},
            }
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{metadata['codepoint']}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    (root / "emoji-000.tar").write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    index = {"version": 1, "fingerprint": "0" * 64, "shards": {"emoji-000.tar": digest}}
    (root / "index.json").write_text(json.dumps(index))
    return root


@pytest.fixture
def rigged() -> type[RiggedRuntime]:
    return RiggedRuntime


@pytest.fixture(name="shown")
def shown_fixture() -> Callable[[np.ndarray], tuple[int, str]]:
    return shown
