"""Choosing a runtime, and the torch runtime against the model it wraps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from digpt.artifact import write_checkpoint
from digpt.engine import Engine
from digpt.errors import BackendError, CapabilityError, CheckpointError, InputError
from digpt.runtime import load_runtime
from digpt.runtime.torch import TorchRuntime
from digpt.sources import model_from_checkpoint
from digpt.testing import TINY_LABELS, tiny_checkpoint


def crops(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def runtime() -> TorchRuntime:
    return TorchRuntime(model_from_checkpoint(tiny_checkpoint()))


def test_torch_gives_the_modules_own_numbers(runtime: TorchRuntime) -> None:
    images = crops()
    embeddings = runtime.embed(images)
    assert embeddings.dtype == np.float32 and embeddings.shape == (3, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(embeddings), runtime.model.module(torch.from_numpy(images)))
        tokens = runtime.model.module.forward_patches(torch.from_numpy(images))
    np.testing.assert_array_equal(runtime.patch_tokens(images), tokens.numpy())
    assert tokens.shape == (3, 16, 48)


def test_torch_embeds_texts_one_by_one_as_together(runtime: TorchRuntime) -> None:
    together = runtime.embed_texts(TINY_LABELS)
    assert together.shape == (len(TINY_LABELS), 32) and together.dtype == np.float32
    np.testing.assert_allclose(np.concatenate([runtime.embed_texts([t]) for t in TINY_LABELS]), together, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_info_says_what_is_running(runtime: TorchRuntime) -> None:
    info = runtime.info
    assert (info.backend, info.precision, info.dim, info.has_text, info.head) == ("torch", "fp32", 32, True, None)
    assert info.fingerprint == tiny_checkpoint().fingerprint
    assert (info.labels, info.logit_scale, info.templates) == (TINY_LABELS, 20.0, ("{}",))
    assert info.versions["torch"] == torch.__version__


def test_a_linear_head_gives_logits_and_no_texts() -> None:
    runtime = TorchRuntime(model_from_checkpoint(tiny_checkpoint(text=False, head="linear")))
    images = crops()
    assert runtime.info.head == "linear" and runtime.info.labels == TINY_LABELS
    weights = tiny_checkpoint(text=False, head="linear").weights["head"]
    by_hand = runtime.embed(images) @ weights["weight"].numpy().T + weights["bias"].numpy()
    np.testing.assert_allclose(runtime.logits(images), by_hand, atol=1e-5)
    with pytest.raises(CapabilityError):
        runtime.embed_texts(["cat"])
    predictions = Engine(runtime).classify(images, top_k=1)
    assert [row[0].label for row in predictions] == [TINY_LABELS[i] for i in by_hand.argmax(axis=1)]


def test_without_a_head_logits_are_refused(runtime: TorchRuntime) -> None:
    with pytest.raises(CapabilityError, match="give labels"):
        runtime.logits(crops())


def test_wrong_images_are_named(runtime: TorchRuntime) -> None:
    with pytest.raises(InputError, match=r"\[B,32,32,3\], got uint8 \[1, 64, 64, 3\]"):
        runtime.embed(np.zeros((1, 64, 64, 3), np.uint8))


def test_threads_are_set_and_checked() -> None:
    before = torch.get_num_threads()
    try:
        assert TorchRuntime(model_from_checkpoint(tiny_checkpoint()), threads=2).info.threads == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    with pytest.raises(BackendError, match="threads=0"):
        TorchRuntime(model_from_checkpoint(tiny_checkpoint()), threads=0)


def test_a_checkpoint_loads_on_torch_and_only_there(tmp_path: Path) -> None:
    path = str(tmp_path / "tiny.pt")
    write_checkpoint(path, tiny_checkpoint())
    assert load_runtime(path).info.backend == load_runtime(path, "torch").info.backend == "torch"
    with pytest.raises(BackendError, match=r"export it first: python -m export .*tiny\.pt --to onnx"):
        load_runtime(path, "onnx")


def test_unknown_backends_and_urls_are_refused_with_what_works() -> None:
    with pytest.raises(BackendError, match=r"valid: torch, .*, auto, onnx, .*, tensorrt-bf16\. Did you mean 'onnx'"):
        load_runtime("bundled", "onxx")
    with pytest.raises(BackendError, match="cannot be reached"):
        load_runtime("http://127.0.0.1:1")


def test_a_directory_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no manifest"):
        load_runtime(str(tmp_path))
