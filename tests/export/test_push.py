"""Pushing a model: to a folder for real, to a hub that is made up."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from digpt.artifact import write_checkpoint
from digpt.errors import BackendError, CheckpointError, ConfigError
from digpt.passport import FINGERPRINT_META, PASSPORT_NAME
from digpt.report import document
from digpt.runtime import load_runtime
from digpt.testing import tiny_checkpoint
from export.card import main as card
from export.push import main, push

FILES = ["manifest.json", "golden.npz", "image.onnx", "text.onnx", "tokenizer.json"]


class FakeHub:
    """Notes what it is asked; fails with what it is told to."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.failure = failure

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.asked.append(("create", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.asked.append(("upload", options))


@pytest.fixture
def model(copied: Path) -> Path:
    """An artifact with its card and a file that is nobody's business."""
    (copied / "README.md").write_text("card")
    (copied / "notes.txt").write_text("private")
    return copied


def test_to_a_hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = FakeHub()
    assert push(model, "me/encoder", hub) == [*FILES, "README.md"]
    (created, uploaded) = hub.asked
    assert created == ("create", {"repo_id": "me/encoder", "private": True, "exist_ok": True})
    assert uploaded[1]["allow_patterns"] == [*FILES, "README.md"] and uploaded[1]["folder_path"] == model
    assert uploaded[1]["commit_message"].startswith("digpt sha256:") and uploaded[1]["repo_id"] == "me/encoder"


def test_a_hub_that_refuses(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackendError, match=r"did not take me/encoder \(401 Unauthorized\); log in with hf auth login"):
        push(model, "me/encoder", FakeHub(OSError("401 Unauthorized\nRequest ID: 1")))


def test_to_a_folder(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "models" / "encoder"
    assert main([str(model), str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {*FILES, "README.md"}
    original, copy = load_runtime(str(model), threads=1), load_runtime(str(folder), threads=1)
    assert copy.info.fingerprint == original.info.fingerprint
    assert main([str(model), str(folder)]) == 2 and "exists already" in capsys.readouterr().err
    assert [path.name for path in folder.parent.iterdir()] == ["encoder"]


def test_a_passport_goes_with_the_model_that_it_is_about(model: Path, tmp_path: Path) -> None:
    (model / PASSPORT_NAME).write_text(document("another's", meta={FINGERPRINT_META: "sha256:other"}))
    assert push(model, str(tmp_path / "without")) == [*FILES, "README.md"]
    assert card([str(model), "--html", str(model / PASSPORT_NAME), "--overwrite"]) == 0
    assert push(model, str(tmp_path / "with")) == [*FILES, "README.md", PASSPORT_NAME]
    assert (tmp_path / "with" / PASSPORT_NAME).read_bytes() == (model / PASSPORT_NAME).read_bytes()


def test_a_checkpoint_goes_without_the_rest_of_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    write_checkpoint(run / "ckpt.pt", tiny_checkpoint())
    (run / "state.pt").write_bytes(b"large")
    assert main([str(run), str(tmp_path / "copy")]) == 0
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["ckpt.pt"]
    assert "without a card; write one: python -m export.card" in capsys.readouterr().out


def test_damaged_models_and_none_are_not_pushed(model: Path, tmp_path: Path) -> None:
    (model / "image.onnx").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="not the file that was exported"):
        push(model, str(tmp_path / "copy"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no exported artifact"):
        push(tmp_path / "empty", str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


def test_a_copy_that_fails_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copyfile = shutil.copyfile

    def fail(source: Path, target: Path) -> None:
        if Path(source).name == "text.onnx":
            raise OSError(28, "No space left on device")
        copyfile(source, target)

    monkeypatch.setattr("export.push.shutil.copyfile", fail)
    (tmp_path / "to").mkdir()
    with pytest.raises(ConfigError, match="No space left on device"):
        push(model, str(tmp_path / "to" / "copy"))
    assert list((tmp_path / "to").iterdir()) == []


def test_targets_that_could_be_either(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match=r"Write \./runs/x for the folder"):
        push(model, "runs/x", FakeHub())
    with pytest.raises(ConfigError, match=r"neither OWNER/NAME nor a folder; write a folder as \./x"):
        push(model, "x", FakeHub())
    assert push(model, "./runs/x") and (tmp_path / "runs" / "x" / "manifest.json").is_file()
