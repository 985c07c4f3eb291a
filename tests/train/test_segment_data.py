"""Segmentation on files: ADE20K's layout with the recipe for it, and one's own masks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from digpt.artifact import read_checkpoint
from digpt.data.ade20k import ADE20K_CLASSES, open_masks
from digpt.errors import DataError
from digpt.segment_inference import SegmentInference, predict
from digpt.segment_metrics import Scores, confusion
from digpt.segmentation import build_segmenter
from train import segment
from train.config import load_recipe
from train.segment import SegmentTask, SegmentTrainConfig

ROUNDED = 5.1e-5  # figures in a checkpoint have four places
SIZES = ((70, 90), (64, 64), (97, 61), (50, 130))  # none but one a multiple of the patch
SMALL: dict[str, Any] = {
    "encoder": "random", "variant": "Ti/16", "depth": 2, "channels": 8, "aux_channels": 8, "crop": 64,
    "scale": (256, 64), "steps": 3, "warmup": 0, "batch_size": 4, "precision": "fp32", "compile": "", "threads": 1,
    "workers": 0, "log_every": 1, "save_every": 1, "eval_every": 100, "keep_last": 0,
}  # fmt: skip


def write_pairs(images: Path, masks: Path, value: Callable[[NDArray[np.int64]], NDArray[np.uint8]]) -> None:
    """Four JPEG files and PNG masks of different sizes: bands of 0, 1, 2 and 3, passed through ``value``."""
    draws = np.random.default_rng(0)
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for number, (height, width) in enumerate(SIZES):
        pixels = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
        bands = (np.arange(width) * 4 // width)[None].repeat(height, axis=0)
        Image.fromarray(pixels).save(images / f"{number}.jpg", quality=90)
        Image.fromarray(value(bands)).save(masks / f"{number}.png")


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    """Masks of 0 (no class), 1 (the first class, twice as often) and 150 (the last one)."""
    root = tmp_path / "ADEChallengeData2016"
    values = np.array([0, 1, 1, 150], dtype=np.uint8)
    for split in ("training", "validation"):
        write_pairs(root / "images" / split, root / "annotations" / split, lambda bands: values[bands])
    return tmp_path


def test_the_recipe_trains_resumes_and_is_evaluated_on_ade20ks_layout(
    ade20k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"ade20k:{ade20k}"
    recipe = load_recipe("b16_in1k", "segment")
    config = dataclasses.replace(recipe, **SMALL, lr=0.05, data=spec, output=tmp_path / "run")
    steps: list[int] = []

    def killed(task: SegmentTask) -> None:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SegmentTask, "after_step", killed)
        with pytest.raises(KeyboardInterrupt):
            segment.run(config)
    path = segment.run(config)
    assert f"next: python -m evaluate.segmentation {path} --data {spec}" in capsys.readouterr().out
    rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert all(row["loss"] == pytest.approx(row["main_loss"] + 0.4 * row["aux_loss"]) for row in rows if "loss" in row)

    checkpoint = read_checkpoint(path)
    assert checkpoint.config["labels"] == list(ADE20K_CLASSES)
    # only the biases of classes that masks show have risen: the file's 1 trains class 0, its 150 class 149
    for head in ("upernet", "fcn"):
        bias = checkpoint.weights["head"][f"{head}.classifier.bias"]
        assert (bias > 0).nonzero().flatten().tolist() == [0, 149], head

    segmenter, inference = build_segmenter(checkpoint.config, checkpoint.weights), config.inference_config()
    assert inference == SegmentInference("slide", crop=64, stride=43, scale=(256, 64))
    source, total = open_masks(spec, "val"), np.zeros((150, 150), dtype=np.int64)
    for number in range(4):
        image, label = source.pixels(number)
        assert label.shape == SIZES[number]
        total += confusion(predict(segmenter, image, inference, SIZES[number]), label, 150)
    counted = sum(height * width - height * int((np.arange(width) * 4 // width == 0).sum()) for height, width in SIZES)
    assert total.sum() == counted  # pixels of the file's 0 count nowhere
    scores = Scores.of(total)
    figures = {"val_miou": scores.miou, "val_macc": scores.macc, "val_aacc": scores.aacc}
    assert checkpoint.provenance["figures"] == pytest.approx(figures, abs=ROUNDED)


def own(root: Path, *splits: str, values: tuple[int, int, int, int] = (0, 1, 2, 255)) -> Path:
    table = np.array(values, dtype=np.uint8)
    for split in splits or ("",):
        write_pairs(root / "images" / split, root / "masks" / split, lambda bands: table[bands])
    return root


def test_own_masks_are_evaluated_where_val_data_says(tmp_path: Path) -> None:
    root, elsewhere = own(tmp_path / "train", "train"), own(tmp_path / "val", values=(0, 0, 0, 1))
    (root / "classes.txt").write_text("sky\nsea\nsand\n")
    config = SegmentTrainConfig(
        **SMALL, data=f"masks:{root}", val_data=f"masks:{elsewhere}", inference="whole", output=tmp_path / "run"
    )
    path = segment.run(config)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config["labels"] == ["sky", "sea", "sand"]
    assert set(checkpoint.provenance["figures"]) == {"val_miou", "val_macc", "val_aacc"}
    segmenter = build_segmenter(checkpoint.config, checkpoint.weights)
    source, right = open_masks(f"masks:{elsewhere}", "val", classes=("sky", "sea", "sand"), whole=True), 0
    for number in range(4):
        image, label = source.pixels(number)
        right += (predict(segmenter, image, SegmentInference("whole", scale=(256, 64)), label.shape) == label).sum()
    pixels = sum(height * width for height, width in SIZES)
    assert checkpoint.provenance["figures"]["val_aacc"] == pytest.approx(right / pixels, abs=ROUNDED)
    with pytest.raises(DataError, match="no split val"):
        SegmentTask(dataclasses.replace(config, val_data=""))


def test_masks_without_a_label_are_one_sentence(tmp_path: Path) -> None:
    root, nothing = own(tmp_path / "train", "train"), own(tmp_path / "test", values=(255, 255, 255, 255))
    (root / "classes.txt").write_text("sky\nsea\nsand\n")
    config = SegmentTrainConfig(**SMALL, data=f"masks:{root}", val_data=f"masks:{nothing}", output=tmp_path / "run")
    with pytest.raises(DataError, match="has no labelled pixel: name where to evaluate with --val-data"):
        segment.run(config)


def test_zero_is_no_class_of_own_masks_where_one_says_so(tmp_path: Path) -> None:
    root = own(tmp_path, "train", "val", values=(0, 1, 2, 3))
    config = SegmentTrainConfig(**SMALL, data=f"masks:{root}")
    for reduced, classes, labels in ((False, 4, {0, 1, 2, 3, 255}), (True, 3, {0, 1, 2, 255})):
        task = SegmentTask(dataclasses.replace(config, reduce_zero=reduced))
        assert task.segment.reduce_zero is reduced  # so that an evaluation knows it
        assert len(task.segment.classes) == classes and len(task.validation["val"].classes) == classes
        seen = torch.cat([task.data.batch(step).labels.flatten() for step in range(4)])
        assert set(seen.tolist()) <= labels and set(seen.tolist()) >= labels - {255}
        in_the_file = {255, 0, 1, 2} if reduced else {0, 1, 2, 3}
        assert set(task.validation["val"].pixels(0)[1].flatten().tolist()) == in_the_file


def test_a_damaged_mask_is_replaced_in_training_and_stops_an_evaluation(tmp_path: Path) -> None:
    root = own(tmp_path / "data", "train", "val")
    for split in ("train", "val"):
        (root / "masks" / split / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    config = SegmentTrainConfig(**SMALL, data=f"masks:{root}", output=tmp_path / "run", max_errors=1.0)
    (root / "classes.txt").write_text("sky\nsea\nsand\n")
    with pytest.raises(DataError, match=r"val cannot be evaluated: 2\.jpg: the mask"):
        segment.run(config)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3 and rows[-1]["bad_samples/undecodable mask"] == 3.0  # once in every epoch of 4
