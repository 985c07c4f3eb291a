"""Where a ViT looks: the recomputed weights are those that the model used, and the right ones of them are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

from digpt.artifact import write_checkpoint
from digpt.attention import attention_maps, attention_weights
from digpt.engine import Engine
from digpt.errors import CapabilityError
from digpt.runtime.fake import FakeRuntime
from digpt.runtime.torch import TorchRuntime
from digpt.sources import model_from_checkpoint
from digpt.testing import tiny_checkpoint

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}


def encoder(**changes: Any) -> Any:
    """A ViT with random weights large enough for its attention to differ from patch to patch."""
    torch.manual_seed(0)
    if "pool_type" in changes:
        tower = {"image_size": 32, "patch_size": 8, "width": 48, "heads": 3, "layers": 2, "mlp_ratio": 4.0}
        built: nn.Module = open_clip.transformer.VisionTransformer(**tower, output_dim=16, **changes)
    else:
        built = timm.create_model("vit_tiny_patch16_224", **{**TINY, **changes})
    for name, weights in built.named_parameters():
        if "attn" in name and weights.ndim > 1:
            nn.init.normal_(weights, std=0.15)
    return built.eval()


def pictures(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def seen(model: Any, attention: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What went into an attention, and what came out of it."""
    kept: list[tuple[Tensor, Any]] = []
    hook = attention.register_forward_hook(lambda _, given, output: kept.append((given[0], output)))
    model(images)
    hook.remove()
    tokens, output = kept[0]
    return tokens, output[0] if isinstance(output, tuple) else output


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{"global_pool": "avg"}, {"global_pool": "token", "qk_norm": True}])
def test_weights_times_values_are_the_blocks_own_output(changes: dict[str, Any]) -> None:
    model = encoder(**changes)
    attention = model.blocks[-1].attn
    assert attention.fused_attn  # the one that keeps no weights
    tokens, output = seen(model, attention, pictures())
    weights = attention_weights(attention, tokens)
    assert weights.shape == (2, 3, 17, 17) and weights.std(dim=-1).min() > 0.01
    values = attention.qkv(tokens).chunk(3, dim=-1)[2].unflatten(-1, (3, 16)).transpose(1, 2)
    mixed = attention.proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, output, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_weights_times_values_are_the_output_of_open_clips_block() -> None:
    model = encoder(pool_type="tok")
    attention = model.transformer.resblocks[-1].attn
    tokens, output = seen(model, attention, pictures())
    weights = attention_weights(attention, tokens)
    values = (tokens @ attention.in_proj_weight[96:].T + attention.in_proj_bias[96:]).unflatten(-1, (3, 16))
    mixed = attention.out_proj((weights @ values.transpose(1, 2)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, output, atol=1e-5, rtol=0)
    maps = attention_maps(model, pictures())
    assert maps is not None
    torch.testing.assert_close(maps.flatten(2), weights[:, :, 0, 1:])


@torch.inference_mode()
def test_weights_times_values_are_the_output_of_an_attention_pool() -> None:
    model = encoder(global_pool="map", class_token=False)
    pool = model.attn_pool
    tokens, output = seen(model, pool, pictures())
    weights = attention_weights(pool, tokens)
    values = pool.kv(tokens).chunk(2, dim=-1)[1].unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
    mixed = pool.proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close((mixed + pool.mlp(pool.norm(mixed)))[:, 0], output, atol=1e-5, rtol=0)
    maps = attention_maps(model, pictures())
    assert maps is not None and maps.shape == (2, pool.num_heads, 4, 4)
    torch.testing.assert_close(maps.flatten(2), weights[:, :, 0])
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(2, pool.num_heads))


@torch.inference_mode()
@pytest.mark.parametrize("registers", [0, 3])
def test_a_class_token_looks_for_itself_and_averaged_patches_together(registers: int) -> None:
    for pool, queries in (("token", slice(1)), ("avg", slice(1 + registers, None))):
        model = encoder(global_pool=pool, reg_tokens=registers)
        tokens, _ = seen(model, model.blocks[-1].attn, pictures())
        expected = attention_weights(model.blocks[-1].attn, tokens)[:, :, queries, 1 + registers :].mean(dim=2)
        maps = attention_maps(model, pictures())
        assert maps is not None and maps.shape == (2, 3, 4, 4)
        torch.testing.assert_close(maps, expected.reshape(2, 3, 4, 4))
        assert (maps.sum(dim=(2, 3)) < 1).all()  # the rest goes to the class token and the registers
        others = attention_maps(model, pictures(2))
        assert others is not None and not torch.allclose(maps, others)


@torch.inference_mode()
def test_indifferent_queries_look_everywhere_alike() -> None:
    model = encoder(global_pool="token")
    model.blocks[-1].attn.qkv.weight[:48] = 0
    model.blocks[-1].attn.qkv.bias[:48] = 0
    maps = attention_maps(model, pictures())
    assert maps is not None
    torch.testing.assert_close(maps, torch.full((2, 3, 4, 4), 1 / 17))


def test_other_encoders_show_nothing() -> None:
    assert attention_maps(timm.create_model("resnet18", num_classes=0), pictures()) is None
    assert attention_maps(encoder(global_pool="max"), pictures()) is None


def test_the_engine_gives_them_for_torch_and_says_why_not_elsewhere(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    write_checkpoint(tmp_path / "ckpt.pt", checkpoint)
    engine = Engine.load(str(tmp_path / "ckpt.pt"))
    crops = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    module = model_from_checkpoint(checkpoint).module.eval()
    with torch.inference_mode():
        expected = attention_maps(module.encoder, module.normalise(torch.from_numpy(crops)))
    assert expected is not None
    np.testing.assert_allclose(engine.attention_maps(list(crops)), expected.numpy(), atol=1e-6)
    with pytest.raises(CapabilityError, match="fake shows no attention as it runs here"):
        Engine(FakeRuntime()).attention_maps(crops)


def test_a_model_that_is_no_plain_vit_is_refused_in_a_sentence() -> None:
    model = model_from_checkpoint(tiny_checkpoint(encoder={"global_pool": "max", "fc_norm": False}))
    runtime = TorchRuntime(model)
    with pytest.raises(CapabilityError, match="no plain ViT"):
        runtime.attention_maps(np.zeros((1, 32, 32, 3), np.uint8))
