"""Pixels and codes as targets, and a published tokenizer (VQ-KD) from a file of its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from digpt.encoder import build_encoder, encoder_config
from digpt.errors import CheckpointError, ConfigError
from train.objective import build_paradigm
from train.targets import (
    CodeReport,
    CodeTarget,
    PixelReport,
    PixelTarget,
    check_teacher,
    load_tokenizer,
    target_from_spec,
    target_kind,
)
from train.targets.tokenizer_model import TokenizerCheckpoint, VqConfig, VqTokenizer


def images(count: int = 3, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(2))


# ------------------------------------------------------------------------------------------------------------ pixels


def test_pixels_are_normalised_patch_by_patch_in_raster_order() -> None:
    target, pixels = PixelTarget(8, (32, 48)), images(2, 32, 48)
    values = target(pixels)
    assert (target.kind, target.grid, target.width, values.shape) == ("pixels", (4, 6), 192, (2, 24, 192))
    patch = pixels[1, :, 16:24, 8:16].permute(1, 2, 0).reshape(-1)  # row, column, channel
    expected = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
    torch.testing.assert_close(values[1, 2 * 6 + 1], expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(ConfigError, match="do not divide"):
        PixelTarget(8, 36)


def test_flat_patches_are_zero_and_brightness_does_not_matter() -> None:
    target, pixels = PixelTarget(8, 32), images()
    assert not target(torch.full((1, 3, 32, 32), 0.7)).any()
    torch.testing.assert_close(target(pixels * 0.5 + 0.2), target(pixels), atol=1e-4, rtol=1e-3)
    assert (target(1 - pixels) - target(pixels)).abs().max() > 1  # control: contrast turned round does


# ------------------------------------------------------------------------------------------------------------- codes


def tokenizer(patch: int = 8) -> VqTokenizer:
    torch.manual_seed(0)
    return VqTokenizer(VqConfig(patch_size=patch, codebook_size=9, code_width=4, width=8)).eval()


def test_codes_lie_on_the_students_grid_whatever_the_tokenizers_patch() -> None:
    pixels = images()
    same = CodeTarget(tokenizer(8), 32, 8)
    assert (same.kind, same.grid, same.width, same.has_class_token) == ("codes", (4, 4), 9, False)
    assert torch.equal(same(pixels), same.tokenizer.codes(pixels))  # type: ignore[operator]
    finer = CodeTarget(tokenizer(4), 32, 8)  # sees 16 px: 4 x 4 codes
    shown = F.interpolate(pixels, size=(16, 16), mode="bilinear", antialias=True)
    assert torch.equal(finer(pixels), finer.tokenizer.codes(shown)) and finer(pixels).shape == (3, 16)  # type: ignore[operator]
    assert CodeTarget(tokenizer(16), (28, 42), 14).size == (32, 48)  # patch 14
    assert not same.train().training


def test_codes_stay_those_of_float32_in_half_precision() -> None:
    pixels = images(16)
    target = CodeTarget(tokenizer(), 32, 8)
    codes = target(pixels)
    target.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(target(pixels), codes)
    control = tokenizer().bfloat16()
    rounded = control.codebook.codes.float()
    assert not torch.equal(rounded, tokenizer().codebook.codes)  # what ``to`` would have done to it


def test_target_from_spec_knows_pixels_and_codes(tmp_path: Path) -> None:
    model = tokenizer()
    path = tmp_path / "ckpt.pt"
    fingerprint = TokenizerCheckpoint(model.config, model.state_dict(), {"command": "test"}).write(path)
    target = target_from_spec(f"codes:{path}", 32, 8)
    assert torch.equal(target(images()), CodeTarget(model, 32, 8)(images()))
    assert (target.fingerprint, target.provenance) == (fingerprint, {"command": "test"})
    assert target_from_spec("pixels", 32, 8).fingerprint == "pixels:8"
    for spec, kind in (
        ("pixels", "pixels"),
        (f"codes:{path}", "codes"),
        ("clip-l", "tokens"),
        ("a/codes.pt", "tokens"),
    ):
        assert target_kind(spec) == kind
    for spec in ("pixels", "codes:x.pt"):
        with pytest.raises(ConfigError, match="needs the student's patch size"):
            target_from_spec(spec, 32)
    with pytest.raises(ConfigError, match="write codes:FILE"):
        target_from_spec("codes:", 32, 8)


def test_a_target_fits_the_paradigm_built_from_it() -> None:
    encoder = build_encoder(encoder_config("Ti/8", 32, embed_dim=32, num_heads=2, depth=6))
    for target in (PixelTarget(8, 32), CodeTarget(tokenizer(), 32, 8)):
        paradigm = build_paradigm(
            "mae", encoder, target_kind=target.kind, teacher_grid=target.grid, teacher_width=target.width,
            decoder_width=32, decoder_heads=2, decoder_depth=1,
        )  # fmt: skip
        output = paradigm(images(), target(images()))
        assert output.loss.isfinite() and output.loss > 0


def test_contract_check_of_pixels_and_codes() -> None:
    report = check_teacher(PixelTarget(8, 32), images())
    assert isinstance(report, PixelReport) and "4 x 4 patches of 192 values" in str(report)
    assert report.flat == 0 and report.mean_square == pytest.approx(1, abs=0.02)
    half = images()
    half[:, :, :16] = 0.5
    found = check_teacher(PixelTarget(8, 32), half)
    assert isinstance(found, PixelReport) and found.flat == 0.5
    with pytest.raises(ConfigError, match="Every patch of these images is flat"):
        check_teacher(PixelTarget(8, 32), torch.zeros(2, 3, 32, 32))
    codes = CodeTarget(tokenizer(), 32, 8)
    counted = check_teacher(codes, images(8))
    used = codes(images(8)).unique()
    assert isinstance(counted, CodeReport) and counted.used == len(used) > 1
    assert 1 < counted.perplexity <= counted.used and "of a codebook of 9" in str(counted)
    cast(Any, codes.tokenizer).codebook.codes.copy_(torch.eye(4)[:1].expand(9, 4))
    with pytest.raises(ConfigError, match="same code everywhere"):
        check_teacher(codes, images())


# ------------------------------------------------------------------------------------------------------------- VQ-KD

WIDTH, DEPTH, PATCH, SIDE, CODES, DIM = 128, 2, 8, 4, 50, 8


def vqkd_state() -> dict[str, Tensor]:
    """Seeded weights under the names of BEiT v2's released tokenizer, decoder and teacher included."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int, scale: float = 0.1) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    state = {
        "encoder.cls_token": random(1, 1, WIDTH),
        "encoder.pos_embed": random(1, SIDE * SIDE + 1, WIDTH),
        "encoder.patch_embed.proj.weight": random(WIDTH, 3, PATCH, PATCH),
        "encoder.patch_embed.proj.bias": random(WIDTH),
        "encoder.fc_norm.weight": 1 + random(WIDTH),
        "encoder.fc_norm.bias": random(WIDTH),
        "encode_task_layer.0.weight": random(WIDTH, WIDTH),
        "encode_task_layer.0.bias": random(WIDTH),
        "encode_task_layer.2.weight": random(DIM, WIDTH),
        "encode_task_layer.2.bias": random(DIM),
        "quantize.embedding.weight": F.normalize(random(CODES, DIM), dim=-1),
        "quantize.embedding.cluster_size": random(CODES),
        "quantize.embedding.embed_avg": random(CODES, DIM),
        "quantize.embedding.initted": torch.ones(1),
        "quantize.cluster_size": random(CODES),
        "decoder.pos_embed": random(1, SIDE * SIDE + 1, WIDTH),
        "decode_task_layer.0.weight": random(WIDTH, WIDTH),
        "teacher_model.visual.proj": random(4, 4),
        "scaling_layer.shift": random(1, 3, 1, 1),
    }
    for block in range(DEPTH):
        name = f"encoder.blocks.{block}."
        for norm in ("norm1", "norm2"):
            state |= {f"{name}{norm}.weight": 1 + random(WIDTH), f"{name}{norm}.bias": random(WIDTH)}
        state |= {f"{name}attn.q_bias": random(WIDTH), f"{name}attn.v_bias": random(WIDTH)}
        state |= {f"{name}attn.qkv.weight": random(3 * WIDTH, WIDTH)}
        for part, out, width in (
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            state |= {f"{name}{part}.weight": random(out, width), f"{name}{part}.bias": random(out)}
    return state


def vqkd_codes_by_hand(state: dict[str, Tensor], pixels: Tensor, positions: Tensor) -> Tensor:
    """VQ-KD's encoding, written out with heads of 64, pre-norm blocks and norms of eps 1e-6."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    prefix = "encoder.patch_embed.proj"
    x = F.conv2d(pixels * 255 / 127.5 - 1, state[f"{prefix}.weight"], state[f"{prefix}.bias"], stride=PATCH)
    x = torch.cat([state["encoder.cls_token"].expand(len(pixels), -1, -1), x.flatten(2).transpose(1, 2)], 1) + positions
    for block in range(DEPTH):
        name = f"encoder.blocks.{block}"
        q, k, v = (norm(x, f"{name}.norm1") @ state[f"{name}.attn.qkv.weight"].T).chunk(3, dim=-1)
        q, v = q + state[f"{name}.attn.q_bias"], v + state[f"{name}.attn.v_bias"]
        heads = [
            (q[..., h : h + 64] @ k[..., h : h + 64].transpose(1, 2) / 8).softmax(-1) @ v[..., h : h + 64]
            for h in range(0, WIDTH, 64)
        ]
        x = x + linear(torch.cat(heads, -1), f"{name}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    features = norm(x[:, 1:], "encoder.fc_norm")
    features = linear(torch.tanh(linear(features, "encode_task_layer.0")), "encode_task_layer.2")
    features = features / features.norm(dim=-1, keepdim=True)
    return (features[:, :, None] - state["quantize.embedding.weight"]).square().sum(-1).argmin(-1)


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_vqkd_codes_equal_those_computed_by_hand(tmp_path: Path, key: str | None) -> None:
    state, pixels = vqkd_state(), images(4)
    torch.save({key: state} if key else state, tmp_path / "vqkd.pth")
    loaded: Any = load_tokenizer(tmp_path / "vqkd.pth")
    codes = vqkd_codes_by_hand(state, pixels, state["encoder.pos_embed"])
    assert torch.equal(loaded.codes(pixels), codes) and len(codes.unique()) > 5
    assert (loaded.patch_size, loaded.codebook_size) == (PATCH, CODES)
    assert loaded.encoder.blocks[0].norm1.eps == loaded.encoder.fc_norm.eps == 1e-6
    assert loaded.fingerprint.startswith("sha256:")


def test_vqkd_interpolates_its_positions_from_the_file_every_time(tmp_path: Path) -> None:
    state = vqkd_state()
    torch.save({"model": state}, tmp_path / "vqkd.pth")
    loaded = load_tokenizer(tmp_path / "vqkd.pth")
    for height, width in ((48, 48), (16, 32), (32, 32)):
        grid = [height // PATCH, width // PATCH]
        table = resample_abs_pos_embed(state["encoder.pos_embed"], grid, [SIDE, SIDE])
        pixels = images(2, height, width)
        assert torch.equal(loaded.codes(pixels), vqkd_codes_by_hand(state, pixels, table))
    target = target_from_spec(f"codes:{tmp_path / 'vqkd.pth'}", 64, 16)  # 4 x 4 patches: shown as 32 px
    shown = F.interpolate(images(2, 64, 64), size=(32, 32), mode="bilinear", antialias=True)
    assert torch.equal(target(images(2, 64, 64)), vqkd_codes_by_hand(state, shown, state["encoder.pos_embed"]))


def test_vqkd_of_another_layout_is_refused(tmp_path: Path) -> None:
    state = vqkd_state()
    del state["encoder.blocks.1.attn.q_bias"]
    torch.save({"model": state}, tmp_path / "vqkd.pth")
    with pytest.raises(CheckpointError, match=r"does not hold VQ-KD's weights: Missing.*blocks\.1\.attn\.q_bias"):
        load_tokenizer(tmp_path / "vqkd.pth")
