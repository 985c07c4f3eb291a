"""The corruptions as a whole: names, errors, purity, sizes, growth with severity, and what a protocol keeps."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from digpt.corruptions import (
    CORRUPTIONS,
    GROUPS,
    SEVERITIES,
    blur,
    constants_set,
    corrupt,
    describe,
    digital,
    noise,
    weather,
)
from digpt.corruptions.constants import SETS
from digpt.errors import ConfigError
from digpt.robustness_metrics import ALEXNET_CLEAN, ALEXNET_ERROR

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "corruptions"
WITHOUT_DRAWS = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
Pixels = NDArray[np.uint8]


def picture(side: int) -> Pixels:
    """Smooth parts, edges and a fine pattern, uint8 ``[side, side, 3]``; stored for 64 and 224."""
    with Image.open(GOLDEN / f"clean_{side}.png") as file:
        return np.asarray(file)


def test_the_names_stand_in_the_published_order() -> None:
    assert len(CORRUPTIONS) == len(set(CORRUPTIONS)) == 15
    assert CORRUPTIONS[:4] == ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur")
    assert CORRUPTIONS[-4:] == ("contrast", "elastic_transform", "pixelate", "jpeg_compression")
    assert {name: len(group) for name, group in GROUPS.items()} == {"noise": 3, "blur": 4, "weather": 4, "digital": 4}
    assert SEVERITIES == (1, 2, 3, 4, 5)


def test_the_errors_of_alexnet_are_the_published_ones() -> None:
    assert tuple(ALEXNET_ERROR) == CORRUPTIONS
    assert sum(ALEXNET_ERROR.values()) == pytest.approx(11.834896, abs=1e-9)
    assert ALEXNET_ERROR["impulse_noise"] == max(ALEXNET_ERROR.values()) == 0.92264
    assert ALEXNET_ERROR["brightness"] == min(ALEXNET_ERROR.values()) > ALEXNET_CLEAN == 0.4348


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corruption": "gausian_noise"}, "Did you mean 'gaussian_noise'"),
        ({"corruption": "spatter"}, "valid: gaussian_noise, shot_noise"),
        ({"severity": 0}, "Severity 0 is unknown; valid: 1, 2, 3, 4, 5"),
        ({"severity": 6}, "Severity 6 is unknown"),
        ({"image": np.zeros((32, 32, 3), dtype=np.float32)}, r"not float32 \[32, 32, 3\]"),
        ({"image": np.zeros((32, 32), dtype=np.uint8)}, r"not uint8 \[32, 32\]"),
        ({"image": np.zeros((32, 32, 4), dtype=np.uint8)}, r"not uint8 \[32, 32, 4\]"),
        ({"image": np.zeros((32, 15, 3), dtype=np.uint8)}, "15 x 32 px is too small; enlarge it to 16"),
        ({"image": [[0]]}, "not list"),
    ],
)
def test_what_cannot_be_corrupted_is_said(change: dict[str, object], message: str) -> None:
    arguments = {"image": np.zeros((32, 32, 3), dtype=np.uint8), "corruption": "fog", "severity": 1, "key": ""}
    with pytest.raises(ConfigError, match=message):
        corrupt(**(arguments | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_is_a_function_of_its_arguments(corruption: str) -> None:
    clean = picture(64)
    before = clean.copy()
    np.random.seed(0)
    first = corrupt(clean, corruption, 3, key="a#0")
    corrupt(clean, corruption, 3, key="b#0")
    np.random.seed(1)
    again = corrupt(clean, corruption, 3, key="a#0")
    other = corrupt(clean, corruption, 3, key="a#1")
    assert first.dtype == np.uint8 and first.shape == clean.shape and first.flags.writeable
    assert np.array_equal(first, again) and np.array_equal(clean, before)
    assert np.array_equal(first, other) == (corruption in WITHOUT_DRAWS)
    assert not np.array_equal(first, clean) and not np.shares_memory(first, clean)


def test_severities_and_corruptions_draw_apart() -> None:
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    weak, strong = (corrupt(grey, "gaussian_noise", s, key="k").astype(float).ravel() - 128 for s in (1, 2))
    impulses = corrupt(grey, "impulse_noise", 5, key="k").astype(float).ravel() - 128
    assert abs(np.corrcoef(weak, strong)[0, 1]) < 0.05  # 12288 values: 5 standard errors
    assert abs(np.corrcoef(weak, impulses)[0, 1]) < 0.05


@pytest.mark.parametrize("shape", [(16, 16), (16, 61), (97, 180), (300, 128)])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_other_sizes_work(corruption: str, shape: tuple[int, int]) -> None:
    clean = cv2.resize(picture(224), shape[::-1], interpolation=cv2.INTER_AREA)
    for severity in (1, 5):
        result = corrupt(clean, corruption, severity, key="k")
        assert result.shape == clean.shape and result.dtype == np.uint8
    assert np.abs(result.astype(float) - clean).mean() > 1


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_layout_of_the_memory_does_not_matter(corruption: str) -> None:
    clean = picture(64)
    turned = np.asfortranarray(clean)
    turned.flags.writeable = False
    assert np.array_equal(corrupt(turned, corruption, 2, key="k"), corrupt(clean, corruption, 2, key="k"))


def distance(result: Pixels, clean: Pixels) -> float:
    """Mean absolute difference, in levels."""
    return float(np.abs(result.astype(float) - clean).mean())


def decorrelation(result: Pixels, clean: Pixels) -> float:
    """1 minus the correlation: what fog and frost take, whose brightness shifts with the texture drawn."""
    return 1 - float(np.corrcoef(result.ravel(), clean.ravel())[0, 1])


# Steps that the published constants do not make stronger: glass_blur 4 makes fewer sweeps than 3, snow 3 has larger but
# fewer flakes than 2, and elastic_transform goes from large smooth shifts to small wobbles.
NO_STRONGER = {"glass_blur": {(3, 4)}, "snow": {(2, 3)}}
FUNCTIONS = {
    name: getattr(module, name)
    for module in (noise, blur, weather, digital)
    for name in CORRUPTIONS
    if hasattr(module, name)
}


@pytest.mark.parametrize("side", [64, 224])
@pytest.mark.parametrize("corruption", [name for name in CORRUPTIONS if name != "elastic_transform"])
def test_a_higher_severity_is_stronger(corruption: str, side: int) -> None:
    clean = picture(side)
    measure: Callable[[Pixels, Pixels], float] = decorrelation if corruption in ("fog", "frost") else distance
    constants = SETS[constants_set(side, side)]

    def mean_strength(severity: int) -> float:
        """Every severity gets the same draws: the same texture, plasma, angle."""
        draws = [np.random.default_rng(seed) for seed in range(1 if corruption in WITHOUT_DRAWS else 6)]
        entry = constants.of(corruption, severity)
        return float(np.mean([measure(FUNCTIONS[corruption](clean, entry, draw), clean) for draw in draws]))

    strength = [mean_strength(severity) for severity in SEVERITIES]
    for weak in SEVERITIES[:-1]:
        if (weak, weak + 1) not in NO_STRONGER.get(corruption, set()):
            assert strength[weak] > strength[weak - 1], (weak, strength)
    assert strength[4] > 1.15 * strength[0]


@pytest.mark.parametrize("corruption", ["fog", "glass_blur", "jpeg_compression"])
def test_the_jpeg_round_trip_is_pillows_at_quality_85(corruption: str) -> None:
    clean = picture(64)
    plain = corrupt(clean, corruption, 4, key="k")
    file = io.BytesIO()
    Image.fromarray(plain).save(file, "JPEG", quality=85, optimize=True)
    assert np.array_equal(corrupt(clean, corruption, 4, key="k", jpeg=True), np.asarray(Image.open(file)))
    assert not np.array_equal(np.asarray(Image.open(file)), plain)


def test_the_constants_follow_the_shorter_side() -> None:
    assert constants_set(64, 64) == constants_set(96, 300) == constants_set(300, 96) == "tiny-imagenet-c"
    assert constants_set(97, 97) == constants_set(224, 224) == "imagenet-c"
    grey = np.full((97, 97, 3), 128, dtype=np.uint8)
    large, small = (corrupt(grey[:side], "gaussian_noise", 5, key="k").std() / 255 for side in (97, 96))
    assert small == pytest.approx(0.18, abs=0.01) and large > 0.3  # 0.38, of which clipping takes some


def test_a_protocol_record_names_what_changes_the_pixels() -> None:
    record = describe(224, jpeg=True)
    assert json.loads(json.dumps(record)) == record
    assert record["constants"] == "imagenet-c" and describe(96, jpeg=True)["constants"] == "tiny-imagenet-c"
    assert record["jpeg_quality"] == 85 and describe(224, jpeg=False)["jpeg_quality"] is None
    assert record["version"] == 1 and "hendrycks/robustness" in record["frost_textures"]


def test_importing_loads_nothing_heavy_and_sets_no_threads() -> None:
    code = """
import sys
import digpt.corruptions
assert not {"cv2", "PIL", "scipy", "numba", "torch"} & set(sys.modules), sorted(sys.modules)
import cv2, numpy
before = cv2.getNumThreads()
cv2.setNumThreads(3)
digpt.corruptions.corrupt(numpy.zeros((32, 32, 3), dtype="uint8"), "fog", 1, key="")
assert cv2.getNumThreads() == 3 and not {"scipy", "numba", "torch"} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("module", "message"),
    [("None", "need OpenCV; install"), ("types.SimpleNamespace(__version__='4.13.0')", "need OpenCV 5, not 4.13.0;")],
)
def test_missing_opencv_is_said(module: str, message: str) -> None:
    code = f"""
import sys, types
sys.modules["cv2"] = {module}
import numpy
from digpt.corruptions import corrupt
from digpt.errors import MissingDependencyError
try:
    corrupt(numpy.zeros((32, 32, 3), dtype="uint8"), "fog", 1, key="")
except MissingDependencyError as error:
    assert {message!r} in str(error) and "opencv-python-headless>=5" in str(error)
else:
    raise SystemExit("no error")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
