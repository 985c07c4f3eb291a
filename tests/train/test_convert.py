"""The authors' finetuned checkpoint as a ``ckpt.pt``: the same logits, by either resize protocol."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from digpt.artifact import read_checkpoint
from digpt.encoder import encoder_config, finetuned_config
from digpt.sources import load_model
from train.convert import main
from train.starts import start_encoder


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A file in the layout of the authors' finetuned checkpoints, and the timm model behind it."""
    torch.manual_seed(0)
    config = finetuned_config(encoder_config("Ti/16", 64, depth=2))
    model = timm.create_model(**{**config, "num_classes": 1000}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    path = tmp_path_factory.mktemp("authors") / "finetuned.pth"
    torch.save({"model": model.state_dict(), "epoch": 99}, path)
    return path, model


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_logits_and_protocol_survive(released: tuple[Path, torch.nn.Module], tmp_path: Path, resize: str) -> None:
    source, library = released
    output = tmp_path / "runs" / "ckpt.pt"
    assert main([str(source), str(output), "--resize", resize]) == 0
    model = load_model(str(output))
    assert model.preprocess.resize == resize and model.preprocess.crop_pct == (1.0 if resize == "squash" else 0.875)
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = library(model.module.normalise(pixels))
        assert torch.allclose(model.module.logits(pixels), expected, atol=1e-5)
    assert len(model.labels or []) == 1000 and read_checkpoint(output).config["head"]["type"] == "linear"


def test_it_refuses_to_overwrite_and_can_be_finetuned_on(
    released: tuple[Path, torch.nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "ckpt.pt"
    assert main([str(released[0]), str(output)]) == 0
    assert main([str(released[0]), str(output)]) == 2 and "--overwrite" in capsys.readouterr().err
    start = start_encoder(str(output), "Ti/16", 64, None, drop_path_rate=0.1)
    assert torch.equal(start.encoder.fc_norm.weight, released[1].fc_norm.weight) and start.encoder.num_classes == 0
