"""Convolutional teachers: positions of the last feature map, projected; and teachers named by a model spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from torch import Tensor, nn

from digpt.errors import ConfigError
from digpt.sources import load_model
from train.targets import ConvolutionTarget, OpenClipTarget, TimmVitTarget, check_teacher, target_from_spec

MEAN = STD = (0.5, 0.5, 0.5)


def tower(pool: str = "avg", proj: str = "linear", name: str = "test_resnet") -> Any:
    torch.manual_seed(0)
    cfg = CLIPVisionCfg(timm_model_name=name, timm_pool=pool, timm_proj=proj, image_size=64)
    return _build_vision_tower(12, cfg, quick_gelu=False).eval()


def images(height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_class_target_is_the_towers_own_output_and_its_positions_average_to_it() -> None:
    visual, pixels = tower(), images()
    target = ConvolutionTarget(visual, 64, MEAN, STD)
    tokens = target(pixels)
    assert target.grid == (2, 2) and tokens.shape == (3, 5, 12) and target.width == 12
    assert target.projected and not target.has_class_token
    with torch.no_grad():
        torch.testing.assert_close(tokens[:, 0], visual((pixels - 0.5) / 0.5), atol=1e-5, rtol=1e-4)
    # average pooling and a linear projection commute
    torch.testing.assert_close(tokens[:, 1:].mean(1), tokens[:, 0], atol=1e-5, rtol=1e-4)


def test_positions_are_in_raster_order_also_on_a_grid_that_is_not_square() -> None:
    visual = tower()
    target = ConvolutionTarget(visual, (64, 128), MEAN, STD)
    pixels = images(64, 128)
    assert target.grid == (2, 4)
    with torch.no_grad():
        features = visual.trunk.forward_features((pixels - 0.5) / 0.5)  # [B,C,2,4]
        expected = visual.head(features[:, :, 1, 2])
    torch.testing.assert_close(target(pixels)[:, 1 + 1 * 4 + 2], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "proj"), [("test_convnext", "linear"), ("test_convnext", None), ("test_resnet", None)]
)
def test_what_follows_the_pooling_reaches_every_position(name: str, proj: str | None) -> None:
    """ConvNeXt keeps its last norm behind the pooling; without a projection of its own, the classifier projects."""
    torch.manual_seed(0)
    cfg = CLIPVisionCfg(timm_model_name=name, timm_pool="avg", timm_proj=proj, image_size=64)
    visual, pixels = _build_vision_tower(12, cfg, quick_gelu=False).eval(), images()
    target = ConvolutionTarget(visual, 64, MEAN, STD)
    tokens = target(pixels)
    assert target.projected and target.width == 12
    with torch.no_grad():
        torch.testing.assert_close(tokens[:, 0], visual((pixels - 0.5) / 0.5), atol=1e-5, rtol=1e-4)
        one = visual.trunk.forward_features((pixels - 0.5) / 0.5)[:, :, 1:, :1]  # the map's third position alone
        torch.testing.assert_close(tokens[:, 3], visual.head(visual.trunk.forward_head(one)), atol=1e-5, rtol=1e-4)


def test_the_contract_check_accepts_it() -> None:
    report = check_teacher(ConvolutionTarget(tower(), 64, MEAN, STD), images())
    assert "2 x 2 tokens of width 12" in str(report)


def test_towers_without_tokens_of_their_own_are_refused_by_reason() -> None:
    attention = tower(pool="abs_attn", name="resnet10t")
    with pytest.raises(ConfigError, match="pools its feature map in the head"):
        ConvolutionTarget(attention, 64, MEAN, STD)
    flat = tower()
    flat.trunk.forward_features = lambda pixels: nn.functional.adaptive_avg_pool2d(pixels, 1).flatten(1)
    with pytest.raises(ConfigError, match="no feature map"):
        ConvolutionTarget(flat, 64, MEAN, STD)


def test_the_bundled_teacher_gives_the_embedding_it_serves() -> None:
    target = target_from_spec("bundled-teacher", 64)
    module = load_model("bundled-teacher").module
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert isinstance(target, ConvolutionTarget)
    with torch.no_grad():
        served = module(pixels)
    torch.testing.assert_close(target(pixels.permute(0, 3, 1, 2) / 255)[:, 0], served, atol=1e-5, rtol=1e-4)
    assert target.fingerprint == load_model("bundled-teacher").fingerprint and target.provenance


def test_a_spec_chooses_the_kind_of_teacher(tmp_path: Path) -> None:
    import open_clip

    weights = tmp_path / "vit.pt"
    torch.save(timm.create_model("test_vit", pretrained=False).state_dict(), weights)
    assert isinstance(target_from_spec(f"timm:test_vit@{weights}", 64), TimmVitTarget)
    clip = tmp_path / "clip.pt"
    torch.save(open_clip.create_model("ViT-S-32-alt", pretrained_text=False).state_dict(), clip)
    assert isinstance(target_from_spec(f"open_clip:ViT-S-32-alt/{clip}", 64), OpenClipTarget)
