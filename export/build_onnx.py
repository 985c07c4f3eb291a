"""Builds ONNX files from a model: pixels in, embedding (and logits, patch tokens) out, any batch size.

A segmenter gets a file of its own with the encoder in it once more: onnxruntime computes all outputs of a file, and an
embedding should not cost a pyramid and the logits of every pixel.

Decoding and resizing stay in ``digpt.preprocess``; conversion to float, normalisation, pooling and head are inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir
import torch
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
)
from torch import Tensor, nn

from digpt.model import InferenceModel, TextModel
from digpt.runtime.graph import IDENTITY_KEY
from digpt.segmentation import Segmenter

OPSET = 20
EXAMPLE_BATCH = 2  # a batch of 1 would be taken for a constant
SINGLE_FILE_LIMIT = 1_800_000_000  # protobuf ends at 2 GiB; above this the weights go into a file beside


class ImageGraph(nn.Module):
    """uint8 ``[B,H,W,3]`` -> one tensor per name of ``outputs``: embedding, logits, patch_tokens."""

    def __init__(self, model: InferenceModel, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        compute = {
            "embedding": self.model.forward,
            "logits": self.model.logits,
            "patch_tokens": self.model.forward_patches,
        }
        return tuple(compute[name](images) for name in self.outputs)


def build_image(module: InferenceModel, path: Path, *, size: int, outputs: tuple[str, ...], identity: str) -> None:
    """Write the image tower to ``path``; ``identity`` (JSON) is stored within, for the runtime to compare."""
    example = torch.zeros(EXAMPLE_BATCH, size, size, 3, dtype=torch.uint8)
    _export(ImageGraph(module, outputs).eval(), example, path, ("images", outputs), {IDENTITY_KEY: identity})


class PixelGraph(nn.Module):
    """uint8 ``[B,H,W,3]`` -> the logits of every pixel ``[B,K,H,W]``; position table and pooling are of fixed sizes."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        return self.segmenter.pixel_logits(images)


def build_segmenter(segmenter: Segmenter, path: Path, *, identity: str) -> None:
    """Write the segmenter to ``path`` for crops of the size that it was trained at, any number at a time."""
    crop = segmenter.config.crop
    example = torch.zeros(EXAMPLE_BATCH, crop, crop, 3, dtype=torch.uint8)
    names = ("images", ("pixel_logits",))
    _export(PixelGraph(segmenter).eval(), example, path, names, {IDENTITY_KEY: identity})


def build_text(text: TextModel, path: Path, *, identity: str) -> None:
    """Write the text tower, int64 ``[N,L]`` -> float32 ``[N,D]``, to ``path``."""
    example = torch.from_numpy(text.tokenize(["a", "b"]))
    _export(text.module.eval(), example, path, ("tokens", ("embedding",)), {IDENTITY_KEY: identity})


def _export(
    module: nn.Module, example: Tensor, path: Path, names: tuple[str, tuple[str, ...]], metadata: Mapping[str, str]
) -> None:
    input_name, output_names = names
    with torch.inference_mode():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[input_name],
            output_names=list(output_names),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # with dynamo=True it always returns a program
    graph = program.model.graph
    # Logits and patch tokens trace the encoder again; equal weights, then equal nodes are merged: it runs once.
    DeduplicateInitializersPass(size_limit=2**40)(program.model)
    CommonSubexpressionEliminationPass()(program.model)
    RemoveUnusedNodesPass()(program.model)
    _free_names(graph, (input_name, *output_names))
    _strip_traces(graph)
    program.model.metadata_props.update(metadata)
    weight_bytes = sum(
        value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None
    )
    program.save(path, external_data=weight_bytes > SINGLE_FILE_LIMIT)


def _free_names(graph: onnx_ir.Graph, names: tuple[str, ...]) -> None:
    """Rename inner values that are called like an input or output (a lookup's result is called "embedding")."""
    outer = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in names and id(value) not in outer:
                value.name = f"{value.name}_of_{node.name}"


def _strip_traces(graph: onnx_ir.Graph) -> None:
    """Remove the exporter's notes: stack traces hold file names of the machine that exported."""
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
