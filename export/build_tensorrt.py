"""Builds TensorRT engines with torch-tensorrt: the graphs of ``build_onnx`` for the GPU that is here, batches up to 64.

TensorRT computes in the types that a graph states: it has no flag for float16 any more. So the casts are written into
the graph, by torch's autocast, before TensorRT sees it. Untested on a GPU: ``python -m export.gpu_check``.
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from digpt.errors import BackendError
from digpt.model import InferenceModel, TextModel
from digpt.runtime.graph import IDENTITY_KEY
from digpt.runtime.tensorrt import MAX_BATCH, OUTPUTS_KEY, gpu, torch_tensorrt
from digpt.segmentation import Segmenter
from export.build_onnx import EXAMPLE_BATCH, ImageGraph, PixelGraph

USUAL_BATCH = 16  # what TensorRT chooses its kernels for
AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TensorrtGraphs:
    """Writes the graphs of a model as engines of one ``precision``: fp32 (without TF32), fp16 or bf16."""

    precision: str

    def build_image(
        self, module: InferenceModel, path: Path, *, size: int, outputs: tuple[str, ...], identity: str
    ) -> None:
        """Write the image tower to ``path``; ``identity`` (JSON) is stored within, for the runtime to compare."""
        example = torch.zeros(EXAMPLE_BATCH, size, size, 3, dtype=torch.uint8)
        self._write(ImageGraph(module, outputs), example, path, outputs, identity)

    def build_text(self, text: TextModel, path: Path, *, identity: str) -> None:
        """Write the text tower, int64 ``[N,L]`` -> float32 ``[N,D]``, to ``path``."""
        self._write(text.module, torch.from_numpy(text.tokenize(["a", "b"])), path, ("embedding",), identity)

    def build_segmenter(self, segmenter: Segmenter, path: Path, *, identity: str) -> None:
        """Write the segmenter to ``path`` for crops of the size that it was trained at."""
        crop = segmenter.config.crop
        example = torch.zeros(EXAMPLE_BATCH, crop, crop, 3, dtype=torch.uint8)
        self._write(PixelGraph(segmenter), example, path, ("pixel_logits",), identity)

    def _write(self, graph: nn.Module, example: Tensor, path: Path, outputs: tuple[str, ...], identity: str) -> None:
        library = torch_tensorrt()
        program = typed_program(graph, example.to(gpu()), self.precision)
        least, usual, most = ((rows, *example.shape[1:]) for rows in (1, USUAL_BATCH, MAX_BATCH))
        rows = library.Input(min_shape=least, opt_shape=usual, max_shape=most, dtype=example.dtype, name="rows")
        extra = {IDENTITY_KEY: identity, OUTPUTS_KEY: ",".join(outputs)}
        try:
            # Only an engine that is built under the debugger keeps the types of its layers for the inspector.
            with (
                tempfile.TemporaryDirectory() as scratch,
                library.dynamo.Debugger(log_level="error", engine_builder_monitor=False, logging_dir=scratch),
            ):
                compiled = library.compile(
                    program,
                    ir="dynamo",
                    inputs=[rows],
                    use_explicit_typing=True,  # a choice before 2.14, since then the only way
                    disable_tf32=True,
                    require_full_compilation=True,
                    min_block_size=1,
                )
            library.save(compiled, str(path), extra_files=extra, output_format="exported_program", arg_inputs=[rows])
        except Exception as error:  # its exceptions share no base class
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BackendError(f"torch-tensorrt cannot build {path.name} in {self.precision}: {reason}") from error


def typed_program(graph: nn.Module, example: Tensor, precision: str) -> torch.export.ExportedProgram:
    """``graph`` as a program for batches of 1 to 64 in which every change of precision is a cast.

    ``graph`` stays as it is; the program is on the device of ``example``. Its answers are a tuple of float32 tensors.
    """
    typed = _Typed(copy.deepcopy(graph).to(example.device), AUTOCAST[precision]).eval()
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with torch.no_grad():
        program = torch.export.export(typed, (example,), dynamic_shapes=({0: batch},))
        return program.run_decompositions({})  # writes autocast's casts into the graph


class _Typed(nn.Module):
    """uint8 or int64 rows -> float32 answers. TensorRT does nothing with uint8 but cast it, so that is done first."""

    def __init__(self, graph: nn.Module, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.tower = graph  # a program has a graph of its own
        self.autocast = autocast

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        rows = rows.float() if rows.dtype == torch.uint8 else rows
        with self._computing(rows.device.type):
            answers = self.tower(rows)
        return tuple(answer.float() for answer in (answers if isinstance(answers, tuple) else (answers,)))

    def _computing(self, device: str) -> AbstractContextManager[object]:
        return nullcontext() if self.autocast is None else torch.autocast(device, self.autocast)
