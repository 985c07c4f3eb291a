"""The figures of a segmentation, against counting by hand and by brute force; what is drawn and printed."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from digpt.data import ade20k
from digpt.data.ade20k import ADE20K_CLASSES, palette
from digpt.results import from_json, read_results
from evaluate import segment_run, segmentation, suite_masks
from evaluate.segment_model import SegmentModel
from evaluate.segment_overlays import OPACITY
from evaluate.testing_masks import Pair, painted_model, write_ade20k, write_masks

CROP = 32
WALL, SKY, ROAD, BED = 0, 2, 6, 7
FIGURES = ("miou", "macc", "aacc")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, SegmentModel]:
    """The model that every spec loads, under "model"."""
    found = {"model": painted_model(ADE20K_CLASSES, CROP)}
    monkeypatch.setattr(segment_run, "load_pixel_model", lambda options: found["model"])
    return found


def values(output: Path) -> dict[tuple[str, str], float]:
    return {(result.split, result.metric): result.value for result in read_results(output).results}


def by_hand() -> dict[str, Pair]:
    """Two images: pixels without a label, a class predicted but never labelled, 147 classes nowhere."""
    label, found = np.full((32, 32), WALL, np.uint8), np.full((32, 32), WALL, np.uint8)
    label[16:] = found[16:] = SKY
    found[16:, 20:] = BED  # 192 pixels of sky are called bed, of which none is labelled
    label[:, :8] = 255
    found[:, :8] = ROAD  # where nothing is labelled nothing counts
    wide, mostly = np.full((32, 48), WALL, np.uint8), np.full((32, 48), WALL, np.uint8)
    mostly[:, 32:] = SKY
    return {"ADE_val_1": (found, label), "ADE_val_2": (mostly, wide)}


WALL_IOU, SKY_IOU = 1408 / 1920, 192 / 896  # right over the union of labelled and predicted pixels
BY_HAND = {"miou": (WALL_IOU + SKY_IOU + 0) / 3, "macc": (1408 / 1920 + 192 / 384) / 2, "aacc": 1600 / 2304}


@pytest.mark.parametrize("views", [(), ("--inference", "whole")])
def test_the_figures_counted_by_hand(asked: Any, tmp_path: Path, views: tuple[str, ...]) -> None:
    write_ade20k(tmp_path / "data", by_hand())
    output = tmp_path / "out"
    assert segmentation.main(["m.pt", "--data-root", str(tmp_path / "data"), "--output", str(output), *views]) == 0
    found = values(output)
    assert found == {("val", metric): pytest.approx(BY_HAND[metric], rel=1e-12) for metric in FIGURES}
    document = read_results(output)
    assert {(result.dataset, result.n) for result in document.results} == {("ade20k", 2)}
    for result in document.results:
        assert result.ci95 is not None and result.ci95[0] <= result.value <= result.ci95[1]
    rows = {row["name"]: row for row in csv.DictReader((output / "per_class.csv").read_text().splitlines())}
    assert len(rows) == 150
    assert {name: (rows[name]["iou"], rows[name]["accuracy"], rows[name]["labelled"]) for name in ("wall", "sky")} == {
        "wall": (f"{WALL_IOU:.6f}", f"{1408 / 1920:.6f}", "1920"),
        "sky": (f"{SKY_IOU:.6f}", "0.500000", "384"),
    }
    assert (rows["bed"]["iou"], rows["bed"]["accuracy"], rows["bed"]["labelled"]) == ("0.000000", "", "0")
    assert (rows["road"]["iou"], rows["road"]["accuracy"]) == ("", "")  # predicted only where nothing is labelled


def test_the_zero_rule_is_applied_exactly_once(asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = np.repeat(np.array([0, 1, 2, 255], np.uint8), 8)[None].repeat(32, axis=0)
    write_ade20k(tmp_path, {"a": (np.where(label == 255, 0, label).astype(np.uint8), label)})
    once = ade20k.reduce_zero_label
    found = {}
    for times, rule in {1: once, 0: lambda mask: mask, 2: lambda mask: once(once(mask))}.items():
        monkeypatch.setattr(ade20k, "reduce_zero_label", rule)
        output = tmp_path / str(times)
        assert segmentation.main(["m.pt", "--data", f"ade20k:{tmp_path}", "--output", str(output)]) == 0
        found[times] = values(output)["val", "miou"]
    assert found[1] == 1.0 and found[0] < 0.2 and found[2] < 0.2


def brute_force(pairs: list[Pair], classes: int) -> dict[str, float]:
    """By sets of pixels, class by class."""
    ious, accuracies, right, total = [], [], 0, 0
    for label in range(classes):
        wanted = {(n, *at) for n, (_, m) in enumerate(pairs) for at in np.argwhere(m == label).tolist()}
        found = {(n, *at) for n, (p, m) in enumerate(pairs) for at in np.argwhere((p == label) & (m != 255)).tolist()}
        ious += [len(wanted & found) / len(wanted | found)] if wanted | found else []
        accuracies += [len(wanted & found) / len(wanted)] if wanted else []
        right, total = right + len(wanted & found), total + len(wanted)
    return {"miou": float(np.mean(ious)), "macc": float(np.mean(accuracies)), "aacc": right / total}


@pytest.mark.parametrize("seed", range(3))
def test_random_maps_as_by_brute_force(asked: Any, tmp_path: Path, seed: int) -> None:
    """Classes of which one is nowhere, one only labelled and one only predicted; images of several sizes."""
    random = np.random.default_rng(seed)
    pairs: dict[str, Pair] = {}
    for number in range(5):
        size = (CROP, int(random.integers(CROP, 4 * CROP)))[:: 1 if number % 2 else -1]
        label = random.choice([0, 1, 3, 5, 255], size).astype(np.uint8)
        noise = random.choice([0, 1, 3, 4], size).astype(np.uint8)
        pairs[f"image {number}"] = (np.where((random.random(size) < 0.5) & (label < 5), label, noise), label)
    classes = [f"thing {number}" for number in range(6)]
    asked["model"] = painted_model(classes, CROP)
    write_masks(tmp_path / "data", pairs, classes)
    output = tmp_path / "out"
    assert segmentation.main(["m.pt", "--data", f"masks:{tmp_path / 'data'}", "--output", str(output)]) == 0
    found = {metric: value for (_, metric), value in values(output).items()}
    assert found == pytest.approx(brute_force(list(pairs.values()), 6), rel=1e-12)


def test_logits_are_resized_to_the_label_and_labels_never(asked: Any, tmp_path: Path) -> None:
    """A large image is shrunk to the crop; its answers are compared at the size of its label."""
    label = np.zeros((4 * CROP, 4 * CROP), np.uint8)
    label[:, 2 * CROP :] = 1
    speck = label.copy()
    speck[3, 5] = 1  # one labelled pixel that no shrunken label would keep
    write_ade20k(tmp_path, {"a": (label, speck)})
    assert segmentation.main(["m.pt", "--data", f"ade20k:{tmp_path}", "--output", str(tmp_path / "out")]) == 0
    pixels = label.size
    assert values(tmp_path / "out")["val", "aacc"] == 1 - 1 / pixels


# ------------------------------------------------------------------------------------------------- what is shown


def test_json_is_the_document_and_nothing_else(asked: Any, tmp_path: Path, capsys: Any) -> None:
    write_ade20k(tmp_path / "data", by_hand())
    arguments = ["m.pt", "--data-root", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--json"]
    assert segmentation.main(arguments) == 0
    out, err = capsys.readouterr()
    document = from_json(json.loads(out))
    assert document == read_results(tmp_path / "out")
    assert document.model.classifier == "segmentation head"
    protocol = document.protocol
    assert protocol["name"] == "ade20k" and protocol["sets"][0]["split"] == "val"
    described = {key: protocol["segmentation"][key] for key in ("inference", "stride", "scale", "ratios")}
    assert described == {
        "inference": "slide",
        "stride": "341/512 of the crop",
        "scale": "(4 x crop, crop)",
        "ratios": [1.0],
    }
    assert protocol["segmentation"]["reduce_zero"] is True and protocol["segmentation"]["flip"] is False
    assert re.search(r"time \d+ s: loader", err) and "instead of 2,000" in err


def test_the_table_and_the_extremes(asked: Any, tmp_path: Path, capsys: Any) -> None:
    write_ade20k(tmp_path / "data", by_hand())
    assert segmentation.main(["m.pt", "--data-root", str(tmp_path / "data")]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "ade20k val" in line)
    assert f"{100 * BY_HAND['miou']:.1f} [" in row and "mIoU" in out and "mAcc" in out
    assert "ade20k val: best wall 73.3, sky 21.4; worst bed 0.0" in out


def test_of_512_pixels_the_protocol_is_ade20ks() -> None:
    views = suite_masks.Views().inference(512, scenes=False)
    assert (views.mode, views.crop, views.stride, views.scale) == ("slide", 512, 341, (2048, 512))
    larger = suite_masks.Views(multi_scale=True, flip=True).inference(640, scenes=False)
    assert (larger.stride, larger.scale, larger.flip) == (426, (2560, 640), True)
    assert larger.ratios == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    scenes = suite_masks.Views().inference(128, scenes=True)
    assert (scenes.mode, scenes.scale) == ("whole", None)


def test_overlays_show_image_label_and_prediction(asked: Any, tmp_path: Path) -> None:
    pairs = by_hand()
    write_ade20k(tmp_path / "data", pairs)
    arguments = ["m.pt", "--data-root", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--overlays"]
    assert segmentation.main([*arguments, "1"]) == 0
    (one,) = (tmp_path / "out" / "overlays").glob("*.png")
    assert segmentation.main([*arguments, "5"]) == 0
    assert sorted(path.name for path in one.parent.glob("*.png")) == ["val-ADE_val_1.png", "val-ADE_val_2.png"]
    found, label = pairs["ADE_val_1"]
    picture = np.asarray(Image.open(one.parent / "val-ADE_val_1.png"))
    assert picture.shape == (32, 3 * 32, 3)
    shown, labelled, predicted = np.split(picture, 3, axis=1)
    assert (shown[..., 0] == found).all() and (shown[..., 1:] == (90, 200)).all()
    assert (labelled[:, :8] == shown[:, :8]).all()  # not labelled

    def blend(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.rint((1 - OPACITY) * shown + OPACITY * palette(150)[classes]).astype(np.uint8)

    assert (labelled[:, 8:] == blend(np.where(label == 255, 0, label))[:, 8:]).all()
    assert (predicted == blend(found)).all()


def test_the_commands_in_the_documentation_run(asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "segmentation.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python -m evaluate\.segmentation ([^#\n]+)", text, re.MULTILINE)
    assert len(commands) >= 3
    monkeypatch.chdir(tmp_path)
    write_ade20k(tmp_path / "data", by_hand())
    write_masks(tmp_path / "my-pictures", by_hand(), ADE20K_CLASSES)
    monkeypatch.setattr(suite_masks, "SCENES", 2)
    for command in commands:
        arguments = shlex.split(command)
        classes = (
            ADE20K_CLASSES if {"--data", "--data-root"} & set(arguments) else ("background", *suite_masks.SUBGROUPS)
        )
        asked["model"] = painted_model(classes, CROP)
        assert segmentation.main(arguments) == 0, command
