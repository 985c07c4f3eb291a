"""Quantises ONNX files to int8 with onnxruntime: per-channel weights, activations by their range on real images.

The range leaves out the outermost values (PERCENTILE), and only what enters a product is rounded, not what leaves it:
of the bundled model both together bring the median cosine from 1 - 2.2e-4 to 1 - 8e-5.

Only products with weights and convolutions are quantised (QDQ), except the first (pixels to patches) and the last (the
head), whose rounding nothing evens out. Attention's products of activations, norms and softmax stay float32, and so
does the text tower, which runs once for each label and not for each image.
"""

from __future__ import annotations

import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from digpt.runtime.graph import IDENTITY_KEY

QUANTISED = ("MatMul", "Gemm", "Conv")
CALIBRATION_BATCH = 8
EXPLAINED_IMAGES = 4  # all activations of these are in memory at once
PERCENTILE = 99.99  # of the values of an activation are within its range; those outside are clipped
WORST = 5  # layers that are named when an engine fails


def quantise(source: Path, path: Path, crops: np.ndarray, *, identity: str) -> None:
    """Write the int8 version of the float32 file ``source`` to ``path``; ``crops`` uint8 ``[n,H,W,3]`` calibrate it."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    large = source.with_name(f"{source.name}.data").exists()
    # onnxruntime prints a line for every batch that it calibrates on
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(io.StringIO()):
        prepared = Path(scratch) / source.name
        quant_pre_process(source, prepared, save_as_external_data=large, all_tensors_to_one_file=large)
        quantize_static(
            prepared,
            path,
            _reader(crops),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=_ends(prepared),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            use_external_data_format=large,
            extra_options={
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": list(QUANTISED),
                "CalibPercentile": PERCENTILE,
                "CalibStridedMinMax": 1,  # whatever the method: activations of one batch are in memory, not of all
            },
        )
    _state_identity(path, identity)


def _ends(path: Path) -> list[str]:
    """The names of the first and the last layer with weights; nodes are in the order of computation."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    layers = [node.name for node in graph.node if node.op_type in QUANTISED and node.input[1] in weights]
    return [layers[0], layers[-1]] if layers else []


def _state_identity(path: Path, identity: str) -> None:
    """Quantising adds notes of its own to the metadata; the identity alone stays."""
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {IDENTITY_KEY: identity})
    onnx.save(model, path)


def worst_layers(source: Path, quantised: Path, crops: np.ndarray) -> list[str]:
    """Sentences about the activations that int8 changes most, by their signal to noise ratio, the worst first."""
    from onnxruntime.quantization import qdq_loss_debug as debug

    activations = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, model in (("float", source), ("int8", quantised)):
            augmented = Path(scratch) / f"{name}.onnx"
            debug.modify_model_output_intermediate_tensors(str(model), augmented)
            activations.append(debug.collect_activations(str(augmented), _reader(crops[:EXPLAINED_IMAGES])))
    errors = debug.compute_activation_error(debug.create_activation_matching(activations[1], activations[0]))
    ratios = {name: float(error["xmodel_err"]) for name, error in errors.items() if "xmodel_err" in error}
    places = _places(source)
    worst = sorted(ratios, key=lambda name: ratios[name])[:WORST]
    return [f"int8 is far from float32 at {name}{places.get(name, '')}: {ratios[name]:.1f} dB" for name in worst]


def _places(path: Path) -> dict[str, str]:
    """For each value of a graph the last weight before it that has the model's own name: where in the model it is."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    places: dict[str, str] = {}
    place = ""
    for node in graph.node:
        named = [name for name in node.input if name in weights and "." in name]
        place = f", near {named[-1]}" if named else place
        places |= dict.fromkeys(node.output, place)
    return places


def _reader(crops: np.ndarray) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    starts = range(0, len(crops), CALIBRATION_BATCH)

    class Reader(CalibrationDataReader):
        """Batches in turn, of all or of the range that is set."""

        def __init__(self) -> None:
            self.set_range(0, len(starts))

        def __len__(self) -> int:
            return len(starts)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.pending = iter(starts[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self.pending, None)
            return None if start is None else {"images": crops[start : start + CALIBRATION_BATCH]}

    return Reader()
