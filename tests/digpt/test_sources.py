"""Specs: what loads, what each mistake says, and that library models give their library's own embeddings."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from digpt.artifact import write_checkpoint
from digpt.errors import CheckpointError, SpecError
from digpt.source_open_clip import needs_quick_gelu
from digpt.sources import Model, load_model, model_name
from digpt.testing import sample_images, tiny_checkpoint

SAMPLES = sample_images()
TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two more open_clip architectures, small enough for a test: with GELU and with QuickGELU."""
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    for name, extra in (("tiny-clip", {}), ("tiny-clip-quickgelu", {"quick_gelu": True})):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**TINY_CLIP, **extra}))
        open_clip.add_model_config(path)
    yield


def saved(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def shaken(model: Any, seed: int = 0) -> Any:
    """A freshly initialised model's biases and norms are trivial; noise makes every weight matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model.eval()


def pixels(model: Model, data: bytes) -> torch.Tensor:
    return torch.from_numpy(model.preprocess(data))[None]


# --------------------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_convnext", "test_efficientnet", "test_resnet"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@torch.inference_mode()
def test_timm_file_equals_timms_own_pipeline(name: str, suffix: str, tmp_path: Path) -> None:
    library = shaken(timm.create_model(name))
    path = saved(library.state_dict(), tmp_path / f"weights{suffix}")
    model = load_model(f"timm:{name}@{path}")
    transform = create_transform(**resolve_data_config({}, model=library))
    chosen = SAMPLES if suffix == ".pt" and name == "test_vit" else ["rgb_37x53", "grey_16bit", "palette_alpha"]
    for sample in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = transform(Image.open(io.BytesIO(SAMPLES[sample])).convert("RGB"))[None]
        features = library.forward_features(image)
        expected = library.forward_head(features, pre_logits=True)
        ours = model.module(pixels(model, SAMPLES[sample]))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        logits = model.module.logits(pixels(model, SAMPLES[sample]))
        torch.testing.assert_close(logits, library(image), rtol=0, atol=1e-5)
        patches = model.module.forward_patches(pixels(model, SAMPLES[sample]))
        mean = features.mean(dim=(2, 3)) if features.ndim == 4 else features[:, library.num_prefix_tokens :].mean(1)
        torch.testing.assert_close(patches.mean(1), mean, rtol=0, atol=1e-5)
    assert model.labels is not None and len(model.labels) == 1000 and "goldfish" in model.labels[1]
    assert model.module.dim == ours.shape[1] and model.text is None


@torch.inference_mode()
def test_timm_encoder_loads_strictly_from_its_config(tmp_path: Path) -> None:
    library = shaken(timm.create_model("test_vit"))
    model = load_model(f"timm:test_vit@{saved(library.state_dict(), tmp_path / 'w.pt')}")
    again = timm.create_model(**model.config["encoder"]).eval()
    again.load_state_dict(model.module.encoder.state_dict(), strict=True)
    image = torch.rand(1, 3, 160, 160)
    torch.testing.assert_close(again(image), library(image), rtol=0, atol=0)


@torch.inference_mode()
def test_timm_file_decides_classes_and_input_size(tmp_path: Path) -> None:
    library = shaken(timm.create_model("test_vit", num_classes=7, img_size=96))
    model = load_model(f"timm:test_vit@{saved(library.state_dict(), tmp_path / 'w.pt')}")
    assert model.preprocess.size == 96 and model.labels is None
    assert model.config["encoder"] == {"model_name": "test_vit", "num_classes": 7, "img_size": 96}
    image = pixels(model, SAMPLES["jpeg"])
    torch.testing.assert_close(model.module.logits(image), library(model.module.normalise(image)), rtol=0, atol=1e-6)
    headless = shaken(timm.create_model("test_vit", num_classes=0))
    assert not load_model(f"timm:test_vit@{saved(headless.state_dict(), tmp_path / 'h.pt')}").module.has_logits


@torch.inference_mode()
def test_timm_image_size_resamples_positions_as_timm_does(tmp_path: Path) -> None:
    library = shaken(timm.create_model("test_vit"))
    path = saved(library.state_dict(), tmp_path / "w.pt")
    model = load_model(f"timm:test_vit@{path}", image_size=96)
    resized = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, img_size=96)
    image = pixels(model, SAMPLES["jpeg"])
    assert image.shape == (1, 96, 96, 3)
    torch.testing.assert_close(model.module.logits(image), resized.eval()(model.module.normalise(image)))
    assert load_model(f"timm:test_vit@{path}").fingerprint != model.fingerprint
    convolutional = saved(shaken(timm.create_model("test_resnet")).state_dict(), tmp_path / "c.pt")
    assert load_model(f"timm:test_resnet@{convolutional}", image_size=96).preprocess.size == 96


def test_timm_fingerprint_ignores_the_container(tmp_path: Path) -> None:
    state = shaken(timm.create_model("test_vit")).state_dict()
    first = load_model(f"timm:test_vit@{saved(state, tmp_path / 'a.pt')}")
    second = load_model(f"timm:test_vit@{saved(state, tmp_path / 'b.safetensors')}")
    assert first.fingerprint == second.fingerprint
    state["norm.bias"] = state["norm.bias"] + 1e-6
    assert load_model(f"timm:test_vit@{saved(state, tmp_path / 'c.pt')}").fingerprint != first.fingerprint


# ---------------------------------------------------------------------------------------------------- open_clip


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-clip-quickgelu"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@torch.inference_mode()
def test_open_clip_file_equals_open_clips_own_pipeline(name: str, suffix: str, tmp_path: Path, tiny_clip: None) -> None:
    library, _, transform = open_clip.create_model_and_transforms(name)
    path = saved(shaken(library).state_dict(), tmp_path / f"weights{suffix}")
    model = load_model(f"open_clip:{name}/{path}")
    chosen = SAMPLES if suffix == ".pt" and name == "tiny-clip" else ["rgb_37x53", "grey_16bit", "palette_alpha"]
    for sample in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = transform(Image.open(io.BytesIO(SAMPLES[sample])))[None]
        ours = model.module(pixels(model, SAMPLES[sample]))
        torch.testing.assert_close(ours, library.encode_image(image), rtol=0, atol=1e-5)
    assert model.text is not None
    texts = ["a red apple", "", "a text that is far longer than twelve tokens can ever hold, by a lot"]
    tokens = open_clip.get_tokenizer(name)(texts)
    np.testing.assert_array_equal(model.text.tokenize(texts), tokens.numpy())
    torch.testing.assert_close(model.text.module(tokens), library.encode_text(tokens), rtol=0, atol=1e-6)
    assert model.logit_scale == pytest.approx(library.logit_scale.exp().item())
    assert model.logit_bias is None and model.module.dim == 24 and model.templates == ("a photo of a {}.",)
    assert model.module.forward_patches(pixels(model, SAMPLES["jpeg"])).shape == (1, 16, 32)


@torch.inference_mode()
def test_quick_gelu_follows_the_name(tmp_path: Path, tiny_clip: None) -> None:
    path = saved(shaken(open_clip.create_model("tiny-clip")).state_dict(), tmp_path / "w.pt")
    gelu, quick = (load_model(f"open_clip:{name}/{path}") for name in ("tiny-clip", "tiny-clip-quickgelu"))
    image = pixels(gelu, SAMPLES["jpeg"])
    assert (gelu.module(image) - quick.module(image)).abs().max() > 1e-4
    assert gelu.fingerprint != quick.fingerprint


def test_open_clip_patch_tokens_are_the_towers_own(tmp_path: Path, tiny_clip: None) -> None:
    library = shaken(open_clip.create_model("tiny-clip"))
    model = load_model(f"open_clip:tiny-clip/{saved(library.state_dict(), tmp_path / 'w.pt')}")
    image = pixels(model, SAMPLES["jpeg"])
    seen: list[torch.Tensor] = []
    hook = library.visual.ln_post.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        library.encode_image(model.module.normalise(image))
        hook.remove()
        torch.testing.assert_close(model.module.forward_patches(image), seen[0][:, 1:], rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bundeld", "Unknown model 'bundeld'. Did you mean 'bundled'"),
        ("no/such/directory", "A model is one of: bundled"),
        ("timm:vit_tinny_patch16_224", "Did you mean 'vit_tiny_patch16_224'"),
        ("timm:vit_tiny_patch16_224.augreg_in21kk", "Did you mean 'augreg_in21k"),
        ("timm:", "timm has no model ''"),
        ("open_clip:ViT-B32/openai", "Did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32", "add /TAG or /FILE. Tags of ViT-B-32: openai"),
        ("open_clip:ViT-B-32/openia", "neither a file nor pretrained weights of ViT-B-32. Did you mean 'openai'"),
        ("http://localhost:8000", "running server"),
    ],
)
def test_unknown_specs_name_near_misses(spec: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_model(spec)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 or "List them with" in str(caught.value)


def test_missing_files(tmp_path: Path, tiny_clip: None) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    for spec in (f"timm:test_vit@{tmp_path}/wieghts.pt", f"{tmp_path}/wieghts.pt"):
        with pytest.raises(CheckpointError, match=r"No such file.*Did you mean 'weights\.pt'"):
            load_model(spec)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_half_written_and_foreign_weight_files(suffix: str, tmp_path: Path, tiny_clip: None) -> None:
    library = {
        "timm:test_vit@": timm.create_model("test_vit"),
        "open_clip:tiny-clip/": open_clip.create_model("tiny-clip"),
    }
    for prefix, model in library.items():
        path = saved(model.state_dict(), tmp_path / f"whole{suffix}")
        content = path.read_bytes()
        for name, damaged in (("half", content[: len(content) // 2]), ("empty", b""), ("text", b"not weights at all")):
            broken = tmp_path / f"{name}{suffix}"
            broken.write_bytes(damaged)
            with pytest.raises(CheckpointError, match="cannot be read as weights") as caught:
                load_model(f"{prefix}{broken}")
            assert len(str(caught.value).splitlines()) == 1


def test_weights_of_another_architecture(tmp_path: Path, tiny_clip: None) -> None:
    path = saved(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pt")
    with pytest.raises(CheckpointError, match=r"does not hold the weights of test_vit: .*key"):
        load_model(f"timm:test_vit@{path}")
    with pytest.raises(CheckpointError, match=r"does not hold the weights of tiny-clip: .*key"):
        load_model(f"open_clip:tiny-clip/{path}")


def test_our_checkpoint_given_to_a_library(tmp_path: Path, tiny_clip: None) -> None:
    path = tmp_path / "ckpt.pt"
    write_checkpoint(path, tiny_checkpoint())
    for spec in (f"timm:test_vit@{path}", f"open_clip:tiny-clip/{path}"):
        with pytest.raises(CheckpointError, match="is a digpt checkpoint: give its path alone"):
            load_model(spec)


def test_without_a_network_the_local_form_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries' real download runs; the hub's client is told to stay offline and has nothing cached."""

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no route to the hub\nsecond line")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", offline)
    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", offline)
    with pytest.raises(SpecError, match=r"could not be downloaded\..*use timm:test_vit@FILE\. \(.*no route"):
        load_model("timm:test_vit")
    with pytest.raises(SpecError, match=r"could not be downloaded\..*use open_clip:ViT-B-32/FILE\. \("):
        load_model("open_clip:ViT-B-32/laion2b_s34b_b79k")


def test_checkpoints_take_another_size(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ckpt.pt", tiny_checkpoint())
    assert load_model(str(tmp_path / "ckpt.pt"), image_size=64).preprocess.size == 64


def test_artifact_directory_is_a_runtime(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(SpecError, match="exported artifact"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("bundled", "emoji-tiny"),
        ("bundled-teacher", "emoji-tiny-teacher"),
        ("bundled-early-teacher", "emoji-tiny-early-teacher"),
        ("runs/first/ckpt.pt", "first"),
        ("runs/first/teacher.pt", "teacher"),
        ("timm:test_vit@a/b.pt", "test_vit"),
        ("open_clip:ViT-B-32/a/b.pt", "ViT-B-32"),
    ],
)
def test_model_name(spec: str, name: str) -> None:
    assert model_name(spec) == name


def test_openai_weights_get_quick_gelu_under_every_name() -> None:
    """open_clip only warns here, and the embeddings would be silently wrong."""
    assert needs_quick_gelu("ViT-B-16", "openai") and needs_quick_gelu("ViT-L-14", "openai")
    assert not needs_quick_gelu("ViT-B-16", "laion2b_s34b_b88k")
    assert not needs_quick_gelu("ViT-B-16", "weights.pt")


def test_the_tags_activation_reaches_the_towers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_clip: None
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(open_clip.create_model("tiny-clip").state_dict(), path)
    quick = load_model(f"open_clip:tiny-clip-quickgelu/{path}")
    monkeypatch.setattr("digpt.source_open_clip.needs_quick_gelu", lambda name, tag: True)
    forced = load_model(f"open_clip:tiny-clip/{path}")
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    torch.testing.assert_close(forced.module(image), quick.module(image))
    assert forced.config["encoder"]["quick_gelu"] is True
