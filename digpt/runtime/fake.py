"""A runtime without a model, for tests: embeddings are a hash of the pixels, delays and failures are options.

>>> FakeRuntime(dim=8).embed(np.zeros((2, 64, 64, 3), np.uint8)).shape
(2, 8)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from digpt.preprocess import Preprocess
from digpt.runtime.base import (
    Golden,
    RuntimeInfo,
    check_images,
    check_pictures,
    no_logits,
    no_patch_tokens,
    no_pixels,
    no_text,
)


def hashed_vector(data: bytes, dim: int) -> np.ndarray:
    """A float32 ``[dim]`` standard-normal vector that depends on every byte of ``data`` and on nothing else."""
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


class FakeRuntime:
    """Answers at once and always alike; ``batches`` and ``text_batches`` record the sizes of the calls.

    Args:
        dim: width of the embeddings.
        size: side of an image.
        text: whether it has a text tower.
        labels: the model's own labels; with ``linear_head`` they are the head's.
        segment_crop: makes it a segmenter of ``labels``: a pixel's class goes by its red, in steps of equal width, and
            its logits are minus the distances from the classes' middles, in levels.
        delay: seconds slept per call.
        fail_if: called with each image ``[H,W,3]``; a true answer fails the whole batch with ``RuntimeError``, as a
            backend would.
        info: any further fields of RuntimeInfo to replace (``logit_bias``, ``abstain``, ...).
    """

    def __init__(
        self,
        *,
        dim: int = 16,
        size: int = 64,
        text: bool = True,
        labels: Sequence[str] | None = None,
        linear_head: bool = False,
        segment_crop: int | None = None,
        delay: float = 0.0,
        fail_if: Callable[[np.ndarray], bool] | None = None,
        **info: Any,
    ) -> None:
        preprocess = Preprocess(size=size, resize="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.info = replace(
            RuntimeInfo(
                name="fake",
                spec="fake",
                backend="fake",
                precision="fp32",
                fingerprint="sha256:" + hashlib.sha256(f"fake {dim} {size}".encode()).hexdigest(),
                dim=dim,
                preprocess=preprocess,
                has_text=text,
                labels=tuple(labels) if labels else None,
                logit_scale=10.0 if text else None,
                head="upernet" if segment_crop else "linear" if linear_head else None,
                segment_crop=segment_crop,
                providers=("fake",),
            ),
            **info,
        )
        self.golden: Golden | None = None
        self.delay = delay
        self.fail_if = fail_if
        self.batches: list[int] = []
        self.text_batches: list[int] = []
        self.closed = False

    def embed(self, images: np.ndarray) -> np.ndarray:
        images = check_images(images, self.info.preprocess.size)
        self.batches.append(len(images))
        time.sleep(self.delay)
        if self.fail_if is not None and any(self.fail_if(image) for image in images):
            raise RuntimeError("fake runtime: told to fail on this batch")
        return self._rows([image.tobytes() for image in images], self.info.dim)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if not self.info.has_text:
            raise no_text(self.info)
        self.text_batches.append(len(texts))
        time.sleep(self.delay)
        return self._rows([text.encode() for text in texts], self.info.dim)

    def logits(self, images: np.ndarray) -> np.ndarray:
        if self.info.head != "linear" or self.info.labels is None:
            raise no_logits(self.info)
        embeddings = self.embed(images)
        return self._rows([row.tobytes() for row in embeddings], len(self.info.labels))

    def patch_tokens(self, images: np.ndarray) -> np.ndarray:
        raise no_patch_tokens(self.info)

    def pixel_logits(self, images: np.ndarray) -> np.ndarray:
        if self.info.head != "upernet" or self.info.labels is None:
            raise no_pixels(self.info)
        images = check_pictures(images)
        self.batches.append(len(images))
        time.sleep(self.delay)
        step = 256 / len(self.info.labels)
        middles = (np.arange(len(self.info.labels), dtype=np.float32) + 0.5) * step - 0.5
        return -np.abs(images[:, None, :, :, 0].astype(np.float32) - middles[:, None, None]).astype(np.float32)

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def _rows(items: Sequence[bytes], dim: int) -> np.ndarray:
        rows = [hashed_vector(item, dim) for item in items]
        return np.stack(rows) if rows else np.zeros((0, dim), np.float32)
