"""Torch's faster variants, and the choice among them: bfloat16 where it is asked for, near enough, and compiled."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from digpt.artifact import write_checkpoint
from digpt.errors import BackendError
from digpt.model import InferenceModel
from digpt.runtime import choose, load_runtime, torch_bf16
from digpt.runtime.golden import row_cosine
from digpt.runtime.torch import TorchRuntime
from digpt.runtime.torch_bf16 import TorchBf16Runtime, TorchCompiledRuntime
from digpt.sources import model_from_checkpoint
from digpt.testing import TINY_LABELS, tiny_checkpoint, tiny_segmenter_checkpoint

pytestmark = pytest.mark.slow  # engines of native code, together minutes: `make test-all`


def crops(count: int = 5) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_bf16_answers_in_float32_close_to_torchs_and_not_equal() -> None:
    live, reference = (kind(model_from_checkpoint(tiny_checkpoint())) for kind in (TorchBf16Runtime, TorchRuntime))
    pairs = [
        (live.embed(crops()), reference.embed(crops())),
        (live.embed_texts(TINY_LABELS), reference.embed_texts(TINY_LABELS)),
        (live.patch_tokens(crops())[:, 0], reference.patch_tokens(crops())[:, 0]),
    ]
    for found, expected in pairs:
        assert found.dtype == np.float32 and row_cosine(found, expected).min() > 0.999
        assert np.abs(found - expected).max() > 1e-4
    assert (live.info.backend, live.info.precision) == ("torch-bf16", "bf16")
    assert live.info.fingerprint == reference.info.fingerprint and live.info.providers == ("cpu autocast bf16",)


def test_only_products_are_rounded() -> None:
    module = TorchBf16Runtime(model_from_checkpoint(tiny_checkpoint())).model.module
    kinds = {name: parameter.dtype for name, parameter in module.named_parameters()}
    assert kinds["encoder.blocks.0.attn.qkv.weight"] == kinds["projection.weight"] == torch.bfloat16
    assert kinds["encoder.pos_embed"] == kinds["encoder.blocks.0.norm1.weight"] == torch.float32
    assert module.mean.dtype == torch.float32


def test_heads_answer_too() -> None:
    for checkpoint, call in (
        (tiny_checkpoint(text=False, head="linear"), "logits"),
        (tiny_segmenter_checkpoint(), "pixel_logits"),
    ):
        live, reference = (kind(model_from_checkpoint(checkpoint)) for kind in (TorchBf16Runtime, TorchRuntime))
        found, expected = (getattr(runtime, call)(crops()) for runtime in (live, reference))
        assert found.dtype == np.float32 and found.shape == expected.shape
        assert row_cosine(found.reshape(5, -1), expected.reshape(5, -1)).min() > 0.999


def test_a_missing_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BackendError, match=r"torch-compiled-bf16 compiles C\+\+ and found no .*: install g\+\+"):
        TorchCompiledRuntime(model_from_checkpoint(tiny_checkpoint()))


@pytest.mark.slow
def test_compiled_gives_every_batch_size_without_compiling_again() -> None:
    live = TorchCompiledRuntime(model_from_checkpoint(tiny_checkpoint(encoder={"depth": 1})))
    reference = TorchRuntime(model_from_checkpoint(tiny_checkpoint(encoder={"depth": 1})))
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (1, 2, 3, 7, 64):
            found = live.embed(crops(count))
            assert found.dtype == np.float32 and row_cosine(found, reference.embed(crops(count))).min() > 0.999
    assert live.info.providers == ("cpu inductor bf16",)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with fast bfloat16 products and no compiler, on which bfloat16 is always twice as fast."""

    def times(computes: Mapping[str, object], images: np.ndarray) -> dict[str, dict[str, float]]:
        base = {"torch": 2.0, "torch-bf16": 1.0}
        return {name: {"batch_1_ms": base[name], "batch_16_ms": 16 * base[name]} for name in computes}

    monkeypatch.setattr(choose, "bf16_gain", lambda device: 2.0)
    monkeypatch.setattr(choose, "time_engines", times)
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_auto_takes_the_fastest_that_holds(machine: None, tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{tmp_path}/tiny.pt"
    write_checkpoint(path, tiny_checkpoint())
    assert load_runtime(path, "auto").info.backend == "torch-bf16"
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and lines[0].startswith("torch-compiled-bf16 is left out: ")
    assert [line.split()[0] for line in lines[1:]] == ["backend", "torch", "torch-bf16"]
    assert lines[3].endswith("1000.0   2.00  chosen")


def test_auto_refuses_a_variant_that_is_wrong(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: InferenceModel) -> None:
        for parameter in module.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)

    monkeypatch.setattr(torch_bf16, "_round_products", wrong)
    torch.manual_seed(0)
    lines: list[str] = []
    runtime = choose.choose(model_from_checkpoint(tiny_checkpoint()), report=lines.append)
    assert runtime.info.backend == "torch" and lines[-1].endswith("too far from float32")
    reference = TorchRuntime(model_from_checkpoint(tiny_checkpoint()))
    np.testing.assert_array_equal(runtime.embed(crops()), reference.embed(crops()))  # no variant touched its weights


def test_auto_does_not_try_bfloat16_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "bf16_gain", lambda device: 0.01)
    lines: list[str] = []
    assert choose.choose(model_from_checkpoint(tiny_checkpoint()), report=lines.append).info.backend == "torch"
    assert "not faster than float32" in lines[0] and len(lines) == 1
