"""Between uint8 pixels and the floats in [0, 1] that most corruptions compute with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

# The published files were cut off, not rounded, to whole levels. The slack is far below a level and far above float32's
# error, so that a value that a corruption has not changed does not drop by one.
_SLACK = 1 / 1024


def to_float(image: Image) -> Float:
    """uint8 to float32 in [0, 1]."""
    return np.divide(image, 255, dtype=np.float32)


def to_uint8(image: NDArray[np.floating]) -> Image:
    """Clip to [0, 1] and cut off to uint8 levels, as ImageNet-C does; of any shape."""
    return np.clip(image * 255 + _SLACK, 0, 255).astype(np.uint8)
