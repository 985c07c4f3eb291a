"""The bundled emoji set as an evaluation: zero-shot over concept names and kNN over subgroups, by style and split.

    results = list(run(Engine.load("bundled"), EmojiSet.load(), EmojiProtocol()))

What each split holds is said in ``data/emoji/README.md``. Shapes: N images, D embedding width, C concept names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.artifact import canonical_json
from digpt.data.emoji import INDEX_NAME, STYLES, TRAIN_STYLES, EmojiImage, EmojiSet, codepoint_hash
from digpt.engine import Engine
from digpt.errors import ConfigError, DataError, near_misses
from digpt.metrics import BOOTSTRAP_RESAMPLES, bootstrap_ci, target_ranks
from digpt.neighbors import TEMPERATURE, knn_classify_many
from digpt.results import ModelRef, Result, ResultsDocument, with_fingerprint
from evaluate.features import Progress, embed_files, no_progress

DATASET = "emoji"
METHODS = ("zeroshot", "knn")
NAMED_SPLITS = ("seen", "val", "flat", "contrast")
KNN_SPLITS = ("val", "flat", "contrast")
TOP = (1, 5)


@dataclass(frozen=True)
class EmojiProtocol:
    """What is asked. Equal protocols on equal data have equal fingerprints, whatever the model.

    Only concepts drawn in all five styles are asked for, so that every split shares one list of names. ``limit`` keeps
    that many images of each split (the kNN reference stays whole, or the number would mean something else), chosen by
    a hash of seed and image name: a smaller subset is part of a larger one.
    """

    methods: tuple[str, ...] = METHODS
    k: tuple[int, ...] = (10, 20)
    temperature: float = TEMPERATURE
    reference: tuple[str, ...] = ("noto", "twemoji")
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise ConfigError(f"Unknown method {method!r}; valid: {', '.join(METHODS)}.")
        for style in self.reference:
            if style not in TRAIN_STYLES:
                valid = ", ".join(TRAIN_STYLES)
                raise ConfigError(
                    f"Reference style {style!r} is no training style; valid: {valid}.{near_misses(style, TRAIN_STYLES)}"
                )
        if not self.reference or not self.k or min(self.k) < 1:
            raise ConfigError("kNN needs at least one reference style, and every k must be at least 1.")
        if not self.temperature > 0:
            raise ConfigError(f"temperature={self.temperature} must be above 0.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit} must be at least 1 image per split.")

    def describe(self, data: EmojiSet) -> dict[str, Any]:
        """The protocol block of a results document, without its fingerprint."""
        names = data.five_style_names()
        block: dict[str, Any] = {
            "name": "emoji",
            "version": 1,
            "dataset": {"name": DATASET, "fingerprint": data.fingerprint, "concepts": "drawn in all five styles"},
            "methods": list(self.methods),
            "preprocess": "the model's own",
            "limit": self.limit,
            "seed": self.seed,
            "interval": {
                "method": "percentile bootstrap, concepts resampled",
                "level": 0.95,
                "resamples": BOOTSTRAP_RESAMPLES,
            },
        }
        if "zeroshot" in self.methods:
            block["zeroshot"] = {
                "splits": [*NAMED_SPLITS, "unseen", *(f"unseen/{style}" for style in STYLES)],
                "names": len(names),
                "names_sha256": hashlib.sha256(canonical_json(names)).hexdigest(),
                "unseen_names": len(_unseen(data)),
                "templates": "the model's own",
                "top": list(TOP),
            }
        if "knn" in self.methods:
            block["knn"] = {
                "splits": list(KNN_SPLITS),
                "reference": [f"seen/{style}" for style in self.reference],
                "labels": "subgroup",
                "classes": len(_subgroups(data)),
                "k": list(self.k),
                "temperature": self.temperature,
            }
        return block


@dataclass
class _Features:
    """Embeddings of images by their key."""

    matrix: NDArray[np.float32]
    row: dict[str, int] = field(default_factory=dict)

    def of(self, images: Sequence[EmojiImage]) -> NDArray[np.float32]:
        return self.matrix[[self.row[image.key] for image in images]]


def load_data(root: Path | None) -> EmojiSet:
    """Load the bundled set, or the one at ``root`` or ``root/emoji``; DataError if neither holds one."""
    if root is not None and not (root / INDEX_NAME).exists() and (root / DATASET / INDEX_NAME).exists():
        root = root / DATASET
    return EmojiSet.load(root)


def evaluate_document(
    engine: Engine,
    protocol: EmojiProtocol,
    *,
    data_root: Path | None = None,
    batch_size: int = 64,
    progress: Progress = no_progress,
) -> ResultsDocument:
    """Load the data, `run`, and wrap the numbers; errors are those of `load_data` and `run`."""
    data = load_data(data_root)
    results = tuple(run(engine, data, protocol, batch_size=batch_size, progress=progress))
    block = with_fingerprint(protocol.describe(data))
    return ResultsDocument(model=ModelRef.of(engine.info), protocol=block, results=results)


def run(
    engine: Engine,
    data: EmojiSet,
    protocol: EmojiProtocol,
    *,
    batch_size: int = 64,
    progress: Progress = no_progress,
) -> Iterator[Result]:
    """Yield every number of the protocol; a model without a text tower is asked by kNN only.

    Each image is decoded and embedded once, whatever number it serves.

    Raises:
        ConfigError: k exceeds the reference.
        DataError: a split without images.
        InputError, BackendError: from decoding and from the runtime.
    """
    methods = [method for method in protocol.methods if method != "zeroshot" or engine.info.has_text]
    splits = {split: select(data, split, protocol) for split in _wanted_splits(methods)}
    reference = _reference(data, protocol) if "knn" in methods else []
    for split, images in splits.items():
        if not images:
            raise DataError(f"The emoji set has no {split} image of a concept drawn in all five styles.")
    unique = {image.key: image for images in (*splits.values(), reference) for image in images}
    files = [image.encoded for image in unique.values()]
    features = _Features(
        embed_files(engine, files, batch_size=batch_size, progress=progress),
        {key: row for row, key in enumerate(unique)},
    )
    if "zeroshot" in methods:
        progress("names", 0, 0)
        matrix = engine.class_matrix(data.five_style_names())
        yield from zero_shot(features, data, splits, matrix, protocol)
    if "knn" in methods:
        progress("neighbours", 0, 0)
        yield from knn(features, data, splits, reference, protocol)


def select(data: EmojiSet, split: str, protocol: EmojiProtocol) -> list[EmojiImage]:
    """The images of a split that are asked for: five-style concepts, at most ``limit``, in code point order."""
    named = set(data.five_style_indices().tolist())
    images = [image for image in data.images(split) if image.concept in named]
    if protocol.limit is None or protocol.limit >= len(images):
        return images
    ranked = sorted(images, key=lambda image: codepoint_hash(f"limit-{protocol.seed}", image.key))
    chosen = {image.key for image in ranked[: protocol.limit]}
    return [image for image in images if image.key in chosen]


def zero_shot(
    features: _Features,
    data: EmojiSet,
    splits: dict[str, list[EmojiImage]],
    matrix: NDArray[np.float32],
    protocol: EmojiProtocol,
) -> Iterator[Result]:
    """Top-1 and top-5 by cosine with the class matrix ``[C, D]``; ``unseen`` among the unseen names alone."""
    named = data.five_style_indices().tolist()
    for split in NAMED_SPLITS:
        yield from _ranked(split, splits[split], features, named, matrix, protocol)
    unseen = _unseen(data)
    rows = matrix[[named.index(concept) for concept in unseen]]
    yield from _ranked("unseen", splits["unseen"], features, unseen, rows, protocol)
    for style in STYLES:
        images = [image for image in splits["unseen"] if image.style == style]
        if images:  # a small limit may leave a style without any
            yield from _ranked(f"unseen/{style}", images, features, unseen, rows, protocol)


def knn(
    features: _Features,
    data: EmojiSet,
    splits: dict[str, list[EmojiImage]],
    reference: list[EmojiImage],
    protocol: EmojiProtocol,
) -> Iterator[Result]:
    """Top-1 over the subgroups, neighbours among training images of the reference styles."""
    subgroups = _subgroups(data)

    def labels(images: Iterable[EmojiImage]) -> NDArray[np.int64]:
        return np.array([subgroups.index(data.concepts[image.concept].subgroup) for image in images], dtype=np.int64)

    if max(protocol.k) > len(reference):
        raise ConfigError(f"k={max(protocol.k)} exceeds the {len(reference)} reference images.")
    for split in KNN_SPLITS:
        predictions = knn_classify_many(
            features.of(reference),
            labels(reference),
            features.of(splits[split]),
            ks=protocol.k,
            temperature=protocol.temperature,
            n_classes=len(subgroups),
        )
        for k in protocol.k:
            correct = predictions[k] == labels(splits[split])
            yield _result(split, f"knn_top1_k{k}", correct, splits[split], protocol)


def _ranked(
    split: str,
    images: list[EmojiImage],
    features: _Features,
    concepts: list[int],
    matrix: NDArray[np.float32],
    protocol: EmojiProtocol,
) -> Iterator[Result]:
    position = {concept: index for index, concept in enumerate(concepts)}
    targets = np.array([position[image.concept] for image in images], dtype=np.int64)
    ranks = target_ranks(features.of(images) @ matrix.T, targets)
    for top in TOP:
        yield _result(split, f"zeroshot_top{top}", ranks < top, images, protocol)


def _result(
    split: str, metric: str, correct: NDArray[np.bool_], images: list[EmojiImage], protocol: EmojiProtocol
) -> Result:
    """Drawings of one concept are right or wrong together, so the interval resamples concepts."""
    interval = bootstrap_ci(correct, clusters=[image.concept for image in images], seed=protocol.seed)
    return Result(DATASET, split, metric, float(correct.mean()), interval, len(images))


def _wanted_splits(methods: Sequence[str]) -> list[str]:
    wanted = [*(NAMED_SPLITS if "zeroshot" in methods else ()), *(KNN_SPLITS if "knn" in methods else ())]
    return list(dict.fromkeys([*wanted, *(["unseen"] if "zeroshot" in methods else [])]))


def _reference(data: EmojiSet, protocol: EmojiProtocol) -> list[EmojiImage]:
    """Training images only: ``seen`` holds no unseen concept, no held-out image and no style shift."""
    return [image for image in data.images("seen") if image.style in protocol.reference]


def _unseen(data: EmojiSet) -> list[int]:
    return [concept for concept in data.five_style_indices().tolist() if data.concepts[concept].unseen]


def _subgroups(data: EmojiSet) -> list[str]:
    return sorted({concept.subgroup for concept in data.concepts})
