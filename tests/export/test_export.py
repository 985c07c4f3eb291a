"""The export command: what it writes, what it refuses to write, and what it leaves in place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digpt.data.emoji import STYLES, EmojiSet
from digpt.runtime.golden import read_golden
from digpt.runtime.torch import TorchRuntime
from digpt.sources import load_model
from export import pipeline
from export.__main__ import main
from export.images import bundled_images


def manifest_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "manifest.json").read_text()))


def test_the_manifest_records_model_files_and_figures(text_artifact: Path, text_spec: str) -> None:
    manifest, model = manifest_of(text_artifact), load_model(text_spec)
    assert manifest["fingerprint"] == manifest["source"]["fingerprint"] == model.fingerprint
    assert manifest["preprocess"] == model.preprocess.to_dict()
    assert (manifest["backend"], manifest["precision"], manifest["dim"], manifest["head"]) == ("onnx", "fp32", 32, None)
    assert set(manifest["files"]) == {"image.onnx", "text.onnx", "tokenizer.json", "golden.npz"}
    assert {path.name for path in text_artifact.iterdir()} == {*manifest["files"], "manifest.json"}
    assert {"torch", "onnx", "timm", "numpy"} <= set(manifest["versions"])
    engine = manifest["engines"]["onnx"]
    parity = engine["parity"]
    assert parity["passed"] and parity["images"] == 40 and parity["classes"] == 4
    assert 0.99999 <= parity["cosine_min"] <= parity["cosine_median"] <= 1.000001
    assert list(parity["batch_sizes"]) == ["1", "2", "3", "7", "64"] and min(parity["batch_sizes"].values()) >= 0.99999
    assert 0 < parity["max_abs_error"] < 1e-4 and parity["agreement"] == 1.0 and parity["text_cosine_min"] >= 0.99999
    assert engine["providers"] == ["CPUExecutionProvider"] and engine["timings"]["batch_16_ms"] > 0


def test_golden_holds_real_images_of_every_style_and_torchs_answers(text_artifact: Path, text_spec: str) -> None:
    golden = read_golden(text_artifact / "golden.npz", 1.0, 0.0)
    model = load_model(text_spec)
    runtime = TorchRuntime(model)
    assert golden.images.shape == (16, 32, 32, 3) and golden.texts == (
        "red apple",
        "green apple",
        "grinning face",
        "house",
    )
    np.testing.assert_array_equal(golden.embeddings, runtime.embed(golden.images))
    np.testing.assert_array_equal(golden.text_embeddings, runtime.embed_texts(golden.texts))
    np.testing.assert_array_equal(golden.images, np.stack([model.preprocess(data) for data in golden.encoded]))
    style_of = {image.encoded: image.style for image in EmojiSet.load()._images}
    assert {style_of[data] for data in golden.encoded} == set(STYLES)


def test_the_exporters_own_paths_are_not_in_the_files(text_artifact: Path) -> None:
    here = str(Path(__file__).resolve().parents[2]).encode()
    for name in ("image.onnx", "text.onnx"):
        assert here not in (text_artifact / name).read_bytes()


def test_logits_and_patch_tokens_run_the_encoder_once(linear_artifact: Path, text_artifact: Path) -> None:
    import onnx

    def products(path: Path) -> int:
        return sum(node.op_type in ("MatMul", "Gemm") for node in onnx.load(path).graph.node)

    # One more product than the projecting model without them: the linear head in place of nothing.
    assert products(linear_artifact / "image.onnx") == products(text_artifact / "image.onnx")
    parity = manifest_of(linear_artifact)["engines"]["onnx"]["parity"]
    assert parity["logits_max_abs_error"] < 1e-4 and parity["patch_tokens_max_abs_error"] < 1e-4
    assert parity["agreement"] == 1.0 and parity["text_cosine_min"] is None


def test_images_are_spread_over_all_splits_whatever_their_number() -> None:
    images = bundled_images(16)
    assert len(images) == len(set(images)) == 16
    emoji = EmojiSet.load()
    counts = [sum(image.encoded in images for image in emoji.images(split)) for split in ("seen", "val", "unseen")]
    assert all(3 <= count <= 4 for count in counts)


@pytest.fixture
def fake_build(monkeypatch: pytest.MonkeyPatch, text_artifact: Path) -> Callable[[Callable[[Path], None]], None]:
    """Replace the slow build by a copy of files built before, changed by the test."""

    def install(change: Callable[[Path], None]) -> None:
        def build(job: pipeline.Job, directory: Path) -> dict[str, Any]:
            for name in ("image.onnx", "text.onnx"):
                shutil.copy(text_artifact / name, directory / name)
            change(directory)
            return {"precision": "fp32", "image": "image.onnx", "text": "text.onnx", "outputs": ["embedding"]}

        monkeypatch.setitem(pipeline.BUILDERS, "onnx", build)

    return install


def test_an_engine_that_fails_is_not_written_but_its_figures_are_shown(
    fake_build: Callable[..., None],
    perturb: Callable[[Path, float], None],
    text_spec: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_build(lambda directory: perturb(directory / "image.onnx", 0.1))
    command = [text_spec, "--to", "onnx", "--output", str(tmp_path / "out"), "--parity-images", "16"]
    assert main([*command, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    engine = document["engines"]["onnx"]
    assert document["output"] is None and not document["passed"] and not engine["passed"]
    assert engine["parity"]["cosine_min"] < 0.99999
    assert any("cosine_min is 0.9" in fault for fault in engine["parity"]["faults"])
    assert not engine["golden"]["passed"]
    assert list(tmp_path.iterdir()) == []
    assert main(command) == 1
    assert "not written, because it does not match torch float32: onnx" in capsys.readouterr().out


def test_json_leaves_standard_output_to_the_document(
    fake_build: Callable[..., None], text_spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_build(lambda directory: print("a library chats"))
    assert main([text_spec, "--to", "onnx", "--output", str(tmp_path / "out"), "--parity-images", "16", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["passed"] and "a library chats" in captured.err


def test_an_artifact_is_replaced_only_when_told_and_only_as_a_whole(
    fake_build: Callable[..., None], text_spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_build(lambda directory: None)
    output = tmp_path / "out"
    command = [text_spec, "--to", "onnx", "--output", str(output), "--parity-images", "16"]
    assert main(command) == 0
    (output / "stale.bin").write_bytes(b"of the old one")
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err and (output / "stale.bin").exists()
    assert main([*command, "--overwrite"]) == 0
    assert not (output / "stale.bin").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_overwrite_leaves_the_old_artifact(
    fake_build: Callable[..., None], text_spec: str, text_artifact: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(text_artifact, tmp_path / "out"))
    before = (output / "manifest.json").read_bytes()
    fake_build(lambda directory: (directory / "image.onnx").write_bytes(b"no model"))
    assert main([text_spec, "--to", "onnx", "--output", str(output), "--parity-images", "16", "--overwrite"]) == 2
    assert (output / "manifest.json").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert message.count("error:") == 1 and "Traceback" not in message
    return message


def test_what_cannot_be_exported_is_refused_in_one_line(
    text_spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    message = refused(capsys, text_spec, "--to", "coreml", "--output", out)
    assert "--to coreml" in message
    assert "available: auto, onnx, onnx-int8, openvino, openvino-bf16, openvino-int8, aoti, tensorrt," in message
    assert "Did you mean 'onnx'" in refused(capsys, text_spec, "--to", "onx", "--output", out)
    assert "--threads 0" in refused(capsys, text_spec, "--threads", "0", "--output", out)
    assert "at least 16" in refused(capsys, text_spec, "--parity-images", "3", "--output", out)
    assert "No such file" in refused(capsys, str(tmp_path / "none.pt"), "--output", out)
    (tmp_path / "photos").mkdir()
    assert "no image files" in refused(capsys, text_spec, "--images", str(tmp_path / "photos"), "--output", out)
    assert "no artifact directory" in refused(capsys, text_spec, "--output", str(Path(text_spec).parent))
    assert not (tmp_path / "out").exists()


def test_own_images_are_named_when_they_cannot_be_read(
    text_spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, data in enumerate(bundled_images(16)):
        (folder / f"{index:02}.webp").write_bytes(data if index != 5 else data[:50])
    message = refused(
        capsys, text_spec, "--images", str(folder), "--parity-images", "16", "--output", str(tmp_path / "o")
    )
    assert "05.webp" in message and "damaged or truncated" in message
