"""How far an engine may be from torch float32, by precision: the gate of an export, and the check at every start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """What an engine must reach; fractions. Cosines are per image (and per text), agreement is of the top-1
    label, and of the best class of every pixel."""

    cosine_median: float
    cosine_min: float
    agreement: float


# The lowest cosine of int8 is reported; its bound is there to catch an engine that is wrong, not one that is coarse.
THRESHOLDS = {
    "fp32": Thresholds(cosine_median=0.99999, cosine_min=0.99999, agreement=0.999),
    "fp16": Thresholds(cosine_median=0.9999, cosine_min=0.9995, agreement=0.997),
    "bf16": Thresholds(cosine_median=0.9995, cosine_min=0.999, agreement=0.995),
    "int8": Thresholds(cosine_median=0.995, cosine_min=0.9, agreement=0.98),
}
# Golden images are compared with these bounds at every start, possibly on another CPU than the exporting one. The
# relative error |a - b| / |b| belongs to the cosine: rows of equal length with cosine c are sqrt(2 - 2 c) apart.
GOLDEN_TOLERANCE = {
    "fp32": {"cosine": 0.99999, "relative_error": 1e-3},
    "fp16": {"cosine": 0.9995, "relative_error": 0.035},
    "bf16": {"cosine": 0.999, "relative_error": 0.05},
    "int8": {"cosine": 0.9, "relative_error": 0.45},
}
