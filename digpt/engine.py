"""Preprocessing, runtime and text cache behind one object: what serve, app, evaluate and bulk jobs all call.

>>> engine = Engine.load("bundled")
>>> crops = [engine.decode(Path("cat.png").read_bytes())]
>>> engine.classify(crops, labels=["cat", "dog"])[0][0].label

Shapes: B images, N texts, C classes, D embedding width. No torch is imported here; the runtime brings what it needs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from digpt.abstain import NONE_OF_THESE
from digpt.cache import LruCache
from digpt.errors import BackendError, CapabilityError, InputError, MissingDependencyError
from digpt.predictions import Prediction, softmax, top_predictions
from digpt.preprocess import DecodeLimits, decode
from digpt.runtime import load_runtime
from digpt.runtime.base import (
    Runtime,
    RuntimeInfo,
    ShowsAttention,
    check_images,
    check_pictures,
    no_abstain,
    no_attention,
    no_logits,
    no_multi_label,
    no_pixels,
    no_text,
)
from digpt.runtime.golden import GoldenReport, check_golden
from digpt.text import TEXT_BATCH, class_embeddings, class_set_hash, kept_unit
from digpt.text import normalize as unit_rows

if TYPE_CHECKING:
    from digpt.segment_inference import SegmentInference

EmbedTexts = Callable[[Sequence[str]], np.ndarray]
CLASS_MATRIX_ROWS = 65_536  # rows of all cached class matrices together: 50 MB at width 192, 200 MB at 768


class Engine:
    """One loaded model with everything between bytes and predictions. Every method may be called from any thread.

    Args:
        runtime: computes embeddings; its calls are serialised by the engine.
        limits: what ``decode`` accepts.
        text_cache: how many texts' embeddings are kept.
    """

    def __init__(self, runtime: Runtime, *, limits: DecodeLimits | None = None, text_cache: int = 4096) -> None:
        self.runtime = runtime
        self.limits = limits if limits is not None else DecodeLimits()
        self._lock = threading.Lock()
        self._texts: LruCache[np.ndarray] = LruCache(text_cache)
        self._matrices: LruCache[np.ndarray] = LruCache(CLASS_MATRIX_ROWS)

    @classmethod
    def load(
        cls,
        spec: str = "bundled",
        backend: str | None = None,
        *,
        threads: int | None = None,
        limits: DecodeLimits | None = None,
        device: str | None = None,
        image_size: int | None = None,
    ) -> Engine:
        """Load a checkpoint, an artifact directory, ``timm:NAME`` or ``open_clip:NAME/TAG`` (see ``load_runtime``)."""
        return cls(load_runtime(spec, backend, threads=threads, device=device, image_size=image_size), limits=limits)

    @property
    def info(self) -> RuntimeInfo:
        return self.runtime.info

    def decode(self, data: bytes) -> np.ndarray:
        """Encoded image bytes -> the model's crop, uint8 ``[H,W,3]``.

        Raises:
            UnsupportedFormatError, ImageTooLargeError, UnreadableImageError: see ``digpt.preprocess.open_image``.
        """
        return self.info.preprocess(data, self.limits)

    def decode_whole(self, data: bytes) -> np.ndarray:
        """Encoded image bytes -> the whole picture in its own size, uint8 ``[H,W,3]``, for `segment`.

        Raises:
            UnsupportedFormatError, ImageTooLargeError, UnreadableImageError: see ``digpt.preprocess.open_image``.
        """
        preprocess = self.info.preprocess
        return np.array(decode(data, alpha=preprocess.alpha, exif=preprocess.exif, limits=self.limits))

    def embed_images(
        self, images: Sequence[np.ndarray] | np.ndarray, *, normalize: bool = True, batch_size: int = 64
    ) -> np.ndarray:
        """Crops uint8 ``[H,W,3]`` (a list, or one array ``[B,H,W,3]``) -> float32 ``[B,D]``, unit rows by default."""
        rows = [self._run_images(self.runtime.embed, batch) for batch in _batches(images, self._batch(batch_size))]
        embeddings = np.concatenate(rows) if rows else np.zeros((0, self.info.dim), np.float32)
        return unit_rows(embeddings) if normalize else embeddings

    def logits(self, images: Sequence[np.ndarray] | np.ndarray, *, batch_size: int = 64) -> np.ndarray:
        """Crops -> float32 ``[B,C]`` logits of the linear head; CapabilityError without one."""
        if self.info.head != "linear":
            raise no_logits(self.info)
        rows = [self._run_images(self.runtime.logits, batch) for batch in _batches(images, self._batch(batch_size))]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.info.labels or ())), np.float32)

    def patch_tokens(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Crops -> float32 ``[B,N,C]`` encoder features of every patch in raster order."""
        return self._run_images(self.runtime.patch_tokens, np.stack(list(images)))

    def attention_maps(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Crops -> float32 ``[B,heads,h,w]``: the share of attention of every patch, see ``digpt.attention``.

        Raises:
            CapabilityError: the backend shows none, or the encoder is no plain ViT.
        """
        if not isinstance(self.runtime, ShowsAttention):
            raise no_attention(self.info)
        return self._run_images(self.runtime.attention_maps, np.stack(list(images)))

    def pixel_logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[B,H,W,3]``, usually the segmenter's crops -> float32 ``[B,K,H,W]``; CapabilityError without one."""
        if self.info.head != "upernet":
            raise no_pixels(self.info)
        images = check_pictures(images)
        with self._lock:
            logits = self.runtime.pixel_logits(images)
        return _finite(logits, self.info)

    def segment(
        self, image: np.ndarray, inference: SegmentInference | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """One picture uint8 ``[H,W,3]`` of any size -> the class of every pixel, uint8 ``[H,W]``.

        Other calls get their turn between batches of windows. Needs torch in the process, whatever the backend.

        Args:
            inference: None for windows of the crop the model was trained at, with ``SegmentInference.for_crop``.
            size: (height, width) of the answer; None for the picture's own.

        Raises:
            CapabilityError: the model has no segmentation head.
            MissingDependencyError: torch is not installed.
        """
        if self.info.head != "upernet":
            raise no_pixels(self.info)
        image = check_pictures(image[None])[0]
        try:
            from digpt.segment_inference import FromArrays, SegmentInference, predict
        except ImportError:
            raise MissingDependencyError(
                "Segmenting whole pictures needs torch, which is not installed here: pip install torch."
            ) from None
        inference = inference or SegmentInference.for_crop(self.info.segment_crop or self.info.preprocess.size)
        model = FromArrays(self.pixel_logits)
        return predict(model, image, replace(inference, batch=self._batch(inference.batch)), size)

    def embed_texts(
        self, texts: Sequence[str], *, normalize: bool = True, compute: EmbedTexts | None = None
    ) -> np.ndarray:
        """Strings -> float32 ``[N,D]``, unit rows by default; recent texts come from the cache.

        ``compute`` embeds those that are not in it; by default ``compute_texts``, here and now.

        Raises:
            CapabilityError: the model has no text tower.
        """
        if not self.info.has_text:
            raise no_text(self.info)
        found = {text: self._texts.get(text) for text in dict.fromkeys(_strings("texts", texts))}
        missing = [text for text, row in found.items() if row is None]
        for text, row in zip(missing, (compute or self.compute_texts)(missing) if missing else (), strict=True):
            found[text] = row
            self._texts.put(text, row.copy())  # a view would keep the rows of its whole batch alive
        rows = [row for row in (found[text] for text in texts) if row is not None]
        embeddings = np.stack(rows) if rows else np.zeros((0, self.info.dim), np.float32)
        return unit_rows(embeddings) if normalize else embeddings

    def class_matrix(
        self, labels: Sequence[str], templates: Sequence[str] | None = None, *, compute: EmbedTexts | None = None
    ) -> np.ndarray:
        """Labels -> float32 ``[C,D]`` unit rows: the mean over ``templates`` (default: the model's own), cached.

        ``compute`` embeds what is not in the cache of texts, as in ``embed_texts``.

        Raises:
            CapabilityError: the model has no text tower.
            InputError: no labels, a template without ``{}``, or a prompt too long.
        """
        key = self.class_matrix_key(labels, templates)
        matrix = self._matrices.get(key)
        if matrix is None:
            templates = self.info.templates if templates is None else templates
            compute = compute or self.compute_texts
            # Prompts in great number would push every other text out of the cache, so they bypass it.
            few = len(labels) * len(templates) <= self._texts.capacity // 4
            matrix = class_embeddings(partial(self.embed_texts, compute=compute) if few else compute, labels, templates)
            matrix.setflags(write=False)
            self._matrices.put(key, matrix, weight=len(labels))
        return matrix

    def class_matrix_key(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> str:
        """The hash under which ``class_matrix`` keeps its answer; raises CapabilityError without a text tower."""
        if not self.info.has_text:
            raise no_text(self.info)
        labels = _strings("labels", labels)
        templates = _strings("templates", self.info.templates if templates is None else templates)
        return class_set_hash(labels, templates, self.info.fingerprint)

    def kept_class_matrix(self, key: str) -> np.ndarray | None:
        """Return the matrix of that ``class_matrix_key`` if it is in the cache; computes nothing."""
        return self._matrices.get(key, ahead=True)

    def classify(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        labels: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        *,
        matrix: np.ndarray | None = None,
        top_k: int = 5,
        multi_label: bool = False,
        abstain: bool = False,
    ) -> list[list[Prediction]]:
        """Crops -> for each the ``top_k`` best labels, best first.

        With ``labels`` (and ``matrix`` if their embeddings are at hand): softmax of the learned logit scale times the
        cosine, or with ``multi_label`` a sigmoid for each label. Without: the linear head, else the model's own labels.
        ``abstain`` adds the label NONE_OF_THESE, whose cosine is the calibrated threshold: it is the best where no
        other comes as near.

        Raises:
            CapabilityError: the model cannot do this; the message names models that can.
            InputError: empty labels, a template without ``{}``, ``top_k`` below 1.
        """
        if labels is None and matrix is None and self.info.head == "linear":
            names = self.choices(None, multi_label=multi_label)
            if abstain:
                self.require_abstain(labels)
            return top_predictions(softmax(self.logits(images)), names, top_k)
        if abstain:
            self.require_abstain(labels)
        embeddings = self.embed_images(images)
        return self.classify_embeddings(
            embeddings, labels, templates, matrix=matrix, top_k=top_k, multi_label=multi_label, abstain=abstain
        )

    def choices(self, labels: Sequence[str] | None, *, multi_label: bool = False) -> Sequence[str]:
        """Return what ``classify`` chooses from: ``labels``, else the linear head's classes, else the model's labels.

        Raises:
            CapabilityError: the model cannot do this; the message names models that can.
        """
        head = labels is None and self.info.head == "linear"
        if multi_label and (head or self.info.logit_bias is None):
            raise no_multi_label(self.info)
        if head and self.info.labels is None:
            raise CapabilityError(f"{self.info.name} has a linear head whose classes have no names; use its logits.")
        return (self.info.labels or ()) if head else self._text_choices(labels)

    def classify_embeddings(
        self,
        embeddings: np.ndarray,
        labels: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        *,
        matrix: np.ndarray | None = None,
        top_k: int = 5,
        multi_label: bool = False,
        abstain: bool = False,
    ) -> list[list[Prediction]]:
        """As ``classify`` for embeddings ``[B,D]`` already computed (normalised or not), always by text."""
        if multi_label and self.info.logit_bias is None:
            raise no_multi_label(self.info)
        if labels is None and matrix is not None:
            raise InputError("matrix was given without the labels of its rows.")
        labels = self._text_choices(labels)
        if matrix is None:
            matrix = self.class_matrix(labels, templates)
        if len(matrix) != len(labels):
            raise InputError(f"{len(labels)} labels for a matrix of {len(matrix)} rows.")
        cosine = self.similarity(embeddings, matrix)
        if abstain:
            if self.info.abstain is None:
                raise no_abstain(self.info)
            threshold = np.full((len(cosine), 1), self.info.abstain.threshold(len(labels)), np.float32)
            cosine, labels = np.concatenate([cosine, threshold], axis=1), (*labels, NONE_OF_THESE)
        return top_predictions(self._scores_of(cosine, multi_label), labels, top_k)

    def require_abstain(self, labels: Sequence[str] | None) -> None:
        """Raise CapabilityError where ``classify`` with these labels cannot answer "none of these"."""
        if self.info.abstain is None or (labels is None and self.info.head == "linear"):
            raise no_abstain(self.info)

    def scores(self, embeddings: np.ndarray, matrix: np.ndarray, *, multi_label: bool = False) -> np.ndarray:
        """Embeddings ``[B,D]`` and class matrix ``[C,D]`` -> float32 ``[B,C]`` scores in ``[0, 1]``."""
        return self._scores_of(self.similarity(embeddings, matrix), multi_label)

    def _scores_of(self, cosine: np.ndarray, multi_label: bool) -> np.ndarray:
        scale = self.info.logit_scale
        if scale is None:
            raise no_text(self.info)
        logits = scale * cosine
        if not multi_label:
            return softmax(logits)
        if self.info.logit_bias is None:
            raise no_multi_label(self.info)
        return (0.5 * (1.0 + np.tanh(0.5 * (logits + self.info.logit_bias)))).astype(np.float32)

    @staticmethod
    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosine of every row of ``a`` ``[A,D]`` with every row of ``b`` ``[B,D]``: float32 ``[A,B]``."""
        return unit_rows(a) @ kept_unit(b).T

    def cache_stats(self) -> dict[str, dict[str, int]]:
        """Hits, misses, entries, weight and capacity of the ``texts`` and ``class_matrices`` caches."""
        return {"texts": self._texts.stats(), "class_matrices": self._matrices.stats()}

    def verify_golden(self) -> GoldenReport:
        """Let the live backend recompute the artifact's golden answers, and report how far off it is."""
        return check_golden(
            self.runtime.golden,
            self.info,
            decode=self.decode,
            embed=lambda images: self.embed_images(images, normalize=False),
            embed_texts=self.compute_texts,
            pixel_logits=self.pixel_logits,
        )

    def close(self) -> None:
        with self._lock:
            self.runtime.close()

    def _batch(self, batch_size: int) -> int:
        return min(batch_size, self.info.max_batch or batch_size)

    def _run_images(self, compute: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
        images = check_images(images, self.info.preprocess.size)
        with self._lock:
            rows = compute(images)
        return _finite(rows, self.info)

    def compute_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Strings -> float32 ``[N,D]``, not normalised, past the cache.

        The lock is taken per batch, so that a long list does not hold up images.
        """
        rows = [np.zeros((0, self.info.dim), np.float32)]
        for start in range(0, len(texts), TEXT_BATCH):
            with self._lock:
                rows.append(self.runtime.embed_texts(texts[start : start + TEXT_BATCH]))
        return _finite(np.concatenate(rows), self.info)

    def _text_choices(self, labels: Sequence[str] | None) -> Sequence[str]:
        if labels is not None:
            return labels
        if self.info.head == "upernet" and not self.info.has_text:
            raise no_logits(self.info)
        if self.info.choices:
            return self.info.choices
        if not self.info.has_text:
            raise no_text(self.info)
        raise CapabilityError(f"{self.info.name} has no labels of its own; give labels to choose from.")


def _batches(images: Sequence[np.ndarray] | np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        if isinstance(chunk, np.ndarray):
            yield chunk
            continue
        shapes = {(image.shape, str(image.dtype)) for image in chunk}
        if len(shapes) > 1:
            raise InputError(f"Images of one batch differ in shape or type: {sorted(map(str, shapes))}.")
        yield np.stack(list(chunk))


def _strings(what: str, values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{what} must be a list of strings.")
    return tuple(values)


def _finite(rows: np.ndarray, info: RuntimeInfo) -> np.ndarray:
    if not np.isfinite(rows).all():
        raise BackendError(f"{info.name} on {info.backend} answered with numbers that are not finite.")
    return rows
