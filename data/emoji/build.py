"""Build the bundled emoji shards from five pinned npm packages, or check that the committed ones are what they give.

    python data/emoji/build.py --output data/emoji
    python data/emoji/build.py --output data/emoji --check

Needs npm, and resvg-py to render SVG. The check compares decoded pixels and metadata, never file bytes, so that
another version of libwebp does not matter. Built with Pillow 12.3, resvg-py 0.5.0.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from digpt.data.emoji import (
    INDEX_NAME,
    INDEX_VERSION,
    SIZE,
    SPLITS,
    STYLES,
    EmojiSet,
    codepoint_order,
    decode_rgba,
    fingerprint_of,
    shard_metadata,
)
from digpt.errors import DataError

SHARD_BYTES = 3_600_000
LEFT_OUT = ("Flags", "Component")
NAMES = {"1F449": "backhand index pointing right", "1FA85": "pinata"}  # no icon name, and a mangled one


@dataclass(frozen=True)
class Package:
    """A pinned npm package; ``integrity`` is what ``npm view NAME@VERSION dist.integrity`` prints."""

    name: str
    version: str
    integrity: str


PACKAGES = {
    "noto": Package(
        "emoji-datasource-google",
        "16.0.0",
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    "twemoji": Package(
        "emoji-datasource-twitter",
        "16.0.0",
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    ),
    "fluent3d": Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
    "flat": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "contrast": Package(
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "sha512-esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
    ),
}


class Tarball:
    """Files of one downloaded npm package, read straight from its archive."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as archive:
            wanted = re.compile(r"package/(emoji\.json|icons\.json|chars\.json|img/\w+/64/.*|assets/.*)")
            self._files: dict[str, bytes] = {}
            for member in archive:
                if member.isfile() and wanted.fullmatch(member.name):
                    content = archive.extractfile(member)
                    assert content is not None, "a regular file has content"
                    self._files[member.name.removeprefix("package/")] = content.read()

    def json(self, name: str) -> Any:
        """Parse a JSON file of the package."""
        return json.loads(self._files[name])

    def by_codepoint(self, folder: str) -> dict[str, bytes]:
        """Return the files below ``folder``, keyed by `join_key` of their names."""
        return {join_key(Path(name).stem): content for name, content in self._files.items() if name.startswith(folder)}


def join_key(codepoint: str) -> str:
    """Drop variation selector 16, on which the packages disagree: ``1F170-FE0F`` -> ``1f170``."""
    return codepoint.lower().replace("-fe0f", "")


def download(package: Package, directory: Path) -> Path:
    """Fetch a package with npm unless ``directory`` has it already, and verify its hash.

    Raises:
        DataError: npm fails, or the archive is not the pinned one.
    """
    path = directory / f"{package.name.lstrip('@').replace('/', '-')}-{package.version}.tgz"
    if not path.exists():
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        try:
            subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            message = f"'{' '.join(command)}' failed ({error}); npm and access to a registry are needed."
            raise DataError(message) from error
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != package.integrity:
        raise DataError(f"{path.name} has the hash sha512-{digest}, not the pinned {package.integrity}; nothing built.")
    return path


def resize_rgba(image: Image.Image) -> NDArray[np.uint8]:
    """Lanczos-resize to uint8 ``[64, 64, 4]``, premultiplied and in float: no colour bleeds from under alpha 0."""
    straight = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    premultiplied = np.concatenate([straight[..., :3] * straight[..., 3:], straight[..., 3:]], axis=-1)
    channels = [
        np.asarray(Image.fromarray(premultiplied[..., c]).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
        for c in range(4)
    ]
    alpha = np.clip(channels[3], 0, 1)[..., None]
    colour = np.stack(channels[:3], axis=-1) / np.maximum(alpha, 1 / 512)
    resized: NDArray[np.float32] = np.concatenate([np.clip(colour, 0, 1), alpha], axis=-1)
    return np.rint(resized * 255).astype(np.uint8)


def render_svg(icon: dict[str, Any], width: int, height: int) -> bytes:
    """Render an Iconify icon to PNG bytes of 64 x 64; ``currentColor`` is black."""
    view = f"{icon.get('left', 0)} {icon.get('top', 0)} {icon.get('width', width)} {icon.get('height', height)}"
    body = icon["body"].replace("currentColor", "#000000")
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {namespaces} viewBox="{view}">{body}</svg>'
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))


def to_rgba(source: bytes | tuple[dict[str, Any], int, int]) -> NDArray[np.uint8]:
    """Turn an image file, or an Iconify icon with its default size, into uint8 ``[64, 64, 4]``."""
    encoded = source if isinstance(source, bytes) else render_svg(*source)
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.array(image.convert("RGBA")) if image.size == (SIZE, SIZE) else resize_rgba(image)
    pixels[pixels[..., 3] == 0] = 0  # invisible colours compress badly and would leak into careless readers
    return pixels


def encode_webp(source: bytes | tuple[dict[str, Any], int, int]) -> bytes:
    """Convert a source image to lossless WebP."""
    buffer = io.BytesIO()
    Image.fromarray(to_rgba(source)).save(buffer, "WEBP", lossless=True, exact=True, quality=100, method=5)
    return buffer.getvalue()


def plain_name(unicode_name: str, icon_name: str | None) -> str:
    """Choose the name: the icon's, close to how people speak, but the Unicode one if only punctuation differs."""
    unicode_words = unicode_name.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if icon_name is None or re.sub(r"[^a-z0-9]+", "-", unicode_words.replace("'", "")).strip("-") == icon_name:
        words = unicode_words
    else:
        words = icon_name.replace("-", " ")
    words = re.sub(r"\b(wo)?(man|men)s\b", r"\1\2's", words)  # both sources drop apostrophes: "mans shoe"
    return words.replace("oclock", "o'clock")


def is_helpful(caption: str, name: str) -> bool:
    """Reject captions that describe no picture: code points, numbered short names, single letters, swearing.

    In old Unicode names black and white mean filled and outlined: "heavy black heart" is the red one.
    """
    if re.search(r"ideograph-[0-9a-f]|^u[0-9a-f]{4}$|[a-z] ?\d+$|^\W", caption) or caption == "shit":
        return False
    return len(caption) > 1 and all(colour in name for colour in ("black", "white") if colour in caption.split())


def concept_metadata(entry: dict[str, Any], icon_name: str | None, styles: list[str]) -> dict[str, Any]:
    """Describe one concept; captions are the name, the Unicode name and the short names, as words."""
    name = NAMES.get(entry["unified"]) or plain_name(entry["name"], icon_name)
    short_names = [re.sub(r"[-_]+", " ", short) for short in entry["short_names"]]
    captions = [plain_name(entry["name"], None), *short_names]
    return {
        "codepoint": entry["unified"],
        "name": name,
        "captions": list(dict.fromkeys([name, *(caption for caption in captions if is_helpful(caption, name))])),
        "group": entry["category"],
        "subgroup": entry["subcategory"],
        "styles": styles,
    }


def make_unambiguous(concepts: list[dict[str, Any]]) -> None:
    """Make every name unique, and every caption the property of one concept, in place."""
    names = Counter(concept["name"] for concept in concepts)
    for concept in concepts:
        if names[concept["name"]] > 1:
            others = [caption for caption in concept["captions"] if caption not in names]
            concept["captions"] = others or [f"{concept['name']} {concept['codepoint'].lower()}"]
            concept["name"] = concept["captions"][0]
    names = Counter(concept["name"] for concept in concepts)
    claims = Counter(caption for concept in concepts for caption in concept["captions"])
    for concept in concepts:
        concept["captions"] = [
            caption
            for caption in concept["captions"]
            if caption == concept["name"] or (caption not in names and claims[caption] == 1)
        ]
    assert max(names.values()) == 1, [name for name, count in names.items() if count > 1]


def collect(tarballs: dict[str, Tarball]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Join the packages: ``(metadata, {style: source})`` of every concept with all three training styles."""
    files = {
        "noto": tarballs["noto"].by_codepoint("img/google/64/"),
        "twemoji": tarballs["twemoji"].by_codepoint("img/twitter/64/"),
        "fluent3d": tarballs["fluent3d"].by_codepoint("assets/"),
    }
    icons = {style: tarballs[style].json("icons.json") for style in ("flat", "contrast")}
    icon_names = {
        style: {join_key(point): name for point, name in tarballs[style].json("chars.json").items()} for style in icons
    }
    samples = []
    for entry in tarballs["noto"].json("emoji.json"):
        key = join_key(entry["unified"])
        if entry["category"] in LEFT_OUT or any(key not in files[style] for style in files):
            continue
        sources: dict[str, Any] = {style: files[style][key] for style in files}
        name = icon_names["flat"].get(key)
        if name is not None and icon_names["contrast"].get(key) == name:
            for style, icon_set in icons.items():
                sources[style] = (icon_set["icons"][name], icon_set["width"], icon_set["height"])
        samples.append((concept_metadata(entry, name, [style for style in STYLES if style in sources]), sources))
    samples.sort(key=lambda sample: codepoint_order(sample[0]["codepoint"]))
    make_unambiguous([metadata for metadata, _ in samples])
    return samples


def tar_member(name: str, content: bytes) -> bytes:
    """Return one ustar member whose bytes depend on nothing but the arguments."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    padding = -len(content) % tarfile.BLOCKSIZE
    return info.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * padding


def write_shards(samples: list[tuple[dict[str, Any], dict[str, bytes]]], output: Path) -> dict[str, str]:
    """Write the shards, each of about ``SHARD_BYTES`` at most, and return their names and sha256."""
    shards = [bytearray()]
    for metadata, images in samples:
        point = metadata["codepoint"]
        block = tar_member(f"{point}.json", json.dumps(metadata, sort_keys=True).encode())
        block += b"".join(tar_member(f"{point}.{style}.webp", images[style]) for style in sorted(images))
        if len(shards[-1]) + len(block) > SHARD_BYTES:
            shards.append(bytearray())
        shards[-1] += block
    for old in output.glob("emoji-*.tar"):
        old.unlink()
    hashes = {}
    for number, shard in enumerate(shards):
        name = f"emoji-{number:03d}.tar"
        content = bytes(shard) + b"\0" * (2 * tarfile.BLOCKSIZE)
        (output / name).write_bytes(content)
        hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes


def build(samples: list[tuple[dict[str, Any], dict[str, Any]]], output: Path) -> None:
    """Encode every image and write the shards and their index."""
    flat = [source for _, sources in samples for source in sources.values()]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        encoded = iter(list(pool.map(encode_webp, flat, chunksize=32)))
    finished = [(metadata, {style: next(encoded) for style in sources}) for metadata, sources in samples]
    output.mkdir(parents=True, exist_ok=True)
    shards = write_shards(finished, output)
    decoded = ((metadata, {s: decode_rgba(image) for s, image in images.items()}) for metadata, images in finished)
    index = {
        "version": INDEX_VERSION,
        "fingerprint": fingerprint_of(decoded),
        "packages": {package.name: package.version for package in PACKAGES.values()},
        "shards": shards,
    }
    (output / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def check(samples: list[tuple[dict[str, Any], dict[str, Any]]], output: Path) -> None:
    """Compare the shards in ``output`` with what the packages give, pixel by pixel.

    Raises:
        DataError: they differ; the message says how much.
    """
    emoji = EmojiSet.load(output)
    committed = {image.key: emoji.rgba(image) for split in SPLITS for image in emoji.images(split)}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        keys = [f"{metadata['codepoint']}.{style}" for metadata, sources in samples for style in sources]
        sources = [source for _, sources in samples for source in sources.values()]
        fresh = dict(zip(keys, pool.map(to_rgba, sources, chunksize=32), strict=True))
    wrong = sorted(committed.keys() ^ fresh.keys())
    wrong += [key for key in keys if key in committed and not np.array_equal(committed[key], fresh[key])]
    if wrong:
        raise DataError(f"{len(wrong)} of {len(fresh)} images differ from the packages': {', '.join(wrong[:5])}, ...")
    if list(map(shard_metadata, emoji.concepts)) != [metadata for metadata, _ in samples]:
        raise DataError("The images agree with the packages', but names, captions or groups differ.")
    if emoji.compute_fingerprint() != emoji.fingerprint:
        raise DataError(f"The fingerprint in {INDEX_NAME} is not that of the shards.")


def main() -> int:
    """Build or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent, help="directory of the shards")
    parser.add_argument("--check", action="store_true", help="compare with the shards in --output, write nothing")
    parser.add_argument("--tarballs", type=Path, help="directory to keep the downloads in (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.tarballs or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            tarballs = {style: Tarball(download(package, directory)) for style, package in PACKAGES.items()}
            (check if arguments.check else build)(collect(tarballs), arguments.output)
        except DataError as error:
            print(error, file=sys.stderr)
            return 2
    print(f"{'Checked' if arguments.check else 'Built'} {arguments.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
