"""The engine on a fake runtime: numbers, batching, capabilities, threads."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from digpt.engine import Engine
from digpt.errors import BackendError, CapabilityError, ImageTooLargeError, InputError, UnsupportedFormatError
from digpt.predictions import Prediction
from digpt.preprocess import DecodeLimits
from digpt.runtime.fake import FakeRuntime


def crops(count: int, size: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def png(color: tuple[int, ...], mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (80, 80), color).save(buffer, "PNG")
    return buffer.getvalue()


def test_decode_gives_the_models_crop_with_transparency_over_white() -> None:
    engine = Engine(FakeRuntime(size=32))
    crop = engine.decode(png((10, 20, 30, 0), "RGBA"))
    assert crop.shape == (32, 32, 3) and crop.dtype == np.uint8
    assert (crop == 255).all()


def test_decode_keeps_to_the_engines_limits() -> None:
    engine = Engine(FakeRuntime(), limits=DecodeLimits(max_pixels=100))
    with pytest.raises(ImageTooLargeError):
        engine.decode(png((0, 0, 0)))
    with pytest.raises(UnsupportedFormatError):
        engine.decode(b"no image")


def test_embeddings_are_unit_rows_and_batched_without_changing_them() -> None:
    runtime = FakeRuntime(dim=8)
    images = crops(5)
    plain = Engine(runtime).embed_images(images, normalize=False, batch_size=2)
    assert runtime.batches == [2, 2, 1]
    np.testing.assert_array_equal(plain, FakeRuntime(dim=8).embed(images))
    unit = Engine(runtime).embed_images(list(images))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-6)


def test_no_images_and_no_texts_give_empty_arrays_of_the_right_width() -> None:
    engine = Engine(FakeRuntime(dim=8))
    assert engine.embed_images([]).shape == (0, 8)
    assert engine.embed_texts([]).shape == (0, 8)


def test_max_batch_of_the_runtime_bounds_every_call() -> None:
    runtime = FakeRuntime(max_batch=3)
    Engine(runtime).embed_images(crops(7))
    assert runtime.batches == [3, 3, 1]


@pytest.mark.parametrize(
    "images", [crops(2, size=32), crops(2).astype(np.float32), [crops(1)[0], crops(1, size=32)[0]]]
)
def test_images_of_a_wrong_shape_or_type_are_refused(images: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"uint8|differ"):
        Engine(FakeRuntime()).embed_images(images)


def test_scores_are_the_softmax_of_the_scaled_cosine() -> None:
    engine = Engine(FakeRuntime(dim=8, logit_scale=7.0))
    image, labels = crops(1), ["cat", "dog", "owl"]
    matrix = engine.class_matrix(labels)
    logits = 7.0 * (engine.embed_images(image) @ matrix.T)[0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    predictions = engine.classify(image, labels, top_k=2)[0]
    best = np.argsort(-expected)[:2]
    assert [p.label for p in predictions] == [labels[i] for i in best]
    assert [p.score for p in predictions] == pytest.approx(expected[best], abs=1e-6)
    assert predictions == engine.classify(image, labels, matrix=matrix, top_k=2)[0]


def test_templates_are_averaged_over_normalised_prompts() -> None:
    engine = Engine(FakeRuntime(dim=8))
    rows = engine.embed_texts(["a cat", "the cat"])
    mean = rows.mean(axis=0)
    matrix = engine.class_matrix(["cat"], ["a {}", "the {}"])
    np.testing.assert_allclose(matrix[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_the_models_own_labels_serve_without_any_given() -> None:
    engine = Engine(FakeRuntime(labels=["cat", "dog"]))
    assert engine.classify(crops(2)) == engine.classify(crops(2), ["cat", "dog"])


def test_a_linear_head_needs_no_labels_and_ranks_by_its_logits() -> None:
    runtime = FakeRuntime(text=False, labels=["cat", "dog", "owl"], linear_head=True)
    engine = Engine(runtime)
    logits = runtime.logits(crops(1))[0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    predictions = engine.classify(crops(1))[0]
    assert {p.label: p.score for p in predictions} == pytest.approx(
        dict(zip(["cat", "dog", "owl"], expected, strict=True)), abs=1e-6
    )
    assert predictions[0].score == pytest.approx(expected.max(), abs=1e-6)


def test_multi_label_scores_are_independent_sigmoids_with_the_learned_bias() -> None:
    engine = Engine(FakeRuntime(dim=8, logit_scale=5.0, logit_bias=-2.0))
    cosine = engine.similarity(engine.embed_images(crops(1)), engine.class_matrix(["cat", "dog"]))[0]
    expected = 1 / (1 + np.exp(-(5.0 * cosine - 2.0)))
    predictions = engine.classify(crops(1), ["cat", "dog"], multi_label=True)[0]
    assert {p.label: p.score for p in predictions} == pytest.approx({"cat": expected[0], "dog": expected[1]}, abs=1e-6)


def test_what_a_model_cannot_do_is_said_with_models_that_can() -> None:
    bare = Engine(FakeRuntime(text=False))
    with pytest.raises(CapabilityError, match="bundled"):
        bare.embed_texts(["cat"])
    with pytest.raises(CapabilityError, match="bundled"):
        bare.classify(crops(1), ["cat"])
    with pytest.raises(CapabilityError, match="text tower"):
        bare.classify(crops(1))
    with pytest.raises(CapabilityError, match="no labels of its own"):
        Engine(FakeRuntime()).classify(crops(1))
    with pytest.raises(CapabilityError, match="logit bias"):
        Engine(FakeRuntime()).classify(crops(1), ["cat"], multi_label=True)
    with pytest.raises(CapabilityError, match="has no linear head; give labels"):
        Engine(FakeRuntime()).logits(crops(1))
    with pytest.raises(CapabilityError, match="--patch-tokens"):
        Engine(FakeRuntime()).patch_tokens(crops(1))


@pytest.mark.parametrize(
    ("labels", "templates", "top_k"),
    [([], None, 5), (["cat"], ["no place"], 5), (["cat"], [], 5), (["cat"], None, 0), ("cat", None, 5), ([1], None, 5)],
)
def test_requests_that_make_no_sense_are_input_errors(labels: object, templates: object, top_k: int) -> None:
    with pytest.raises(InputError):
        Engine(FakeRuntime()).classify(crops(1), labels, templates, top_k=top_k)  # type: ignore[arg-type]


def test_top_k_beyond_the_labels_gives_all_of_them() -> None:
    predictions = Engine(FakeRuntime()).classify(crops(1), ["cat", "dog"], top_k=99)[0]
    assert len(predictions) == 2 and isinstance(predictions[0], Prediction)
    assert predictions[0].score >= predictions[1].score
    assert sum(p.score for p in predictions) == pytest.approx(1, abs=1e-6)


def test_an_engine_that_answers_nan_is_an_error_not_an_answer() -> None:
    runtime = FakeRuntime(dim=4)
    runtime.embed = lambda images: np.full((len(images), 4), np.nan, np.float32)  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="not finite"):
        Engine(runtime).embed_images(crops(1))


class Overlap(FakeRuntime):
    """Notices two calls at once."""

    def __init__(self) -> None:
        super().__init__(delay=0.002)
        self.busy, self.overlaps = threading.Lock(), 0

    def embed(self, images: np.ndarray) -> np.ndarray:
        if not self.busy.acquire(blocking=False):
            self.overlaps += 1
            return super().embed(images)
        try:
            return super().embed(images)
        finally:
            self.busy.release()


def test_calls_from_many_threads_reach_the_runtime_one_at_a_time() -> None:
    runtime = Overlap()
    engine = Engine(runtime)
    images = crops(8)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda image: engine.embed_images([image])[0], images))
    assert runtime.overlaps == 0
    np.testing.assert_array_equal(np.stack(rows), Engine(FakeRuntime()).embed_images(images))


def test_close_closes_the_runtime() -> None:
    runtime = FakeRuntime()
    Engine(runtime).close()
    assert runtime.closed
