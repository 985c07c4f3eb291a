"""The ImageNet family in every layout that users have, and the mistakes that each invites."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digpt import testing_trees as trees
from digpt.data.imagenet import (
    IMAGENET_SETS,
    ImageNetImages,
    available,
    class_subset,
    descriptions,
    locate,
    open_imagenet,
    training_folder,
    wnids,
)
from digpt.data.imagenet_classes import shipped_real
from digpt.data.source import SampleError
from digpt.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
CLASSES = (6, 11, 13, 848)  # the first three are in A and R


def shown(data: bytes) -> int:
    return trees.class_of_color(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def seen(source: ImageNetImages) -> list[int]:
    """What the pictures show, which is the class each was written as."""
    samples = [source.read(index) for index in range(len(source))]
    assert [label for _, label in samples] == source.labels.tolist()
    return [shown(data) for data, _ in samples]


def move(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, to)


# ------------------------------------------------------------------------------------------------ class tables


def test_the_tables_of_classes() -> None:
    assert len(wnids()) == 1000 and list(wnids()) == sorted(wnids())
    assert (wnids()[0], wnids()[65], wnids()[999]) == ("n01440764", "n01751748", "n15075141")
    a, r = class_subset("imagenet-a"), class_subset("imagenet-r")
    assert (a.dtype, a.shape, r.shape) == (np.int64, (200,), (200,))
    assert a[:3].tolist() == [6, 11, 13] and r[:3].tolist() == [1, 2, 4]
    assert (np.diff(a) > 0).all() and (np.diff(r) > 0).all()
    a[0] = 0
    assert class_subset("imagenet-a")[0] == 6  # each caller has its own
    with pytest.raises(DataError, match="imagenet-a"):
        class_subset("imagenet-v2")


def test_descriptions_are_timms_labels_in_the_order_of_the_ids():
    from timm.data import ImageNetInfo

    assert descriptions() == tuple(ImageNetInfo("imagenet-1k").label_descriptions())
    assert [label for label, title in enumerate(descriptions()) if title == "crane"] == [134, 517]


def test_published_numbers() -> None:
    assert {name: entry.images for name, entry in IMAGENET_SETS.items()} == {
        "imagenet": 50_000,
        "imagenet-v2": 10_000,
        "imagenet-real": 46_837,
        "imagenet-a": 7_500,
        "imagenet-r": 30_000,
        "imagenet-sketch": 50_889,
        "imagenet-c": 50_000,
    }
    assert sum(bool(labels) for labels in shipped_real()) == IMAGENET_SETS["imagenet-real"].images


def test_it_needs_neither_torch_nor_timm(tmp_path: Path) -> None:
    trees.write_imagenet_tree(tmp_path)
    code = f"""
import sys
from digpt.data.imagenet import *
for name in available({str(tmp_path)!r}):
    cell = dict(corruption="fog", severity=1) if name == "imagenet-c" else {{}}
    open_imagenet(name, {str(tmp_path)!r}, **cell).read(0)
print([name for name in ("torch", "timm") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_colors_survive_jpeg() -> None:
    for index in range(0, 1000, 7):
        assert shown(trees.picture(index)) == shown(trees.picture(index, 9, "PNG")) == index


# ------------------------------------------------------------------------------------------------ validation


@pytest.mark.parametrize("layout", trees.VAL_LAYOUTS)
def test_validation_images_in_every_layout(tmp_path: Path, layout: trees.ValLayout) -> None:
    trees.write_val(tmp_path / "a", CLASSES, 3, layout=layout)
    trees.write_val(tmp_path / "b", CLASSES, 3, layout="folders")
    source, reference = open_imagenet("imagenet", tmp_path / "a"), open_imagenet("imagenet", tmp_path / "b")
    assert seen(source) == source.labels.tolist() == np.repeat(CLASSES, 3).tolist()
    assert source.classes == wnids() and source.labels.dtype == np.int64
    # The same images have the same names, order and fingerprint, however they lie.
    names = [source.sample_name(index) for index in range(len(source))]
    assert names == list(reference.names) and names == sorted(set(names))
    assert source.fingerprint == reference.fingerprint
    assert re.fullmatch(r"n01498041/ILSVRC2012_val_\d{8}\.JPEG", names[0])
    assert available(tmp_path / "a") == ["imagenet", "imagenet-real"]


@pytest.mark.parametrize(
    "folder",
    [
        "val",
        "imagenet/val",
        "ImageNet/val",
        "ILSVRC2012/val",
        "imagenet_1k/validation",
        "imagenet/images/val",
        "ILSVRC/Data/CLS-LOC/val",
        "imagenet/ILSVRC/Data/CLS-LOC/val",
        "",
        "imagenet",
    ],
)
def test_where_the_validation_images_are_looked_for(tmp_path: Path, folder: str) -> None:
    written = trees.write_val(tmp_path / "made", CLASSES)
    shutil.move(written, tmp_path / "moved")
    root = tmp_path / "root"
    move(tmp_path / "moved", root / folder if folder else root)
    assert seen(open_imagenet("imagenet", root)) == np.repeat(CLASSES, 2).tolist()
    assert locate("imagenet", root) == [root / folder]


def test_a_folder_of_another_name_needs_the_validation_images_names(tmp_path: Path) -> None:
    """``imagenet/<wnid>`` may as well be the training images."""
    trees.write_train(tmp_path, CLASSES)
    shutil.move(tmp_path / "imagenet" / "train", tmp_path / "x")
    shutil.rmtree(tmp_path / "imagenet")
    shutil.move(tmp_path / "x", tmp_path / "imagenet")
    assert available(tmp_path) == []


# ------------------------------------------------------------------------------------------------ V2


def test_v2_folders_are_integers(tmp_path: Path) -> None:
    """Sorted as strings, "10" comes third of 0, 1, 10, and would get label 2."""
    labels = (0, 1, 2, 10, 100, 999)
    trees.write_v2(tmp_path, labels)
    source = open_imagenet("imagenet-v2", tmp_path)
    assert seen(source) == source.labels.tolist() == np.repeat(labels, 2).tolist()
    trees.write_v2(tmp_path / "all", range(1000), 1, size=8)
    source = open_imagenet("imagenet-v2", tmp_path / "all")
    assert seen(source) == list(range(1000))


def test_v2_of_the_release_with_wnids_is_the_same_set(tmp_path: Path) -> None:
    trees.write_v2(tmp_path / "a", (2, 10, 100))
    trees.write_v2(tmp_path / "b", (2, 10, 100), wnid_folders=True)
    numbered, named = (open_imagenet("imagenet-v2", tmp_path / root) for root in "ab")
    assert seen(named) == seen(numbered) == [2, 2, 10, 10, 100, 100]
    assert named.fingerprint == numbered.fingerprint and named.layout != numbered.layout


@pytest.mark.parametrize(("old", "new"), [("100", "1000"), ("100", wnids()[100]), ("100", "sharks")])
def test_v2_refuses_other_folders(tmp_path: Path, old: str, new: str) -> None:
    folder = trees.write_v2(tmp_path)
    (folder / old).rename(folder / new)
    with pytest.raises(DataError, match=f"folder {new} .*0..999"):
        open_imagenet("imagenet-v2", tmp_path)


@pytest.mark.parametrize(
    "folder",
    ["ImageNetV2-matched-frequency", "imagenetv2/imagenetv2-matched-frequency-format-val", "imagenet-v2", "imagenetv2"],
)
def test_where_v2_is_looked_for(tmp_path: Path, folder: str) -> None:
    move(trees.write_v2(tmp_path / "made"), tmp_path / "root" / folder)
    assert seen(open_imagenet("imagenet-v2", tmp_path / "root")) == [2, 2, 10, 10, 100, 100]
    assert seen(open_imagenet("imagenet-v2", tmp_path / "root" / folder)) == [2, 2, 10, 10, 100, 100]


# ------------------------------------------------------------------------------------------------ A, R, Sketch


@pytest.mark.parametrize(("name", "write"), [("imagenet-a", trees.write_a), ("imagenet-r", trees.write_r)])
def test_labels_of_a_and_r_are_of_all_1000_classes(tmp_path: Path, name: str, write) -> None:
    subset = class_subset(name)
    chosen = subset[[3, 50, 199]].tolist()  # far from 0..199: an index within the 200 would be another number
    write(tmp_path, chosen)
    source = open_imagenet(name, tmp_path)
    assert seen(source) == source.labels.tolist() == np.repeat(chosen, 2).tolist()
    assert max(chosen) > 199 and source.classes == wnids()
    assert source.stray == ("README.txt",)
    assert available(tmp_path) == [name]


@pytest.mark.parametrize(("name", "write"), [("imagenet-a", trees.write_a), ("imagenet-r", trees.write_r)])
def test_a_and_r_refuse_classes_outside_their_200(tmp_path: Path, name: str, write) -> None:
    folder = write(tmp_path)
    other = next(label for label in range(1000) if label not in class_subset(name))
    (folder / wnids()[class_subset(name)[0]]).rename(folder / wnids()[other])
    with pytest.raises(DataError, match=f"{wnids()[other]}, which is not one of the 200 classes"):
        open_imagenet(name, tmp_path)


@pytest.mark.parametrize(
    ("folder", "message"),
    [("n99999999", "1000 classes"), ("17", "WordNet id"), ("sharks", "no WordNet id"), ("n0144076", "no WordNet id")],
)
def test_sketch_and_unknown_class_folders(tmp_path: Path, folder: str, message: str) -> None:
    trees.write_sketch(tmp_path, CLASSES)
    assert seen(open_imagenet("imagenet-sketch", tmp_path)) == np.repeat(CLASSES, 2).tolist()
    (tmp_path / "sketch" / wnids()[11]).rename(tmp_path / "sketch" / folder)
    with pytest.raises(DataError, match=f"folder {folder}, .*{message}"):
        open_imagenet("imagenet-sketch", tmp_path)


def test_what_is_no_image_is_left_out_and_told(tmp_path: Path) -> None:
    folder = trees.write_sketch(tmp_path, CLASSES)
    before = open_imagenet("imagenet-sketch", tmp_path)
    for name in ("Thumbs.db", f"{wnids()[6]}/notes.txt", f"{wnids()[6]}/.hidden.JPEG", f"{wnids()[6]}/._sketch_0.JPEG"):
        (folder / name).write_bytes(b"")
    (folder / wnids()[6] / "broken link.JPEG").symlink_to("nowhere")
    (folder / "empty").mkdir()
    after = open_imagenet("imagenet-sketch", tmp_path)
    assert after.fingerprint == before.fingerprint
    assert after.stray == ("Thumbs.db", f"{wnids()[6]}/broken link.JPEG", f"{wnids()[6]}/notes.txt")


def test_an_image_that_vanished_is_named(tmp_path: Path) -> None:
    folder = trees.write_sketch(tmp_path, CLASSES)
    source = open_imagenet("imagenet-sketch", tmp_path)
    (folder / source.sample_name(3)).unlink()
    with pytest.raises(SampleError, match="sketch_1.JPEG"):
        source.read(3)


# ------------------------------------------------------------------------------------------------ all of them


def test_fingerprints_do_not_depend_on_the_root_or_the_order_of_files(tmp_path: Path, monkeypatch) -> None:
    def fingerprints(root: Path) -> dict[str, str]:
        cell = {"imagenet-c": {"corruption": "fog", "severity": 3}}
        return {name: open_imagenet(name, root, **cell.get(name, {})).fingerprint for name in available(root)}

    trees.write_imagenet_tree(tmp_path / "a", CLASSES)
    first = fingerprints(tmp_path / "a")
    assert list(first) == list(IMAGENET_SETS) and len(set(first.values())) == len(first) - 1  # ReaL's images are IN's
    shutil.copytree(tmp_path / "a", tmp_path / "deep" / "b")
    real_scandir = __import__("os").scandir

    class Reversed:
        def __init__(self, path) -> None:
            with real_scandir(path) as found:
                self.found = sorted(found, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.found)

        def __exit__(self, *_) -> None: ...

    monkeypatch.setattr("digpt.data.imagenet_sets.os.scandir", Reversed)
    assert fingerprints(tmp_path / "deep" / "b") == first
    monkeypatch.undo()
    move(tmp_path / "a/sketch" / wnids()[6] / "sketch_0.JPEG", tmp_path / "a/sketch" / wnids()[6] / "sketch_9.JPEG")
    changed = fingerprints(tmp_path / "a")
    assert [name for name in first if first[name] != changed[name]] == ["imagenet-sketch"]


@pytest.mark.parametrize("layout", trees.C_LAYOUTS)
def test_fingerprints_follow_the_sizes_of_the_files(tmp_path: Path, layout: trees.CLayout) -> None:
    """Pictures made anew under the old names: another size tells, in folders and in archives."""
    fingerprints = []
    for root, size in (("a", 8), ("b", 8), ("c", 64)):
        trees.write_c(tmp_path / root, CLASSES, layout=layout, corruptions=("fog",), severities=(3,), size=size)
        fog = open_imagenet("imagenet-c", tmp_path / root, corruption="fog", severity=3)
        assert fog.sizes.tolist() == [len(fog.read(index)[0]) for index in range(len(fog))]
        fingerprints.append(fog.fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    folder = trees.write_val(tmp_path / "a", CLASSES, layout="synset_labels")  # flat
    before = open_imagenet("imagenet", tmp_path / "a")
    path = next(folder.rglob("ILSVRC2012_val_*.JPEG"))
    path.write_bytes(path.read_bytes() + b"0")
    assert open_imagenet("imagenet", tmp_path / "a").fingerprint != before.fingerprint


def test_a_missing_set_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ImageNet-A was not found under .*imagenet-a, .*hendrycks"):
        open_imagenet("imagenet-a", tmp_path)
    (tmp_path / "imagenet-a.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"imagenet-a.tar is there, but has to be unpacked"):
        open_imagenet("imagenet-a", tmp_path)
    (tmp_path / "imagenet-sketch").mkdir()
    with pytest.raises(DataError, match=r"imagenet-sketch is there, but holds no class folders"):
        open_imagenet("imagenet-sketch", tmp_path)
    with pytest.raises(DataError, match="no folder"):
        open_imagenet("imagenet-a", tmp_path / "nowhere")
    with pytest.raises(DataError, match="'imagenet-v2'"):
        open_imagenet("imagenet-v3", tmp_path)
    with pytest.raises(ConfigError, match="only imagenet-c"):
        open_imagenet("imagenet", tmp_path, corruption="fog", severity=1)


def test_the_training_images(tmp_path: Path) -> None:
    trees.write_train(tmp_path, CLASSES, 3)
    source = training_folder(tmp_path)
    assert source.labels is not None and source.classes == wnids()
    assert source.labels.tolist() == np.repeat(CLASSES, 3).tolist()  # not 0, 0, 0, 1, ...
    assert shown(source.read(11)[0]) == 848
    with pytest.raises(DataError, match="train/<wnid>"):
        training_folder(tmp_path / "imagenet" / "train" / wnids()[6])
