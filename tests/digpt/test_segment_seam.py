"""A segmenter as a model like any other: one encoder, classes of pixels, and whole pictures through the engine."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from digpt.artifact import write_checkpoint
from digpt.engine import Engine
from digpt.errors import BackendError, CapabilityError, CheckpointError, ConfigError, InputError
from digpt.model import build_from_config
from digpt.runtime.fake import FakeRuntime
from digpt.runtime.torch import TorchRuntime
from digpt.segment_inference import SegmentInference, predict
from digpt.segmentation import build_segmenter
from digpt.sources import model_from_checkpoint
from digpt.testing import TINY_CLASSES, encode, tiny_checkpoint, tiny_segmenter_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(TorchRuntime(model_from_checkpoint(tiny_segmenter_checkpoint())))


def fake(**options: object) -> Engine:
    return Engine(FakeRuntime(text=False, labels=["dark", "middle", "light"], segment_crop=64, **options))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- model


def test_the_model_embeds_and_segments_with_one_encoder() -> None:
    checkpoint = tiny_segmenter_checkpoint()
    module, text = build_from_config(checkpoint.config, checkpoint.weights)
    assert text is None and module.segmenter is not None and module.head_kind == "upernet" and not module.has_logits
    assert module.encoder is module.segmenter.encoder and not module.training and not module.segmenter.training
    weights = sum(tensor.numel() for group in checkpoint.weights.values() for tensor in group.values())
    held = {tensor.data_ptr(): tensor.numel() for tensor in module.state_dict().values()}
    assert sum(held.values()) == weights  # under two names each, but no encoder twice
    images = torch.from_numpy(picture(32, 32)[None])
    with torch.no_grad():
        pooled = module.encoder.forward_features(module.normalise(images))[:, 1:].mean(dim=1)
    torch.testing.assert_close(module(images), pooled)
    assert module.dim == pooled.shape[1] == 48
    with pytest.raises(CapabilityError, match="no classification head"):
        module.logits(images)


def test_an_unknown_head_is_named_with_all_that_are_known() -> None:
    checkpoint = tiny_checkpoint(text=False, head="linear")
    config = {**checkpoint.config, "head": {**checkpoint.config["head"], "type": "deeplab"}}
    with pytest.raises(CheckpointError, match="'deeplab'; valid: projection, linear, upernet"):
        build_from_config(config, checkpoint.weights)


# ----------------------------------------------------------------------------------------------------------- runtimes


def test_torch_says_what_it_is_and_gives_the_segmenters_own_logits(engine: Engine) -> None:
    checkpoint, info = tiny_segmenter_checkpoint(), engine.info
    assert (info.head, info.segment_crop, info.labels, info.choices) == ("upernet", 32, TINY_CLASSES, None)
    segmenter = build_segmenter(checkpoint.config, checkpoint.weights)
    for height, width in ((32, 32), (27, 61), (5, 90)):
        images = np.stack([picture(height, width, seed) for seed in range(2)])
        logits = engine.pixel_logits(images)
        assert logits.shape == (2, 5, height, width) and logits.dtype == np.float32
        with torch.no_grad():
            np.testing.assert_array_equal(logits, segmenter.pixel_logits(torch.from_numpy(images)).numpy())


def test_models_without_a_segmenter_say_which_have_one() -> None:
    bare, plain = FakeRuntime(labels=["a", "b"]), TorchRuntime(model_from_checkpoint(tiny_checkpoint()))
    assert bare.info.choices == ("a", "b") and plain.info.segment_crop is None
    image = picture(32, 32)
    for runtime in (bare, plain):
        engine = Engine(runtime)
        for ask, given in (
            (runtime.pixel_logits, image[None]),
            (engine.pixel_logits, image[None]),
            (engine.segment, image),
        ):
            with pytest.raises(CapabilityError, match=r"no segmentation head.*trained with train\.segment"):
                ask(given)


def test_wrong_pictures_are_named(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"uint8 images \[B,H,W,3\], got float32 \[1, 8, 8, 3\]"):
        engine.pixel_logits(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(InputError, match=r"got uint8 \[1, 0, 8, 3\]"):
        engine.segment(np.zeros((0, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"got uint8 \[1, 8, 8\]"):
        engine.segment(np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize("real", [True, False])
def test_classes_of_pixels_are_no_labels_of_pictures(engine: Engine, real: bool) -> None:
    asked = engine if real else fake()
    crop = np.zeros((1, *[asked.info.preprocess.size] * 2, 3), np.uint8)
    for ask in (asked.logits, asked.runtime.logits, asked.classify):
        with pytest.raises(CapabilityError, match="is a segmenter: it classifies pixels and has no linear head"):
            ask(crop)
    with pytest.raises(CapabilityError, match="no text tower"):
        asked.classify(crop, ["cat"])
    assert asked.embed_images(crop).shape == (1, asked.info.dim)


def test_a_segmenter_with_a_text_tower_classifies_by_given_labels_only() -> None:
    both = Engine(FakeRuntime(labels=["sky", "tree"], segment_crop=64))
    crop = np.zeros((1, 64, 64, 3), np.uint8)
    assert {best.label for best in both.classify(crop, ["cat", "dog"])[0]} == {"cat", "dog"}
    with pytest.raises(CapabilityError, match="no labels of its own"):
        both.classify(crop)


# ------------------------------------------------------------------------------------------------------------- engine


def test_the_fake_segments_by_red_in_equal_steps() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    image[..., 0] = [[0, 84, 85], [170, 171, 255]]
    inference = SegmentInference(mode="whole", scale=None)
    np.testing.assert_array_equal(fake().segment(image, inference), [[0, 0, 1], [1, 2, 2]])


def test_segment_is_predict_with_the_crop_the_model_was_trained_at(engine: Engine) -> None:
    checkpoint, image = tiny_segmenter_checkpoint(), picture(70, 121)
    segmenter = build_segmenter(checkpoint.config, checkpoint.weights)
    found = engine.segment(image)
    assert found.shape == (70, 121) and found.dtype == np.uint8 and len(np.unique(found)) > 2
    usual = SegmentInference(crop=32, stride=21, scale=(128, 32))
    np.testing.assert_array_equal(found, predict(segmenter, image, usual))
    finer = SegmentInference(crop=32, stride=16, scale=(256, 64), flip=True)
    np.testing.assert_array_equal(engine.segment(image, finer, (35, 60)), predict(segmenter, image, finer, (35, 60)))
    assert (engine.segment(image, finer) != found).any()


def test_the_usual_inference_is_ade20ks_in_proportion() -> None:
    assert SegmentInference.for_crop(512) == SegmentInference(mode="slide", crop=512, stride=341, scale=(2048, 512))
    assert SegmentInference.for_crop(1).stride == 1


def test_the_runtimes_largest_batch_bounds_the_windows() -> None:
    engine = fake(max_batch=2)
    assert isinstance(engine.runtime, FakeRuntime)
    engine.segment(picture(64, 250))  # windows of 64 every 42: six of them
    assert engine.runtime.batches == [2, 2, 2]


def test_other_calls_get_their_turn_between_windows() -> None:
    engine = fake(delay=0.02, max_batch=1)
    assert isinstance(engine.runtime, FakeRuntime)
    thread = threading.Thread(target=engine.segment, args=(picture(64, 900),))
    thread.start()
    while not engine.runtime.batches:
        time.sleep(0.001)
    engine.embed_images(picture(64, 64)[None])
    assert thread.is_alive()  # the picture was not finished first
    thread.join()


def test_answers_that_are_no_numbers_and_windows_that_leave_gaps_are_refused() -> None:
    engine = fake()
    engine.runtime.pixel_logits = lambda images: np.full((1, 3, 8, 8), np.nan, np.float32)  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="not finite"):
        engine.segment(picture(8, 8))
    with pytest.raises(ConfigError, match=r"stride=65 must lie in 1\.\.64"):
        fake().segment(picture(8, 8), SegmentInference(crop=64, stride=65))


def test_whole_pictures_are_decoded_upright_over_white_and_unscaled(engine: Engine) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter
    assert engine.decode_whole(encode(Image.new("RGB", (50, 20)), "JPEG", exif=turned)).shape == (50, 20, 3)
    clear = engine.decode_whole(encode(Image.new("RGBA", (7, 9), (1, 2, 3, 0)), "PNG"))
    assert clear.shape == (9, 7, 3) and clear.dtype == np.uint8 and (clear == 255).all()
    with pytest.raises(InputError):
        engine.decode_whole(b"no image")


def test_without_torch_the_engine_says_what_is_missing() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "timm", "open_clip"]))
import numpy as np
from digpt.engine import Engine
from digpt.errors import MissingDependencyError
from digpt.runtime.fake import FakeRuntime
engine = Engine(FakeRuntime(text=False, labels=["a", "b"], segment_crop=64))
print(engine.pixel_logits(np.zeros((1, 64, 64, 3), np.uint8)).shape)
try:
    engine.segment(np.zeros((9, 9, 3), np.uint8))
except MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "(1, 2, 64, 64)",
        "Segmenting whole pictures needs torch, which is not installed here: pip install torch.",
    ], done.stderr


def test_a_checkpoint_file_loads_as_any_model(tmp_path: Path, engine: Engine) -> None:
    write_checkpoint(tmp_path / "seg.pt", tiny_segmenter_checkpoint())
    loaded = Engine.load(str(tmp_path / "seg.pt"))
    assert loaded.info.head == "upernet" and loaded.info.fingerprint == engine.info.fingerprint
    np.testing.assert_array_equal(loaded.segment(picture(40, 40)), engine.segment(picture(40, 40)))
