"""What an export loads once: model, images, golden embeddings, and the manifest without its figures."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from digpt.artifact import canonical_json
from digpt.engine import Engine
from digpt.errors import ConfigError, DataError, InputError
from digpt.runtime.artifact import identity
from digpt.runtime.base import Golden
from digpt.runtime.golden import write_golden
from digpt.runtime.torch import TorchRuntime
from digpt.sources import Model, load_model
from export.abstain import Calibration, calibrate
from export.images import bundled_images, bundled_names, evenly, folder_images
from export.tokenizer import write_tokenizer

GOLDEN_FILE = "golden.npz"
GOLDEN_IMAGES = 16
GOLDEN_SEGMENTED = 2  # of the golden images, whose logits at every few pixels are kept
GOLDEN_PIXELS = 32  # pixels a side whose logits are kept: all of 150 classes at 512 x 512 would be 157 MB an image
GOLDEN_FILES_LIMIT = 4 * 2**20  # bytes of encoded golden images; beyond it only their crops are kept
CALIBRATION_IMAGES = 64  # from which int8 learns the range of its activations
CALIBRATION_LEAST = 16
EVERY = 10**9  # more images than there are
FOREIGN_LABELS = 256  # of the bundled names, for models that have no labels of their own
PACKAGES = ("digpt", "torch", "timm", "open_clip_torch", "onnx", "onnxscript", "numpy", "pillow", "tokenizers")


@dataclass(frozen=True)
class Job:
    """One export, loaded: what every engine is built from and measured with. ``crops`` are uint8 ``[n,H,W,3]``."""

    model: Model
    reference: TorchRuntime
    manifest: dict[str, Any]
    crops: np.ndarray
    labels: tuple[str, ...]
    outputs: tuple[str, ...]
    threads: int | None
    images: Path | None
    calibration: Calibration

    @property
    def identity(self) -> str:
        return canonical_json(identity(self.manifest)).decode()


def load_job(
    spec: str,
    directory: Path,
    *,
    threads: int | None,
    images: Path | None,
    parity_images: int,
    text: bool,
    patch_tokens: bool,
    image_size: int | None = None,
) -> Job:
    """Load the model, its images and torch float32's answers; write ``golden.npz`` and the tokenizer to ``directory``.

    Raises:
        SpecError, CheckpointError, DataError: the model or the images cannot be read.
        BackendError: the model's tokenizer cannot be exported.
    """
    model = load_model(spec, image_size=image_size)
    if not text:
        model = replace(model, text=None)
    reference = TorchRuntime(model, threads=threads)
    names, encoded = _pictures(images, parity_images)
    crops = np.stack([_crop(model, name, data) for name, data in zip(names, encoded, strict=True)])
    labels = tuple(model.labels or (evenly(bundled_names(), FOREIGN_LABELS) if model.text else ()))
    manifest = _manifest(model, directory, labels)  # first: it refuses tokenizers that cannot be exported
    write_golden(directory / GOLDEN_FILE, _golden(reference, crops, encoded, labels))
    calibration = calibrate(Engine(reference), images)
    manifest["abstain"] = calibration.to_dict()
    return Job(model, reference, manifest, crops, labels, _outputs(model, patch_tokens), threads, images, calibration)


def calibration_crops(job: Job) -> tuple[np.ndarray, bool]:
    """Up to CALIBRATION_IMAGES crops uint8 ``[n,H,W,3]`` of real images, and whether parity is measured on others.

    They are of the kind that parity is measured on, and the same only where a folder holds no others.
    """
    if job.images is None:
        compared = set(bundled_images(len(job.crops)))
        others = [(f"bundled image {i}", data) for i, data in enumerate(bundled_images(EVERY)) if data not in compared]
        chosen = evenly(others, CALIBRATION_IMAGES)
    else:
        used = set(folder_images(job.images, len(job.crops)))
        files = [file for file in folder_images(job.images, EVERY) if file not in used]
        chosen = [(str(file), file.read_bytes()) for file in evenly(files, CALIBRATION_IMAGES)]
    if len(chosen) < CALIBRATION_LEAST:
        return job.crops[:CALIBRATION_IMAGES], False
    return np.stack([_crop(job.model, name, data) for name, data in chosen]), True


def _manifest(model: Model, directory: Path, labels: Sequence[str]) -> dict[str, Any]:
    text = None
    if model.text is not None:
        text = {
            "tokenizer": write_tokenizer(model, model.text, directory, labels),
            "templates": list(model.templates),
            "logit_scale": model.logit_scale,
            "logit_bias": model.logit_bias,
        }
    return {
        "name": model.name,
        "source": {"spec": model.spec, "fingerprint": model.fingerprint, "provenance": model.provenance or {}},
        "backend": "",
        "precision": "",
        "fingerprint": model.fingerprint,
        "dim": model.module.dim,
        "preprocess": model.preprocess.to_dict(),
        "pooling": model.config["pooling"],
        "labels": list(model.labels) if model.labels else None,
        "head": model.module.head_kind,
        "segment_crop": None if model.module.segmenter is None else model.module.segmenter.config.crop,
        "segment_reduce_zero": model.module.segmenter is not None and model.module.segmenter.config.reduce_zero,
        "text": text,
        "abstain": None,
        "engines": {},
        "refused": {},
        "golden": {"file": GOLDEN_FILE, "images": GOLDEN_IMAGES, "reference": "torch fp32"},
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # a checkout on the path has no metadata
    return found


def _outputs(model: Model, patch_tokens: bool) -> tuple[str, ...]:
    logits = ("logits",) if model.module.has_logits else ()
    return ("embedding", *logits, *(("patch_tokens",) if patch_tokens else ()))


def _golden(reference: TorchRuntime, crops: np.ndarray, encoded: Sequence[bytes], labels: Sequence[str]) -> Golden:
    files = tuple(encoded[:GOLDEN_IMAGES])
    texts = tuple(evenly(labels, GOLDEN_IMAGES)) if reference.info.has_text else ()
    step = max(crops.shape[1] // GOLDEN_PIXELS, 1)
    segmented = reference.pixel_logits(crops[:GOLDEN_SEGMENTED]) if reference.info.head == "upernet" else None
    return Golden(
        images=crops[:GOLDEN_IMAGES],
        embeddings=reference.embed(crops[:GOLDEN_IMAGES]),
        cosine=1.0,  # the engines state their own tolerances
        relative_error=0.0,
        encoded=files if sum(map(len, files)) <= GOLDEN_FILES_LIMIT else (),
        texts=texts,
        text_embeddings=reference.embed_texts(texts) if texts else None,
        pixel_logits=None if segmented is None else segmented[:, :, ::step, ::step],
        pixel_step=step,
    )


def _pictures(folder: Path | None, count: int) -> tuple[list[str], list[bytes]]:
    if count < GOLDEN_IMAGES:
        raise ConfigError(
            f"--parity-images {count}: at least {GOLDEN_IMAGES} are needed for a figure that means something."
        )
    if folder is None:
        encoded = bundled_images(count)
        return [f"bundled image {index}" for index in range(len(encoded))], encoded
    files = folder_images(folder, count)
    if len(files) < GOLDEN_IMAGES:
        raise DataError(f"--images {folder} holds {len(files)} images; at least {GOLDEN_IMAGES} are needed.")
    return [str(file) for file in files], [file.read_bytes() for file in files]


def _crop(model: Model, name: str, data: bytes) -> np.ndarray:
    try:
        return model.preprocess(data)
    except InputError as error:
        raise DataError(f"{name}: {error} Remove it or give other --images.") from error
