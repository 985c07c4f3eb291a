"""``--image-size``: one of our checkpoints at another side of the crop, exported, evaluated and served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from digpt.artifact import read_checkpoint, write_checkpoint
from digpt.errors import BackendError, ConfigError
from digpt.runtime import load_runtime
from digpt.runtime.torch import TorchRuntime
from digpt.sources import load_model
from digpt.testing import tiny_checkpoint
from evaluate.cli import EvaluateOptions, load_engine
from export.__main__ import main
from serve.cli import ServeConfig, load_engines

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def test_the_numbers_are_those_of_timms_own_resizing(text_spec: str) -> None:
    checkpoint = read_checkpoint(text_spec)
    encoder = timm.create_model(**checkpoint.config["encoder"])
    encoder.load_state_dict(checkpoint.weights["encoder"], strict=True)
    encoder.set_input_size(img_size=(64, 64))
    with torch.inference_mode():
        pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255
        expected = encoder.eval()((pixels - 0.5) / 0.5) @ checkpoint.weights["head"]["weight"].T
    model = load_model(text_spec, image_size=64)
    np.testing.assert_allclose(TorchRuntime(model, threads=1).embed(IMAGES), expected, atol=1e-5)
    assert model.preprocess.size == 64 and model.config["encoder"]["img_size"] == 64


def test_other_numbers_have_another_fingerprint(text_spec: str) -> None:
    own, sizes = load_model(text_spec), [load_model(text_spec, image_size=size) for size in (48, 64)]
    assert len({own.fingerprint, *(model.fingerprint for model in sizes)}) == 3
    assert load_model(text_spec, image_size=32).fingerprint == own.fingerprint
    parent = sizes[0].provenance["parents"][0]
    assert parent["fingerprint"] == own.fingerprint and parent["command"] == own.provenance["command"]


@pytest.mark.parametrize("size", [60, 4, -8])
def test_a_size_that_is_no_multiple_of_the_patch(text_spec: str, size: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"Image size {size} is not a multiple of the patch, 8"):
        load_model(text_spec, image_size=size)
    assert main([text_spec, "--output", str(tmp_path / "out"), "--image-size", str(size)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_models_that_take_no_other_size(segment_spec: str, text_artifact: Path) -> None:
    with pytest.raises(ConfigError, match="is a segmenter, .* no other image size than its own, 32"):
        load_model(segment_spec, image_size=64)
    with pytest.raises(ConfigError, match="is no ViT of timm, so it takes no other image size than its own, 64"):
        load_model("bundled-teacher", image_size=96)
    for spec in (str(text_artifact), "http://127.0.0.1:9"):
        with pytest.raises(BackendError, match="give --image-size 64 to that command instead"):
            load_runtime(spec, image_size=64)


def test_an_export_records_it(text_spec: str, tmp_path: Path) -> None:
    output = tmp_path / "at64"
    options = ["--output", str(output), "--image-size", "64", "--parity-images", "16", "--threads", "1", "--no-text"]
    assert main([text_spec, *options]) == 0
    manifest, model = json.loads((output / "manifest.json").read_text()), load_model(text_spec, image_size=64)
    assert manifest["preprocess"]["size"] == 64
    assert manifest["source"]["provenance"]["parents"][0]["fingerprint"] == load_model(text_spec).fingerprint
    exported = load_runtime(str(output), threads=1)
    np.testing.assert_allclose(exported.embed(IMAGES), TorchRuntime(model).embed(IMAGES), atol=1e-4)
    exported.close()


def test_a_linear_head_keeps_its_classes(tmp_path: Path) -> None:
    path = str(tmp_path / "tiny.pt")
    write_checkpoint(path, tiny_checkpoint(text=False, head="linear"))
    assert load_runtime(path, image_size=64, threads=1).logits(IMAGES).shape == (3, 4)


def test_evaluate_and_serve_take_it(text_spec: str) -> None:
    evaluated = load_engine(EvaluateOptions(text_spec, image_size=48, threads=1))
    (served,) = load_engines(ServeConfig(model=(text_spec,), image_size=48, threads=1)).values()
    expected = load_model(text_spec, image_size=48)
    for engine in (evaluated, served):
        assert (engine.info.preprocess.size, engine.info.fingerprint) == (48, expected.fingerprint)
