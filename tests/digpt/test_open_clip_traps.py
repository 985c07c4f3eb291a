"""open_clip's silent traps, one test each: weights load, nothing complains, and the numbers would be wrong.

The names and tags are open_clip's real ones, with tiny towers behind them and seeded weights instead of a download.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.constants import INCEPTION_MEAN, INCEPTION_STD, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from digpt.runtime.torch import TorchRuntime
from digpt.sources import Model, load_model
from digpt.text import class_embeddings, fill, normalize
from digpt.text import template_set as templates_named

VISION: dict[str, Any] = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT: dict[str, Any] = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CLIP: dict[str, Any] = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
COCA: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
    "custom_text": True,
}
LABELS = ["cat", "dog", "house"]
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Save]:
    """``save(name, ...)`` puts a tiny tower behind a real name, and answers the path of its weights.

    A download of any of the name's tags then gives these weights.
    """
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))

    def prepare(name: str, config: dict[str, Any] = CLIP, logit_scale: float | None = None) -> Path:
        open_clip.factory._MODEL_CONFIGS[name] = copy.deepcopy(config)
        torch.manual_seed(0)
        model = open_clip.create_model(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
            if logit_scale is not None:
                model.logit_scale.fill_(math.log(logit_scale))
        path = tmp_path / f"{name}.pt"
        torch.save(model.state_dict(), path)
        monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *args, **kwargs: str(path))
        return path

    yield prepare


def images(model: Model, count: int = 3) -> torch.Tensor:
    side = model.preprocess.size
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


# ------------------------------------------------------------------------------- towers that also return their tokens


@torch.inference_mode()
def test_output_tokens_are_not_taken_for_the_embedding(save: Save) -> None:
    """A tower with ``output_tokens`` returns its pooled, projected vector AND unprojected tokens."""
    path = save("coca_ViT-B-32", COCA)
    library = open_clip.create_model("coca_ViT-B-32", pretrained=str(path)).eval()
    model = load_model(f"open_clip:coca_ViT-B-32/{path}")
    crops = images(model)
    pixels = model.module.normalise(crops)
    ours = model.module(crops)
    torch.testing.assert_close(ours, library.encode_image(pixels, normalize=False), rtol=0, atol=1e-6)
    pooled, tokens = library.visual(pixels)
    assert ours.shape == pooled.shape == (3, 24) and model.module.dim == 24
    assert (tokens.mean(1) - ours).abs().max() > 0.1  # what would have been taken instead
    unprojected = library.visual._pool(library.visual.transformer(library.visual._embeds(pixels)))[0]
    assert (unprojected - ours).abs().max() > 0.1


@torch.inference_mode()
def test_class_matrix_of_a_tower_with_output_tokens_is_open_clips(save: Save) -> None:
    path = save("coca_ViT-B-32", COCA)
    library = open_clip.create_model("coca_ViT-B-32", pretrained=str(path)).eval()
    engine = Engine(TorchRuntime(load_model(f"open_clip:coca_ViT-B-32/{path}")))
    tokenizer = open_clip.get_tokenizer("coca_ViT-B-32")
    expected = open_clip.build_zero_shot_classifier(library, tokenizer, LABELS, templates_named("simple")).T
    ours = engine.class_matrix(LABELS, templates_named("simple"))
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-6)
    assert np.abs(ours[0] - ours[1]).max() > 1e-3  # the classes differ by more than the tolerance


# --------------------------------------------------------------------------------------------------------- quick_gelu


@pytest.mark.filterwarnings("ignore:QuickGELU mismatch")
@torch.inference_mode()
def test_openai_weights_run_with_quick_gelu(save: Save) -> None:
    """open_clip builds ``ViT-B-32`` with GELU and only warns that the ``openai`` weights want another activation."""
    path = save("ViT-B-32")
    quick = open_clip.create_model("ViT-B-32", pretrained=str(path), force_quick_gelu=True).eval()
    model = load_model("open_clip:ViT-B-32/openai")
    crops = images(model)
    pixels = model.module.normalise(crops)
    torch.testing.assert_close(model.module(crops), quick.encode_image(pixels), rtol=0, atol=1e-6)
    tokens = open_clip.get_tokenizer("ViT-B-32")(LABELS)
    assert model.text is not None
    torch.testing.assert_close(model.text.module(tokens), quick.encode_text(tokens), rtol=0, atol=1e-6)
    assert model.config["encoder"]["quick_gelu"] is True
    silent = open_clip.create_model("ViT-B-32", pretrained="openai").eval()
    assert (silent.encode_image(pixels) - model.module(crops)).abs().max() > 1e-3


@torch.inference_mode()
def test_weights_trained_with_gelu_keep_it(save: Save) -> None:
    path = save("ViT-B-32")
    plain = open_clip.create_model("ViT-B-32", pretrained=str(path)).eval()
    for source in ("laion2b_s34b_b79k", str(path)):  # a file's activation is that of the architecture's name
        model = load_model(f"open_clip:ViT-B-32/{source}")
        crops = images(model)
        expected = plain.encode_image(model.module.normalise(crops))
        torch.testing.assert_close(model.module(crops), expected, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ mean and std


def test_a_tags_own_mean_and_std_are_used(save: Save) -> None:
    """Tags of one architecture differ: LAION-2B's L/14 was trained with Inception's statistics, others with CLIP's."""
    save("ViT-L-14")
    inception = load_model("open_clip:ViT-L-14/laion2b_s32b_b82k").preprocess
    assert (inception.mean, inception.std) == (INCEPTION_MEAN, INCEPTION_STD) == ((0.5,) * 3, (0.5,) * 3)
    clip = load_model("open_clip:ViT-L-14/laion400m_e32").preprocess
    assert (clip.mean, clip.std) == (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


@torch.inference_mode()
def test_the_tags_statistics_reach_the_pixels(save: Save) -> None:
    path = save("ViT-L-14")
    library = open_clip.create_model("ViT-L-14", pretrained=str(path)).eval()
    model = load_model("open_clip:ViT-L-14/laion2b_s32b_b82k")
    crops = images(model)
    half = crops.permute(0, 3, 1, 2) / 255 * 2 - 1
    torch.testing.assert_close(model.module(crops), library.encode_image(half), rtol=0, atol=1e-5)


def test_a_file_does_not_know_its_tag(save: Save) -> None:
    """Weights carry no statistics: open_clip takes CLIP's for every file, and so do we (``load_open_clip`` says so)."""
    path = save("ViT-L-14")
    ours = load_model(f"open_clip:ViT-L-14/{path}").preprocess
    library = open_clip.create_model("ViT-L-14", pretrained=str(path)).visual.preprocess_cfg
    assert (ours.mean, ours.std) == (tuple(library["mean"]), tuple(library["std"]))
    assert ours.mean == OPENAI_DATASET_MEAN


# -------------------------------------------------------------------------------------------------------- logit scale


@torch.inference_mode()
def test_scores_use_the_learned_logit_scale(save: Save) -> None:
    """100 is where CLIP's scale was clipped; with any other, probabilities (not answers) would be wrong."""
    path = save("ViT-B-32", logit_scale=7.5)
    library = open_clip.create_model("ViT-B-32", pretrained=str(path)).eval()
    model = load_model(f"open_clip:ViT-B-32/{path}")
    engine = Engine(TorchRuntime(model))
    assert engine.info.logit_scale == pytest.approx(7.5)
    crops = images(model)
    matrix = engine.class_matrix(LABELS, ["a photo of a {}."])
    tokens = open_clip.get_tokenizer("ViT-B-32")([fill("a photo of a {}.", label) for label in LABELS])
    logits, _ = library.get_logits(model.module.normalise(crops), tokens)
    scores = engine.scores(engine.embed_images(crops.numpy()), matrix)
    np.testing.assert_allclose(scores, logits.softmax(dim=-1).numpy(), rtol=0, atol=1e-6)
    hundred = (logits * (100 / 7.5)).softmax(dim=-1).numpy()
    assert np.abs(scores - hundred).max() > 1e-2


# ------------------------------------------------------------------------------------------------- prompt ensembling


# Class A has a loud prompt and a quiet one, class B two of equal length.
PROMPT_ROWS = {"loud A": [10, 0], "quiet A": [0, 1], "loud B": [0.8, 0.6], "quiet B": [0.8, 0.6]}


class TwoDirections(FakeRuntime):
    """Texts with embeddings of our choice."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([PROMPT_ROWS[text] for text in texts], np.float32)


@pytest.mark.parametrize("text_cache", [4096, 4])
def test_each_prompt_and_their_mean_are_normalised(text_cache: int) -> None:
    """The image lies exactly between A's prompts. Skip either normalisation, and B wins.

    Prompts too many for the engine's text cache take a way of their own.
    """
    engine = Engine(TwoDirections(dim=2), text_cache=text_cache)
    image = np.array([[1, 1]], np.float32) / np.float32(math.sqrt(2))
    matrix = engine.class_matrix(["A", "B"], ["loud {}", "quiet {}"])
    np.testing.assert_allclose(matrix, [[math.sqrt(0.5)] * 2, [0.8, 0.6]], rtol=0, atol=1e-6)
    assert (image @ matrix.T).argmax() == engine.scores(image, matrix).argmax() == 0

    prompts = np.array(list(PROMPT_ROWS.values()), np.float32).reshape(2, 2, 2)
    prompts_skipped = normalize(prompts.mean(axis=1))
    mean_skipped = normalize(prompts.reshape(4, 2)).reshape(2, 2, 2).mean(axis=1)
    assert (image @ prompts_skipped.T).argmax() == (image @ mean_skipped.T).argmax() == 1


@torch.inference_mode()
def test_prompt_ensembling_is_open_clips(save: Save) -> None:
    """All 80 templates, against ``open_clip.build_zero_shot_classifier``."""
    path = save("ViT-B-32")
    library = open_clip.create_model("ViT-B-32", pretrained=str(path)).eval()
    engine = Engine(TorchRuntime(load_model(f"open_clip:ViT-B-32/{path}")))
    templates = templates_named("openai")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    expected = open_clip.build_zero_shot_classifier(library, tokenizer, LABELS, templates).T.numpy()
    np.testing.assert_allclose(engine.class_matrix(LABELS, templates), expected, rtol=0, atol=1e-6)
    fewer = class_embeddings(engine.embed_texts, LABELS, templates[:7])
    assert np.abs(fewer - expected).max() > 1e-4
