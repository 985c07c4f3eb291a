"""onnxruntime's execution providers: what is asked for is used or refused, and TF32 is off."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import digpt.runtime.onnx
from digpt.errors import BackendError, MissingDependencyError
from digpt.runtime import load_runtime
from digpt.runtime.onnx import _session

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


class FakeOnnxruntime(SimpleNamespace):
    """Has every provider, and remembers what a session was asked for; ``used`` is what the session says it runs on."""

    def __init__(self, used: list[str], available: tuple[str, ...] = (TENSORRT, CUDA, CPU)) -> None:
        super().__init__(asked=None)
        self.used, self.available = used, available

    def set_default_logger_severity(self, severity: int) -> None: ...
    def preload_dlls(self) -> None: ...
    def get_available_providers(self) -> list[str]:
        return list(self.available)

    def SessionOptions(self) -> Any:
        return SimpleNamespace(add_session_config_entry=lambda key, value: None)

    def InferenceSession(self, path: str, options: Any, *, providers: list[Any], enable_fallback: bool) -> Any:
        self.asked = (providers, enable_fallback)
        return SimpleNamespace(get_providers=lambda: self.used)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU and TensorRT 10."""
    monkeypatch.setattr(digpt.runtime.onnx, "_has_cuda_driver", lambda: True)
    monkeypatch.setattr(digpt.runtime.onnx, "_preload_tensorrt", lambda: None)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # restored afterwards


def ask(monkeypatch: pytest.MonkeyPatch, library: FakeOnnxruntime, device: str) -> tuple[list[Any], bool]:
    monkeypatch.setattr(digpt.runtime.onnx, "_onnxruntime", lambda: library)
    _session(Path("image.onnx"), 1, device)
    return library.asked


def cuda(device_id: str = "0") -> tuple[str, dict[str, str]]:
    return (CUDA, {"use_tf32": "0", "device_id": device_id})


@pytest.mark.parametrize(
    ("device", "providers", "fallback"),
    [
        ("auto", [cuda(), CPU], True),
        ("cpu", [CPU], False),
        ("cuda", [cuda(), CPU], False),
        ("cuda:3", [cuda("3"), CPU], False),
        ("tensorrt", [TENSORRT, cuda(), CPU], False),
    ],
)
def test_a_device_is_a_list_of_providers_without_tf32(
    driver: None, monkeypatch: pytest.MonkeyPatch, device: str, providers: list[Any], fallback: bool
) -> None:
    assert ask(monkeypatch, FakeOnnxruntime([TENSORRT, CUDA, CPU]), device) == (providers, fallback)


def test_tensorrt_has_tf32_switched_off_by_the_variable_that_it_obeys(
    driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    ask(monkeypatch, FakeOnnxruntime([CUDA, CPU]), "cuda")
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    ask(monkeypatch, FakeOnnxruntime([TENSORRT, CUDA, CPU]), "tensorrt")
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.parametrize("device", ["auto", "cuda", "tensorrt"])
def test_a_users_own_tf32_is_refused_and_never_wins_silently(
    driver: None, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    library = FakeOnnxruntime([TENSORRT, CUDA, CPU])
    with pytest.raises(BackendError, match="NVIDIA_TF32_OVERRIDE=1 lets .* in TF32, .* promises float32: unset it"):
        ask(monkeypatch, library, device)
    assert ask(monkeypatch, library, "cpu") == ([CPU], False)  # no GPU, no TF32


@pytest.mark.parametrize(("device", "used"), [("cuda", [CPU]), ("cuda:1", [CPU]), ("tensorrt", [CUDA, CPU])])
def test_a_silent_change_of_provider_is_refused(
    driver: None, monkeypatch: pytest.MonkeyPatch, device: str, used: list[str]
) -> None:
    with pytest.raises(BackendError, match=f"asked for --device {device} and uses {', '.join(used)} instead"):
        ask(monkeypatch, FakeOnnxruntime(used), device)


def test_what_nobody_named_may_fall_back(driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, FakeOnnxruntime([CPU]), "auto")[1]


def test_a_package_without_the_provider_is_refused(driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeOnnxruntime([CPU], available=(CPU,))
    assert ask(monkeypatch, library, "auto") == ([CPU], True)
    with pytest.raises(BackendError, match="has no CUDAExecutionProvider: install onnxruntime-gpu"):
        ask(monkeypatch, library, "cuda")


def test_without_a_driver_a_gpu_is_refused_and_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digpt.runtime.onnx, "_has_cuda_driver", lambda: False)
    for device in ("cuda", "cuda:1", "tensorrt"):
        library = FakeOnnxruntime([TENSORRT, CUDA, CPU])
        with pytest.raises(BackendError, match=f"--device {device} needs an NVIDIA GPU and its driver"):
            ask(monkeypatch, library, device)
    assert ask(monkeypatch, FakeOnnxruntime([CPU]), "auto") == ([CPU], True)


def test_the_cpu_by_name_and_unknown_devices(text_artifact: Path) -> None:
    live = load_runtime(str(text_artifact), device="cpu", threads=1)
    assert live.info.providers == (CPU,)
    assert live.embed(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, live.info.dim)
    with pytest.raises(BackendError, match=r"Unknown device 'gpu' of the onnx backend; valid: auto, cpu, cuda, cuda:N"):
        load_runtime(str(text_artifact), device="gpu")


def test_the_librarys_own_fallback_is_caught(text_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real onnxruntime, made to believe in a driver: here it goes on with the CPU, or refuses; both are errors."""
    monkeypatch.setattr(digpt.runtime.onnx, "_has_cuda_driver", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(BackendError, match=r"instead: its libraries do not fit|onnxruntime cannot load|has no CUDA"):
        load_runtime(str(text_artifact), device="cuda", threads=1)


def test_tensorrt_of_another_version_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digpt.runtime.onnx, "_has_cuda_driver", lambda: True)
    asked: list[str] = []
    monkeypatch.setattr(digpt.runtime.onnx, "_loads", lambda library: asked.append(library.name) or False)
    with pytest.raises(MissingDependencyError, match=r"needs libnvinfer\.so\.10, of TensorRT 10 .* without digpt"):
        ask(monkeypatch, FakeOnnxruntime([TENSORRT, CUDA, CPU]), "tensorrt")
    assert set(asked) == {"libnvinfer.so.10"}
