"""The encoder is timm's VisionTransformer: the same weights, the same numbers."""

from __future__ import annotations

import pytest
import timm
import torch

from digpt.encoder import VARIANTS, build_encoder, embed_tokens, encoder_config, finetuned_config, sincos_2d
from digpt.errors import ConfigError


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_variants_have_their_published_sizes(variant: str) -> None:
    patch = int(variant.partition("/")[2])
    with torch.device("meta"):
        encoder = timm.create_model(**encoder_config(variant, 224))
    assert encoder.patch_embed.grid_size == (224 // patch, 224 // patch)
    millions = {"Ti": 5.5, "S": 21.7, "B": 85.8, "L": 303.3, "H": 630.8}[variant.partition("/")[0]]
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.015)
    assert isinstance(encoder.norm, torch.nn.Identity) and isinstance(encoder.fc_norm, torch.nn.Identity)


def test_timm_loads_our_weights_strictly_and_pools_patch_tokens() -> None:
    config = encoder_config("Ti/8", 32, embed_dim=32, num_heads=2, depth=2)
    encoder = build_encoder(config).eval()
    other = timm.create_model(**config)
    other.load_state_dict(encoder.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(other.eval()(images), embed_tokens(encoder, images)[:, 1:].mean(1))
    tuned = timm.create_model(**finetuned_config(config))
    missing = set(tuned.state_dict()) - set(encoder.state_dict())
    assert missing == {"fc_norm.weight", "fc_norm.bias"} and isinstance(tuned.norm, torch.nn.Identity)


def test_initialisation() -> None:
    config = encoder_config("Ti/8", 32, embed_dim=64, num_heads=2, depth=2)
    encoder = build_encoder(config)
    bound = (6 / (64 + 64 * 3)) ** 0.5
    assert encoder.patch_embed.proj.weight.abs().max() <= (6 / (64 + 3 * 64)) ** 0.5
    assert bound * 0.95 < encoder.blocks[0].attn.qkv.weight.abs().max() <= bound
    assert 0.01 < encoder.cls_token.std() < 0.03
    assert not build_encoder(config, class_token_std=0.0).cls_token.any()
    assert torch.equal(encoder.pos_embed[0], sincos_2d(64, 4, 4))


def test_positions_code_x_first_then_y() -> None:
    table = sincos_2d(8, 2, 3, class_token=False)
    x, y = torch.tensor([2.0, 2.0 / 100]), torch.tensor([1.0, 1.0 / 100])  # frequencies 1 and 10000^(-1/2)
    expected = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()])
    torch.testing.assert_close(table[1 * 3 + 2], expected)
    assert not sincos_2d(8, 2, 3)[0].any()
    with pytest.raises(ConfigError, match="multiple of 4"):
        sincos_2d(6, 2, 2)


def test_bad_configurations_name_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match="B/16"):
        encoder_config("B/17", 224)
    with pytest.raises(ConfigError, match="try 224 or 240"):
        encoder_config("B/16", 230)
    with pytest.raises(ConfigError, match="num_heads=5"):
        encoder_config("Ti/8", 64, num_heads=5)
