"""Every set of the ImageNet family in its real layout, under a rigged model whose exact score is known; each trap once.

The model reads a picture's class from its colour, and answers what it is told for that class.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from digpt.data.imagenet import class_subset, wnids
from digpt.engine import Engine
from digpt.errors import CapabilityError, DataError
from digpt.preprocess import Preprocess
from digpt.results import Result, ResultsDocument
from digpt.robustness_metrics import ALEXNET_CLEAN, ALEXNET_ERROR, CORRUPTIONS
from digpt.runtime.fake import FakeRuntime
from digpt.testing_trees import (
    class_color,
    class_of_color,
    val_images,
    write_a,
    write_c,
    write_imagenet_tree,
    write_r,
    write_real,
    write_sketch,
    write_train,
    write_v2,
    write_val,
)
from evaluate import imagenet, robustness
from evaluate.run import run_suite
from evaluate.suite import Subset
from evaluate.suite_emoji import Neighbours
from evaluate.suite_imagenet import ROBUSTNESS, imagenet_suite
from evaluate.sweep import Sweep

Says = Callable[[int], dict[int, float]]


class ColourRuntime(FakeRuntime):
    """Logits by the class that a picture's colour shows; ``says(class)`` gives those above zero."""

    def __init__(self, says: Says = lambda label: {label: 5.0}, region: slice = slice(None), **info: Any) -> None:
        options = {"size": 16, "text": False, "linear_head": True, "labels": wnids(), "dim": 1000} | info
        super().__init__(**options)
        self.says, self.region = says, region

    def _rows_of(self, images: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(images), 1000), np.float32)
        for row, image in zip(rows, images, strict=True):
            for label, logit in self.says(class_of_color(image[self.region, self.region])).items():
                row[label] = logit
        return rows

    def logits(self, images: np.ndarray) -> np.ndarray:
        columns = [wnids().index(label) for label in self.info.labels or wnids()]
        return self._rows_of(images)[:, columns]

    def embed(self, images: np.ndarray) -> np.ndarray:
        return self._rows_of(images)


def evaluated(runtime: FakeRuntime, root: Path, *sets: str, **asked: Any) -> dict[tuple[str, str, str], Result]:
    document = run_suite(Engine(runtime), imagenet_suite(root, sets=sets or ROBUSTNESS, **asked)).document
    assert isinstance(document, ResultsDocument)
    return {(result.dataset, result.split, result.metric): result for result in document.results}


def test_all_sets_at_once_are_all_right(tmp_path):
    write_imagenet_tree(tmp_path)
    rows = evaluated(ColourRuntime(), tmp_path)
    top1 = {(dataset, split): r.value for (dataset, split, metric), r in rows.items() if metric == "top1"}
    assert top1 == {
        ("imagenet", "val"): 1.0,
        ("imagenet-v2", "matched-frequency"): 1.0,
        ("imagenet-real", "val"): 1.0,
        ("imagenet-a", "test"): 1.0,
        ("imagenet", "val/imagenet-a"): 1.0,
        ("imagenet-r", "test"): 1.0,
        ("imagenet", "val/imagenet-r"): 1.0,
        ("imagenet-sketch", "test"): 1.0,
    }
    assert rows["imagenet-c", "mean", "error"].value == 0.0
    assert rows["imagenet-c", "mean", "mce"].value == 0.0
    assert len([key for key in rows if key[0] == "imagenet-c" and key[1].count("/") and key[2] == "error"]) == 75


def test_v2_folders_are_numbers(tmp_path):
    """A string sort would give folder 10 the label 2, and 100 the label 3."""
    write_v2(tmp_path, classes=(1, 2, 10, 100), per_class=3)
    rows = evaluated(ColourRuntime(lambda label: {label: 5.0} if label != 10 else {11: 5.0}), tmp_path, "imagenet-v2")
    result = rows["imagenet-v2", "matched-frequency", "top1"]
    assert (result.value, result.n) == (0.75, 12)


def test_real_is_joined_by_name_has_several_answers_and_leaves_out_the_empty(tmp_path):
    classes = (7, 300, 900)
    images = val_images(classes, 4)
    write_val(tmp_path, classes, 4)
    numbers = {label: [number for number, of in images if of == label] for label in classes}
    answers: dict[int, list[int]] = {number: [] for number, _ in images}
    for number in numbers[7]:
        answers[number] = [7]
    for number in numbers[300][:3]:
        answers[number] = [5, 900]  # what the model says, and something else
    answers[numbers[900][0]] = [1, 2]
    write_real(tmp_path, answers)
    rows = evaluated(ColourRuntime(lambda label: {900 if label == 300 else label: 5.0}), tmp_path, "imagenet-real")
    result = rows["imagenet-real", "val", "top1"]
    assert result.n == 4 + 3 + 1
    assert result.value == pytest.approx(7 / 8)
    assert ("imagenet-real", "val", "top5") not in rows


@pytest.mark.parametrize(("name", "write"), [("imagenet-a", write_a), ("imagenet-r", write_r)])
def test_a_and_r_are_asked_among_their_200_classes_before_any_maximum(tmp_path, name, write):
    """The model shouts a class that is not among the 200: among them it is right half of the time."""
    inside = class_subset(name).tolist()
    outside = next(label for label in range(1000) if label not in inside)
    chosen = inside[:4]

    def says(label):
        wrong = inside[5] if chosen.index(label) % 2 else label
        return {outside: 9.0, wrong: 5.0}

    write(tmp_path, chosen, 3)
    write_val(tmp_path, chosen, 2)
    rows = evaluated(ColourRuntime(says), tmp_path, "imagenet", name)
    assert (rows[name, "test", "top1"].value, rows[name, "test", "top1"].n) == (0.5, 12)
    assert (rows["imagenet", f"val/{name}", "top1"].value, rows["imagenet", f"val/{name}", "top1"].n) == (0.5, 8)
    assert rows["imagenet", "val", "top1"].value == 0.0
    confidence = np.exp(5) / (np.exp(5) + 199)  # of 200 classes, not of 1000
    assert rows[name, "test", "nll"].value == pytest.approx(
        0.5 * (-np.log(confidence) + np.log(np.exp(5) + 199)), rel=1e-5
    )


def test_clean_accuracy_counts_the_images_of_the_200_classes_alone(tmp_path):
    inside = class_subset("imagenet-a").tolist()
    outside = [label for label in range(1000) if label not in inside][:3]
    write_a(tmp_path, inside[:2], 1)
    write_val(tmp_path, [*inside[:2], *outside], 2)
    rows = evaluated(ColourRuntime(), tmp_path, "imagenet-a")
    assert rows["imagenet", "val/imagenet-a", "top1"].n == 4
    assert ("imagenet", "val", "top1") not in rows


def test_sketch(tmp_path):
    write_sketch(tmp_path, (0, 999), 3)
    rows = evaluated(ColourRuntime(lambda label: {0: 5.0}), tmp_path, "imagenet-sketch")
    assert rows["imagenet-sketch", "test", "top1"].value == 0.5


@pytest.mark.parametrize("layout", ["folders", "tars"])
def test_mce_of_a_hand_made_table(tmp_path, layout):
    """Every second image is wrong from a severity on that depends on the corruption."""
    classes = (3, 500)
    onset = {name: 1 + index % 6 for index, name in enumerate(CORRUPTIONS)}  # 6: never
    write_c(
        tmp_path,
        classes,
        2,
        layout=layout,
        extra=True,  # which would change every mean
        size=16,
        shows=lambda label, number, name, severity: 999 if number == 0 and severity >= onset.get(name, 1) else label,
    )
    write_val(tmp_path, classes, 2, shows=lambda label, number: 998 if (label, number) == (3, 0) else label)
    rows = evaluated(ColourRuntime(), tmp_path, "imagenet", "imagenet-c")
    error = {name: 0.5 * (6 - onset[name]) / 5 for name in CORRUPTIONS}
    for name in CORRUPTIONS:
        assert rows["imagenet-c", name, "error"].value == pytest.approx(error[name])
        assert rows["imagenet-c", name, "ce"].value == pytest.approx(error[name] / ALEXNET_ERROR[name])
    mce = np.mean([error[name] / ALEXNET_ERROR[name] for name in CORRUPTIONS])
    assert rows["imagenet-c", "mean", "mce"].value == pytest.approx(mce, abs=1e-9)
    assert rows["imagenet-c", "mean", "error"].value == pytest.approx(np.mean(list(error.values())))
    relative = np.mean([(error[n] - 0.25) / (ALEXNET_ERROR[n] - ALEXNET_CLEAN) for n in CORRUPTIONS])
    assert rows["imagenet-c", "mean", "relative_mce"].value == pytest.approx(relative, abs=1e-9)
    assert rows["imagenet-c", "mean", "mce"].n == 75 * 4
    low, high = rows["imagenet-c", "mean", "mce"].ci95
    assert low == 0.0 and high == pytest.approx(2 * mce)  # of four images two are wrong: a resample may take any


def test_without_the_clean_images_it_is_said_why_there_is_no_relative_mce(tmp_path):
    write_c(tmp_path, (3, 500), 2, size=16)
    write_val(tmp_path, (3, 500), 2)
    write_v2(tmp_path, (3, 500), 1)
    for sets, relative in ((("imagenet-c",), False), (("imagenet-real", "imagenet-c"), False), (ROBUSTNESS, True)):
        suite = imagenet_suite(tmp_path, sets=sets)
        assert any("imagenet-c: no relative mCE" in note for note in suite.notes) != relative
        document = run_suite(Engine(ColourRuntime()), suite).document
        assert any(row.metric == "relative_mce" for row in document.results) == relative
    assert not imagenet_suite(tmp_path, sets=("imagenet-v2",)).notes


@pytest.mark.parametrize("explicit", [False, True])
def test_a_part_of_imagenet_c_has_errors_but_no_mce(tmp_path, explicit):
    """As the doctor says, which warns; a corruption without some severity has no CE either."""
    write_c(tmp_path, (3, 500), 2, size=16, layout="tars", corruptions=("fog",))
    write_c(tmp_path, (3, 500), 2, size=16, corruptions=("snow",), severities=(1, 5), shows=lambda *image: 7)
    write_val(tmp_path, (3, 500), 2)
    suite = imagenet_suite(tmp_path, sets=("imagenet", "imagenet-c"), explicit=explicit)
    (note,) = suite.notes
    assert "imagenet-c: mCE is not given, for 14 of 15 corruptions are missing or lack a severity (gauss" in note
    assert "snow" in note and "fog" not in note and "the 7 cells" in note
    document = run_suite(Engine(ColourRuntime()), suite).document
    assert isinstance(document, ResultsDocument)
    values = {(r.split, r.metric): r.value for r in document.results if r.dataset == "imagenet-c"}
    assert values["fog", "error"] == values["fog", "ce"] == 0.0
    assert values["snow/5", "error"] == values["snow", "error"] == 1.0
    assert values["mean", "error"] == 0.5
    assert not {("snow", "ce"), ("mean", "mce"), ("mean", "relative_mce")} & values.keys()


def test_corruptions_without_severities_are_refused(tmp_path):
    (tmp_path / "imagenet-c" / "fog").mkdir(parents=True)
    with pytest.raises(DataError, match="none at a severity from 1 to 5"):
        imagenet_suite(tmp_path, sets=("imagenet-c",))


def test_images_of_c_are_cropped_and_never_shrunk_first(tmp_path):
    """Their outermost pixels must reach a model that resizes to 256 and crops 224: the rigged one reads a corner."""
    write_c(tmp_path, (4,), 1)
    for path in (tmp_path / "imagenet-c").rglob("*.JPEG"):
        image = Image.new("RGB", (224, 224), class_color(4))
        image.paste(Image.new("RGB", (204, 204), class_color(800)), (10, 10))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        path.write_bytes(buffer.getvalue())
    preprocess = Preprocess(size=224, crop_pct=0.875)
    rows = evaluated(ColourRuntime(region=slice(0, 6), preprocess=preprocess), tmp_path, "imagenet-c")
    assert rows["imagenet-c", "mean", "error"].value == 0.0


def test_corruptions_of_imagenet_on_the_fly_are_never_mce(tmp_path):
    write_val(tmp_path, (3, 500), 2)
    sweep = Sweep(16, corruptions=("brightness", "jpeg_compression"), severities=(1,))
    rows = evaluated(ColourRuntime(), tmp_path, "imagenet", sweep=sweep)
    assert ("imagenet-c-on-the-fly", "mean", "error") in rows
    assert not any(metric in ("ce", "mce", "relative_mce") for _, _, metric in rows)


def test_a_head_is_read_in_the_order_of_its_labels(tmp_path):
    write_val(tmp_path, (3, 500, 999), 1)
    turned = ColourRuntime(labels=tuple(reversed(wnids())))
    assert evaluated(turned, tmp_path, "imagenet")["imagenet", "val", "top1"].value == 1.0
    with pytest.raises(CapabilityError, match="tells 2 classes apart"):
        evaluated(FakeRuntime(text=False, linear_head=True, labels=("cat", "dog")), tmp_path, "imagenet")


def test_missing_sets_are_noted_and_refused_when_named(tmp_path):
    write_val(tmp_path, (3,), 1)
    suite = imagenet_suite(tmp_path, sets=("imagenet", "imagenet-r"))
    assert suite.notes == ("imagenet-r: not found below the data root, left out",)
    with pytest.raises(DataError, match="imagenet-r"):
        imagenet_suite(tmp_path, sets=("imagenet", "imagenet-r"), explicit=True)
    with pytest.raises(DataError, match="imagenet-sketch"):
        imagenet_suite(tmp_path, sets=("imagenet-sketch",))
    with pytest.raises(DataError, match="Did you mean 'imagenet-v2'"):
        imagenet_suite(tmp_path, sets=("imagenet-v3",))


def test_knn_among_the_training_images(tmp_path):
    write_train(tmp_path, (3, 500, 700), 4)
    write_val(tmp_path, (3, 500, 700), 2, shows=lambda label, number: 500 if label == 700 else label)
    rows = evaluated(ColourRuntime(linear_head=False), tmp_path, "imagenet", knn=Neighbours(k=(1, 4)))
    # kNN asks nothing of the classes, so that an encoder without a head is enough.
    assert {key: r.value for key, r in rows.items()} == {
        ("imagenet", "val", "knn_top1_k1"): pytest.approx(2 / 3),
        ("imagenet", "val", "knn_top1_k4"): pytest.approx(2 / 3),
    }


def test_a_preview_is_stratified_and_takes_the_same_images_of_every_cell(tmp_path):
    write_val(tmp_path, (3, 500), 20)
    write_c(tmp_path, (3, 500), 20, size=16, corruptions=("fog", "snow"), severities=(1, 2))
    partial = imagenet_suite(tmp_path, sets=("imagenet-c",), subset=Subset(preview=True))
    assert [len(cell) for cell in partial.cells] == [4, 4, 4, 4]
    write_c(tmp_path, (3, 500), 20, size=16)
    suite = imagenet_suite(tmp_path, sets=("imagenet", "imagenet-c"), subset=Subset(preview=True))
    clean = suite.cells[0]
    assert len(clean) == 4 and [view.labels.tolist() for view in suite.views[:1]] == [[3, 3, 500, 500]]
    assert {frozenset(cell.keys) for cell in suite.cells} == {frozenset(clean.keys)}


@pytest.fixture
def colour_engine(monkeypatch):
    monkeypatch.setattr("evaluate.cli.Engine.load", lambda *args, **kwargs: Engine(ColourRuntime()))


def test_the_commands(tmp_path, colour_engine, capsys):
    write_imagenet_tree(tmp_path / "data")
    assert imagenet.main(["x", "--data-root", str(tmp_path / "data"), "--output", str(tmp_path / "in")]) == 0
    out, err = capsys.readouterr()
    assert "imagenet val" in out and "imagenet-real val" in out and "imagenet-a" not in out
    assert "loader" in err and "images/s" in err
    assert robustness.main(["x", "--data-root", str(tmp_path / "data"), "--output", str(tmp_path / "rob")]) == 0
    out, _ = capsys.readouterr()
    assert "imagenet-c: top-1 error" in out and "mCE 0.0" in out
    lines = (tmp_path / "rob" / "per_class.csv").read_text().splitlines()
    assert lines[0] == "dataset,split,class,name,images,top1"
    assert any(line.startswith("imagenet-sketch,test,") and line.endswith(",2,1.000000") for line in lines)


def test_preprocessing_can_be_overridden_and_is_recorded(tmp_path, colour_engine, capsys):
    write_val(tmp_path / "data", (3,), 1)
    arguments = ["x", "--data-root", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    assert imagenet.main([*arguments, "--resize", "squash", "--crop-pct", "1.0"]) == 0
    assert '"crop_pct": 1.0' in (tmp_path / "out" / "results.json").read_text()
    assert imagenet.main([*arguments, "--crop-pct", "0.9"]) == 2
    assert "model.preprocess.crop_pct: 1.0 against 0.9" in capsys.readouterr().err


def test_a_broken_image_is_named(tmp_path):
    folder = write_val(tmp_path, (3, 500), 2)
    broken = sorted(folder.rglob("*.JPEG"))[0]
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=rf"imagenet/val: {broken.stem}: .*evaluate.doctor"):
        evaluated(ColourRuntime(), tmp_path, "imagenet")


def test_zero_shot_asks_by_the_thousand_names(tmp_path):
    from digpt.text import imagenet_names

    class Texts(ColourRuntime):
        def embed_texts(self, texts):
            rows = np.zeros((len(texts), 1000), np.float32)
            for row, text in zip(rows, texts, strict=True):
                row[imagenet_names().index(text.removeprefix("a photo of a ").removesuffix("."))] = 1.0
            return rows

    write_val(tmp_path, (3, 500), 2)
    runtime = Texts(text=True, linear_head=False, labels=None)
    runtime.info = replace(runtime.info, head=None)
    rows = evaluated(runtime, tmp_path, "imagenet", templates=("a photo of a {}.",))
    assert rows["imagenet", "val", "top1"].value == 1.0
