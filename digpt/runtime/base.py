"""The seam between a model and whatever computes it: what every runtime takes, returns and says about itself.

Shapes: B images, H x W pixels, N patch tokens or texts, D joint (embedding) width, C encoder width or classes.
No torch here: a process that serves an exported encoder has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from digpt.abstain import AbstainRule
from digpt.errors import CapabilityError, InputError
from digpt.preprocess import Preprocess

URLS = ("http://", "https://")  # how the spec of a running server begins


@dataclass(frozen=True)
class RuntimeInfo:
    """What a runtime says about itself; all of it holds for its whole life.

    ``providers`` are the execution providers or devices really in use, never those asked for. ``logit_scale`` is the
    multiplier of a cosine (the exponential already taken); ``logit_bias`` is there for sigmoid-trained models only.
    ``labels`` are the classes of the head (``linear``: of pictures, ``upernet``: of pixels) or, without one, those that
    the model brings along. ``segment_crop`` is the side in pixels that an ``upernet`` head was trained at,
    ``segment_reduce_zero`` whether 0 was no class in the mask files it was trained on. ``abstain`` says below which
    cosine of the best label the answer is "none of these"; None where nobody calibrated it. ``engine`` is the hash of
    an artifact's files that compute (``digpt.manifest.engine_hash``); None where the weights themselves do.
    """

    name: str
    spec: str
    backend: str
    precision: str
    fingerprint: str
    dim: int
    preprocess: Preprocess
    has_text: bool = False
    labels: tuple[str, ...] | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    templates: tuple[str, ...] = ("{}",)
    head: Literal["linear", "upernet"] | None = None
    segment_crop: int | None = None
    segment_reduce_zero: bool = False
    patch_tokens: bool = False
    abstain: AbstainRule | None = None
    engine: str | None = None
    max_batch: int | None = None
    threads: int | None = None
    providers: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The labels to classify pictures by when none are given; a segmenter's are of pixels, so it has none."""
        return None if self.head == "upernet" else self.labels

    @property
    def remote(self) -> bool:
        """Whether a running server computes: what it answers now is measured, and nothing of it is kept for later."""
        return self.spec.startswith(URLS)


@dataclass(frozen=True)
class Golden:
    """Real images and texts with the answers that torch float32 gave them, and how far a runtime may be off.

    images: uint8 ``[n,H,W,3]``, after the crop. embeddings: float32 ``[n,D]``, not normalised.
    pixel_logits: of a segmenter, float32 ``[m,K,h,w]`` of the first m images at every ``pixel_step``-th row and column.
    encoded: the files the images were decoded from, to check the preprocessing too (may be empty).
    cosine: the lowest cosine allowed. relative_error: the largest ``|a - b| / |b|`` of a row allowed.
    """

    images: np.ndarray
    embeddings: np.ndarray
    cosine: float
    relative_error: float
    encoded: tuple[bytes, ...] = ()
    texts: tuple[str, ...] = ()
    text_embeddings: np.ndarray | None = None
    pixel_logits: np.ndarray | None = None
    pixel_step: int = 1


class Runtime(Protocol):
    """One loaded model on one backend. Calls need not be thread-safe: the engine serialises them."""

    info: RuntimeInfo
    golden: Golden | None

    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 RGB ``[B,H,W,3]`` after the crop -> float32 ``[B,D]``, not normalised."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """``N`` strings -> float32 ``[N,D]``, not normalised; CapabilityError without a text tower."""
        ...

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[B,H,W,3]`` -> float32 ``[B,C]`` of the linear head; CapabilityError without one."""
        ...

    def patch_tokens(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[B,H,W,3]`` -> float32 ``[B,N,C]``; CapabilityError where they were not exported."""
        ...

    def pixel_logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[B,H,W,3]`` of any size -> float32 ``[B,K,H,W]`` of the segmenter; CapabilityError without one."""
        ...

    def close(self) -> None:
        """Release what the runtime holds; calling it twice is harmless."""
        ...


@runtime_checkable
class ShowsAttention(Protocol):
    """What a runtime may do besides; exported files keep their attention inside, so of ours only torch's does."""

    def attention_maps(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[B,H,W,3]`` -> float32 ``[B,heads,h,w]`` on the patch grid; CapabilityError of no plain ViT."""
        ...


def check_images(images: np.ndarray, size: int) -> np.ndarray:
    """Return ``images`` contiguous if it is uint8 ``[B,size,size,3]``, else raise InputError with what it is."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise InputError(
            f"Expected uint8 images [B,{size},{size},3], got {images.dtype} {list(images.shape)}; "
            "decode and crop them with Engine.decode first."
        )
    return np.ascontiguousarray(images)


def check_pictures(images: np.ndarray) -> np.ndarray:
    """Return ``images`` contiguous if it is uint8 ``[B,H,W,3]`` of any size, else raise InputError with what it is."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise InputError(f"Expected uint8 images [B,H,W,3], got {images.dtype} {list(images.shape)}.")
    return np.ascontiguousarray(images)


def no_text(info: RuntimeInfo) -> CapabilityError:
    """The error of a request for texts to a model that has no text tower."""
    return CapabilityError(
        f"{info.name} has no text tower, so it cannot embed texts or score free labels; "
        "models that can: bundled, or any open_clip:NAME/TAG."
    )


def no_logits(info: RuntimeInfo) -> CapabilityError:
    """The error of a request for class logits to a model that has no linear head."""
    if info.head == "upernet" and not info.has_text:
        return CapabilityError(
            f"{info.name} is a segmenter: it classifies pixels and has no linear head to classify a picture with; "
            "models that can: a finetuned checkpoint (linear head), bundled, or any open_clip:NAME/TAG (text tower)."
        )
    if info.has_text:
        return CapabilityError(f"{info.name} has no linear head; give labels, it has a text tower to score them.")
    return CapabilityError(
        f"{info.name} has neither a linear head nor a text tower, so it cannot classify; models that can: "
        "a finetuned checkpoint (linear head), bundled, or any open_clip:NAME/TAG (text tower)."
    )


def no_abstain(info: RuntimeInfo) -> CapabilityError:
    """The error of a request that allows "none of these" to a model that nobody calibrated for it."""
    if info.abstain is not None:
        return CapabilityError(
            f"{info.name} answers by its linear head here, and was calibrated for answers by text; give labels to "
            "choose from, or leave abstain out."
        )
    return CapabilityError(
        f"{info.name} has no calibrated threshold, so it cannot abstain; leave abstain out, or use an artifact that "
        "was exported with one: python -m export says so."
    )


def no_multi_label(info: RuntimeInfo) -> CapabilityError:
    """The error of a request for independent scores to a model that was not trained for them."""
    return CapabilityError(
        f"{info.name} has no learned logit bias, so it cannot give independent (multi-label) scores; "
        "models that can: those trained with a sigmoid loss, such as open_clip:ViT-B-16-SigLIP/webli."
    )


def no_patch_tokens(info: RuntimeInfo) -> CapabilityError:
    """The error of a request for patch tokens to an engine that does not give them."""
    return CapabilityError(
        f"{info.name} on {info.backend} gives no patch tokens; export with --patch-tokens, or use the torch backend."
    )


def no_attention(info: RuntimeInfo) -> CapabilityError:
    """The error of a request for attention to an engine that cannot show it."""
    return CapabilityError(
        f"{info.name} shows no attention as it runs here: exported files and servers keep it inside; "
        "load the checkpoint with the torch backend."
    )


def no_pixels(info: RuntimeInfo) -> CapabilityError:
    """The error of a request for classes of pixels to a model that has no segmentation head."""
    return CapabilityError(
        f"{info.name} has no segmentation head, so it cannot tell the class of every pixel; "
        "models that can: one trained with train.segment."
    )
