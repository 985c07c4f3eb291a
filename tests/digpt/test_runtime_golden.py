"""Golden embeddings: written, read, and each way in which a backend can be wrong noticed."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digpt.engine import Engine
from digpt.errors import BackendError, CheckpointError
from digpt.preprocess import Preprocess
from digpt.runtime.base import Golden
from digpt.runtime.fake import FakeRuntime
from digpt.runtime.golden import read_golden, row_cosine, row_relative_error, write_golden

TEXTS = ("cat", "gr\u00fcner Apfel")


def encoded(seed: int) -> bytes:
    """A half-transparent picture wider than high, so that alpha and cropping both matter."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def runtime_with_golden() -> FakeRuntime:
    runtime = FakeRuntime(dim=8, size=32)
    files = tuple(encoded(seed) for seed in range(3))
    images = np.stack([runtime.info.preprocess(data) for data in files])
    texts = runtime.embed_texts(TEXTS)
    runtime.golden = Golden(images, runtime.embed(images), 0.99999, 1e-3, files, TEXTS, texts)
    return runtime


def test_what_is_written_is_read(tmp_path: Path) -> None:
    golden = runtime_with_golden().golden
    assert golden is not None
    write_golden(tmp_path / "golden.npz", golden)
    read = read_golden(tmp_path / "golden.npz", 0.99999, 1e-3)
    assert (read.encoded, read.texts) == (golden.encoded, golden.texts)
    for name in ("images", "embeddings", "text_embeddings"):
        np.testing.assert_array_equal(getattr(read, name), getattr(golden, name))


def test_a_golden_file_without_texts_or_files(tmp_path: Path) -> None:
    golden = runtime_with_golden().golden
    assert golden is not None
    write_golden(tmp_path / "golden.npz", replace(golden, encoded=(), texts=(), text_embeddings=None))
    read = read_golden(tmp_path / "golden.npz", 0.99999, 1e-3)
    assert (read.encoded, read.texts, read.text_embeddings) == ((), (), None)


def test_a_damaged_golden_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "golden.npz").write_bytes(b"not a zip")
    with pytest.raises(CheckpointError, match=r"golden\.npz"):
        read_golden(tmp_path / "golden.npz", 0.9, 0.1)


def test_the_right_backend_passes_with_its_figures() -> None:
    report = Engine(runtime_with_golden()).verify_golden()
    assert report.passed and report.checked == 5
    assert report.cosine == pytest.approx(1) and report.relative_error == 0 and report.pixel_error == 0
    report.raise_for_failure()


def test_without_golden_images_nothing_is_claimed() -> None:
    report = Engine(FakeRuntime()).verify_golden()
    assert report.checked == 0 and report.passed and "nothing to compare" in report.message


def failing(runtime: FakeRuntime) -> str:
    report = Engine(runtime).verify_golden()
    assert not report.passed
    with pytest.raises(BackendError):
        report.raise_for_failure()
    return report.message


def test_a_slightly_wrong_direction_is_caught() -> None:
    runtime = runtime_with_golden()
    right = runtime.embed
    noise = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    runtime.embed = lambda images: right(images) + 0.01 * noise  # type: ignore[method-assign]
    assert "lowest cosine 0.99" in failing(runtime)


def test_a_wrong_length_is_caught_though_the_cosine_is_one() -> None:
    runtime = runtime_with_golden()
    right = runtime.embed
    runtime.embed = lambda images: 1.01 * right(images)  # type: ignore[method-assign]
    message = failing(runtime)
    assert "relative error 1.00e-02" in message and "cosine" not in message


def test_a_wrong_text_tower_is_caught() -> None:
    runtime = runtime_with_golden()
    right = runtime.embed_texts
    runtime.embed_texts = lambda texts: right([text + "!" for text in texts])  # type: ignore[method-assign]
    failing(runtime)


@pytest.mark.parametrize("change", [{"alpha": "drop"}, {"resize": "shortest"}, {"interpolation": "nearest"}])
def test_swapped_preprocessing_is_caught_by_the_pixels(change: dict[str, str]) -> None:
    runtime = runtime_with_golden()
    changed = Preprocess.from_dict({**runtime.info.preprocess.to_dict(), **change})
    runtime.info = replace(runtime.info, preprocess=changed)
    assert "preprocessing moved pixels" in failing(runtime)


def test_row_figures_by_hand() -> None:
    a, b = np.array([[3.0, 4.0], [2.0, 0.0]], np.float32), np.array([[4.0, 3.0], [1.0, 0.0]], np.float32)
    assert row_cosine(a, b) == pytest.approx([0.96, 1.0])
    assert row_relative_error(a, b) == pytest.approx([np.sqrt(2) / 5, 1.0])
