"""Labels that lie in files: of a flat validation folder, and ReaL's."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digpt import testing_trees as trees
from digpt.data.imagenet import open_imagenet, real_labels, wnids
from digpt.data.imagenet_classes import VAL_IMAGES, shipped_real
from digpt.data.imagenet_labels import agreement, label_table, val_number
from digpt.errors import DataError

CLASSES = (6, 11, 13, 848)


def shown(data: bytes) -> int:
    return trees.class_of_color(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def move(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, to)


# ------------------------------------------------------------------------------------------------ flat folders


def test_ilsvrc_ids_are_not_labels(tmp_path: Path) -> None:
    """The development kit numbers the classes otherwise than the sorted wnids do."""
    folder = trees.write_val(tmp_path, CLASSES, 3, layout="devkit")
    kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    truth = kit / "ILSVRC2012_validation_ground_truth.txt"
    ids = [int(line) for line in truth.read_text().split()]
    numbers = {val_number(path.name): shown(path.read_bytes()) for path in folder.iterdir()}
    table = label_table(truth)
    assert {number: table[number] for number in numbers} == numbers
    assert all(ids[number - 1] - 1 != label for number, label in numbers.items())  # what falling into it would give
    meta = (kit / "meta.mat").read_bytes()
    (kit / "meta.mat").unlink()
    with pytest.raises(DataError, match="ILSVRC ids.*meta.mat.*synset_labels"):
        open_imagenet("imagenet", tmp_path)
    lines = [f"{wnids()[label]} {number} a_name" for label, number in enumerate(trees.ilsvrc_ids())]
    (kit / "map_clsloc.txt").write_text("\n".join(lines))
    assert open_imagenet("imagenet", tmp_path).labels.tolist() == np.repeat(CLASSES, 3).tolist()
    (kit / "map_clsloc.txt").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match="1..1000"):
        open_imagenet("imagenet", tmp_path)
    (kit / "meta.mat").write_bytes(meta[:200])
    with pytest.raises(DataError, match="meta.mat"):
        open_imagenet("imagenet", tmp_path)


def shifted(text: str) -> str:
    return re.sub(r" (\d+)$", lambda match: f" {(int(match[1]) + 1) % 1000}", text, flags=re.MULTILINE)


def as_ids(text: str) -> str:
    ids = trees.ilsvrc_ids()
    return re.sub(r" (\d+)$", lambda match: f" {ids[int(match[1])] - 1}", text, flags=re.MULTILINE)


def other_order(text: str) -> str:
    labels = [line.split()[1] for line in text.splitlines()]
    return "".join(f"{trees.val_name(i + 1)} {label}\n" for i, label in enumerate(labels[1:] + labels[:1]))


@pytest.mark.parametrize("wrong", [shifted, as_ids, other_order])
def test_labels_that_contradict_real_are_refused(tmp_path: Path, wrong) -> None:
    trees.write_val(tmp_path, CLASSES, layout="val_txt")
    path = tmp_path / "val.txt"
    assert agreement(label_table(path).items())[0] > 0.99
    path.write_text(wrong(path.read_text()))
    with pytest.raises(DataError, match=r"val.txt gives labels of which \d+\.\d% are among ReaL's"):
        open_imagenet("imagenet", tmp_path)


def test_agreement_leaves_out_images_without_real_labels() -> None:
    assert shipped_real()[0] == () and shipped_real()[1] == (970, 795)
    assert agreement([(1, 65), (2, 795), (3, 5)]) == (0.5, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Kaggle's ImageSets/CLS-LOC/val.txt: the second column counts the images.
        ("".join(f"ILSVRC2012_val_{i:08d} {i}\n" for i in range(999, 1003)), "LOC_val_solution.csv"),
        ("ILSVRC2012_val_00000001.JPEG n99999999\n", "n99999999"),
        ("ILSVRC2012_val_00000001.JPEG 1\nILSVRC2012_val_00000001.JPEG 2\n", "two labels"),
        ("cat.jpg 3\n", "cat.jpg"),
        ("n01440764\n" * 10, "50,000"),
        ("", "50,000"),
        ("\xff\xfe".encode("latin-1"), "cannot be read as text"),
        ("ILSVRC2012_val_00049999.JPEG 0\n", "no label for"),
    ],
)
def test_label_files_that_do_not_serve(tmp_path: Path, content: str | bytes, message: str) -> None:
    trees.write_val(tmp_path, CLASSES, layout="val_txt")
    (tmp_path / "val.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=re.escape(message)):
        open_imagenet("imagenet", tmp_path)


@pytest.mark.parametrize("place", ["ILSVRC2012_img_val/val.txt", "meta/val.txt", "../val.txt"])
def test_where_a_label_file_is_looked_for(tmp_path: Path, place: str) -> None:
    folder = trees.write_val(tmp_path, CLASSES, layout="val_txt")
    move(tmp_path / "val.txt", tmp_path / place)
    root = folder if place == "../val.txt" else tmp_path  # outside the data root only beside the images themselves
    if place == "../val.txt":
        move(tmp_path / place, tmp_path / "val.txt")
    assert open_imagenet("imagenet", root).labels.tolist() == np.repeat(CLASSES, 2).tolist()


def test_a_flat_folder_without_label_file_says_what_is_missing(tmp_path: Path) -> None:
    trees.write_val(tmp_path, CLASSES, layout="synset_labels")
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").unlink()
    with pytest.raises(DataError, match="no label file: put one of LOC_val_solution.csv, .*val.txt"):
        open_imagenet("imagenet", tmp_path)


def test_sorting_into_folders_that_was_interrupted(tmp_path: Path) -> None:
    folder = trees.write_val(tmp_path, CLASSES)
    move(next((folder / wnids()[848]).iterdir()), folder / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="1 images beside 4 class folders.*interrupted"):
        open_imagenet("imagenet", tmp_path)


# ------------------------------------------------------------------------------------------------ ReaL


def test_real_is_joined_by_the_file_name(tmp_path: Path) -> None:
    """Read in the order of class folders, image 0 is not ILSVRC2012_val_00000001."""
    numbers = dict(trees.val_images(CLASSES, 3))
    lists = {number: [label, 999] for number, label in numbers.items()}
    emptied = next(iter(lists))
    lists[emptied] = []
    trees.write_val(tmp_path, CLASSES, 3)
    path = trees.write_real(tmp_path, lists)
    source = open_imagenet("imagenet-real", tmp_path)
    assert source.fingerprint == open_imagenet("imagenet", tmp_path).fingerprint
    real = real_labels(tmp_path, list(source.names))
    assert real.source == str(path)
    for name, label, answers in zip(source.names, source.labels.tolist(), real.answers, strict=True):
        assert answers == (() if val_number(name) == emptied else (label, 999))
    by_order = json.loads(path.read_text())[: len(source)]
    assert [list(answers) for answers in real.answers] != by_order
    shuffled = list(source.names)
    random.Random(0).shuffle(shuffled)
    again = dict(zip(shuffled, real_labels(tmp_path, shuffled).answers, strict=True))
    assert [again[name] for name in source.names] == list(real.answers)


def test_real_starts_at_number_1() -> None:
    real = real_labels(
        None, ["n01751748/ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002", "a/b_ILSVRC2012_val_00050000.png"]
    )
    assert real.answers[:2] == ((), (970, 795))  # published: the first list is empty, the second a bridge
    assert real.answers[2] == shipped_real()[VAL_IMAGES - 1]
    assert "timm" in real.source


def test_real_json_and_timms_copy_have_one_fingerprint(tmp_path: Path) -> None:
    trees.write_real(tmp_path / "same")
    trees.write_real(tmp_path / "other", {2: [5]})
    name = [trees.val_name(2)]
    same, other, shipped = (real_labels(root, name) for root in (tmp_path / "same", tmp_path / "other", None))
    assert same.fingerprint == shipped.fingerprint != other.fingerprint
    assert other.answers == ((5,),)
    assert same.source != shipped.source


@pytest.mark.parametrize("name", ["n01440764/cat.JPEG", "ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_0000001.JPEG"])
def test_real_refuses_names_without_a_number(name: str) -> None:
    with pytest.raises(DataError, match=re.escape(name)):
        real_labels(None, [trees.val_name(3), name])


@pytest.mark.parametrize(
    "content", ["[[1], [2]]", "[", "{}", json.dumps([[1000]] * 50_000), json.dumps([["1"]] * 50_000)]
)
def test_a_real_json_that_is_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(DataError, match="real.json is not ReaL's list"):
        real_labels(tmp_path, [])
