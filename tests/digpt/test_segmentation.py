"""The segmenter: its maps, pyramid and heads, and the position table at other sizes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from digpt.encoder import build_encoder, encoder_config
from digpt.errors import ConfigError
from digpt.segmentation import (
    FcnHead,
    Pyramid,
    SegmentConfig,
    Segmenter,
    UperNetHead,
    at_image_size,
    segment_encoder,
    tapped_blocks,
    tapped_maps,
)
from digpt.testing import tiny_checkpoint

CLASSES = ("background", "cat", "dog")
MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.2)  # the mean's colour, (51, 102, 153), is exact in bytes
SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 4, "num_heads": 2}


def start(**overrides: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A pretraining encoder: patch 16, 64 pixels, width 24, 4 blocks; a position table that is not smooth."""
    config = encoder_config("Ti/16", 64, **{**SMALL, **overrides})
    torch.manual_seed(0)
    encoder: Any = timm.create_model(**config)
    if encoder.pos_embed is not None:
        nn.init.normal_(encoder.pos_embed)
    return config, encoder.state_dict()


def small_segmenter(seed: int = 0, **changes: Any) -> tuple[Segmenter, dict[str, Any]]:
    config, weights = segment_encoder(*start(), 64)
    torch.manual_seed(seed)
    encoder = timm.create_model(**config)
    assert isinstance(encoder, VisionTransformer)
    encoder.load_state_dict(weights, strict=True)
    segment = SegmentConfig.for_encoder(config, CLASSES, **{"crop": 64, "channels": 16, "aux_channels": 8, **changes})
    return Segmenter(encoder, segment, MEAN, STD), config


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (12, (3, 5, 7, 11)),
        (24, (7, 11, 15, 23)),
        (32, (7, 15, 23, 31)),
        (6, (1, 2, 4, 5)),
        (4, (0, 1, 2, 3)),
        (2, (0, 0, 1, 1)),
    ],
)
def test_tapped_blocks(depth: int, expected: tuple[int, ...]) -> None:
    assert tapped_blocks(depth) == expected


def test_the_widths_and_blocks_of_the_paper_s_encoders() -> None:
    base = SegmentConfig.for_encoder(encoder_config("B/16", 224), CLASSES)
    large = SegmentConfig.for_encoder(encoder_config("L/16", 224), CLASSES)
    assert (base.channels, base.blocks) == (768, (3, 5, 7, 11))
    assert (large.channels, large.blocks) == (1024, (7, 11, 15, 23))
    for config in (base, large):
        assert (config.crop, config.dropout, config.aux_channels, config.n_classes) == (512, 0.1, 256, 3)


@pytest.mark.parametrize("blocks", [(0, 1, 2, 3), (1, 1, 3, 3)])
def test_maps_are_what_the_blocks_give_without_class_token_and_final_norm(blocks: tuple[int, ...]) -> None:
    """The model has a final norm with weights of its own, so a map after it would differ."""
    torch.manual_seed(0)
    encoder: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=0, class_token=True, reg_tokens=2, **SMALL
    ).eval()
    nn.init.uniform_(encoder.norm.weight)
    seen: list[Tensor] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    maps = tapped_maps(encoder, torch.randn(2, 3, 64, 64), blocks)
    assert len(maps) == 4 and len(seen) == 4
    for block, found in zip(blocks, maps, strict=True):
        cells = seen[block][:, 3:].reshape(2, 4, 4, 24)  # rows of the patch grid after three other tokens
        assert torch.equal(found, cells.permute(0, 3, 1, 2))
    assert not torch.allclose(encoder.norm(seen[-1])[:, 3:].mT.reshape(2, 24, 4, 4), maps[-1], atol=0.1)


# ------------------------------------------------------------------------------------------------------ the image size


@pytest.mark.parametrize("size", [128, (96, 160), 48])
@pytest.mark.parametrize("extra", [{}, {"reg_tokens": 2}, {"no_embed_class": True}, {"class_token": False}])
def test_positions_are_resampled_as_timm_does_it(size: int | tuple[int, int], extra: dict[str, Any]) -> None:
    config, weights = start(**extra)
    reference: Any = timm.create_model(**config)
    reference.load_state_dict(weights)
    reference.set_input_size(size if isinstance(size, tuple) else (size, size))
    resized_config, resized = at_image_size(config, weights, size)
    assert torch.equal(resized["pos_embed"], reference.pos_embed)
    model: Any = timm.create_model(**resized_config)
    model.load_state_dict(resized, strict=True)
    images = torch.randn(1, 3, *(size if isinstance(size, tuple) else (size, size)))
    assert torch.equal(model.eval().forward_features(images), reference.eval().forward_features(images))
    assert config["img_size"] == 64 and weights["pos_embed"].shape != resized["pos_embed"].shape  # inputs stay


def test_the_same_size_changes_nothing_and_no_table_is_needed() -> None:
    config, weights = start()
    same_config, same = at_image_size(config, weights, 64)
    assert same_config == config and all(torch.equal(value, weights[name]) for name, value in same.items())
    config, weights = start(pos_embed="none")
    assert at_image_size(config, weights, 128)[1].keys() == weights.keys()


@pytest.mark.parametrize("size", [100, (64, 8)])
def test_a_size_that_is_no_multiple_of_the_patch(size: int | tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="not a multiple of the patch, 16; try"):
        at_image_size(*start(), size)


def test_only_plain_vits() -> None:
    with pytest.raises(ConfigError, match="'resnet18' is no plain ViT"):
        at_image_size({"model_name": "resnet18"}, {}, 64)


def test_a_finetuned_encoder_loses_its_norm_pooling_and_classifier() -> None:
    found = tiny_checkpoint(text=False, encoder={"num_classes": 5}).config["encoder"]
    model = timm.create_model(**found)
    config, weights = segment_encoder(found, model.state_dict(), 64)
    dropped = set(model.state_dict()) - set(weights)
    assert dropped == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    timm.create_model(**config).load_state_dict(weights, strict=True)
    assert (config["img_size"], config["embed_dim"], config["dynamic_img_size"]) == (64, 48, True)


def test_other_sizes_than_the_crop_use_positions_of_that_size() -> None:
    segmenter, config = small_segmenter()
    segmenter.eval()
    other = copy.deepcopy(segmenter)
    resized_config, resized = at_image_size(config, segmenter.encoder.state_dict(), (96, 48))
    other.encoder = timm.create_model(**{**resized_config, "dynamic_img_size": False}).eval()  # type: ignore[assignment]
    other.encoder.load_state_dict(resized)
    images = pictures(2, 96, 48)
    torch.testing.assert_close(segmenter.logits(images), other.logits(images))


# --------------------------------------------------------------------------------------------------------- the pyramid


@pytest.mark.parametrize(("variant", "patch"), [("Ti/16", 16), ("Ti/8", 8), ("L/14", 14)])
def test_strides_are_a_quarter_a_half_one_and_two_patches(variant: str, patch: int) -> None:
    encoder = build_encoder(encoder_config(variant, (4 * patch, 6 * patch), **SMALL))
    maps = tapped_maps(encoder, torch.zeros(2, 3, 4 * patch, 6 * patch), (0, 1, 2, 3))
    shapes = [tuple(level.shape) for level in Pyramid(24)(maps)]
    assert shapes == [(2, 24, 16, 24), (2, 24, 8, 12), (2, 24, 4, 6), (2, 24, 2, 3)]
    strides = [4 * patch / shape[2] for shape in shapes]
    assert strides == [patch / 4, patch / 2, patch, 2 * patch]


def test_levels_are_their_formulas() -> None:
    torch.manual_seed(0)
    pyramid = Pyramid(6).eval()
    norm = pyramid.up4[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    maps = [torch.randn(2, 6, 5, 7) for _ in range(4)]

    def doubled(layer: nn.Module, cells: Tensor) -> Tensor:
        """Each cell becomes 2 x 2, by a matrix of its own for each of the four places."""
        spread = torch.einsum("bchw,coij->bohiwj", cells, layer.get_parameter("weight"))
        height, width = cells.shape[2:]
        return spread.reshape(2, 6, 2 * height, 2 * width) + layer.get_parameter("bias")[:, None, None]

    first, second, third, last = pyramid(maps)
    standard = (doubled(pyramid.up4[0], maps[0]) - norm.running_mean[:, None, None]) / (norm.running_var + 1e-5).sqrt()[
        :, None, None
    ]
    gelu = standard * 0.5 * (1 + torch.erf(standard / 2**0.5))
    torch.testing.assert_close(first, doubled(pyramid.up4[3], gelu), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second, doubled(pyramid.up2, maps[1]))
    assert torch.equal(third, maps[2])
    assert torch.equal(last, maps[3][:, :, :4, :6].reshape(2, 6, 2, 2, 3, 2).amax(dim=(3, 5)))  # 5 x 7 rounds down


# ------------------------------------------------------------------------------------------------------------ the model


def test_every_weight_gets_a_gradient_and_the_auxiliary_head_trains_the_encoder_too() -> None:
    segmenter, _ = small_segmenter()
    segmenter.train()
    images = torch.rand(2, 3, 64, 64)
    logits, auxiliary = segmenter(images)
    assert auxiliary is not None
    assert (logits.shape, auxiliary.shape) == ((2, 3, 16, 16), (2, 3, 4, 4))
    labels = torch.randint(0, 3, (2, 64, 64))
    loss = F.cross_entropy(F.interpolate(logits, size=64, mode="bilinear"), labels)
    (loss + 0.4 * F.cross_entropy(F.interpolate(auxiliary, size=64, mode="bilinear"), labels)).backward()
    gradients = {name: parameter.grad for name, parameter in segmenter.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    none = [name for name, grad in gradients.items() if grad is not None and not grad.any()]
    assert set(none) <= {"pyramid.up4.0.bias"}  # batch norm takes any constant away again

    segmenter.zero_grad()
    auxiliary = segmenter.train_logits(images)[1]
    assert auxiliary is not None
    auxiliary.square().sum().backward()
    trained = {name for name, p in segmenter.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.partition(".")[0] for name in trained} == {"encoder", "fcn"}
    assert "encoder.blocks.2.attn.qkv.weight" in trained
    assert not any(name.startswith("encoder.blocks.3") for name in trained)  # level 2 is what block 2 gives


def test_without_the_auxiliary_head() -> None:
    segmenter, _ = small_segmenter(aux_channels=0)
    assert segmenter.fcn is None and segmenter.train_logits(torch.rand(2, 3, 64, 64))[1] is None
    assert not any(name.startswith("fcn") for name in segmenter.state_dict())


def test_bytes_and_floats_are_one_path_in_the_encoders_own_statistics() -> None:
    segmenter, _ = small_segmenter()
    segmenter.eval()
    images = pictures(2, 64, 64)
    floats = images.permute(0, 3, 1, 2) / 255
    logits = segmenter(images)
    assert logits.shape == (2, 3, 16, 16) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, segmenter(floats)[0])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    maps = tapped_maps(segmenter.encoder, (floats - mean) / std, segmenter.config.blocks)
    torch.testing.assert_close(logits, segmenter.upernet(segmenter.pyramid(maps)))
    segmenter.mean += 0.1
    assert not torch.allclose(segmenter(images), logits, atol=1e-4)


def test_logits_at_every_pixel() -> None:
    segmenter, _ = small_segmenter()
    segmenter.eval()
    images = pictures(2, 96, 64)
    expected = F.interpolate(segmenter.logits(images), size=(96, 64), mode="bilinear", align_corners=False)
    assert torch.equal(segmenter.pixel_logits(images), expected)
    odd = images[:, :70, :51]
    padded = torch.tensor([51, 102, 153], dtype=torch.uint8).repeat(2, 80, 64, 1)  # the mean's colour
    padded[:, :70, :51] = odd
    torch.testing.assert_close(segmenter.pixel_logits(odd), segmenter.pixel_logits(padded)[:, :, :70, :51])
    black = padded.clone()
    black[:, 70:] = 0
    assert not torch.allclose(segmenter.pixel_logits(black)[:, :, :70, :51], segmenter.pixel_logits(odd), atol=1e-5)
    assert segmenter.pixel_logits(images[:, :1, :1]).shape == (2, 3, 1, 1)
    with pytest.raises(RuntimeError, match="eval mode"):
        segmenter.train().pixel_logits(images)


@pytest.mark.parametrize("kind", [UperNetHead, FcnHead])
def test_whole_channels_are_dropped_in_training_only(kind: type[nn.Module]) -> None:
    head: Any = kind([8, 8], 4, 3, 0.5) if kind is UperNetHead else kind(8, 4, 3, 0.5)
    seen: list[Tensor] = []
    head.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output))
    levels = [torch.randn(8, 8, 6, 6), torch.randn(8, 8, 3, 3)]
    for training in (True, False):
        head.train(training)(levels if kind is UperNetHead else levels[0])
    emptied = (seen[0] == 0).all(dim=(2, 3))
    assert 4 < emptied.sum() < 28  # of 32 channels
    assert not (seen[1] == 0).all(dim=(2, 3)).any()
    assert head.classifier.weight.abs().max() < 0.06 and not head.classifier.bias.any()


def test_layer_wise_rates_by_timm() -> None:
    segmenter, _ = small_segmenter()
    groups = param_groups_layer_decay(segmenter, 0.05, segmenter.no_weight_decay(), layer_decay=0.5)
    names = {id(parameter): name for name, parameter in segmenter.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert len(scale) == len(names)
    for name, value in scale.items():
        part, _, rest = name.partition(".")
        block = int(rest.split(".")[1]) if rest.startswith("blocks.") else -1
        assert value == (1.0 if part != "encoder" else 0.5 ** (4 - block)), name
    assert decay["encoder.pos_embed"] == decay["encoder.cls_token"] == decay["upernet.fuse.1.weight"] == 0
    assert decay["encoder.patch_embed.proj.weight"] == decay["pyramid.up2.weight"] == 0.05


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ()}, "1 to 255 classes, not 0"),
        ({"blocks": (3, 2, 1, 0)}, "rising order"),
        ({"blocks": (0, 1, 2)}, "four block numbers"),
        ({"channels": 0}, "channels and crop are positive"),
        ({"dropout": 1.0}, r"dropout lies in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentConfig(**{"classes": CLASSES, "blocks": (0, 1, 2, 3), "channels": 8, **changes})


def test_a_crop_that_the_patch_does_not_divide() -> None:
    with pytest.raises(ConfigError, match="crop=72 is not a multiple of the patch, 16"):
        small_segmenter(crop=72)
