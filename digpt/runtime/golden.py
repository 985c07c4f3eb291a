"""Golden images: does the live backend still give the answers that torch float32 gave at export?

A hash says that a file is the one that was written; only recomputing says that the answers are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from digpt.errors import BackendError, CheckpointError
from digpt.runtime.base import Golden, RuntimeInfo

# Another Pillow may round a resized pixel the other way; another resize, crop or alpha moves many pixels by much more.
PIXEL_TOLERANCE = 2.0  # mean absolute difference of the worst image, of 255


@dataclass(frozen=True)
class GoldenReport:
    """What comparing the live backend with the golden answers found.

    ``checked`` counts images, texts and segmented images together; it is 0 for a model that ships none, and then
    nothing is claimed. ``cosine`` is the lowest, ``relative_error`` (``|a - b| / |b|`` of a row) and ``pixel_error``
    (mean absolute difference of an image, of 255) the highest found.
    """

    checked: int
    passed: bool
    message: str
    cosine: float | None = None
    relative_error: float | None = None
    pixel_error: float | None = None

    def raise_for_failure(self) -> None:
        """Raise BackendError with the message if the backend did not reproduce the golden embeddings."""
        if not self.passed:
            raise BackendError(self.message)


def row_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of ``a`` ``[N,D]`` with the same row of ``b``, float64 ``[N]`` (float32 rounds near 1)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(norms, 1e-30)


def row_relative_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``|a - b| / |b|`` of each row, float64 ``[N]``: unlike the cosine it sees a wrong length too."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-30)


def check_golden(
    golden: Golden | None,
    info: RuntimeInfo,
    *,
    decode: Callable[[bytes], np.ndarray],
    embed: Callable[[np.ndarray], np.ndarray],
    embed_texts: Callable[[Sequence[str]], np.ndarray],
    pixel_logits: Callable[[np.ndarray], np.ndarray],
) -> GoldenReport:
    """Recompute the crops and every answer of ``golden``; never raises for a mere difference."""
    if golden is None:
        return GoldenReport(0, True, f"{info.name} ships no golden images; nothing to compare with.")
    pixels = 0.0
    if golden.encoded:
        crops = np.stack([decode(data) for data in golden.encoded]).astype(np.float32)
        pixels = float(np.abs(crops - golden.images).mean(axis=(1, 2, 3)).max())
    pairs = [(embed(golden.images), golden.embeddings)]
    if golden.texts and golden.text_embeddings is not None:
        pairs.append((embed_texts(golden.texts), golden.text_embeddings))
    if golden.pixel_logits is not None:
        count, step = len(golden.pixel_logits), golden.pixel_step
        found = pixel_logits(golden.images[:count])[:, :, ::step, ::step]
        pairs.append((found.reshape(count, -1), golden.pixel_logits.reshape(count, -1)))
    cosine = min(float(row_cosine(live, expected).min()) for live, expected in pairs)
    error = max(float(row_relative_error(live, expected).max()) for live, expected in pairs)
    checked = sum(len(expected) for _, expected in pairs)
    faults = []
    if pixels > PIXEL_TOLERANCE:
        faults.append(f"preprocessing moved pixels by {pixels:.1f}/255 (allowed {PIXEL_TOLERANCE:.1f})")
    if not cosine >= golden.cosine:
        faults.append(f"lowest cosine {cosine:.6f} (allowed {golden.cosine:.6f})")
    if not error <= golden.relative_error:
        faults.append(f"relative error {error:.2e} (allowed {golden.relative_error:.0e})")
    where = f"{info.name} on {info.backend} ({', '.join(info.providers)})"
    what = "golden embeddings" if golden.pixel_logits is None else "golden embeddings and pixel logits"
    if faults:
        message = f"{where} does not reproduce its {what}: {'; '.join(faults)}. Export it again."
    else:
        message = f"{where} reproduces its {checked} {what}: cosine >= {cosine:.7f}, error <= {error:.1e}."
    return GoldenReport(checked, not faults, message, cosine, error, pixels if golden.encoded else None)


def write_golden(path: Path, golden: Golden) -> None:
    """Write ``golden`` as one ``.npz``; encoded files are stored end to end with their lengths."""
    arrays: dict[str, Any] = {
        "images": golden.images,
        "embeddings": golden.embeddings,
        "encoded": np.frombuffer(b"".join(golden.encoded), np.uint8),
        "encoded_lengths": np.array([len(data) for data in golden.encoded], np.int64),
        "texts": np.array(golden.texts, dtype=np.str_),
    }
    if golden.text_embeddings is not None:
        arrays["text_embeddings"] = golden.text_embeddings
    if golden.pixel_logits is not None:
        arrays |= {"pixel_logits": golden.pixel_logits, "pixel_step": np.array(golden.pixel_step)}
    np.savez_compressed(path, **arrays)


def read_golden(path: Path, cosine: float, relative_error: float) -> Golden:
    """Read what ``write_golden`` wrote.

    Raises:
        CheckpointError: the file lacks an array or is no ``.npz``.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ends = np.cumsum(arrays["encoded_lengths"])
            encoded = arrays["encoded"].tobytes()
            return Golden(
                images=arrays["images"],
                embeddings=arrays["embeddings"],
                cosine=cosine,
                relative_error=relative_error,
                encoded=tuple(encoded[end - n : end] for n, end in zip(arrays["encoded_lengths"], ends, strict=True)),
                texts=tuple(str(text) for text in arrays["texts"]),
                text_embeddings=arrays.get("text_embeddings"),
                pixel_logits=arrays.get("pixel_logits"),
                pixel_step=int(arrays.get("pixel_step", 1)),
            )
    except (KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not a golden file of an artifact: {error}.") from error
