"""The bundled data set: emoji in five drawing styles, read from ``data/emoji/`` without torch.

    python -m digpt.data.emoji

prints how many images each style and split holds. The data card is ``data/emoji/README.md``. Every split is a pure
function of the code points, so the order of the shards, or of the concepts within them, changes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digpt.errors import DataError, near_misses

STYLES = ("noto", "twemoji", "fluent3d", "flat", "contrast")
TRAIN_STYLES = STYLES[:3]
SPLITS = ("seen", "val", "flat", "contrast", "unseen")
SIZE = 64
UNSEEN_CONCEPTS = 100
VAL_EVERY = 5
INDEX_NAME = "index.json"
INDEX_VERSION = 1

_DEFAULT_ROOT = Path(__file__).resolve().parents[2] / "data" / "emoji"
_REMEDY = "restore it with 'git checkout -- data/emoji' or rebuild it with 'python data/emoji/build.py'"


@dataclass(frozen=True)
class Concept:
    """One emoji, whatever its style.

    ``name`` is lower-case and unique; ``captions`` starts with it, and no caption belongs to two concepts.
    ``styles`` lists the styles it is drawn in, in the order of ``STYLES``. ``val_style`` is the training style
    whose image is held out for ``val``; None means that none is.
    """

    codepoint: str
    name: str
    captions: tuple[str, ...]
    group: str
    subgroup: str
    styles: tuple[str, ...]
    unseen: bool
    val_style: str | None


@dataclass(frozen=True)
class EmojiImage:
    """One drawing: ``concept`` indexes ``EmojiSet.concepts``; ``encoded`` is a lossless 64 x 64 RGBA WebP file."""

    concept: int
    style: str
    encoded: bytes
    codepoint: str

    @property
    def key(self) -> str:
        """Name within the shards, such as ``1F600.noto``."""
        return f"{self.codepoint}.{self.style}"


def codepoint_hash(purpose: str, codepoint: str) -> int:
    """Return a 64-bit integer that depends on nothing but its two arguments; ``purpose`` decorrelates the draws."""
    return int.from_bytes(hashlib.sha256(f"digpt-emoji:{purpose}:{codepoint}".encode()).digest()[:8], "big")


def unseen_codepoints(five_style: Iterable[str]) -> frozenset[str]:
    """Choose the ``UNSEEN_CONCEPTS`` code points with the smallest hashes among the five-style ones."""
    return frozenset(sorted(five_style, key=lambda point: codepoint_hash("unseen", point))[:UNSEEN_CONCEPTS])


def held_out_style(codepoint: str) -> str | None:
    """Return the training style held out for ``val`` for about every fifth five-style code point, else None."""
    if codepoint_hash("val", codepoint) % VAL_EVERY:
        return None
    return TRAIN_STYLES[codepoint_hash("val-style", codepoint) % len(TRAIN_STYLES)]


def decode_rgba(encoded: bytes) -> NDArray[np.uint8]:
    """Decode a WebP file to uint8 ``[64, 64, 4]``: R, G, B, A in 0..255, straight (not premultiplied) alpha."""
    with Image.open(io.BytesIO(encoded), formats=("WEBP",)) as image:  # naming the format saves a third of the time
        pixels = np.asarray(image if image.mode == "RGBA" else image.convert("RGBA"))
    if pixels.shape != (SIZE, SIZE, 4):
        raise DataError(f"An emoji image is {pixels.shape[1]} x {pixels.shape[0]}, not {SIZE} x {SIZE}; {_REMEDY}.")
    return pixels


def codepoint_order(codepoint: str) -> tuple[int, ...]:
    """Sort key of the concepts: the code points as numbers."""
    return tuple(int(part, 16) for part in codepoint.split("-"))


def fingerprint_of(samples: Iterable[tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]]) -> str:
    """Return the sha256 over metadata and decoded pixels, in code point order, of ``(metadata, {style: rgba})``."""
    digest = hashlib.sha256()
    for metadata, images in sorted(samples, key=lambda sample: codepoint_order(sample[0]["codepoint"])):
        digest.update(json.dumps(metadata, sort_keys=True, ensure_ascii=True).encode())
        for style in sorted(images):
            digest.update(f"{metadata['codepoint']}.{style}".encode())
            digest.update(np.ascontiguousarray(images[style]).tobytes())
    return digest.hexdigest()


class EmojiSet:
    """All concepts and their images, held encoded in memory (17 MB).

    Attributes:
        concepts: in code point order; ``EmojiImage.concept`` and every label index into it.
        fingerprint: sha256 over metadata and decoded pixels, recorded when the shards were built.
    """

    def __init__(self, samples: Sequence[tuple[dict[str, Any], dict[str, bytes]]], fingerprint: str) -> None:
        """Take ``(metadata, {style: encoded image})`` per concept, in any order; `load` is the usual way in."""
        ordered = sorted(samples, key=lambda sample: codepoint_order(sample[0]["codepoint"]))
        unseen = unseen_codepoints(meta["codepoint"] for meta, _ in ordered if len(meta["styles"]) == len(STYLES))
        self.fingerprint = fingerprint
        self.concepts = tuple(_concept(meta, unseen) for meta, _ in ordered)
        self._images = [
            EmojiImage(index, style, encoded[style], concept.codepoint)
            for index, (concept, (_, encoded)) in enumerate(zip(self.concepts, ordered, strict=True))
            for style in concept.styles
        ]

    @classmethod
    def load(cls, root: Path | None = None) -> EmojiSet:
        """Read the shards under ``root`` (default: the ones bundled with the checkout).

        Raises:
            DataError: the directory or a shard is missing, or a shard is not the one that was built.
        """
        root = _DEFAULT_ROOT if root is None else Path(root)
        index = _read_index(root)
        samples: dict[str, tuple[dict[str, Any], dict[str, bytes]]] = {}
        for name, sha256 in index["shards"].items():
            for member, content in _read_shard(root / name, sha256):
                codepoint, _, extension = member.partition(".")
                metadata, images = samples.setdefault(codepoint, ({}, {}))
                if extension == "json":
                    metadata.update(json.loads(content))
                else:
                    images[extension.removesuffix(".webp")] = content
        return cls(list(samples.values()), index["fingerprint"])

    def images(self, split: str) -> list[EmojiImage]:
        """Return the images of a split of ``SPLITS`` (``train`` is another word for ``seen``), in code point order.

        Raises:
            DataError: no such split.
        """
        wanted = "seen" if split == "train" else split
        if wanted not in SPLITS:
            raise DataError(
                f"The emoji set has no split {split!r}; there are {', '.join(SPLITS)}.{near_misses(split, SPLITS)}"
            )
        return [image for image in self._images if split_of(self.concepts[image.concept], image.style) == wanted]

    def rgba(self, image: EmojiImage) -> NDArray[np.uint8]:
        """Decode one image to uint8 ``[64, 64, 4]``; see `decode_rgba`."""
        return decode_rgba(image.encoded)

    def rgba_array(self, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Decode a whole split: uint8 ``[N, 64, 64, 4]`` and int64 concept indices ``[N]``, ordered as `images`."""
        images = self.images(split)
        return _decode_all(images), np.array([image.concept for image in images], dtype=np.int64)

    def five_style_indices(self) -> NDArray[np.int64]:
        """Return the indices, int64 ``[M]``, of the concepts drawn in all five styles, unseen ones included."""
        drawn = [index for index, concept in enumerate(self.concepts) if len(concept.styles) == len(STYLES)]
        return np.array(drawn, dtype=np.int64)

    def five_style_names(self) -> list[str]:
        """Return the names belonging to `five_style_indices`: the class set of zero-shot evaluation."""
        return [self.concepts[index].name for index in self.five_style_indices()]

    def compute_fingerprint(self) -> str:
        """Decode everything and return what `fingerprint` must be; takes seconds."""
        decoded: list[dict[str, NDArray[np.uint8]]] = [{} for _ in self.concepts]
        for image, pixels in zip(self._images, _decode_all(self._images), strict=True):
            decoded[image.concept][image.style] = pixels
        return fingerprint_of(zip(map(shard_metadata, self.concepts), decoded, strict=True))


def _decode_all(images: Sequence[EmojiImage]) -> NDArray[np.uint8]:
    """Decode to uint8 ``[N, 64, 64, 4]``, in order."""
    pixels = np.empty((len(images), SIZE, SIZE, 4), dtype=np.uint8)
    for position, image in enumerate(images):  # threads are slower: at this size the interpreter dominates
        pixels[position] = decode_rgba(image.encoded)
    return pixels


def split_of(concept: Concept, style: str) -> str:
    """Return the one split of ``SPLITS`` that the concept's drawing in ``style`` belongs to."""
    if concept.unseen:
        return "unseen"
    if style not in TRAIN_STYLES:
        return style
    return "val" if style == concept.val_style else "seen"


def shard_metadata(concept: Concept) -> dict[str, Any]:
    """Return what the shards store about a concept: everything but the splits, which are computed when read."""
    metadata = {key: value for key, value in asdict(concept).items() if key not in ("unseen", "val_style")}
    return {**metadata, "captions": list(concept.captions), "styles": list(concept.styles)}


def _concept(metadata: dict[str, Any], unseen: frozenset[str]) -> Concept:
    codepoint = metadata["codepoint"]
    five_style = len(metadata["styles"]) == len(STYLES)  # the class set of zero-shot, so that val has its labels
    return Concept(
        codepoint=codepoint,
        name=metadata["name"],
        captions=tuple(metadata["captions"]),
        group=metadata["group"],
        subgroup=metadata["subgroup"],
        styles=tuple(metadata["styles"]),
        unseen=codepoint in unseen,
        val_style=held_out_style(codepoint) if five_style and codepoint not in unseen else None,
    )


def _read_index(root: Path) -> dict[str, Any]:
    path = root / INDEX_NAME
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["version"]
        complete = isinstance(index["shards"], dict) and isinstance(index["fingerprint"], str)
    except OSError as error:
        raise DataError(f"The bundled emoji set is not at {root} ({INDEX_NAME} is missing); {_REMEDY}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged; {_REMEDY}.") from error
    if version != INDEX_VERSION or not complete:
        raise DataError(f"{path} is damaged or of version {version}; this program reads {INDEX_VERSION}; {_REMEDY}.")
    return dict(index)


def _read_shard(path: Path, sha256: str) -> list[tuple[str, bytes]]:
    """Return ``(member name, content)`` of a shard whose bytes hash to ``sha256``."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"The emoji shard {path} is missing or unreadable; {_REMEDY}.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"The emoji shard {path} is damaged (its sha256 differs from {INDEX_NAME}); {_REMEDY}.")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        return [(member.name, content[member.offset_data : member.offset_data + member.size]) for member in archive]


def summary_table(emoji: EmojiSet) -> str:
    """Return the counts per style and split as a Markdown table, then the number of concepts and subgroups."""
    counts = {split: [image.style for image in emoji.images(split)] for split in SPLITS}
    rows = [["style", *SPLITS, "all"]]
    for style in STYLES:
        numbers = [counts[split].count(style) for split in SPLITS]
        rows.append([style, *map(str, numbers), str(sum(numbers))])
    totals = [len(counts[split]) for split in SPLITS]
    rows.append(["all", *map(str, totals), str(sum(totals))])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" + "|--:" * (len(SPLITS) + 1) + "|")
    subgroups = len({concept.subgroup for concept in emoji.concepts})
    captions = sum(len(concept.captions) for concept in emoji.concepts)
    return "\n".join(lines) + (
        f"\n\n{len(emoji.concepts)} concepts in {subgroups} subgroups with {captions} captions; "
        f"{len(emoji.five_style_indices())} concepts in all five styles.\nfingerprint {emoji.fingerprint}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of counts."""
    parser = argparse.ArgumentParser(prog="python -m digpt.data.emoji", description="Count the bundled emoji images.")
    parser.add_argument("--root", type=Path, default=None, help="directory of the shards (default: the bundled ones)")
    try:
        emoji = EmojiSet.load(parser.parse_args(argv).root)
    except DataError as error:
        parser.exit(2, f"{error}\n")
    print(summary_table(emoji))


if __name__ == "__main__":
    main()
