"""The inference model's graph: what happens to pixels before the encoder, and the text tower's names."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import nn

from digpt.model import InferenceModel, load_strict
from digpt.sources import model_from_checkpoint
from digpt.testing import tiny_checkpoint
from digpt.text import TextTower

TOWER = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1, "output_dim": 12}


class Probe(nn.Module):
    """Stands in for an open_clip tower; returns the channel means of what reaches it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def test_pixels_are_normalised_inside_the_graph() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    model = InferenceModel(Probe(), mean, std, dim=3)
    images = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    images[0, ..., 0], images[0, ..., 1], images[0, ..., 2] = 255, 51, 0
    expected = [[(1.0 - 0.1) / 0.5, (0.2 - 0.2) / 0.25, (0 - 0.3) / 0.125], [-0.2, -0.8, -2.4]]
    torch.testing.assert_close(model(images), torch.tensor(expected))
    torch.testing.assert_close(model.embed(model.normalise_float(images.permute(0, 3, 1, 2) / 255)), model(images))


def test_statistics_are_buffers_that_no_checkpoint_stores() -> None:
    model = InferenceModel(Probe(), (0.5,) * 3, (0.5,) * 3, dim=3)
    assert model.state_dict() == {} and dict(model.named_buffers()).keys() == {"mean", "std"}
    assert model.half()(torch.zeros(1, 2, 2, 3, dtype=torch.uint8)).dtype == torch.float32


@torch.inference_mode()
def test_embedding_is_not_normalised_and_batch_independent() -> None:
    model = model_from_checkpoint(tiny_checkpoint()).module
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    together = model(images)
    assert not torch.allclose(together.norm(dim=1), torch.ones(5), atol=0.05)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), together, rtol=0, atol=1e-5)
    assert not model.training


@torch.inference_mode()
def test_patch_tokens_are_in_raster_order() -> None:
    """Changing the pixels of one patch changes its own token most, at the index raster order gives it."""
    model = model_from_checkpoint(tiny_checkpoint(encoder={"final_norm": False, "fc_norm": False})).module
    images = torch.full((1, 32, 32, 3), 128, dtype=torch.uint8)
    changed = images.clone()
    changed[:, 8:16, 24:32] = torch.randint(0, 256, (1, 8, 8, 3), dtype=torch.uint8)  # row 1, column 3 of 4 x 4
    difference = (model.forward_patches(changed) - model.forward_patches(images)).norm(dim=2)[0]
    assert difference.shape == (16,) and difference.argmax() == 1 * 4 + 3


@torch.inference_mode()
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_text_tower_has_open_clips_names_and_numbers(quick_gelu: bool) -> None:
    tower = TextTower(**TOWER, quick_gelu=quick_gelu).eval()
    text = {key: value for key, value in TOWER.items() if key != "output_dim"}
    vision = {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    library = open_clip.CustomTextCLIP(12, vision, text, quick_gelu=quick_gelu).eval()
    library.text.load_state_dict(tower.state_dict(), strict=True)
    tokens = torch.tensor([[18, 3, 4, 19, 0, 0, 0, 0], [18, 19, 0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(tower(tokens), library.encode_text(tokens), rtol=0, atol=0)
    assert tower(tokens).shape == (2, 12)


def test_load_strict_speaks_in_one_line() -> None:
    from digpt.errors import CheckpointError

    with pytest.raises(CheckpointError, match=r"^The head weights do not fit: .*\(and 1 more\)$"):
        load_strict(nn.Linear(2, 2), {"weight": torch.zeros(3, 3), "bias": torch.zeros(5)}, "head")
