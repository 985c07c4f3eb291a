"""The 15 ImageNet-C corruptions, computed on the fly from any image.

>>> corrupted = corrupt(image, "fog", 3, key="n01440764/ILSVRC2012_val_00000293.JPEG#0")

``corrupt`` is a pure function of its arguments; ``describe`` says what a protocol record has to keep. Importing this
package imports neither OpenCV nor Pillow. Definitions and constants: Hendrycks and Dietterich, "Benchmarking Neural
Network Robustness to Common Corruptions and Perturbations" (ICLR 2019), hendrycks/robustness, ``ImageNet-C/create_c``.
"""

from digpt.corruptions.apply import JPEG_QUALITY, MIN_SIDE, VERSION, corrupt, describe, one_thread_each
from digpt.corruptions.constants import CORRUPTIONS, GROUPS, SEVERITIES, constants_set

__all__ = [
    "CORRUPTIONS",
    "GROUPS",
    "JPEG_QUALITY",
    "MIN_SIDE",
    "SEVERITIES",
    "VERSION",
    "constants_set",
    "corrupt",
    "describe",
    "one_thread_each",
]
