"""Teachers: tokens equal a manual computation from the library's own model with seeded weights."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from digpt.errors import ConfigError
from train.targets import OpenClipTarget, TimmVitTarget, VisionTarget, check_teacher

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def tower(quick_gelu: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    cfg = CLIPVisionCfg(**{"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32, **options})
    visual = _build_vision_tower(12, cfg, quick_gelu)
    visual.image_mean, visual.image_std = MEAN, STD
    return visual.eval()


def images(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3))


def normalise(pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_open_clip_model_tokens_are_normed_and_projected() -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt", pretrained=None, pretrained_text=False)
    pixels = images(224)
    target = OpenClipTarget(model.visual, 224)
    tokens = target(pixels)
    assert tokens.shape == (2, 50, 256) and target.grid == (7, 7) and target.width == 256
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        torch.testing.assert_close(tokens[:, 0], model.encode_image((pixels - mean) / std), atol=1e-5, rtol=1e-4)
        model.visual.output_tokens = True
        _, unprojected = model.visual((pixels - mean) / std)
        torch.testing.assert_close(tokens[:, 1:], unprojected @ model.visual.proj, atol=1e-5, rtol=1e-4)


def test_quick_gelu_is_respected_reported_and_can_be_forced() -> None:
    plain, quick = OpenClipTarget(tower(), 32), OpenClipTarget(tower(quick_gelu=True), 32)
    forced = OpenClipTarget(tower(), 32, quick_gelu=True)
    assert (plain.activation, quick.activation, forced.activation) == ("gelu", "quick_gelu", "quick_gelu")
    assert isinstance(forced.tower.transformer.resblocks[1].mlp.gelu, QuickGELU)
    pixels = images()
    assert torch.equal(quick(pixels), forced(pixels))
    assert (quick(pixels) - plain(pixels)).abs().max() > 1e-4


def test_positions_are_interpolated_to_the_students_crop() -> None:
    visual = tower()
    table = visual.positional_embedding.detach().clone()
    target = OpenClipTarget(visual, 48)
    assert target.grid == (6, 6) and target(images(48)).shape == (2, 37, 12)
    grid = table[1:].T.reshape(1, 32, 4, 4)
    expected = nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", antialias=True).flatten(2)[0].T
    torch.testing.assert_close(visual.positional_embedding, torch.cat([table[:1], expected]))
    with pytest.raises(ConfigError, match="use 32 or 40 px"):
        OpenClipTarget(tower(), 36)


@pytest.mark.parametrize("after_pool", [False, True])
def test_average_pooled_tower_gives_its_pooled_embedding_as_class_target(after_pool: bool) -> None:
    visual = tower(pool_type="avg", final_ln_after_pool=after_pool)
    target = OpenClipTarget(visual, 32)
    pixels = images()
    with torch.no_grad():
        torch.testing.assert_close(target(pixels)[:, 0], visual(normalise(pixels)), atol=1e-5, rtol=1e-4)
    assert not target.has_class_token


def siglip_tower(pool: str = "map", proj: str = "none") -> Any:
    """open_clip's wrapper around a small trunk; open_clip cannot shrink a trunk, so it is exchanged."""
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    visual = _build_vision_tower(
        12, CLIPVisionCfg(timm_model_name=name, timm_pool="avg", timm_proj="linear", image_size=32), False
    )
    visual.trunk = timm_vit(global_pool=pool, class_token=False)
    visual.head = nn.Sequential() if proj == "none" else nn.Sequential(nn.Linear(32, 12))
    visual.image_mean, visual.image_std = MEAN, STD
    return visual.eval()


def timm_vit(**options: Any) -> Any:
    torch.manual_seed(1)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options}).eval()


@pytest.mark.parametrize(("pool", "proj", "width"), [("map", "none", 32), ("avg", "linear", 12)])
def test_wrapped_timm_trunk(pool: str, proj: str, width: int) -> None:
    visual, pixels = siglip_tower(pool, proj), images()
    target = OpenClipTarget(visual, 32)
    tokens = target(pixels)
    assert tokens.shape == (2, 17, width) and not target.has_class_token
    with torch.no_grad():
        torch.testing.assert_close(tokens[:, 0], visual(normalise(pixels)), atol=1e-5, rtol=1e-4)
        features = visual.trunk.fc_norm(visual.trunk.forward_features(normalise(pixels)))
        torch.testing.assert_close(tokens[:, 1:], visual.head(features), atol=1e-5, rtol=1e-4)


def test_attentional_pooler_is_refused() -> None:
    with pytest.raises(ConfigError, match="attentional pooler"):
        OpenClipTarget(tower(attentional_pool=True, attn_pooler_heads=2), 32)


def test_timm_target_drops_registers_and_takes_the_class_token() -> None:
    model = timm_vit(reg_tokens=4, no_embed_class=True)
    target = TimmVitTarget(model, 32, MEAN, STD)
    pixels = images()
    tokens = target(pixels)
    with torch.no_grad():
        features = model.forward_features(normalise(pixels))
    assert tokens.shape == (2, 17, 32) and target.has_class_token
    torch.testing.assert_close(tokens[:, 0], features[:, 0])
    torch.testing.assert_close(tokens[:, 1:], features[:, 5:])


def test_timm_target_without_class_token_uses_its_pooled_embedding() -> None:
    model = timm_vit(class_token=False, global_pool="avg")
    projection = nn.Linear(32, 12)
    target = TimmVitTarget(model, 48, MEAN, STD, projection)
    pixels = images(48)
    tokens = target(pixels)
    with torch.no_grad():
        features = model.forward_features(normalise(pixels))
        torch.testing.assert_close(tokens[:, 0], projection(model.fc_norm(features.mean(1))))
        torch.testing.assert_close(tokens[:, 1:], projection(model.fc_norm(features)))
    assert target.grid == (6, 6) and target.width == 12 and not target.has_class_token


def test_models_without_patch_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be a vision transformer"):
        TimmVitTarget(timm.create_model("test_resnet"), 32)


def test_teacher_is_frozen_and_stays_in_eval_mode() -> None:
    target = OpenClipTarget(tower(), 32).train()
    assert not any(module.training for module in target.modules())
    assert not any(p.requires_grad for p in target.parameters())
    assert not target(images()).requires_grad
    assert target.to(torch.bfloat16)(images()).dtype == torch.bfloat16


def test_check_teacher_reports_facts() -> None:
    report = check_teacher(OpenClipTarget(tower(quick_gelu=True), 32), images())
    text = str(report)
    assert report.grid == (4, 4) and report.width == 12 and report.projected and report.activation == "quick_gelu"
    assert report.image_spread is not None and 0 < report.position_spread <= 1
    assert "4 x 4 tokens of width 12" in text and "quick_gelu" in text and "mean (0.4, 0.5, 0.6)" in text


class Broken(VisionTarget):
    grid, width, has_class_token, projected = (4, 4), 12, True, True

    def __init__(self, change: Any) -> None:
        super().__init__(nn.Linear(1, 1), MEAN, STD)
        self.change = change

    def tokens(self, normalised: Tensor) -> Tensor:
        return self.change(torch.randn(len(normalised), 17, 12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:, 1:], "grid and width promise"),
        (lambda t: t.index_fill(1, torch.tensor(3), float("nan")), "not finite"),
        (lambda t: t.index_fill(1, torch.tensor(3), 0.0), "zero"),
        (lambda t: t[:, :1].expand(-1, 17, -1), "between positions"),
        (lambda t: t[:1].expand(2, -1, -1), "between images"),
    ],
)
def test_check_teacher_refuses_broken_ones(change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_teacher(Broken(change), images())
    assert check_teacher(Broken(lambda t: t), images()).width == 12


def test_check_teacher_refuses_normalised_images() -> None:
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        check_teacher(OpenClipTarget(tower(), 32), normalise(images()))
