"""A segmenter in a checkpoint: the round trip, the layout, the fingerprint, and what cannot be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from digpt.artifact import Checkpoint, read_checkpoint, write_checkpoint
from digpt.encoder import encoder_config
from digpt.errors import CheckpointError
from digpt.preprocess import Preprocess
from digpt.segmentation import (
    SegmentConfig,
    Segmenter,
    build_segmenter,
    segment_encoder,
    segmenter_config,
    segmenter_weights,
)
from digpt.testing import tiny_checkpoint

CLASSES = ("background", "cat", "dog")
MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.2)


def small_segmenter(seed: int = 0, **changes: Any) -> tuple[Segmenter, dict[str, Any]]:
    """Patch 16, crops of 64 pixels, width 24, 4 blocks; random weights."""
    torch.manual_seed(seed)
    start = encoder_config("Ti/16", 32, embed_dim=24, depth=4, num_heads=2)
    config, weights = segment_encoder(start, timm.create_model(**start).state_dict(), 64)
    encoder = timm.create_model(**config)
    assert isinstance(encoder, VisionTransformer)
    encoder.load_state_dict(weights, strict=True)
    segment = SegmentConfig.for_encoder(config, CLASSES, **{"crop": 64, "channels": 16, "aux_channels": 8, **changes})
    return Segmenter(encoder, segment, MEAN, STD), config


def pictures(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def checkpoint_of(segmenter: Segmenter, config: dict[str, Any]) -> Checkpoint:
    preprocess = Preprocess(size=32, mean=MEAN, std=STD)
    return Checkpoint(
        segmenter_config(config, segmenter.config, preprocess), segmenter_weights(segmenter.state_dict()), {"seed": 0}
    )


@pytest.mark.parametrize("aux_channels", [8, 0])
def test_the_round_trip_keeps_every_answer(tmp_path: Path, aux_channels: int) -> None:
    segmenter, config = small_segmenter(aux_channels=aux_channels)
    segmenter(torch.rand(2, 3, 64, 64))  # in training mode: batch norm has statistics of its own
    segmenter.eval()
    written = write_checkpoint(tmp_path / "ckpt.pt", checkpoint_of(segmenter, config))
    loaded = read_checkpoint(tmp_path / "ckpt.pt")
    assert loaded.fingerprint == written
    found = build_segmenter(loaded.config, loaded.weights)
    assert found.config == segmenter.config and not found.training
    images = pictures(2, 70, 51)
    assert torch.equal(found.pixel_logits(images), segmenter.pixel_logits(images))
    state = segmenter.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())
    assert state["upernet.fuse.1.num_batches_tracked"] == 1


def test_the_layout_of_the_checkpoint(tmp_path: Path) -> None:
    segmenter, config = small_segmenter()
    write_checkpoint(tmp_path / "ckpt.pt", checkpoint_of(segmenter, config))
    document = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    assert document["config"]["head"] == {
        "type": "upernet", "blocks": [0, 1, 2, 3], "channels": 16, "crop": 64, "dropout": 0.1, "aux_channels": 8,
        "reduce_zero": False,
    }  # fmt: skip
    assert document["config"]["labels"] == list(CLASSES)
    assert document["config"]["preprocess"]["size"] == 64 and document["config"]["preprocess"]["mean"] == list(MEAN)
    assert document["weights"].keys() == {"encoder", "head"}
    assert {name.partition(".")[0] for name in document["weights"]["head"]} == {"pyramid", "upernet", "fcn"}
    timm.create_model(**document["config"]["encoder"]).load_state_dict(document["weights"]["encoder"], strict=True)


def test_what_changes_answers_changes_the_fingerprint() -> None:
    first = checkpoint_of(*small_segmenter())
    assert first.fingerprint == checkpoint_of(*small_segmenter()).fingerprint
    assert first.fingerprint != checkpoint_of(*small_segmenter(blocks=(0, 1, 1, 3))).fingerprint
    assert first.fingerprint != checkpoint_of(*small_segmenter(seed=1)).fingerprint


def test_synchronised_batch_norm_has_the_same_weights() -> None:
    segmenter, config = small_segmenter()
    expected = segmenter.eval().pixel_logits(pictures(1, 64, 64))
    converted: Any = nn.SyncBatchNorm.convert_sync_batchnorm(segmenter)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    checkpoint = checkpoint_of(converted, config)
    found = build_segmenter(checkpoint.config, checkpoint.weights).pixel_logits(pictures(1, 64, 64))
    assert torch.equal(found, expected)


def test_half_precision_storage_keeps_the_answers_close(tmp_path: Path) -> None:
    segmenter, config = small_segmenter()
    write_checkpoint(tmp_path / "ckpt.pt", checkpoint_of(segmenter.eval(), config), dtype="float16")
    loaded = read_checkpoint(tmp_path / "ckpt.pt")
    images = pictures(1, 64, 64)
    found = build_segmenter(loaded.config, loaded.weights).pixel_logits(images)
    torch.testing.assert_close(found, segmenter.pixel_logits(images), rtol=0, atol=2e-3)


def test_checkpoints_that_cannot_segment() -> None:
    with pytest.raises(CheckpointError, match="no segmentation head"):
        plain = tiny_checkpoint(text=False, head="linear")
        build_segmenter(plain.config, plain.weights)
    good = checkpoint_of(*small_segmenter())

    def broken(**head: Any) -> dict[str, Any]:
        return {**good.config, "head": {**good.config["head"], **head}}

    with pytest.raises(CheckpointError, match="'chanels'.*Did you mean 'channels'"):
        build_segmenter(broken(chanels=3), good.weights)
    with pytest.raises(CheckpointError, match="beyond the encoder's last block, 3"):
        build_segmenter(broken(blocks=[0, 1, 2, 4]), good.weights)
    with pytest.raises(CheckpointError, match="segmentation head weights do not fit"):
        build_segmenter(broken(channels=17), good.weights)
    with pytest.raises(CheckpointError, match="1 to 255 classes"):
        build_segmenter({**good.config, "labels": None}, good.weights)
    without = {name: value for name, value in good.config["head"].items() if name != "channels"}
    with pytest.raises(CheckpointError, match="cannot be built"):
        build_segmenter({**good.config, "head": without}, good.weights)
    with pytest.raises(CheckpointError, match="segmentation head weights do not fit"):
        build_segmenter(good.config, {"encoder": good.weights["encoder"]})
