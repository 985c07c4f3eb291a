"""Torch in bfloat16: the weights of matrix products and convolutions are rounded once, everything else stays float32.

The residual stream, norms and pixels keep 24 bits; autocast rounds what enters a product. Answers are float32.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from digpt.errors import BackendError
from digpt.runtime.torch import TorchRuntime
from digpt.sources import Model

PRODUCTS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
WARM_BATCHES = (2, 1)  # Inductor compiles one program for a batch of 1 and one for all others


class TorchBf16Runtime(TorchRuntime):
    """The ``torch-bf16`` backend; its module is changed in place. See :class:`TorchRuntime` for the arguments."""

    backend = "torch-bf16"

    def __init__(self, model: Model, *, threads: int | None = None, device: str = "cpu") -> None:
        super().__init__(model, threads=threads, device=device)
        _round_products(model.module)
        if model.text is not None:
            _round_products(model.text.module)
        self.info = replace(
            self.info, backend=self.backend, precision="bf16", providers=(f"{self.device} autocast bf16",)
        )

    def _computing(self) -> AbstractContextManager[None]:
        return _autocast(self.device.type)


class TorchCompiledRuntime(TorchBf16Runtime):
    """The ``torch-compiled-bf16`` backend: Inductor with frozen weights for embeddings and logits; texts, patch tokens
    and pixels run uncompiled. Compiling takes half a minute and more, at the start.

    Raises:
        BackendError: there is no C++ compiler.
    """

    backend = "torch-compiled-bf16"

    def __init__(self, model: Model, *, threads: int | None = None, device: str = "cpu") -> None:
        check_compiler(self.backend)
        super().__init__(model, threads=threads, device=device)
        self._embed, self._logits = _compiled(model.module), _compiled(model.module.logits)
        self.info = replace(self.info, providers=(f"{self.device} inductor bf16",))
        size = self.info.preprocess.size
        for batch in WARM_BATCHES:
            images = np.zeros((batch, size, size, 3), np.uint8)
            self.logits(images) if self.info.head == "linear" else self.embed(images)


def check_compiler(what: str) -> None:
    """Raise BackendError when the C++ compiler that Inductor calls is not installed."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise BackendError(f"{what} compiles C++ and found no {compiler}: install g++, or choose something else.")


def _compiled(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.compile(function, dynamic=True, options={"freezing": True})


def _round_products(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, PRODUCTS):
            layer.to(torch.bfloat16)


@contextmanager
def _autocast(device: str) -> Iterator[None]:
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
        yield
