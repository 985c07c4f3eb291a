"""Our checkpoints as models: strict into timm, the right pooling, head, text and labels; the authors' files too."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import nn

from digpt.artifact import Checkpoint, read_checkpoint, write_checkpoint
from digpt.errors import CapabilityError, CheckpointError
from digpt.preprocess import Preprocess
from digpt.source_authors import authors_checkpoint
from digpt.sources import load_model, model_from_checkpoint
from digpt.testing import TINY_LABELS, tiny_checkpoint

IMAGES = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(images: torch.Tensor, mean: float = 0.5, std: float = 0.5) -> torch.Tensor:
    return (images.permute(0, 3, 1, 2) / 255 - mean) / std


@torch.inference_mode()
def test_checkpoint_loads_strictly_into_timm_with_the_same_features(tmp_path: Path) -> None:
    """Acceptance: 1e-5, from the file alone."""
    write_checkpoint(tmp_path / "ckpt.pt", tiny_checkpoint(seed=3))
    document = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    encoder = timm.create_model(**document["config"]["encoder"])
    encoder.load_state_dict(document["weights"]["encoder"], strict=True)
    expected = encoder.eval()(normalised(IMAGES)) @ document["weights"]["head"]["weight"].T
    model = load_model(str(tmp_path / "ckpt.pt"))
    torch.testing.assert_close(model.module(IMAGES), expected, rtol=0, atol=1e-5)
    assert model.module(IMAGES).shape == (2, 32) and model.module.dim == 32
    assert model.fingerprint == read_checkpoint(tmp_path / "ckpt.pt").fingerprint
    assert (model.labels, model.logit_scale, model.templates) == (list(TINY_LABELS), 20.0, ("{}",))


@torch.inference_mode()
def test_pretraining_encoder_is_read_by_its_mean_patch_token() -> None:
    arguments = {"final_norm": False, "fc_norm": False}
    checkpoint = tiny_checkpoint(text=False, labels=None, encoder=arguments)
    model = model_from_checkpoint(checkpoint)
    encoder = timm.create_model(**checkpoint.config["encoder"])
    encoder.load_state_dict(checkpoint.weights["encoder"], strict=True)
    last_block: list[torch.Tensor] = []
    encoder.blocks[-1].register_forward_hook(lambda module, inputs, output: last_block.append(output))
    encoder.eval()(normalised(IMAGES))
    torch.testing.assert_close(model.module(IMAGES), last_block[0][:, 1:].mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.module.forward_patches(IMAGES), last_block[0][:, 1:], rtol=0, atol=1e-6)
    assert model.module.dim == 48 and model.text is None and model.labels is None


@torch.inference_mode()
def test_linear_head_gives_logits_and_leaves_the_embedding() -> None:
    checkpoint = tiny_checkpoint(text=False, head="linear")
    model = model_from_checkpoint(checkpoint)
    head = checkpoint.weights["head"]
    embedding = model.module(IMAGES)
    assert embedding.shape == (2, 48)
    torch.testing.assert_close(model.module.logits(IMAGES), embedding @ head["weight"].T + head["bias"])
    with pytest.raises(CapabilityError, match="no classification head"):
        model_from_checkpoint(tiny_checkpoint()).module.logits(IMAGES)


@torch.inference_mode()
def test_text_tower_reads_the_end_token() -> None:
    model = model_from_checkpoint(tiny_checkpoint())
    assert model.text is not None
    tokens = torch.from_numpy(model.text.tokenize(["red apple", "house"]))
    embedding = model.text.module(tokens)
    assert embedding.shape == (2, 32)
    beyond = tokens.clone()
    beyond[1, -1] = 5  # after the end token: a causal tower that pools there cannot see it
    torch.testing.assert_close(model.text.module(beyond)[1], embedding[1])
    before = tokens.clone()
    before[1, 1] = 5
    assert (model.text.module(before)[1] - embedding[1]).abs().max() > 1e-3


def test_half_precision_moves_embeddings_little(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    write_checkpoint(tmp_path / "half.pt", checkpoint, dtype="float16")
    with torch.inference_mode():
        half = load_model(str(tmp_path / "half.pt")).module(IMAGES)
        full = model_from_checkpoint(checkpoint).module(IMAGES)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 5e-3


@torch.inference_mode()
def test_open_clip_architecture_is_open_clips_own_model() -> None:
    """The layout of the bundled teacher."""
    tiny = tiny_checkpoint()
    assert tiny.config["text"] is not None
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    tower = tiny.config["text"]["tower"]
    text = {key: tower[key] for key in ("context_length", "vocab_size", "width", "heads", "layers")}
    torch.manual_seed(0)
    library = open_clip.CustomTextCLIP(32, vision, text, quick_gelu=False).eval()
    config = {
        "architecture": "open_clip",
        "encoder": {"embed_dim": 32, "vision_cfg": vision, "quick_gelu": False},
        "preprocess": Preprocess(size=32).to_dict(),
        "pooling": "token",
        "text": {**tiny.config["text"], "tower": {**text, "output_dim": 32}},
    }
    weights = {"encoder": library.visual.state_dict(), "text": library.text.state_dict()}
    model = model_from_checkpoint(Checkpoint(config, weights))
    torch.testing.assert_close(model.module(IMAGES), library.encode_image(normalised(IMAGES)), rtol=0, atol=1e-6)
    assert model.text is not None
    tokens = torch.from_numpy(model.text.tokenize(["red apple"]))
    torch.testing.assert_close(model.text.module(tokens), library.encode_text(tokens), rtol=0, atol=1e-6)
    quick = {**config, "encoder": {**config["encoder"], "quick_gelu": True}}  # type: ignore[dict-item]
    assert (model_from_checkpoint(Checkpoint(quick, weights)).module(IMAGES) - model.module(IMAGES)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.weights["encoder"].pop("blocks.1.norm1.bias"), "encoder weights do not fit: Missing key"),
        (lambda c: c.weights["encoder"].update(extra=torch.zeros(1)), "encoder weights do not fit: Unexpected key"),
        (lambda c: c.weights["head"].update(weight=torch.zeros(2, 2)), "head weights do not fit: size mismatch"),
        (lambda c: c.weights.pop("text"), "weights have none"),
        (lambda c: c.weights.pop("head"), "weights have none"),
        (lambda c: c.config["encoder"].update(model_name="vit_nano"), "Unknown model"),
        (lambda c: c.config["encoder"].update(depht=3), "unexpected keyword argument 'depht'"),
        (lambda c: c.config.update(pooling="token"), "pooling 'token', its encoder pools by 'avg'"),
        (lambda c: c.config["text"].update(tokenizer="{}"), "tokenizer cannot be read"),
        (lambda c: c.config["text"]["tower"].update(vocab_size=9), "tokens, the text tower only 9"),
        (lambda c: c.config["head"].update(type="mlp"), "valid: projection, linear"),
    ],
)
def test_damaged_checkpoints_say_what_does_not_fit(change: Any, message: str) -> None:
    checkpoint = tiny_checkpoint()
    change(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        model_from_checkpoint(checkpoint, spec="runs/a/ckpt.pt")
    assert message in str(caught.value) and str(caught.value).startswith("runs/a/ckpt.pt: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_truncated_checkpoint_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    write_checkpoint(path, tiny_checkpoint())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="incomplete|damaged") as caught:
        load_model(str(path))
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_of_a_newer_version_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    write_checkpoint(path, tiny_checkpoint())
    document = torch.load(path, weights_only=True)
    newer = document["version"] + 1
    torch.save({**document, "version": newer, "of_the_future": {}}, path)
    with pytest.raises(CheckpointError, match=rf"version {newer}; .*Upgrade") as caught:
        load_model(str(path))
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


# ------------------------------------------------------------------------------------------- the authors' releases


def authors_state(width: int, depth: int, *, classes: int | None) -> OrderedDict[str, torch.Tensor]:
    """The names and shapes of a released file, as the golden step's metadata documents them; 96 px for speed."""
    torch.manual_seed(0)
    finetuned = classes is not None
    encoder = timm.create_model(
        "vit_base_patch16_224",
        img_size=96,
        embed_dim=width,
        depth=depth,
        num_heads=width // 64,
        num_classes=classes or 0,
        global_pool="avg",
        final_norm=finetuned,
        fc_norm=finetuned,
    )
    state = OrderedDict(encoder.state_dict())
    if not finetuned:
        for decoder in ("ar", "kd"):
            state[f"{decoder}_token"] = torch.zeros(1, 1, 64)
            state[f"{decoder}_enc_norm.0.weight"] = torch.ones(width)
            state[f"{decoder}_enc2dec.weight"] = torch.zeros(128, 4 * width)
            state[f"{decoder}_blocks.0.attn2.kv.weight"] = torch.zeros(128, 64)
            state[f"{decoder}_pred.bias"] = torch.zeros(1024)
        state["decoder_pos_embed"] = torch.zeros(1, 37, 64)
        state["mask"] = torch.zeros(28, 28)
    return state


@torch.inference_mode()
def test_authors_pretrained_file(tmp_path: Path) -> None:
    state = authors_state(192, 2, classes=None)
    path = tmp_path / "digpt_pretrain.pth"
    content = {
        "model": state,
        "epoch": 299,
        "args": argparse.Namespace(model="digpt", lr=1e-3),
        "scaler": {"scale": 1.0},
    }
    torch.save(content, path)
    model = load_model(str(path))
    reference = timm.create_model(**model.config["encoder"]).eval()
    reference.load_state_dict({k: v for k, v in state.items() if not k.startswith(("ar_", "kd_", "decoder", "mask"))})
    image = torch.randint(0, 256, (1, 96, 96, 3), dtype=torch.uint8)
    tokens = reference.forward_features(model.module.normalise(image))
    torch.testing.assert_close(model.module(image), tokens[:, 1:].mean(1), rtol=0, atol=1e-5)
    assert model.config["objective"] == {"paradigm": "digpt", "fidelity": "official"}
    assert not model.module.has_logits and model.preprocess.alpha == "drop"


@torch.inference_mode()
def test_authors_finetuned_file(tmp_path: Path) -> None:
    state = authors_state(192, 2, classes=1000)
    torch.save({"model": state, "args": argparse.Namespace()}, tmp_path / "finetuned.pth")
    model = load_model(str(tmp_path / "finetuned.pth"))
    reference = timm.create_model(**{**model.config["encoder"], "num_classes": 1000}).eval()
    reference.load_state_dict(state, strict=True)
    image = torch.randint(0, 256, (1, 96, 96, 3), dtype=torch.uint8)
    torch.testing.assert_close(model.module.logits(image), reference(model.module.normalise(image)), rtol=0, atol=1e-5)
    assert model.labels is not None and "tench" in model.labels[0]
    assert model.preprocess.crop_pct == 224 / 256


@pytest.mark.parametrize(
    ("width", "patch", "grid", "heads", "name"),
    [(768, 16, 14, 12, "vit_base_patch16_224"), (1024, 16, 14, 16, "vit_large_patch16_224"), (1024, 14, 16, 16, None)],
)
def test_authors_encoder_follows_from_the_shapes(
    width: int, patch: int, grid: int, heads: int, name: str | None, tmp_path: Path
) -> None:
    state = {
        "cls_token": torch.zeros(1, 1, width),
        "pos_embed": torch.zeros(1, grid * grid + 1, width),
        "patch_embed.proj.weight": torch.zeros(width, 3, patch, patch),
        **{f"blocks.{index}.attn.qkv.weight": torch.zeros(3, 1) for index in range(24)},
        "fc_norm.weight": torch.zeros(width),
    }
    config = authors_checkpoint(state, tmp_path / "a.pth").config["encoder"]
    expected = {"embed_dim": width, "depth": 24, "num_heads": heads, "img_size": patch * grid, "patch_size": patch}
    assert expected.items() <= config.items()
    assert (config["global_pool"], config["fc_norm"]) == ("avg", True)
    assert name is None or config["model_name"] == name


def test_authors_decoders_are_kept(tmp_path: Path) -> None:
    state = authors_state(192, 1, classes=None)
    checkpoint = authors_checkpoint({"model": state}, tmp_path / "a.pth")
    assert set(checkpoint.weights["decoders"]) == {
        name for name in state if name.startswith(("ar_", "kd_", "decoder_pos_embed", "mask"))
    }
    fingerprint = checkpoint.fingerprint
    checkpoint.weights["decoders"]["ar_token"] += 1
    assert checkpoint.fingerprint == fingerprint  # inference does not use them


class Payload:
    """What a hostile file would carry; unpickling it must be impossible."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("unpickled",))


def test_nothing_but_namespace_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": authors_state(192, 1, classes=None), "args": Payload()}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match="nothing else is unpickled"):
        load_model(str(tmp_path / "hostile.pth"))
    assert "unpickled" not in capsys.readouterr().out
    torch.save({"model": {"x": torch.zeros(1)}, "args": argparse.Namespace()}, tmp_path / "namespace.pt")
    with pytest.raises(CheckpointError, match="nothing else is unpickled"):
        load_model(str(tmp_path / "namespace.pt"))  # the allow-list holds for the authors' suffix alone


@pytest.mark.parametrize("content", [{"model": nn.Linear(2, 2).state_dict()}, [1, 2], {"state": 3}])
def test_foreign_pth_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="layout of the D-iGPT authors' checkpoints"):
        load_model(str(tmp_path / "other.pth"))


def test_our_checkpoint_may_be_named_pth(tmp_path: Path) -> None:
    fingerprint = write_checkpoint(tmp_path / "mine.pth", tiny_checkpoint())
    assert load_model(str(tmp_path / "mine.pth")).fingerprint == fingerprint
