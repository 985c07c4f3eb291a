"""What a segmenter costs, against closed formulas; and how its training is planned and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from digpt.encoder import encoder_config
from digpt.segmentation import SegmentConfig
from train.cost import Cost
from train.plan import count, document_of, main
from train.plan_inputs import images_in
from train.segment import SegmentTask, SegmentTrainConfig
from train.segment_cost import segment_cost

BARE = {"num_classes": 0, "global_pool": "avg", "final_norm": False, "fc_norm": False, "dynamic_img_size": True}


def cost_of(variant: str, crop: int, classes: int, precision: str = "bf16", **changes: Any) -> Cost:
    depth = {"depth": changes.pop("depth")} if "depth" in changes else {}
    encoder = {**encoder_config(variant, crop, **depth), **BARE}
    names = tuple(str(number) for number in range(classes))
    return segment_cost(encoder, SegmentConfig.for_encoder(encoder, names, crop=crop, **changes), precision)


def multiply_adds(width: int, channels: int, grid: int, classes: int, aux: int) -> int:
    """Of pyramid and heads: levels of 4, 2, 1 and 1/2 times the grid, each doubling with 4 weights per input cell."""
    cells = [(4 * grid) ** 2, (2 * grid) ** 2, grid**2, (grid // 2) ** 2]
    pyramid = 4 * width**2 * (grid**2 + (2 * grid) ** 2 + grid**2)
    pooling = (1 + 4 + 9 + 36) * width * channels + cells[3] * 9 * (width + 4 * channels) * channels
    network = sum(cells[:3]) * (width * channels + 9 * channels**2) + cells[0] * 9 * 4 * channels * channels
    auxiliary = grid**2 * (9 * width * aux + aux * classes)
    return pyramid + pooling + network + cells[0] * channels * classes + auxiliary


@pytest.mark.parametrize(
    ("variant", "width", "depth", "published"), [("B/16", 768, 12, 164e6), ("L/16", 1024, 24, 441e6)]
)
def test_upernet_on_ade20k_costs_what_the_formula_says(variant: str, width: int, depth: int, published: float) -> None:
    """Published, rounded: parameters of UperNet on MAE-B (164 M) and BEiT-L (441 M, with relative positions)."""
    cost = cost_of(variant, 512, 150)
    tokens = 32 * 32 + 1
    blocks = depth * (24 * tokens * width**2 + 4 * tokens**2 * width)
    assert cost.encoder == 3 * (blocks + 2 * 32 * 32 * 3 * 16**2 * width)
    assert cost.decoders == 3 * 2 * multiply_adds(width, width, 32, 150, 256)
    assert cost.recomputed == blocks
    assert (cost.teacher, cost.frozen, cost.fixed) == (0, 0, 0)
    assert cost.trainable == pytest.approx(published, rel=0.01)


def test_the_losses_keep_the_logits_of_every_pixel_for_both_heads() -> None:
    """float32, whatever the precision; and of a further block what it keeps."""
    for precision in ("fp32", "bf16"):
        few, more = (cost_of("Ti/16", 64, classes, precision, depth=2, channels=8) for classes in (5, 6))
        assert more.activations - few.activations == 2 * 64 * 64 * 4
        alone = [cost_of("Ti/16", 64, classes, precision, depth=2, channels=8, aux_channels=0) for classes in (5, 6)]
        assert alone[1].activations - alone[0].activations == 64 * 64 * 4
    whole, half = (cost_of("Ti/16", 64, 5, precision, depth=2) for precision in ("fp32", "bf16"))
    assert 0.5 < half.activations / whole.activations < 0.8  # convolutions run in bfloat16
    assert half.checkpointed < half.activations and half.total == whole.total
    four, five = (cost_of("Ti/16", 64, 5, "fp32", depth=depth) for depth in (4, 5))  # four maps read of each
    assert five.activations - four.activations == pytest.approx(four.block_activations, rel=0.01)


def test_a_task_counts_its_own_segmenter() -> None:
    config = SegmentTrainConfig(encoder="random", depth=2, crop=32, channels=16, aux_channels=8, scene_classes=4)
    task = SegmentTask(config)
    encoder = 2 * (24 * 5 * 192**2 + 4 * 5**2 * 192) + 2 * 4 * 3 * 16**2 * 192
    assert task.flops_per_image() == 3 * (encoder + 2 * multiply_adds(192, 16, 2, 4, 8))


# ------------------------------------------------------------------------------------------------------------ the plan


def planned(line: str) -> dict[str, Any]:
    document, _ = document_of(line.split())
    (one,) = document["plans"]
    return dict(one)


def test_sizes_of_masks(tmp_path: Path) -> None:
    def size(given: int | None = None, **changes: Any) -> int | None:
        return images_in("b16_in1k", "segment", SegmentTrainConfig(**changes), given)

    assert size(data="ade20k:missing") == 20_210 and size(data="ade20k:missing", limit=100) == 100
    assert size() == 4000 and size(scenes=50, limit=7) == 7
    assert size(data="masks:missing") is None and size(5, data="masks:missing") == 5
    for number in range(3):
        for folder, mode in (("images", "RGB"), ("masks", "L")):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new(mode, (8, 8)).save(tmp_path / folder / f"{number}.png")
    Image.fromarray(np.full((8, 8), 6, np.uint8)).save(tmp_path / "masks" / "1.png")
    assert size(data=f"masks:{tmp_path}") == 3 and size(data=f"masks:{tmp_path}", limit=2) == 2
    listed, _, notes = count("segment", SegmentTrainConfig(encoder="random", data=f"masks:{tmp_path}"))
    assert notes == []
    assumed, _, notes = count("segment", SegmentTrainConfig(encoder="random", data="masks:missing"))
    assert "counted with ADE20K's 150 classes: masks:missing is not listed here" in notes[0]
    cells, per_class = 32 * 32 * 192 + 8 * 8 * 256, 3 * 2  # the classifiers' inputs at 128 px
    assert assumed.decoders - listed.decoders == per_class * (150 - 7) * cells


def test_segmentation_is_planned_from_the_checkpoint_or_the_named_shape() -> None:
    one = planned("b16_in1k segment --gpus 4 --gpu a100")
    assert one["data"] == {"name": "ade20k:data/ADEChallengeData2016", "images": 20_210, "bytes": None}
    assert (one["steps"], one["images"], one["micro_batch"]) == (160_000, 2_560_000, 4)
    assert any(
        "ade20k:data/ADEChallengeData2016 is not listed here: 20,210 images, by ADE20K" in n for n in one["notes"]
    )
    assert any("b16_in1k/pretrain/ckpt.pt is not there yet: taken to be a B/16" in note for note in one["notes"])
    total = one["flops_per_image"]["total"]
    assert one["time"]["device_hours"] == pytest.approx(2_560_000 * total / (0.4 * 312e12) / 3600)
    bundled = planned("emoji segment --encoder bundled --crop 64 --gpus 1")
    assert bundled["notes"] == [] and bundled["data"]["images"] == 4000
    deeper = planned("emoji segment --encoder random --depth 7 --crop 64 --gpus 1")
    assert deeper["parameters"]["encoder"] - bundled["parameters"]["encoder"] == 12 * 192**2 + 13 * 192


def test_micro_batches_of_a_plan_keep_two_crops_for_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that nothing fits in; one crop at a time would be refused by the command itself."""
    asked: list[int | None] = []

    def smallest(cost: Cost, config: Any, gpus: int, room: float, checkpointing: bool, most: int | None = None) -> None:
        asked.append(most)

    monkeypatch.setattr("train.plan.smallest_accumulate", smallest)
    planned("emoji segment --encoder random --gpus 1 --batch-size 6")
    assert asked == [3, 3]


def test_a_measured_plan_times_the_segmenter_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.measure.measured_peak", lambda device, dtype: 20e9)
    options = "--encoder random --depth 2 --crop 32 --channels 8 --aux-channels 8 --batch-size 1 --device cpu"
    assert main(f"emoji segment --measured --gpus 1 {options}".split()) == 2  # no batch of one crop
    options = options.replace("--batch-size 1", "--batch-size 2") + " --threads 1"
    one = planned(f"emoji segment --measured --gpus 1 {options}")
    assert (one["time"]["device"], one["time"]["peak_flops"]) == ("CPU, 1 threads", 20e9)
    rate = one["time"]["utilisation"] * 20e9 / one["flops_per_image"]["total"]
    assert one["time"]["images_per_second"] == pytest.approx(rate) and 1 < rate < 20_000
