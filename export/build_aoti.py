"""Builds AOTInductor packages: the graphs of ``build_onnx`` as machine code for this kind of CPU, any batch size.

Torch must be there to run them, a compiler need not.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from digpt.model import InferenceModel, TextModel
from digpt.runtime.aoti import OUTPUTS_KEY
from digpt.runtime.graph import IDENTITY_KEY
from digpt.segmentation import Segmenter
from export.build_onnx import EXAMPLE_BATCH, ImageGraph, PixelGraph


def build_image(module: InferenceModel, path: Path, *, size: int, outputs: tuple[str, ...], identity: str) -> None:
    """Write the image tower to ``path``; ``identity`` (JSON) is stored within, for the runtime to compare."""
    example = torch.zeros(EXAMPLE_BATCH, size, size, 3, dtype=torch.uint8)
    _package(ImageGraph(module, outputs).eval(), example, path, outputs, identity)


def build_text(text: TextModel, path: Path, *, identity: str) -> None:
    """Write the text tower, int64 ``[N,L]`` -> float32 ``[N,D]``, to ``path``."""
    _package(text.module.eval(), torch.from_numpy(text.tokenize(["a", "b"])), path, ("embedding",), identity)


def build_segmenter(segmenter: Segmenter, path: Path, *, identity: str) -> None:
    """Write the segmenter to ``path`` for crops of the size that it was trained at, any number at a time."""
    crop = segmenter.config.crop
    example = torch.zeros(EXAMPLE_BATCH, crop, crop, 3, dtype=torch.uint8)
    _package(PixelGraph(segmenter).eval(), example, path, ("pixel_logits",), identity)


def _package(module: nn.Module, example: Tensor, path: Path, outputs: tuple[str, ...], identity: str) -> None:
    metadata = {IDENTITY_KEY: identity, OUTPUTS_KEY: ",".join(outputs)}
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"aot_inductor.metadata": metadata}
        )
    _strip_sources(path)


def _strip_sources(path: Path) -> None:
    """Leave the generated C++ out of a package: it is not run, and is full of file names of this machine."""
    stripped = path.with_suffix(".stripped")
    with zipfile.ZipFile(path) as package, zipfile.ZipFile(stripped, "w") as kept:
        for entry in package.infolist():
            if not entry.filename.endswith(".cpp"):
                kept.writestr(entry, package.read(entry))
    stripped.replace(path)
