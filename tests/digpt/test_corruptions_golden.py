"""The corruptions' stored outputs; ``python tests/digpt/test_corruptions_golden.py`` writes them anew.

At 64 px whole images at severities 1, 3 and 5; at 224 px severity 3, as a part at full size and the whole reduced; the
mean difference from the clean image for every severity and both sizes. A change that is meant raises
``digpt.corruptions.VERSION`` in the same commit.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from digpt.corruptions import CORRUPTIONS, SEVERITIES, corrupt

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "corruptions"
SMALL_SEVERITIES = (1, 3, 5)
LARGE_SEVERITY = 3
# A value that another library version rounds the other way differs by one level; half of them may.
TOLERANCE = 0.5
Pixels = NDArray[np.uint8]


def clean(side: int) -> Pixels:
    with Image.open(GOLDEN / f"clean_{side}.png") as file:
        return np.asarray(file)


def small_outputs(corruption: str) -> Pixels:
    """``[64, 192, 3]``: severities side by side."""
    return np.hstack([corrupt(clean(64), corruption, severity, key="golden") for severity in SMALL_SEVERITIES])


def large_output(corruption: str) -> Pixels:
    """``[56, 112, 3]``: a part, and the whole reduced to a quarter by its means."""
    whole = corrupt(clean(224), corruption, LARGE_SEVERITY, key="golden")
    return np.hstack([whole[120:176, 40:96], np.asarray(Image.fromarray(whole).reduce(4))])


def distances(corruption: str) -> dict[str, list[float]]:
    """Mean difference from the clean image in levels, by size, severities 1 to 5."""
    result = {}
    for side in (64, 224):
        image = clean(side)
        outputs = [corrupt(image, corruption, severity, key="golden").astype(float) for severity in SEVERITIES]
        result[str(side)] = [round(float(np.abs(output - image).mean()), 2) for output in outputs]
    return result


def stored(name: str, row: int, height: int) -> Pixels:
    with Image.open(GOLDEN / name) as file:
        return np.asarray(file)[row * height : (row + 1) * height]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_stored_outputs_are_reproduced(corruption: str) -> None:
    row = CORRUPTIONS.index(corruption)
    expected = stored("expected_64.webp", row, 64).astype(float)
    difference = np.abs(small_outputs(corruption) - expected).reshape(64, 3, 64, 3).mean(axis=(0, 2, 3))
    assert difference.max() <= TOLERANCE, difference
    expected = stored("expected_224.webp", row, 56).astype(float)
    assert np.abs(large_output(corruption) - expected).mean() <= TOLERANCE
    # The control: another key, or severity, is not within the tolerance.
    other = corrupt(clean(64), corruption, 2, key="golden") - stored("expected_64.webp", row, 64)[:, :64].astype(float)
    assert np.abs(other).mean() > TOLERANCE


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_every_severity_is_as_far_from_the_clean_image_as_stored(corruption: str) -> None:
    expected = json.loads((GOLDEN / "distances.json").read_text())[corruption]
    for side, values in distances(corruption).items():
        assert values == pytest.approx(expected[side], abs=0.1)


def regenerate() -> None:
    """Write the distances, and both images in lossless WebP with a row per corruption."""
    rows = [f"{json.dumps(corruption)}: {json.dumps(distances(corruption))}" for corruption in CORRUPTIONS]
    (GOLDEN / "distances.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    for name, outputs in (("expected_64.webp", small_outputs), ("expected_224.webp", large_output)):
        image = np.vstack([outputs(corruption) for corruption in CORRUPTIONS])
        Image.fromarray(image).save(GOLDEN / name, lossless=True, quality=100, method=6)
        print(f"{name}: {(GOLDEN / name).stat().st_size} bytes")


if __name__ == "__main__":
    regenerate()
