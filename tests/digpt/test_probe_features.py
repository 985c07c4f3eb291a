"""Features for linear probes: the tokens of the last blocks against forward passes run by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from digpt.probe import ProbeConfig, choose, train_probes
from digpt.probe_features import block_features, block_rows
from digpt.sources import Model, load_model, model_from_checkpoint
from digpt.testing import tiny_checkpoint

VISION: dict[str, Any] = {"image_size": 32, "layers": 5, "width": 32, "head_width": 16, "patch_size": 8}
TEXT: dict[str, Any] = {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
COCA = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
FOUR_SETS = ["cls-1", "cls-4", "cls+mean-1", "cls+mean-4"]
Clip = Callable[..., tuple[Any, Model]]


def shaken(module: torch.nn.Module) -> None:
    """Fresh norms are trivial and class tokens near zero; noise makes every weight matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def vit(**encoder: Any) -> Model:
    """A ViT of width 48, 5 blocks and patch 8 at 32 pixels; class token, final norm and token pooling by default."""
    arguments = {"depth": 5, "class_token": True, "global_pool": "token", "fc_norm": False, **encoder}
    model = model_from_checkpoint(tiny_checkpoint(text=False, labels=None, encoder=arguments))
    shaken(model.module.encoder)
    return model


def crops(model: Model, count: int = 3) -> NDArray[np.uint8]:
    side = model.preprocess.size
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def normalised(model: Model) -> Tensor:
    return model.module.normalise(torch.from_numpy(crops(model)))


def close(ours: NDArray[np.float32], expected: Tensor) -> None:
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=0, atol=2e-5)


def by_hand(model: Model) -> list[Tensor]:
    """Every block's output ``[B, prefix + N, C]``, before any final norm."""
    encoder = model.module.encoder
    tokens = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(normalised(model))))
    outputs = []
    for block in encoder.blocks:
        tokens = block(tokens)
        outputs.append(tokens)
    return outputs


# --------------------------------------------------------------------------------------------------------------- timm


@torch.inference_mode()
@pytest.mark.parametrize("registers", [0, 3])
def test_four_sets_of_an_encoder_with_a_class_token(registers: int) -> None:
    model = vit(reg_tokens=registers)
    features = block_features(model, crops(model))
    tokens = [model.module.encoder.norm(output) for output in by_hand(model)]
    classes = [token[:, 0] for token in tokens]
    mean = tokens[-1][:, 1 + registers :].mean(dim=1)
    assert tokens[-1].shape == (3, 17 + registers, 48) and list(features) == FOUR_SETS
    close(features["cls-1"], classes[4])
    close(features["cls-4"], torch.cat(classes[1:], dim=1))
    close(features["cls+mean-1"], torch.cat([classes[4], mean], dim=1))
    close(features["cls+mean-4"], torch.cat([*classes[1:], mean], dim=1))
    close(features["cls-1"], model.module.features(normalised(model)))  # what token pooling reads
    assert np.abs(features["cls-4"][:, :48] - features["cls-4"][:, 48:96]).max() > 0.1


@torch.inference_mode()
def test_fewer_than_four_blocks_say_so() -> None:
    model = vit(depth=2)
    assert list(block_features(model, crops(model))) == ["cls-1", "cls-2", "cls+mean-1", "cls+mean-2"]
    model = vit(depth=1)
    assert list(block_features(model, crops(model))) == ["cls-1", "cls+mean-1"]


@torch.inference_mode()
def test_norm_after_pooling_is_applied_to_tokens_and_means() -> None:
    """A finetuned D-iGPT encoder norms the mean of its patches; the mean half is then what its head reads."""
    model = vit(global_pool="avg", fc_norm=True)
    features = block_features(model, crops(model))
    last = by_hand(model)[-1]
    close(features["cls-1"], model.module.encoder.fc_norm(last[:, 0]))
    close(features["cls+mean-1"][:, 48:], model.module.features(normalised(model)))
    assert np.abs(features["cls-1"] - last[:, 0].numpy()).max() > 0.1


@torch.inference_mode()
def test_a_pretraining_encoder_gives_tokens_as_they_are() -> None:
    model = vit(global_pool="avg", fc_norm=False, final_norm=False)
    features = block_features(model, crops(model))
    outputs = by_hand(model)
    close(features["cls-4"], torch.cat([output[:, 0] for output in outputs[1:]], dim=1))
    close(features["cls+mean-1"][:, 48:], outputs[-1][:, 1:].mean(dim=1))


@torch.inference_mode()
def test_without_a_class_token_the_names_say_mean() -> None:
    model = vit(class_token=False, global_pool="avg", fc_norm=True)
    features = block_features(model, crops(model))
    norm, outputs = model.module.encoder.fc_norm, by_hand(model)
    assert list(features) == ["mean-1", "mean-4", "pooled"]
    close(features["mean-1"], model.module.features(normalised(model)))
    close(features["mean-4"], torch.cat([norm(output.mean(dim=1)) for output in outputs[1:]], dim=1))
    np.testing.assert_allclose(features["pooled"], features["mean-1"], rtol=0, atol=2e-5)


@torch.inference_mode()
def test_an_attention_pool_is_a_set_of_its_own() -> None:
    model = vit(class_token=False, global_pool="map")
    features = block_features(model, crops(model))
    tokens = model.module.encoder.norm(by_hand(model)[-1])
    assert list(features) == ["mean-1", "mean-4", "pooled"]
    close(features["mean-1"], tokens.mean(dim=1))
    close(features["pooled"], model.module.features(normalised(model)))
    assert np.abs(features["pooled"] - features["mean-1"]).max() > 0.1


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("test_vit2", ["mean-1", "mean-4", "pooled"]),  # registers, and no class token
        ("test_vit3", ["mean-1", "mean-4", "pooled"]),  # the same, with an attention pool
        ("test_resnet", ["pooled"]),
        ("test_convnext", ["pooled"]),
        ("cait_xxs24_224", ["pooled"]),  # its class token enters after the blocks
    ],
)
def test_library_models(name: str, names: list[str], tmp_path: Path) -> None:
    options = {"img_size": 32} if name == "cait_xxs24_224" else {}
    library = timm.create_model(name, **options)
    torch.save(library.state_dict(), tmp_path / "w.pt")
    model = load_model(f"timm:{name}@{tmp_path / 'w.pt'}")
    features = block_features(model, crops(model))
    depth = min(4, len(model.module.encoder.blocks)) if "vit" in name else 4
    assert list(features) == [known.replace("4", str(depth)) for known in names]
    close(features["pooled"], model.module.features(normalised(model)))


# ---------------------------------------------------------------------------------------------------------- open_clip


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clip:
    """``clip(**vision)``: a tiny open_clip model of this vision configuration, and ours of the same weights."""
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))

    def build(config: dict[str, Any] | None = None, **vision: Any) -> tuple[Any, Model]:
        tower = {**VISION, **vision}
        full = {"embed_dim": 24, "vision_cfg": tower, "text_cfg": TEXT, **(config or {})}
        open_clip.factory._MODEL_CONFIGS["ViT-B-32"] = copy.deepcopy(full)
        library = open_clip.create_model("ViT-B-32").eval()
        shaken(library.visual)
        torch.save(library.state_dict(), tmp_path / "w.pt")
        return library, load_model(f"open_clip:ViT-B-32/{tmp_path / 'w.pt'}")

    return build


def tower_by_hand(library: Any, model: Model) -> list[Tensor]:
    tokens = library.visual._embeds(normalised(model))
    outputs = []
    for block in library.visual.transformer.resblocks:
        tokens = block(tokens)
        outputs.append(tokens)
    return outputs


@torch.inference_mode()
def test_open_clip_tower(clip: Clip) -> None:
    library, model = clip()
    features = block_features(model, crops(model))
    tokens = [library.visual.ln_post(output) for output in tower_by_hand(library, model)]
    assert list(features) == FOUR_SETS
    close(features["cls-4"], torch.cat([token[:, 0] for token in tokens[1:]], dim=1))
    close(features["cls+mean-1"][:, 32:], tokens[-1][:, 1:].mean(dim=1))
    projected = torch.from_numpy(features["cls-1"]) @ library.visual.proj
    close(model.module.features(normalised(model)).numpy(), projected)


@torch.inference_mode()
def test_open_clip_tower_that_norms_after_its_mean(clip: Clip) -> None:
    library, model = clip(pool_type="avg", final_ln_after_pool=True)
    features = block_features(model, crops(model))
    projected = torch.from_numpy(features["cls+mean-1"][:, 32:]) @ library.visual.proj
    close(library.encode_image(normalised(model)).numpy(), projected)
    close(features["cls-1"], library.visual.ln_post(tower_by_hand(library, model)[-1][:, 0]))


@torch.inference_mode()
def test_a_coca_towers_tokens_stay_as_they_are(clip: Clip) -> None:
    """Its only norm is 24 wide and belongs to the attention pool; the tokens are 32 wide."""
    config = {"multimodal_cfg": {**TEXT, "attn_pooler_heads": 2}, "custom_text": True}
    config["text_cfg"] = {**TEXT, "embed_cls": True, "output_tokens": True}
    library, model = clip(config, **COCA)
    features = block_features(model, crops(model))
    last = tower_by_hand(library, model)[-1]
    close(features["cls-1"], last[:, 0])
    close(features["cls+mean-1"][:, 32:], last[:, 1:].mean(dim=1))


@torch.inference_mode()
def test_open_clips_wrapper_around_timm(clip: Clip) -> None:
    """SigLIP's form: the trunk has no class token, the tower's own output is the pooled set."""
    timm_vision = {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
    library, model = clip({"embed_dim": 96}, **timm_vision)
    features = block_features(model, crops(model))
    depth = len(library.visual.trunk.blocks)
    assert list(features) == ["mean-1", f"mean-{min(4, depth)}", "pooled"]
    close(features["pooled"], library.encode_image(normalised(model)))
    tokens = library.visual.trunk.forward_features(normalised(model))[:, library.visual.trunk.num_prefix_tokens :]
    close(features["mean-1"], tokens.mean(dim=1))


# -------------------------------------------------------------------------------------------------------- stored rows


@torch.inference_mode()
def test_sets_are_columns_of_one_stored_array(tmp_path: Path) -> None:
    model = vit()
    rows, sets = block_rows(model, crops(model, 12))
    assert rows.shape == (12, 5 * 48) and list(sets) == FOUR_SETS
    for name, features in block_features(model, crops(model, 12)).items():
        np.testing.assert_array_equal(rows[:, sets[name]], features)
    assert block_rows(model, crops(model, 1))[1] == sets
    stored = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype=np.float32, shape=rows.shape)
    stored[:] = rows
    views = {name: stored[:, columns] for name, columns in sets.items()}
    assert all(np.shares_memory(view, stored) for view in views.values())
    config = ProbeConfig(learning_rates=(0.1,), iterations=5, batch_size=4)
    probes = train_probes(views, np.arange(12) % 2, 2, config)
    assert [probe.weight.shape for probe in probes] == [(2, 48 * n) for n in (1, 4, 2, 5)]
    assert choose(probes).logits(views[choose(probes).name]).shape == (12, 2)
