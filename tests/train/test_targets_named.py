"""Every named teacher, built from its real architecture with seeded weights and two blocks, fulfils the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

from digpt.encoder import encoder_config
from digpt.errors import ConfigError, SpecError
from digpt.sources import load_model
from train.targets import (
    NAMED,
    OpenClipTarget,
    TeacherReport,
    TimmVitTarget,
    VisionTarget,
    check_teacher,
    named_teacher,
    target_from_spec,
    teacher_skeleton,
)

# name -> grid at 224 px, width, whether the class target is a class token, activation, millions of weights
# (of the whole tower, at 224 px: DINOv2, CLIP-L@336 and others have larger position tables of their own)
EXPECTED: dict[str, tuple[int, int, bool, str, float]] = {
    "clip-b": (14, 512, True, "quick_gelu", 86.2),
    "clip-l": (16, 768, True, "quick_gelu", 304.0),
    "clip-l@336": (16, 768, True, "quick_gelu", 304.0),
    "openclip-l": (16, 768, True, "gelu", 304.0),
    "openclip-h": (16, 1024, True, "gelu", 632.1),
    "dino-b": (14, 768, True, "gelu", 85.8),
    "dino-l": (16, 1024, True, "gelu", 303.2),
    "siglip2-b": (14, 768, False, "gelu", 92.9),
    "siglip2-l": (14, 1024, False, "gelu", 315.9),
    "siglip2-so400m": (16, 1152, False, "gelu", 427.7),
    "pe-core-b": (14, 1024, False, "gelu", 93.7),
    "pe-core-l": (16, 1024, False, "gelu", 316.8),
    "clipa-l": (16, 768, False, "gelu", 304.0),
    "clipa-h": (16, 1024, False, "gelu", 632.1),
    "dinov2-b": (16, 768, True, "gelu", 85.7),
    "dinov2-l": (16, 1024, True, "gelu", 303.2),
    "dinov2-l-reg": (16, 1024, True, "gelu", 303.2),
    "dinov3-b": (14, 768, True, "gelu", 85.6),
    "dinov3-l": (14, 1024, True, "gelu", 303.1),
    "aimv2-l": (16, 1024, False, "silu", 309.2),
}
SMALLER = [name for name in EXPECTED if name.endswith("-b")]


def marked(*quick: str) -> list[Any]:
    """Every name; all but the ``quick`` ones are slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in EXPECTED]


def test_the_table_of_expectations_covers_every_named_teacher() -> None:
    assert set(EXPECTED) == set(NAMED)


def images(size: int = 224) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def short(name: str, layers: int = 2) -> VisionTarget:
    torch.manual_seed(0)
    target = cast(VisionTarget, teacher_skeleton(name, 224, layers=layers, device="cpu"))
    for parameter, value in target.named_parameters():
        if "gamma" in parameter:  # a fresh layer scale of 1e-5 would hide what the blocks do
            value.data.fill_(1.0)
    return target


def library_embedding(target: VisionTarget, pixels: Tensor) -> Tensor:
    """What the library itself pools, not normalised to unit length."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in target.statistics)
    tower: Any = target.tower
    with torch.no_grad():
        return tower((pixels - mean) / std)  # open_clip: encode_image; timm without a classifier: the pooled features


@pytest.mark.parametrize("name", marked(*SMALLER))
def test_named_teacher_fulfils_the_contract(name: str) -> None:
    target, pixels = short(name), images()
    side, width, token, activation, _ = EXPECTED[name]
    report = check_teacher(target, pixels)
    assert isinstance(report, TeacherReport)
    assert (report.grid, report.width, report.has_class_token) == ((side, side), width, token)
    assert report.activation == activation
    tokens = target(pixels)
    assert distance(tokens[:, 0], library_embedding(target, pixels)) < 1e-5
    assert distance(tokens[:, 1:], by_hand(target, pixels)) < 1e-5
    other = target(pixels.flip(0))  # positive control: tokens follow the image
    assert distance(tokens[:, 0], other[:, 0]) > 1e-3 and distance(tokens[:, 1:], other[:, 1:]) > 1e-3


def distance(one: Tensor, other: Tensor) -> float:
    """Largest distance of two vectors, relative to the length of the longest."""
    return float((one - other).norm(dim=-1).max() / other.norm(dim=-1).max())


def by_hand(target: VisionTarget, pixels: Tensor) -> Tensor:
    """Patch tokens by the libraries' own intermediate outputs, then the tower's own norm and projection."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in target.statistics)
    tower: Any = target.tower
    normalised = (pixels - mean) / std
    with torch.no_grad():
        if isinstance(target, TimmVitTarget):
            return timm_patches(tower, normalised)
        if hasattr(tower, "trunk"):
            return tower.trunk.head(timm_patches(tower.trunk, normalised))
        found = tower.forward_intermediates(
            normalised, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
        )
        return found["image_intermediates"][-1] @ tower.proj


def timm_patches(model: Any, normalised: Tensor) -> Tensor:
    """timm's own last intermediate output, normed; ``fc_norm`` where the final norm is there."""
    found = model.forward_intermediates(normalised, indices=1, norm=True, intermediates_only=True, output_fmt="NLC")
    return model.fc_norm(found[-1])


@pytest.mark.parametrize("name", marked(*SMALLER, "clip-l@336", "openclip-h", "aimv2-l"))
def test_skeleton_has_the_shapes_and_the_weight_count_of_the_whole_model(name: str) -> None:
    target = cast(VisionTarget, teacher_skeleton(name, 224))
    side, width, token, _, millions = EXPECTED[name]
    assert (target.grid, target.width, target.has_class_token) == ((side, side), width, token)
    assert next(target.parameters()).is_meta
    assert sum(p.numel() for p in target.tower.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_skeleton_and_short_teacher_share_widths_but_not_depth() -> None:
    whole = cast(Any, teacher_skeleton("clip-b", 224)).tower.state_dict()
    shortened = short("clip-b", 1).tower.state_dict()
    assert set(shortened) < set(whole)
    assert all(value.shape == whole[name].shape for name, value in shortened.items())
    with pytest.raises(ConfigError, match="cannot be built with 2 blocks"):
        teacher_skeleton("open_clip:convnext_base/laion400m_s13b_b51k", 224, layers=2)
    with pytest.raises(ConfigError, match="cannot be built with 2 blocks"):
        teacher_skeleton("timm:resnet18", 224, layers=2)
    with pytest.raises(SpecError, match="Did you mean 'ViT-B-16"):
        teacher_skeleton("open_clip:ViT-B-61/openai", 224)
    with pytest.raises(SpecError, match="vit_base_patch16"):
        teacher_skeleton("timm:vit_base_patch16_2245", 224)


def test_skeleton_of_a_local_file_is_read(tmp_path: Path) -> None:
    target = cast(VisionTarget, teacher_skeleton("bundled-teacher", 64))
    assert next(target.parameters()).is_meta and target.grid == (2, 2)
    assert teacher_skeleton("pixels", 64, 16).width == 768


def test_names_files_and_near_misses() -> None:
    assert named_teacher("CLIP-L@336") == (NAMED["clip-l@336"], "")
    assert named_teacher("clip-l@weights.pt") == (NAMED["clip-l"], "weights.pt")
    assert named_teacher("clip-l@336@a@b.pt") is None and named_teacher("clip-l@336@w.pt") == (
        NAMED["clip-l@336"],
        "w.pt",
    )
    assert named_teacher("timm:vit_tiny_patch16_224@w.pt") is None and named_teacher("w.pt") is None
    assert NAMED["dino-b"].spec() == "timm:vit_base_patch16_224.dino"
    assert NAMED["dino-b"].spec("w.pt") == "timm:vit_base_patch16_224.dino@w.pt"
    assert NAMED["openclip-h"].spec("w.pt") == "open_clip:ViT-H-14/w.pt"
    with pytest.raises(SpecError, match="Among teachers: Did you mean 'clipa-l'|Among teachers:.*'clip-l'"):
        target_from_spec("clip-xl", 224)


def test_every_name_is_one_that_its_library_has_weights_of() -> None:
    for name, teacher in NAMED.items():
        if teacher.library == "timm":
            assert f"{teacher.model}.{teacher.tag}" in timm.list_pretrained(teacher.model + ".*"), name
        else:
            assert open_clip.get_pretrained_cfg(teacher.model, teacher.tag), name


def test_dinov3_takes_its_class_token_although_timm_averages() -> None:
    target, pixels = short("dinov3-b"), images()
    tower: Any = target.tower
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in target.statistics)
    with torch.no_grad():
        features = tower.forward_features((pixels - mean) / std)
    tokens = target(pixels)
    torch.testing.assert_close(tokens[:, 0], features[:, 0])
    torch.testing.assert_close(tokens[:, 1:], features[:, 5:])  # four registers are dropped
    assert (tokens[:, 0] - features[:, 5:].mean(1)).abs().max() > 1e-3


def test_named_teacher_from_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very path of ``--teacher dinov3-b@FILE``, at a size that a test can afford."""
    arguments: dict[str, Any] = {"depth": 1, "embed_dim": 96, "num_heads": 3}
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_dinov3.lvd1689m", pretrained=False, **arguments)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **{**k, **arguments}))
    spec = f"dinov3-b@{tmp_path / 'w.pt'}"
    target = cast(VisionTarget, target_from_spec(spec, 64))
    plain = load_model(f"timm:vit_base_patch16_dinov3.lvd1689m@{tmp_path / 'w.pt'}")
    assert target.fingerprint == f"{plain.fingerprint}/token" and target.has_class_token
    assert target.grid == (4, 4) and target(images(64)).shape == (2, 17, 96)


def test_clip_336_sees_224_px_with_interpolated_positions() -> None:
    torch.manual_seed(0)
    cut = short("clip-l@336", 1)
    tower: Any = cut.tower
    assert tower.positional_embedding.shape == (257, 1024) and tower.grid_size == (16, 16)
    torch.manual_seed(0)
    whole = cast(Any, teacher_skeleton("clip-l@336", 336, layers=1, device="cpu")).tower.positional_embedding
    grid = whole.detach()[1:].T.reshape(1, 1024, 24, 24)
    expected = nn.functional.interpolate(grid, size=(16, 16), mode="bicubic", antialias=True).flatten(2)[0].T
    torch.testing.assert_close(tower.positional_embedding[1:], expected)
    assert isinstance(cut, OpenClipTarget) and encoder_config("L/16", 224)["embed_dim"] == 1024
