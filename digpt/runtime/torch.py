"""The reference runtime: torch float32, under inference mode; every other runtime is compared with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from digpt.errors import BackendError, CapabilityError
from digpt.runtime.base import (
    Golden,
    RuntimeInfo,
    check_images,
    check_pictures,
    no_logits,
    no_pixels,
    no_text,
)
from digpt.sources import Model


class TorchRuntime:
    """A :class:`digpt.sources.Model` at float32.

    Args:
        model: as ``digpt.sources.load_model`` returns it; its module is put into evaluation mode.
        threads: torch's intra-op threads; they belong to the process, so the last runtime to set them wins.
        device: ``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto``: a GPU where there is one, for processes that torchrun
            started the one of their LOCAL_RANK. GPUs are untested here.

    Raises:
        BackendError: no such device, or threads below 1.
    """

    def __init__(self, model: Model, *, threads: int | None = None, device: str = "cpu") -> None:
        if threads is not None:
            if threads < 1:
                raise BackendError(f"threads={threads} is not a positive number.")
            torch.set_num_threads(threads)
        self.model = model
        self.device = _device(device)
        torch.backends.cudnn.allow_tf32 = False  # torch's default rounds a convolution's float32 to 10 bits on GPUs
        self.golden: Golden | None = None
        model.module.float().eval().requires_grad_(False).to(self.device)
        if model.text is not None:
            model.text.module.float().eval().requires_grad_(False).to(self.device)
        self._embed: Callable[[torch.Tensor], torch.Tensor] = model.module
        self._logits: Callable[[torch.Tensor], torch.Tensor] = model.module.logits
        self.info = self._info(model)

    def _info(self, model: Model) -> RuntimeInfo:
        segmenter = model.module.segmenter
        return RuntimeInfo(
            name=model.name,
            spec=model.spec,
            backend="torch",
            precision="fp32",
            fingerprint=model.fingerprint,
            dim=model.module.dim,
            preprocess=model.preprocess,
            has_text=model.text is not None,
            labels=tuple(model.labels) if model.labels else None,
            logit_scale=model.logit_scale,
            logit_bias=model.logit_bias,
            templates=tuple(model.templates),
            head=model.module.head_kind,
            segment_crop=None if segmenter is None else segmenter.config.crop,
            segment_reduce_zero=segmenter is not None and segmenter.config.reduce_zero,
            patch_tokens=True,
            threads=torch.get_num_threads(),
            providers=(str(self.device),),
            versions={"torch": torch.__version__},
        )

    def embed(self, images: np.ndarray) -> np.ndarray:
        images = check_images(images, self.info.preprocess.size)
        with self._computing():
            return self._embed(self._tensor(images)).cpu().numpy()

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if self.model.text is None:
            raise no_text(self.info)
        tokens = self._tensor(self.model.text.tokenize(list(texts)))
        with self._computing():
            return self.model.text.module(tokens).float().cpu().numpy()

    def logits(self, images: np.ndarray) -> np.ndarray:
        if self.info.head != "linear":
            raise no_logits(self.info)
        images = check_images(images, self.info.preprocess.size)
        with self._computing():
            return self._logits(self._tensor(images)).cpu().numpy()

    def patch_tokens(self, images: np.ndarray) -> np.ndarray:
        images = check_images(images, self.info.preprocess.size)
        with self._computing():
            return self.model.module.forward_patches(self._tensor(images)).cpu().numpy()

    def attention_maps(self, images: np.ndarray) -> np.ndarray:
        images = check_images(images, self.info.preprocess.size)
        with self._computing():
            maps = self.model.module.forward_attention(self._tensor(images))
        if maps is None:
            raise CapabilityError(f"{self.info.name} is no plain ViT: it has no attention to patches to show.")
        return maps.cpu().numpy()

    def pixel_logits(self, images: np.ndarray) -> np.ndarray:
        segmenter = self.model.module.segmenter
        if segmenter is None:
            raise no_pixels(self.info)
        images = check_pictures(images)
        with self._computing():
            return segmenter.pixel_logits(self._tensor(images)).cpu().numpy()

    def _computing(self) -> AbstractContextManager[None]:
        """What every computation runs under."""
        return torch.inference_mode()

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def close(self) -> None:
        """Nothing is held outside Python's memory."""


def _device(name: str) -> torch.device:
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BackendError(f"Unknown device {name!r}; valid: auto, cpu, cuda, cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"There is no {name} here: torch sees {torch.cuda.device_count()} GPUs; use --device cpu.")
    return device
