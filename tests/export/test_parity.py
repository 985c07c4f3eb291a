"""The gate's arithmetic on fake runtimes, where right and wrong are known."""

from __future__ import annotations

import numpy as np
import pytest

from digpt.runtime.fake import FakeRuntime
from export.parity import BATCH_SIZES, THRESHOLDS, find_faults, measure

LABELS = [f"label {index}" for index in range(20)]


def crops(count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


class Noisy(FakeRuntime):
    """Adds ``noise`` to every embedding, and for batches of ``bad_batch`` answers with the images' order reversed."""

    def __init__(self, noise: float = 0.0, bad_batch: int | None = None, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.noise, self.bad_batch = noise, bad_batch

    def embed(self, images: np.ndarray) -> np.ndarray:
        rows = super().embed(images)
        if len(rows) == self.bad_batch:
            return rows[::-1]
        return rows + np.float32(self.noise) * np.random.default_rng(1).standard_normal(rows.shape).astype(np.float32)


def test_an_equal_engine_passes_with_perfect_figures() -> None:
    report = measure(FakeRuntime(), FakeRuntime(), crops(), LABELS)
    assert report.passed and report.faults == ()
    assert (report.images, report.classes, report.agreement, report.max_abs_error) == (12, 20, 1.0, 0.0)
    assert report.cosine_min == pytest.approx(1) and report.text_cosine_min == pytest.approx(1)
    assert set(report.batch_sizes) == {str(size) for size in BATCH_SIZES}
    assert report.logits_max_abs_error is None and report.patch_tokens_max_abs_error is None


def test_every_batch_size_really_reaches_the_engine() -> None:
    candidate = FakeRuntime()
    measure(FakeRuntime(), candidate, crops(), LABELS)
    assert set(BATCH_SIZES) <= set(candidate.batches)


def test_noise_fails_by_the_size_of_the_noise() -> None:
    report = measure(FakeRuntime(), Noisy(0.1), crops(), LABELS)
    # Unit-variance rows with noise 0.1: the cosine is about 1 / sqrt(1 + 0.1^2).
    assert report.cosine_median == pytest.approx(1 / np.sqrt(1.01), abs=2e-3)
    assert not report.passed and any(fault.startswith("cosine_min is 0.98983") for fault in report.faults)


def test_an_engine_wrong_at_one_batch_size_only_is_caught() -> None:
    report = measure(FakeRuntime(), Noisy(bad_batch=7), crops(), LABELS)
    assert report.cosine_min == pytest.approx(1)
    assert [fault.split(" is ")[0] for fault in report.faults] == ["cosine_min at batch size 7"]


def test_a_wrong_text_tower_is_caught() -> None:
    candidate = FakeRuntime()
    right = candidate.embed_texts
    candidate.embed_texts = lambda texts: right([text.upper() for text in texts])  # type: ignore[method-assign]
    report = measure(FakeRuntime(), candidate, crops(), LABELS)
    assert report.cosine_min == pytest.approx(1)
    assert report.text_cosine_min is not None and report.text_cosine_min < 0.9
    assert report.agreement is not None and report.agreement < 0.9 and not report.passed


def test_a_linear_head_is_compared_by_its_logits() -> None:
    reference, candidate = (FakeRuntime(text=False, labels=LABELS, linear_head=True) for _ in range(2))
    right = candidate.logits
    candidate.logits = lambda images: -right(images)  # type: ignore[method-assign]
    report = measure(reference, candidate, crops(), ())
    assert report.agreement == 0.0 and report.logits_max_abs_error is not None and report.logits_max_abs_error > 1
    assert any("agreement is 0.0" in fault for fault in report.faults)


def test_a_figure_that_is_not_a_number_fails() -> None:
    figures = {
        "cosine_median": float("nan"),
        "cosine_min": 1.0,
        "text_cosine_min": None,
        "agreement": 1.0,
        "batch_sizes": {"1": float("nan")},
    }
    assert len(find_faults(figures, THRESHOLDS["fp32"])) == 2


def test_the_report_is_json_with_its_thresholds() -> None:
    document = measure(FakeRuntime(), FakeRuntime(), crops(), LABELS).to_dict()
    assert document["thresholds"] == {"cosine_median": 0.99999, "cosine_min": 0.99999, "agreement": 0.999}
    assert document["passed"] is True and document["faults"] == [] and document["precision"] == "fp32"
